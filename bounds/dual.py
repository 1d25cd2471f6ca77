"""Lower bounds with free multipliers: what can be chosen, and the bound for one choice.

A backward walk is a lower bound for *any* parameters of the lines around relaxed nodes (the lower slope of an unstable
ReLU, both slopes of a sigmoid, the weights of a maximum), any multiplier >= 0 of a split and any weights >= 0 of a
clause's literals. A ``Dual`` is such a problem, ``Multipliers`` are one choice, and
``evaluate`` is one walk: in search without error terms, in a decision with them. ``ascent.py`` looks for good choices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds import machine
from bounds.backward import LinearBounds, Split, State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.interval import relaxed_charge
from bounds.layouts import Owner
from bounds.ops.base import Freedom, Interval, Line, Nonlinear, Parameters, Relaxation
from bounds.plan import Plan
from bounds.propagate import relax


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """R weighted sums of L literals over a target node: ``sum_l weights[r, l] (rows[r, l] . target - rhs[r, l])``.

    ``rows`` ``[R, L, *shape]``, ``rhs`` ``[R, L]``, ``weights`` ``[R, L]`` (>= 0, each row sums to 1; literals that
    are absent have weight 0 and a zero row).
    """

    rows: Tensor
    rhs: Tensor
    weights: Tensor

    @staticmethod
    def single(rows: Tensor) -> Objective:
        """Plain rows ``[R, *shape]`` with right-hand side 0."""
        one = rows.new_ones((rows.shape[0], 1))
        return Objective(rows.unsqueeze(1), torch.zeros_like(one), one)

    def combined(self) -> tuple[Tensor, Tensor]:
        """``(rows [R, *shape], rhs [R])`` of the weighted sums."""
        if self.rows.shape[1] == 1:
            return self.rows[:, 0], self.rhs[:, 0]
        weights = self.weights.reshape(*self.weights.shape, *[1] * (self.rows.ndim - 2))
        return (weights * self.rows).sum(1), (self.weights * self.rhs).sum(1)


Slopes = Mapping[int, Parameters]
"""Parameters of the lower and the upper line of relaxed nodes, row by row: ``[R, *shape]`` or None."""


@dataclass(frozen=True, slots=True, eq=False)
class Multipliers:
    """What the ascent varies, row by row: ``slopes`` of relaxed nodes, ``betas[node]`` ``[R, *shape]`` of split
    pre-activations (keyed by the pre-activation; >= 0, but of either sign where it has ``Dual.halves``), ``weights``
    ``[R, L]``."""

    slopes: Slopes
    betas: Mapping[int, Tensor]
    weights: Tensor

    def take(self, index: Tensor, dtype: torch.dtype) -> Multipliers:
        """Those of some rows, in another dtype."""
        return Multipliers(
            {n: each(pair, lambda s: s[index].to(dtype)) for n, pair in self.slopes.items()},
            {n: b[index].to(dtype) for n, b in self.betas.items()},
            self.weights[index].to(dtype),
        )


def each(pair: Parameters, change: Callable[[Tensor], Tensor]) -> Parameters:
    """Both sides' parameters changed; None stays None."""
    below, above = pair
    return None if below is None else change(below), None if above is None else change(above)


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """A bounding problem whose multipliers are free: R objectives at ``target`` over a state with one box per row.

    ``signs[node]`` ``[R, *shape]`` in {-1, 0, 1} says on which side of 0 a pre-activation is split. ``halves[node]``
    are half-spaces at any points, ``low <= node <= high`` (infinite where there is none): of two multipliers at one
    element one is 0 at the best choice, so one number says both, the one of ``low`` if positive, else minus that of
    ``high``.
    """

    plan: Plan
    state: State
    target: int
    objective: Objective
    signs: Mapping[int, Tensor]
    halves: Mapping[int, Interval] = field(default_factory=dict)

    def take(self, index: Tensor) -> Dual:
        """Some of the rows."""
        whole = self.objective
        objective = Objective(whole.rows[index], whole.rhs[index], whole.weights[index])
        signs = {node: sign[index] for node, sign in self.signs.items()}
        halves = {node: (low[index], high[index]) for node, (low, high) in self.halves.items()}
        state = by_rows(self.plan, self.state, index)
        return replace(self, state=state, objective=objective, signs=signs, halves=halves)

    def beta_range(self, node: int, betas: Tensor) -> Interval:
        """The least and the greatest multiplier of each half-space of a node."""
        low, high = torch.zeros_like(betas), torch.full_like(betas, torch.inf)
        if node not in self.halves:
            return low, high
        first, last = self.halves[node]
        return torch.where(last < torch.inf, -torch.inf, low), torch.where(first > -torch.inf, high, 0.0)

    def rise(self, node: int, values: Tensor, betas: Tensor) -> Tensor:
        """The bound's derivatives by the multipliers of a node, for its values at the minimising corner; where a
        multiplier of two is 0, towards the half-space that the value lies outside of."""
        if node not in self.halves:
            return -self.signs[node] * values
        low, high = self.halves[node]
        nearest = torch.minimum(torch.maximum(values, low), high)
        return torch.where(betas > 0, low, torch.where(betas < 0, high, nearest)) - values

    def splits(self, betas: Mapping[int, Tensor]) -> dict[int, Split]:
        """The half-spaces with these multipliers."""
        found = {node: Split(betas[node] * sign) for node, sign in self.signs.items()}
        for node, (low, high) in self.halves.items():
            least, greatest = self.beta_range(node, betas[node])
            signed = torch.minimum(torch.maximum(betas[node], least), greatest)
            point = torch.where(signed > 0, low, torch.where(signed < 0, high, 0.0))
            found[node] = Split(signed, point)
        return found


