"""Which element to split next, and where, in networks of any operators.

The score of an element is what lines of the operators that read it lose in the middle of its interval, at the bound's
own coefficients. Of an operator with several operands, or one that mixes elements, it is how fast that loss falls with
the width of the element's interval, by automatic differentiation of the operator's lines. Of the best few, each at the
point that the operator proposes, both children are bounded (``scores.filtered``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from bounds.dual import Dual, evaluate
from bounds.layouts import flat
from bounds.ops.base import Interval, Nonlinear
from bounds.plan import Plan
from bounds.propagate import loose
from verifier.branch.point_splits import PointRoot
from verifier.branch.positions import wide
from verifier.branch.scores import filtered
from verifier.branch.splits import Splits


def aimed(root: PointRoot, plan: Plan, batch: Splits, candidates: int) -> Splits:
    """The subproblems with the next split of each and its point; ``next`` is -1 where nothing is left to split."""
    if not batch.size or not root.positions.count:
        return replace(batch, next=torch.full_like(batch.next, -1))
    parts = torch.arange(batch.size, device=batch.clause.device).split(root.most)
    return Splits.cat([_aimed(root, plan, batch.take(part), candidates) for part in parts])


def _aimed(root: PointRoot, plan: Plan, batch: Splits, candidates: int) -> Splits:
    """At the slopes that lines have of themselves (``scores.py`` says why)."""
    plain = replace(batch, slopes=torch.full_like(batch.slopes, torch.nan))
    dual, _ = root.dual(plan, plain)
    lines, bound = evaluate(dual, root.multipliers(dual, root.started(plain), plain.betas, plain.weights))
    score = losses_at_points(root, dual, lines.trace)
    tried = score.topk(min(max(1, 2 * candidates), score.shape[1]), 1).indices
    points = _points(root, dual, tried)
    tried = torch.where((score.gather(1, tried) >= 0) & points.isfinite(), tried, -1)
    first = torch.where(tried >= 0, torch.arange(tried.shape[1], 0, -1, device=tried.device), 0).argmax(1, keepdim=True)
    place = first
    if candidates:

        def look(many: Splits) -> Tensor:
            return torch.cat([found.bound for found in root.ascended(plan, many, 0, 0.0)])

        chosen = filtered(look, plain, bound, tried, tried.gather(1, first)[:, 0], points)
        place = (tried == chosen.unsqueeze(1)).long().argmax(1, keepdim=True)
    return replace(batch, next=tried.gather(1, place)[:, 0], point=points.gather(1, place)[:, 0])


def losses_at_points(root: PointRoot, dual: Dual, trace: Mapping[int, Tensor]) -> Tensor:
    """``[K, U]``: what is lost at each position, -1 where there is nothing to split."""
    plan, bounds, count = dual.plan, dual.state.bounds, dual.state.box.size
    found = torch.zeros((count, root.positions.count), dtype=plan.dtype, device=plan.device)
    for node, rows in trace.items():
        for before, lost in _lost(plan, dual, node, rows).items():
            for place in root.positions.places:
                if place.before == before:
                    found[:, place.columns] += torch.nan_to_num(place.get(lost), 0.0, 0.0, 0.0).clamp(min=0)
    for place in root.positions.places:
        low, high = bounds[place.before]
        free = loose(plan, bounds, place.before, (low, high)) & wide(low, high)
        found[:, place.columns] = torch.where(place.get(free), found[:, place.columns], -1.0)
    return found


def _lost(plan: Plan, dual: Dual, node: int, rows: Tensor) -> dict[int, Tensor]:
    """By operand of a relaxed node, ``[K, *its shape]``: what the lines lose there with coefficient ``rows``."""
    op, inputs = plan.graph.nodes[node].op, plan.graph.nodes[node].inputs
    assert isinstance(op, Nonlinear)
    ends = plan.ends(node, dual.state.bounds)
    places = [k for k, constant in enumerate(plan.operands[node]) if constant is None]
    if op.elementwise and len(places) == 1 and plan.graph.nodes[inputs[places[0]]].shape == rows.shape[1:]:
        return {inputs[places[0]]: _gap(op, ends, places, rows)}
    lows, highs = ([ends[k][side].expand(rows.shape[0], *ends[k][side].shape[1:]) for k in places] for side in (0, 1))
    with torch.enable_grad():
        lows, highs = ([e.detach().clone().requires_grad_() for e in side] for side in (lows, highs))
        moved = list(ends)
        for k, low, high in zip(places, lows, highs, strict=True):
            moved[k] = low, high
        total = _gap(op, moved, places, rows).sum()
        if not total.requires_grad:
            return {}
        slopes = torch.autograd.grad(total, [*lows, *highs], allow_unused=True)
    found: dict[int, Tensor] = {}
    for k, low, high, fall, rise in zip(places, lows, highs, slopes[: len(lows)], slopes[len(lows) :], strict=True):
        zero = torch.zeros_like(low)
        rate = (zero if rise is None else rise) - (zero if fall is None else fall)
        lost = (rate * (high - low) / 2).detach()
        found[inputs[k]] = found[inputs[k]] + lost if inputs[k] in found else lost
    return found


def _gap(op: Nonlinear, ends: list[Interval], places: list[int], rows: Tensor) -> Tensor:
    """``A+ (f - lower line) + A- (f - upper line)`` in the middle of all intervals, ``[K, *node shape]``."""
    lines = op.relaxation(ends, None)
    middle = [low / 2 + high / 2 if k in places else low for k, (low, high) in enumerate(ends)]
    parameters = [m[0] if k in op.parameters else m for k, m in enumerate(middle)]
    value, variables = op.forward(*parameters), [middle[k] for k in places]
    below, above = (op.along(line.slopes, variables) + line.offset for line in (lines.lower[0], lines.upper[0]))
    return rows.clamp(min=0) * (value - below) + rows.clamp(max=0) * (value - above)


def _points(root: PointRoot, dual: Dual, tried: Tensor) -> Tensor:
    """``[K, T]`` float32: where the first operator that reads a position would split it, strictly inside its interval;
    NaN where it would not."""
    plan = dual.plan
    points = torch.full(tried.shape, torch.nan, dtype=torch.float32, device=tried.device)
    for place in root.positions.places:
        mine = ((tried >= place.columns.start) & (tried < place.columns.stop)).nonzero(as_tuple=True)
        if not mine[0].shape[0]:
            continue
        elements = place.elements[tried[mine] - place.columns.start]
        low, high = (flat(end)[mine[0], elements] for end in dual.state.bounds[place.before])
        found = torch.full_like(low, torch.nan)
        for consumer in plan.consumers[place.before]:
            op = plan.graph.nodes[consumer].op
            if isinstance(op, Nonlinear):
                found = torch.where(found.isnan(), op.split_point(low, high), found)
        found = found.float()
        points[mine] = torch.where((found > low) & (found < high), found, torch.nan)
    return points
