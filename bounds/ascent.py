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
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.backward import LinearBounds, State
from bounds.concretize import minimiser
from bounds.dual import Dual, Multipliers, Objective, by_rows, evaluate, initial, recast, with_slopes
from bounds.layouts import Selection
from bounds.ops.base import Nonlinear
from bounds.plan import Plan
from bounds.propagate import Tighten, chunk_rows


@dataclass(frozen=True, slots=True, eq=False)
class Ascended:
    """The best bound ``[R]`` of each row, the multipliers that give it, the corner ``[R, *input shape]`` that
    attains the last walk's bound, and the coefficient rows of the last walk at nonlinear nodes."""

    bound: Tensor
    multipliers: Multipliers
    corner: Tensor
    trace: Mapping[int, Tensor]


def ascend(dual: Dual, start: Multipliers, steps: int, rate: float = 0.1) -> Ascended:
    """``steps`` ascent steps (Adam, decaying rate) from ``start``; 0 steps: one walk with ``start`` as it is.

    Ends early when every row has reached a positive bound.
    """
    current = start.copy()
    variables = [*current.slopes.values(), *current.betas.values(), current.weights]
    moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in variables]
    best: Ascended | None = None
    for step in range(steps + 1):
        lines, bound = evaluate(dual, current)
        corner = minimiser(lines, dual.state.box, dual.state.ball)
        best = _better(best, Ascended(bound, current.copy(), corner, lines.trace))
        if step == steps or bool((best.bound > 0).all()):
            break
        gradients = _gradients(dual, current, lines, corner)
        _adam(variables, gradients, moments, rate * 0.97**step, len(current.slopes), step)
    assert best is not None
    return best


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


def _gradients(dual: Dual, current: Multipliers, lines: LinearBounds, corner: Tensor) -> list[Tensor]:
    """Gradients in the order slopes, betas, weights, from one forward pass of the corner."""
    plan = dual.plan
    values = primal(plan, with_slopes(dual.state, current.slopes), dual.target, lines.trace, corner)
    slopes = []
    for node, slope in current.slopes.items():
        before = values[plan.graph.nodes[node].inputs[0]]
        rows = lines.trace.get(node)
        # A stable neuron's line is exact as it stands (its upper offset is 0): only the unstable ones move.
        unstable = dual.state.relaxations[node].upper[0].offset > 0
        slopes.append(torch.zeros_like(slope) if rows is None else rows.clamp(min=0) * before * unstable)
    betas = [-dual.signs[node] * values[node] for node in current.betas]
    weights = (dual.objective.rows * values[dual.target].unsqueeze(1)).flatten(2).sum(2) - dual.objective.rhs
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
        assert isinstance(node.op, Nonlinear)
        variables = [o for o, c in zip(operands, constants, strict=True) if c is None]
        below, above = (node.op.along(line.slopes, variables) + line.offset for line in (lower, upper))
        total = torch.where(positive, below, above)
        values[node.id] = total
    return values


def _adam(
    variables: list[Tensor],
    gradients: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    rate: float,
    slopes: int,
    step: int,
) -> None:
    """One in-place step of Adam upward, then the projection: the first ``slopes`` variables to [0, 1], the last (the
    weights) to a simplex, the betas between them to >= 0."""
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


def optimised(search: Plan, steps: int, until: float = math.inf) -> Tighten:
    """A ``Tighten`` that lets every row ascend for itself in the plan ``search`` (no error terms), then decides with
    one walk of the given plan. Stable neurons stop early: a positive bound is all that is asked of a row.

    Rows whose turn comes after ``until`` (``time.monotonic()``) are left as they are (-inf: nothing gained).
    """

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        rough = recast(search, state)
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        step = max(1, chunk_rows(plan) // 4)
        for first in range(0, owner.shape[0], step):
            if time.monotonic() > until:
                break
            part = slice(first, first + step)
            rows = Selection(units.index[part], units.sign[part], units.shape).dense()
            dual = Dual(search, by_rows(rough, owner[part]), node, Objective.single(rows.to(search.dtype)), {})
            start = Multipliers(initial(search, dual.state), {}, dual.objective.weights)
            found = ascend(dual, start, steps).multipliers
            proof = Dual(plan, by_rows(state, owner[part]), node, Objective.single(rows), {})
            _, result[part] = evaluate(proof, found.take(torch.arange(rows.shape[0]), plan.dtype))
        return result

    return tighten
