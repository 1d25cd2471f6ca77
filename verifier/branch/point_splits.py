"""Subproblems whose elements are split at any points, bounded over the whole graph: for networks of any operators.

An element z of whatever an operator reads is split at a point p, ``z >= p`` or ``z <= p``, as often as wanted (GenBaB,
Shi et al., TACAS 2025). The operator's lines on the smaller interval are closer, and the half-spaces enter the bound
with multipliers; what a split says of later elements is carried forward by intervals. Which lines an ascent has chosen
is kept as one row of numbers, the parameters of all elements that have a choice at the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ascent import ascend
from bounds.dual import Dual, Multipliers, Objective, evaluate, freedoms, initial
from bounds.layouts import flat
from bounds.ops.base import Interval, Nonlinear
from bounds.plan import Plan
from verifier.branch.positions import Positions
from verifier.branch.splits import Splits

ELEMENTS = 1 << 23
"""Elements of all nodes of the subproblems that are bounded at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """Parameters of one side (0 below, 1 above) of a relaxed ``node``: their ``columns`` of P, the flat ``elements``
    they belong to, and the ``positions`` ``[E]`` that they are the lines of (-1: none, or elements are mixed).
    ``share``: they lie between 0 and 1 (``Nonlinear.through_origin``)."""

    node: int
    side: int
    columns: slice
    elements: Tensor
    positions: Tensor
    share: bool

    @staticmethod
    def of(plan: Plan, positions: Positions, node: int, side: int, first: int, elements: Tensor) -> Side:
        """From column ``first`` on."""
        op = plan.graph.nodes[node].op
        assert isinstance(op, Nonlinear)
        columns = slice(first, first + elements.shape[0])
        return Side(node, side, columns, elements, _positions(plan, positions, node, elements), op.through_origin)


