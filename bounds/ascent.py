"""Dual ascent without autograd: better slopes, split multipliers and literal weights for a few forward passes.

A backward walk is a lower bound for any lower slope ``a`` in [0, 1] of an unstable ReLU, any multiplier
``beta >= 0`` of a split and any weights ``lambda >= 0`` of a clause's literals. Its gradient needs no tape: run the
minimising corner of the box forward through the *selected* lines (lower where the coefficient was positive, upper
where it was negative); with the pre-activation ``z`` of that pass

    d bound / d a_j = A_j+ z_j        d bound / d beta_j = -sign_j z_j        d bound / d lambda_k = g_k - rhs_k

(the envelope theorem; the same pass gives branching scores and a point to try as a counterexample). The bound is not
concave in the slopes of several layers together, so the best iterate is kept. Nothing here carries error terms: what
counts is one deciding pass afterwards with the slopes, multipliers and weights found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import LinearBounds, Split, State, backward, concretize
from bounds.box import Box
from bounds.layouts import Owner, Selection
from bounds.ops.base import Line, Relaxation
from bounds.ops.relu import Relu
from bounds.plan import Plan
from bounds.propagate import Tighten, chunk_rows, relax


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


@dataclass(frozen=True, slots=True, eq=False)
class Ascended:
    """The best bound ``[R]`` of each row, the multipliers that give it, the corner ``[R, *input shape]`` that
    attains the last walk's bound, and the coefficient rows of the last walk at nonlinear nodes."""

    bound: Tensor
    multipliers: Multipliers
    corner: Tensor
    trace: Mapping[int, Tensor]


def by_rows(state: State, owner: Tensor | None) -> State:
    """A state with one box per row: that of its owner (None: there is one box for each row already)."""
    if owner is None:
        return state

    def take(values: Tensor) -> Tensor:
        return values.expand(owner.shape[0], *values.shape[1:]) if values.shape[0] == 1 else values[owner]

    def line(value: Line) -> Line:
        return Line(tuple(take(s) for s in value.slopes), take(value.offset))

    relaxations = {
        node: Relaxation((line(r.lower[0]),), (line(r.upper[0]),)) for node, r in state.relaxations.items()
    }
    box = Box(take(state.box.lower), take(state.box.upper))
    return replace(state, box=box, relaxations=relaxations)


def with_slopes(state: State, slopes: Mapping[int, Tensor]) -> State:
    """The same state with other lower slopes of ReLU nodes (their lower lines keep the offset 0)."""
    relaxations = dict(state.relaxations)
    for node, slope in slopes.items():
        upper = relaxations[node].upper
        relaxations[node] = Relaxation((Line((slope,), relaxations[node].lower[0].offset),), upper)
    return replace(state, relaxations=relaxations)


def evaluate(
    plan: Plan, state: State, target: int, objective: Objective, multipliers: Multipliers, signs: Mapping[int, Tensor]
) -> tuple[LinearBounds, Tensor]:
    """One walk with given multipliers: the lines and the lower bound ``[R]`` (true with a rounding model).

    ``state`` has one box per row; ``signs[node]`` ``[R, *shape]`` in {-1, 0, 1} says on which side of 0 a
    pre-activation is split.
    """
    rows, rhs = replace(objective, weights=multipliers.weights).combined()
    splits = {node: Split(multipliers.betas[node] * sign) for node, sign in signs.items()}
    count = rows.shape[0]
    chosen = replace(with_slopes(state, multipliers.slopes), charges=_charges(plan, state, multipliers.slopes))
    lines = backward(plan, chosen, target, rows, Owner(None, count, 1), splits=splits, trace=True)
    bound = concretize(plan, lines, state.box) - rhs
    if plan.rounding is not None:
        literals = objective.rhs.shape[1]
        size = (multipliers.weights * objective.rhs.abs()).sum(1)
        if literals > 1:  # the combined rows round too, seen at the size of the target
            size = size + ((multipliers.weights.unsqueeze(-1) * objective.rows.flatten(2).abs()).sum(1) @ state.sizes[target].flatten())
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


def ascend(
    plan: Plan,
    state: State,
    target: int,
    objective: Objective,
    start: Multipliers,
    signs: Mapping[int, Tensor],
    steps: int,
    rate: float = 0.1,
) -> Ascended:
    """``steps`` ascent steps (Adam, decaying rate) from ``start``; 0 steps: one walk with ``start`` as it is.

    Rows whose bound is positive already stop moving. ``state`` has one box per row.
    """
    current = Multipliers(
        {n: s.clone() for n, s in start.slopes.items()}, {n: b.clone() for n, b in start.betas.items()}, start.weights.clone()
    )
    variables = [*current.slopes.values(), *current.betas.values(), current.weights]
    moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in variables]
    best: Ascended | None = None
    for step in range(steps + 1):
        lines, bound = evaluate(plan, state, target, objective, current, signs)
        corner = minimiser(lines, state.box)
        best = _better(best, Ascended(bound, _copy(current), corner, lines.trace))
        if step == steps or bool((best.bound > 0).all()):
            break
        gradients = _gradients(plan, state, target, objective, current, signs, lines, corner)
        _adam(variables, gradients, moments, step, rate * 0.97**step, len(current.slopes))
    assert best is not None
    return best


def minimiser(lines: LinearBounds, box: Box) -> Tensor:
    """The corner of each row's box where its line is least, ``[R, *input shape]``."""
    return torch.where(lines.rows > 0, box.lower, box.upper)


