"""A mixed-integer linear program as plain arrays, and what a solver says about one.

A model is a value. Its rows are stored as the solvers take them (compressed rows), and every column knows which element
of which node of the graph it stands for, so that a branch on a neuron, a start from a point and a readable name are all
found without a search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the worker process says its status without loading torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Minimise ``cost . x + offset`` over ``row_lower <= A x <= row_upper`` and ``lower <= x <= upper``.

    C columns, R rows: ``start`` ``[R + 1]``, ``index`` ``[E]``, ``value`` ``[E]`` are A by rows (int64, int64,
    float64; no column twice in a row). ``integer`` ``[C]``: columns that take whole numbers only. All column ends are
    finite and proven: the network's value lies between them for every input in the box. For each input the network's
    values (with suitable values of the other columns) satisfy every row to within ``row_error`` ``[R]``, so a lower
    bound of the model with rows widened by ``row_error`` is one of the network. ``exact``: and nothing else satisfies
    the rows (no envelope is among them).

    ``node, element`` ``[C]``: what a column stands for; an auxiliary column (a phase) has the node whose block it
    belongs to and ``element`` -1 - k, the k-th of its block. ``columns``: for every node in the model the column of
    each of its elements ``[elements]`` in C order (several elements may share one; -1: the element is 0).
    """

    cost: Tensor
    offset: float
    start: Tensor
    index: Tensor
    value: Tensor
    row_lower: Tensor
    row_upper: Tensor
    row_error: Tensor
    lower: Tensor
    upper: Tensor
    integer: Tensor
    node: Tensor
    element: Tensor
    columns: Mapping[int, Tensor]
    exact: bool = True


class Status(Enum):
    """How a solver's run ended. None of them is a proof."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    STOPPED = "stopped"  # the bound or an incumbent reached what was asked for
    LIMIT = "limit"  # time, or another limit
    FAILED = "failed"


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """``value``: of the best point found, ``x`` ``[C]`` (inf, None: none); ``bound``: the solver's lower bound of the
    minimum (-inf: none), not a proof. For linear programs ``dual`` ``[R]``: multipliers of the rows, positive at a
    lower side and negative at an upper one, of the optimum or, where it is infeasible, of a ray. ``reason`` says why
    it failed.
    """

    status: Status
    value: float
    bound: float
    x: Tensor | None = None
    dual: Tensor | None = None
    reason: str = ""
