"""What a solver's multipliers prove, whatever the solver was: rigorous bounds of a linear program from row multipliers.

For any numbers y, one for each row, and any x within the column ends, ``cost . x = (cost - A'y) . x + y . (A x)``; the
first part is least at a corner of the column ends, and the rows bound the second. So any y gives a lower bound, and it
is the solver's optimum where y is the solver's dual (Neumaier and Shcherbina, Safe bounds in linear and mixed-integer
programming, Mathematical Programming 99, 2004; Jansson, Rigorous lower and upper bounds in linear programming, SIAM J.
Optim. 14, 2004). Here it is evaluated in float64, every rounding charged outward, and with the rows as wide as the
model says that the network's values may need. No multiplier has to be feasible, and a poor one costs tightness only.

Nothing is rounded to whole numbers here: the ends of integer columns count as they are given, whole or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bounds.rounding import Rounding
from milp.model import Model

BATCH = 64
"""Leaves that are proven again at a time."""


def lower_bound(model: Model, dual: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> float:
    """A proven lower bound of the minimum of ``model`` with rows widened by ``row_error`` and column ends ``lower,
    upper`` ``[C]`` (default: the model's), from any multipliers ``dual`` ``[R]``, positive at a row's lower side.

    At most ``sum_j min over [lower_j, upper_j] of (cost - A'y)_j x_j + sum_i y_i+ (row_lower_i - row_error_i) - y_i-
    (row_upper_i + row_error_i) + offset`` in real arithmetic, y being ``dual`` with 0 where it asks for an infinite
    side. -inf where a multiplier, or anything else that enters, is not finite. Raises ``ValueError`` where a lower end
    exceeds its upper end.
    """
    low, high = (model.lower if lower is None else lower), (model.upper if upper is None else upper)
    return float(Prover.of(model).bounds(dual[None], low[None], high[None]))


def refuted(model: Model, ray: Tensor, lower: Tensor | None = None, upper: Tensor | None = None) -> bool:
    """Whether the multipliers ``ray`` ``[R]`` prove that no x within the column ends satisfies the widened rows: the
    bound of ``lower_bound`` for the cost 0 exceeds 0 (Farkas' lemma)."""
    return lower_bound(without_cost(model), ray, lower, upper) > 0


def without_cost(model: Model) -> Model:
    """The same rows with nothing to minimise."""
    return replace(model, cost=torch.zeros_like(model.cost), offset=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Prover:
    """A model made ready to bound it from many multipliers: ``row`` ``[E]`` of each entry, the ``count`` of entries in
    the longest column, and the rows' sides and errors ``[R]`` with 0 in place of an infinite side, which ``has_lower,
    has_upper`` ``[R]`` (0 or 1) leave out."""

    model: Model
    row: Tensor
    count: int
    has_lower: Tensor
    has_upper: Tensor
    row_lower: Tensor
    row_upper: Tensor

    @staticmethod
    def of(model: Model) -> Prover:
        """Of any model."""
        rows, low, high = model.row_lower.shape[0], model.row_lower.isfinite(), model.row_upper.isfinite()
        return Prover(
            model,
            torch.repeat_interleave(torch.arange(rows), model.start.diff()),
            int(torch.bincount(model.index, minlength=1).max()),
            low.double(),
            high.double(),
            torch.where(low, model.row_lower, 0.0),
            torch.where(high, model.row_upper, 0.0),
        )

    def bounds(self, dual: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """``lower_bound`` ``[N]`` for ``dual`` ``[N, R]``, ``lower, upper`` ``[N, C]``."""
        if not bool((lower <= upper).all()):
            raise ValueError("a column's lower end exceeds its upper end (or one of them is not a number)")
        model, rounding = self.model, Rounding.of(torch.float64)
        # An infinite multiplier of a side that is not there becomes nan here, and the bound -inf.
        above, below = dual.double().clamp(min=0) * self.has_lower, dual.double().clamp(max=0) * self.has_upper
        products = model.value * (above + below)[:, self.row]
        cost = model.cost.expand(dual.shape[0], -1)
        reduced = cost.index_add(1, model.index, products, alpha=-1)
        error = rounding.affine(self.count + 1, cost.abs().index_add(1, model.index, products.abs()))
        corner = torch.minimum(reduced * lower, reduced * upper)
        unsure = -error * torch.maximum(lower.abs(), upper.abs())
        sides = [above * self.row_lower, below * self.row_upper, (below - above) * model.row_error]
        terms = torch.cat([corner, unsure, *sides, torch.full_like(corner[:, :1], model.offset)], 1)
        bound = terms.sum(1) - rounding.affine(terms.shape[1], terms.abs().sum(1))
        return torch.where(bound.isfinite(), bound, -torch.inf)

    def weight(self, dual: Tensor) -> Tensor:
        """``[C]``: the sum over rows of ``|entry * multiplier|``, for ``dual`` ``[R]``; no bound."""
        sizes = (self.model.value * dual[self.row]).abs()
        return torch.zeros_like(self.model.cost).index_add_(0, self.model.index, sizes)


class Split(NamedTuple):
    """One side of a split of an integer column: ``x <= value``, or ``up``: ``x >= value + 1``."""

    column: int
    value: int
    up: bool

    def other(self) -> Split:
        """The side that together with this one covers all whole numbers."""
        return self._replace(up=not self.up)


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A closed subproblem: the splits that lead to it from the root, and multipliers ``[R]`` that bound it from below
    or, where it is a ``ray``, refute it."""

    splits: tuple[Split, ...]
    dual: Tensor
    ray: bool = False


def ends(model: Model, splits: Iterable[Split]) -> tuple[Tensor, Tensor]:
    """Column ends ``[C]`` of ``model`` after splits. Those of integer columns are first widened to whole numbers, so
    that a split between them leaves neither side without a point."""
    lower = torch.where(model.integer, model.lower.floor(), model.lower)
    upper = torch.where(model.integer, model.upper.ceil(), model.upper)
    for column, value, up in splits:
        if up:
            lower[column] = max(float(lower[column]), value + 1)
        else:
            upper[column] = min(float(upper[column]), value)
    return lower, upper


def leaves(model: Model, closed: Sequence[Leaf], prover: Prover | None = None) -> float:
    """A lower bound of the minimum of ``model`` with rows widened by ``row_error`` and whole values in integer columns,
    proven by the leaves of a search alone: the least that ``lower_bound`` and ``refuted`` prove of one.

    -inf where the leaves do not cover the column ends: where they are not those of a binary tree of splits of integer
    columns at whole numbers. ``prover``: of a model of the same rows, whose making is then saved.
    """
    if not covers(model, [leaf.splits for leaf in closed]):
        return -math.inf
    return least(model, closed, prover)


def least(model: Model, closed: Sequence[Leaf], prover: Prover | None = None) -> float:
    """The least that ``lower_bound`` and ``refuted`` prove of one of these leaves; inf where there are none."""
    lowest = math.inf
    own = Prover.of(model) if prover is None else replace(prover, model=model)
    for ray, prover in ((False, own), (True, replace(own, model=without_cost(model)))):
        kind = [leaf for leaf in closed if leaf.ray == ray]
        for first in range(0, len(kind), BATCH):
            part = kind[first : first + BATCH]
            lower, upper = (torch.stack(e) for e in zip(*(ends(model, leaf.splits) for leaf in part), strict=True))
            bound = prover.bounds(torch.stack([leaf.dual for leaf in part]), lower, upper)
            lowest = min(lowest, float((torch.where(bound > 0, math.inf, -math.inf) if ray else bound).min()))
    return lowest


def covers(model: Model, paths: Sequence[tuple[Split, ...]]) -> bool:
    """Whether every point with whole values in the integer columns satisfies all splits of one of ``paths``."""
    integer = set(model.integer.nonzero().flatten().tolist())
    groups = [(list(paths), 0)]
    while groups:
        group, depth = groups.pop()
        if any(len(path) == depth for path in group):
            continue
        first = {path[depth][:2] for path in group}
        sides = [[path for path in group if path[depth].up == up] for up in (False, True)]
        if len(first) != 1 or not all(sides):
            return False
        ((column, value),) = first
        if column not in integer or not float(value).is_integer() or abs(value) >= 2**53:
            return False
        groups += [(side, depth + 1) for side in sides]
    return True
