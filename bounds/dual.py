"""Lower bounds with free multipliers: what can be chosen, and the bound for one choice.

A backward walk is a lower bound for *any* lower slope in [0, 1] of an unstable ReLU, any multiplier >= 0 of a split
and any weights >= 0 of a clause's literals. A ``Dual`` is such a problem, ``Multipliers`` are one choice, and
``evaluate`` is one walk: in search without error terms, in a decision with them. ``ascent.py`` looks for good choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import LinearBounds, Split, State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.layouts import Owner
from bounds.ops.base import Line, Relaxation
from bounds.ops.relu import Relu
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


@dataclass(frozen=True, slots=True, eq=False)
class Multipliers:
    """What the ascent varies, row by row: ``slopes[node]`` ``[R, *shape]`` of ReLU nodes, ``betas[node]``
    ``[R, *shape]`` (>= 0) of split pre-activations (keyed by the pre-activation), ``weights`` ``[R, L]``."""

    slopes: Mapping[int, Tensor]
    betas: Mapping[int, Tensor]
    weights: Tensor

    def take(self, index: Tensor, dtype: torch.dtype) -> Multipliers:
        """Those of some rows, in another dtype."""
        return Multipliers(
            {n: s[index].to(dtype) for n, s in self.slopes.items()},
            {n: b[index].to(dtype) for n, b in self.betas.items()},
            self.weights[index].to(dtype),
        )

    def copy(self) -> Multipliers:
        """The same values in tensors of their own."""
        slopes = {n: s.clone() for n, s in self.slopes.items()}
        return Multipliers(slopes, {n: b.clone() for n, b in self.betas.items()}, self.weights.clone())


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """A bounding problem whose multipliers are free: R objectives at ``target`` over a state with one box per row.

    ``signs[node]`` ``[R, *shape]`` in {-1, 0, 1} says on which side of 0 a pre-activation is split.
    """

    plan: Plan
    state: State
    target: int
    objective: Objective
    signs: Mapping[int, Tensor]


def evaluate(dual: Dual, multipliers: Multipliers) -> tuple[LinearBounds, Tensor]:
    """One walk with given multipliers: the lines (with their trace) and the lower bound ``[R]``.

    With a rounding model the bound is true in exact arithmetic, whatever the multipliers are.
    """
    plan, target = dual.plan, dual.target
    objective = replace(dual.objective, weights=multipliers.weights)
    rows, rhs = objective.combined()
    state = replace(
        with_slopes(dual.state, multipliers.slopes),
        charges=_charges(plan, dual.state, multipliers.slopes),
        splits={node: Split(multipliers.betas[node] * sign) for node, sign in dual.signs.items()},
    )
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


def _charges(plan: Plan, state: State, slopes: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    """The state's charges, enlarged by one rounding of ``coefficient * slope`` for slopes up to 1 that it never saw."""
    charges = dict(state.charges)
    for node in slopes:
        if plan.rounding is not None and node in charges:
            size = state.sizes[plan.graph.nodes[node].inputs[0]].reshape(charges[node].shape)
            charges[node] = charges[node] + plan.rounding.affine(2, size)
    return charges


def by_rows(state: State, owner: Tensor | None) -> State:
    """A state with one box per row: that of its owner (None: there is one box for each row already)."""
    if owner is None:
        return state

    def take(values: Tensor) -> Tensor:
        return values.expand(owner.shape[0], *values.shape[1:]) if values.shape[0] == 1 else values[owner]

    def line(value: Line) -> Line:
        return Line(tuple(take(s) for s in value.slopes), take(value.offset))

    relaxations = {node: Relaxation((line(r.lower[0]),), (line(r.upper[0]),)) for node, r in state.relaxations.items()}
    box = Box(take(state.box.lower), take(state.box.upper))
    ball = None if state.ball is None else state.ball.take(owner)
    return replace(state, box=box, relaxations=relaxations, ball=ball)


def with_slopes(state: State, slopes: Mapping[int, Tensor]) -> State:
    """The same state with other lower slopes of ReLU nodes (their lower lines keep the offset 0)."""
    relaxations = dict(state.relaxations)
    for node, slope in slopes.items():
        upper = relaxations[node].upper
        relaxations[node] = Relaxation((Line((slope,), relaxations[node].lower[0].offset),), upper)
    return replace(state, relaxations=relaxations)


def initial(plan: Plan, state: State) -> dict[int, Tensor]:
    """The lower slopes that the state's own lines have, for every ReLU node (``state`` with one box per row)."""
    return {
        node: relaxation.lower[0].slopes[0].clone()
        for node, relaxation in state.relaxations.items()
        if isinstance(plan.graph.nodes[node].op, Relu)
    }


def recast(plan: Plan, state: State) -> State:
    """A state's bounds in another plan's dtype, its lines made anew there and without charges: for search only."""
    bounds = {n: (low.to(plan.dtype), high.to(plan.dtype)) for n, (low, high) in state.bounds.items()}
    relaxations: dict[int, Relaxation] = {}
    for node in state.relaxations:
        relax(plan, bounds, plan.graph.nodes[node], relaxations, {})
    ball = None if state.ball is None else state.ball.to(plan.dtype)
    return State(state.box.to(plan.dtype), bounds, relaxations, {}, {}, state.floor.to(plan.dtype), ball=ball)
