"""Boxes with few elements that are not linear, closed exactly: splits of phases, down to linear programs.

Splits of inputs alone do not close every box of a piecewise linear network: around a minimum where several neurons
have their kinks, some of them stay undecided in every box, however small. Splits of phases end after finitely many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Alpha, Box, Crown, compute_bounds
from bounds.compute import Method
from bounds.ops.base import UnsupportedOperatorError
from milp.encode import UnboundedError, encode, with_cost
from milp.exact import Goal, Search, SearchState
from milp.simplex import Simplex
from verifier.anytime.bounding import Function


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """``sign * f`` on one box as a program: the ``search`` over it, and the ``point`` ``[n]`` of a solution."""

    search: Search
    point: Callable[[Tensor], Tensor]

    @staticmethod
    def of(function: Function, ends: tuple[Tensor, Tensor], sign: float, gap: float, method: Method) -> Program:
        """Of a box with ``ends`` ``[1, n]``; neurons are bounded by ``method``. Raises ``UnsupportedOperatorError`` for
        an operator without an exact form, ``UnboundedError`` for a neuron without finite bounds."""
        prepared, domain = function.prepared, function.domain
        part = domain.part(*ends)
        known = compute_bounds(prepared, part, method)
        output, shape = prepared.plan.output, prepared.plan.graph.nodes[prepared.plan.output].shape
        encoded = encode(prepared, part if isinstance(part, Box) else part.box(), known)
        model = with_cost(encoded, output, torch.full(shape, sign, dtype=torch.float64))
        inputs = model.columns[prepared.plan.input]

        def point(x: Tensor) -> Tensor:
            return domain.inside(x[inputs].clamp(ends[0][0], ends[1][0]).unsqueeze(0))[0]

        goal = Goal(gap=gap / 2, evaluate=lambda x: sign * float(function.values(point(x).unsqueeze(0))))
        return Program(Search(model, Simplex(model), goal), point)

    def run(self, state: SearchState, value: float, nodes: int) -> SearchState:
        """A state after at most so many further linear programs, where ``value`` is attained somewhere."""
        last = state.nodes + nodes
        state = state if value >= state.value else replace(state, value=value, x=None)
        while not self.search.finished(state) and state.nodes < last:
            state = self.search.step(state)
        return state


def program_of_all(function: Function, sign: float, gap: float) -> Program | None:
    """The program of the whole region; None where an operator has no exact form."""
    try:
        return Program.of(function, function.domain.ends(), sign, gap, Alpha())
    except (UnsupportedOperatorError, UnboundedError):
        return None


def encodable(function: Function) -> bool:
    """Whether the function has an exact form: asked of a single point of the region."""
    low, high = function.domain.ends()
    middle = function.domain.inside(low / 2 + high / 2)
    try:
        Program.of(function, (middle, middle), 1.0, 1.0, Crown())
    except (UnsupportedOperatorError, UnboundedError):
        return False
    return True