def _copy(m: Multipliers) -> Multipliers:
    return Multipliers({n: s.clone() for n, s in m.slopes.items()}, {n: b.clone() for n, b in m.betas.items()}, m.weights.clone())


def _better(best: Ascended | None, new: Ascended) -> Ascended:
    """Row by row the better bound's multipliers; trace and corner follow the better rows too."""
    if best is None:
        return new
    gain = new.bound > best.bound

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(gain.reshape(-1, *[1] * (a.ndim - 1)), b, a)

    old, fresh = best.multipliers, new.multipliers
    return Ascended(
        pick(best.bound, new.bound),
        Multipliers(
            {n: pick(s, fresh.slopes[n]) for n, s in old.slopes.items()},
            {n: pick(b, fresh.betas[n]) for n, b in old.betas.items()},
            pick(old.weights, fresh.weights),
        ),
        pick(best.corner, new.corner),
        {n: pick(t, new.trace[n]) for n, t in best.trace.items() if n in new.trace},
    )


def _gradients(
    plan: Plan,
    state: State,
    target: int,
    objective: Objective,
    current: Multipliers,
    signs: Mapping[int, Tensor],
    lines: LinearBounds,
    corner: Tensor,
) -> list[Tensor]:
    """Gradients in the order slopes, betas, weights, from one forward pass of the corner."""
    values = primal(plan, with_slopes(state, current.slopes), target, lines.trace, corner)
    slopes = []
    for node, slope in current.slopes.items():
        before = values[plan.graph.nodes[node].inputs[0]]
        rows = lines.trace.get(node)
        # A stable neuron's line is exact as it stands (its upper offset is 0): only the unstable ones move.
        unstable = state.relaxations[node].upper[0].offset > 0
        slopes.append(torch.zeros_like(slope) if rows is None else rows.clamp(min=0) * before * unstable)
    betas = [-signs[node] * values[node] for node in current.betas]
    at = values[target].unsqueeze(1)
    weights = (objective.rows * at).flatten(2).sum(2) - objective.rhs
    return [*slopes, *betas, weights]


def primal(plan: Plan, state: State, target: int, trace: Mapping[int, Tensor], corner: Tensor) -> dict[int, Tensor]:
    """Values of all nodes up to ``target`` when the corner runs forward through the selected lines."""
    values: dict[int, Tensor] = {plan.input: corner}
    for node in plan.graph.nodes[: target + 1]:
        if node.id == plan.input or node.id not in plan.operands:
            continue
        constants = plan.operands[node.id]
        operands = [values[i] if c is None else c for i, c in zip(node.inputs, constants, strict=True)]
        rows = trace.get(node.id)
        if node.id in plan.affine or rows is None:
            values[node.id] = node.op.forward(*operands)
            continue
        relaxation = state.relaxations[node.id]
        lower, upper = relaxation.lower[0], relaxation.upper[0]
        positive = rows > 0
        total = torch.where(positive, lower.offset, upper.offset)
        variables = [o for o, c in zip(operands, constants, strict=True) if c is None]
        for operand, below, above in zip(variables, lower.slopes, upper.slopes, strict=True):
            total = total + torch.where(positive, below, above) * operand
        values[node.id] = total
    return values


def _adam(
    variables: list[Tensor],
    gradients: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    step: int,
    rate: float,
    slopes: int,
) -> None:
    """One in-place step of Adam upward, then the projection: slopes to [0, 1], betas to >= 0, weights to a simplex."""
    first, second = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
    for k, (variable, gradient, (mean, square)) in enumerate(zip(variables, gradients, moments, strict=True)):
        mean.mul_(0.9).add_(gradient, alpha=0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        update = (mean / first) / ((square / second).sqrt_().add_(1e-8))
        if k == len(variables) - 1:
            if variable.shape[1] > 1:
                present = variable > 0
                variable.add_(update * present, alpha=rate).clamp_(min=1e-4).mul_(present)
                variable.div_(variable.sum(1, keepdim=True).clamp(min=1e-30))
            continue
        variable.add_(update, alpha=rate).clamp_(min=0)
        if k < slopes:
            variable.clamp_(max=1)


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
    return State(state.box.to(plan.dtype), bounds, relaxations, {}, {}, state.floor.to(plan.dtype))


def optimised(search: Plan, steps: int, until: float = math.inf) -> Tighten:
    """A ``Tighten`` that lets every row ascend for itself in the plan ``search`` (no error terms), then decides with
    one walk of the given plan. Stable neurons stop early: a positive bound is all that is asked of a row.

    Rows whose turn comes after ``until`` (``time.monotonic()``) are left as they are (-inf: nothing gained).
    """

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        rough = recast(search, state)
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        step = max(1, chunk_rows(plan) // 4)
        for start in range(0, owner.shape[0], step):
            if time.monotonic() > until:
                break
            part = slice(start, start + step)
            rows = Selection(units.index[part], units.sign[part], units.shape).dense()
            mine = by_rows(rough, owner[part])
            objective = Objective.single(rows.to(search.dtype))
            begin = Multipliers(initial(search, mine), {}, objective.weights)
            slopes = ascend(search, mine, node, objective, begin, {}, steps).multipliers.slopes
            exact = Multipliers({n: s.to(plan.dtype) for n, s in slopes.items()}, {}, rows.new_ones((rows.shape[0], 1)))
            _, result[part] = evaluate(plan, by_rows(state, owner[part]), node, Objective.single(rows), exact, {})
        return result

    return tighten