def evaluate(dual: Dual, multipliers: Multipliers, lined: State | None = None) -> tuple[LinearBounds, Tensor]:
    """One walk with given multipliers: the lines (with their trace) and the lower bound ``[R]``.

    ``lined``: the state with the lines of their slopes, where it is at hand.

    With a rounding model the bound is true in exact arithmetic, whatever the multipliers are.
    """
    plan, target = dual.plan, dual.target
    objective = replace(dual.objective, weights=multipliers.weights)
    rows, rhs = objective.combined()
    state = with_slopes(plan, dual.state, multipliers.slopes) if lined is None else lined
    state = replace(state, splits=dual.splits(multipliers.betas))
    lines = backward(plan, state, target, rows, Owner(None, rows.shape[0], 1), trace=True)
    bound = concretize(plan, lines, state.box, state.ball) - rhs
    if plan.rounding is not None:
        literals = objective.rhs.shape[1]
        size = (objective.weights * objective.rhs.abs()).sum(1)
        if literals > 1:  # the combined rows round too, seen at the size of the target
            mass = (objective.weights.unsqueeze(-1) * objective.rows.flatten(2).abs()).sum(1)
            size = size + mass @ state.sizes[target].flatten()
        bound = plan.rounding.down(bound - plan.rounding.affine(literals + 4, size))
    return lines, bound


def by_rows(plan: Plan, state: State, owner: Tensor | None) -> State:
    """A state with one box per row: that of its owner (None: there is one box for each row already).

    Of the intervals only those that relaxed nodes read go along."""
    if owner is None:
        return state

    def take(values: Tensor) -> Tensor:
        return values.expand(owner.shape[0], *values.shape[1:]) if values.shape[0] == 1 else values[owner]

    def line(value: Line) -> Line:
        return Line(tuple(take(s) for s in value.slopes), take(value.offset))

    relaxations = {node: Relaxation((line(r.lower[0]),), (line(r.upper[0]),)) for node, r in state.relaxations.items()}
    box = Box(take(state.box.lower), take(state.box.upper))
    ball = None if state.ball is None else state.ball.take(owner)
    bounds = {node: (take(low), take(high)) for node, (low, high) in state.bounds.items() if node in plan.watched}
    return replace(state, box=box, bounds=bounds, relaxations=relaxations, ball=ball)


def with_slopes(plan: Plan, state: State, slopes: Slopes) -> State:
    """The same state with the lines that other parameters give, and with the charges of those lines.

    In search (no rounding model) a lower line through 0 takes its slope as it is given.
    """
    relaxations, charges = dict(state.relaxations), dict(state.charges)
    for node, (below, above) in slopes.items():
        op, old = plan.graph.nodes[node].op, relaxations[node]
        assert isinstance(op, Nonlinear)
        if plan.rounding is None and op.through_origin and below is not None:
            relaxations[node] = Relaxation((Line((below,), old.lower[0].offset),), old.upper)
            continue
        ends = plan.ends(node, state.bounds)
        relaxations[node] = op.relaxation(ends, plan.rounding, (below, above))
        if plan.rounding is not None:
            constants = plan.operands[node]
            variables = [end for end, c in zip(ends, constants, strict=True) if c is None]
            charges[node] = relaxed_charge(plan.rounding, op, relaxations[node], variables)
            charges[node] = machine.added(plan, plan.graph.nodes[node], state.bounds, charges[node])
    return replace(state, relaxations=relaxations, charges=charges)


def freedoms(plan: Plan, state: State) -> dict[int, tuple[Freedom | None, Freedom | None]]:
    """What may be chosen at each relaxed node where something may, ``[N, *shape]``; it starts at the state's own lines
    where these are known by their slope."""
    found: dict[int, tuple[Freedom | None, Freedom | None]] = {}
    for node in sorted(state.relaxations):
        op = plan.graph.nodes[node].op
        assert isinstance(op, Nonlinear)
        sides = op.freedom(plan.ends(node, state.bounds))
        if sides != (None, None):
            found[node] = sides
    return found


def initial(plan: Plan, state: State) -> dict[int, Parameters]:
    """The parameters that the state's own lines have (``state`` with one box per row), in tensors of their own."""
    count = state.box.size

    def full(side: Freedom | None, node: int) -> Tensor | None:
        return None if side is None else side.start.expand(count, *plan.graph.nodes[node].shape).clone()

    return {node: (full(low, node), full(high, node)) for node, (low, high) in freedoms(plan, state).items()}


def recast(plan: Plan, state: State) -> State:
    """A state's bounds in another plan's dtype, its lines made anew there and without charges: for search only."""
    bounds = {n: (low.to(plan.dtype), high.to(plan.dtype)) for n, (low, high) in state.bounds.items()}
    relaxations: dict[int, Relaxation] = {}
    for node in state.relaxations:
        relax(plan, bounds, plan.graph.nodes[node], relaxations, {})
    ball = None if state.ball is None else state.ball.to(plan.dtype)
    return State(state.box.to(plan.dtype), bounds, relaxations, {}, {}, state.floor.to(plan.dtype), ball=ball)