@dataclass(frozen=True, slots=True, eq=False)
class PointBounds:
    """K subproblems after an ascent in the search's plan, ``bound`` ``[K]``: with the ``slopes`` ``[K, P]``, ``betas``
    ``[K, U]`` and ``weights`` ``[K, L]`` that give it, and the minimising ``corner`` ``[K, *input shape]``."""

    bound: Tensor
    slopes: Tensor
    betas: Tensor
    weights: Tensor
    corner: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PointRoot:
    """The bounding problems of one box: ``rows`` ``[C, L, F]`` and ``rhs`` ``[C, L]`` of C clauses; ``plain`` ``[P]``:
    the parameters of the root's own lines."""

    positions: Positions
    sides: tuple[Side, ...]
    rows: Tensor
    rhs: Tensor
    plain: Tensor
    most: int

    @staticmethod
    def of(plan: Plan, positions: Positions, rows: Tensor, rhs: Tensor) -> PointRoot:
        """``plan``: for search."""
        none = torch.full((1, positions.count), torch.inf, device=plan.device)
        state, _ = positions.between(plan, -none, none)
        sides, start, first = list[Side](), list[Tensor](), 0
        for node, pair in freedoms(plan, state).items():
            for k, side in enumerate(pair):
                if side is None:
                    continue
                shape = (1, *plan.graph.nodes[node].shape)
                free = (side.greatest > side.least).expand(shape).flatten().nonzero().flatten()
                sides.append(Side.of(plan, positions, node, k, first, free))
                start.append(side.start.expand(shape).flatten()[free])
                first = sides[-1].columns.stop
        plain = torch.cat(start) if start else none.new_zeros(0)
        return PointRoot(positions, tuple(sides), rows, rhs, plain, at_once(plan))

    @staticmethod
    def proving(plan: Plan, positions: Positions, rows: Tensor, rhs: Tensor, sides: tuple[Side, ...]) -> PointRoot:
        """To decide with given parameters alone, not to search: those of ``sides``."""
        count = sides[-1].columns.stop if sides else 0
        return PointRoot(positions, sides, rows, rhs, rhs.new_full((count,), torch.nan), at_once(plan))

    @property
    def shares(self) -> Tensor:
        """``[P]`` bool: parameters that lie between 0 and 1."""
        found = torch.zeros_like(self.plain, dtype=torch.bool)
        for side in self.sides:
            found[side.columns] = side.share
        return found

    def dual(self, plan: Plan, batch: Splits) -> tuple[Dual, Tensor]:
        """The bounding problems of some subproblems, and ``[K]`` bool: those known to be empty."""
        state, empty = self.positions.between(plan, batch.low, batch.high)
        rows, rhs = self.rows[batch.clause].to(plan.dtype), self.rhs[batch.clause].to(plan.dtype)
        low, high = batch.low.to(plan.dtype), batch.high.to(plan.dtype)
        split, halves = (low > -torch.inf) | (high < torch.inf), dict[int, Interval]()
        for place in self.positions.places:
            if place.before != plan.input and bool(split[:, place.columns].any()):
                far = low.new_full((1, *plan.graph.nodes[place.before].shape), torch.inf)
                halves[place.before] = place.put(-far, low[:, place.columns]), place.put(far, high[:, place.columns])
        objective = Objective(rows, rhs, batch.weights.to(plan.dtype))
        return Dual(plan, state, plan.output, objective, {}, halves), empty

    def multipliers(self, dual: Dual, slopes: Tensor, betas: Tensor, weights: Tensor) -> Multipliers:
        """Written out: given parameters (NaN: those of the state's own lines) and multipliers of the half-spaces."""
        plan, found = dual.plan, initial(dual.plan, dual.state)
        for side in self.sides:
            own = found[side.node][side.side]
            assert own is not None
            given, values = slopes[:, side.columns].to(plan.dtype), flat(own)
            values[:, side.elements] = torch.where(given.isnan(), values[:, side.elements], given)
        dense = {}
        for place in self.positions.places:
            if place.before in dual.halves:
                zero = torch.zeros_like(dual.halves[place.before][0])
                dense[place.before] = place.put(zero, betas[:, place.columns])
        return Multipliers(found, dense, weights.to(plan.dtype))

    def ascended(self, plan: Plan, batch: Splits, steps: int, rate: float) -> tuple[PointBounds, ...]:
        """At most ``steps`` steps from the stored multipliers, in parts of at most ``most`` subproblems."""
        every = torch.arange(batch.size, device=batch.clause.device)
        return tuple(self._ascended(plan, batch.take(part), steps, rate) for part in every.split(self.most))

    def started(self, batch: Splits) -> Tensor:
        """``[K, P]``: the stored parameters, NaN where an element has been split (its lines are others now)."""
        split = (batch.low > -torch.inf) | (batch.high < torch.inf)
        slopes = batch.slopes.to(torch.float32, copy=True)
        for side in self.sides if self.positions.count else ():
            fresh = split[:, side.positions.clamp(min=0)] & (side.positions >= 0)
            slopes[:, side.columns].masked_fill_(fresh, torch.nan)
        return slopes

    def _ascended(self, plan: Plan, batch: Splits, steps: int, rate: float) -> PointBounds:
        dual, _ = self.dual(plan, batch)  # without error terms, contradictions mean nothing
        start = self.multipliers(dual, self.started(batch), batch.betas, batch.weights)
        found = ascend(dual, start, steps, rate)
        chosen = found.multipliers
        slopes = found.bound.new_zeros((batch.size, self.plain.shape[0]))
        for side in self.sides:
            values = chosen.slopes[side.node][side.side]
            assert values is not None
            slopes[:, side.columns] = flat(values)[:, side.elements]
        betas = found.bound.new_zeros((batch.size, self.positions.count))
        for place in self.positions.places:
            if place.before in chosen.betas:
                betas[:, place.columns] = place.get(chosen.betas[place.before])
        return PointBounds(found.bound, slopes, betas, chosen.weights, found.corner)

    def decided(self, plan: Plan, batch: Splits, slopes: Tensor, betas: Tensor, weights: Tensor) -> Tensor:
        """``[K]``: lower bounds in exact arithmetic, from one walk with these multipliers; infinite where bounds alone
        say that there is no input."""
        parts = list[Tensor]()
        for part in torch.arange(batch.size, device=batch.clause.device).split(self.most):
            dual, empty = self.dual(plan, batch.take(part))
            bound = evaluate(dual, self.multipliers(dual, slopes[part], betas[part], weights[part]))[1]
            parts.append(torch.where(empty, torch.inf, torch.nan_to_num(bound, nan=-torch.inf)))
        return torch.cat(parts) if parts else self.rhs.new_zeros(0)


def at_once(plan: Plan) -> int:
    """How many subproblems are walked over the whole graph at once."""
    return max(1, ELEMENTS // max(1, plan.elements))


def _positions(plan: Plan, positions: Positions, node: int, elements: Tensor) -> Tensor:
    """The position of each element of an elementwise node's first operand."""
    this, first = plan.graph.nodes[node], plan.graph.nodes[plan.graph.nodes[node].inputs[0]]
    found = torch.full((math.prod(this.shape),), -1, dtype=torch.int64, device=plan.device)
    assert isinstance(this.op, Nonlinear)
    for place in positions.places:
        if this.op.elementwise and place.before == first.id and first.shape == this.shape:
            found[place.elements] = torch.arange(place.columns.start, place.columns.stop, device=plan.device)
    return found[elements]


def in_16_bits(values: Tensor) -> Tensor:
    """Multipliers as they are kept (any value is sound)."""
    return values.clamp(-6e4, 6e4).to(torch.float16)
