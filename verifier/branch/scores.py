"""Which neuron to split next: cheap scores for all, and a look at both children of the best few.

The intercept score is what the upper line of an unstable ReLU loses at the bound's own coefficients, ``-A- t``. BaBSR
(Bunel et al., JMLR 2020) adds what the constant part b of the pre-activation would change,
``|min(b A (s - 1), b A s) + A- t|``. Neither sees how the children's bounds turn out, so of the best few by each both
children are bounded by one walk (filtered smart branching, De Palma et al., 2021), and the product of what they gain
decides.

All of this happens at the slopes that the lines have of themselves, not at those of the ascent: there a neuron whose
slope happens to suit the bound of the moment seems to lose nothing, however much it matters. (Measured on a clause of
mnist_fc 256x4: 230 subproblems to the proof, and none within 19,000 with the slopes of the ascent.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bounds.ops.base import Interval
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.condensed_splits import settled
from verifier.branch.positions import Place
from verifier.branch.splits import Splits, children

LOOKED_AT = 512
"""Children bounded at once."""

LEAST_GAIN = 1e-3
"""A child that gains nothing counts as if it had gained so much of what is missing: then the other child decides."""

Look = Callable[[Splits], Tensor]
"""Bounds ``[K]`` of subproblems at their stored multipliers."""


def chosen(bounding: Bounding, batch: Splits, plain: Tensor, candidates: int) -> Tensor:
    """``[K]``: the position to split of each subproblem, -1 where none is left.

    ``plain`` ``[1, U]`` are the root's own lower slopes; ``candidates`` by each score are looked at (0: none, the
    intercept score decides).
    """
    if not batch.size or not bounding.positions.count:
        return torch.full_like(batch.clause, -1)
    batch = replace(batch, slopes=plain.to(batch.slopes.dtype).expand(batch.size, -1))
    found = bounding.ascended(batch, 0)
    scores = losses(bounding, batch, found)
    best, at = scores[0].max(1)
    first = torch.where(best >= 0, at, -1)
    if not candidates:
        return first
    return filtered(lambda many: bounding.ascended(many, 0).bound, batch, found.bound, _best(scores, candidates), first)


def losses(bounding: Bounding, batch: Splits, found: Bounded) -> tuple[Tensor, Tensor]:
    """``[K, U]`` twice: intercept and BaBSR scores; -1 where the sign of a position is known."""
    plan, positions = bounding.rough, bounding.positions
    shape = (batch.size, positions.count)
    intercept, smart = (torch.zeros(shape, dtype=plan.dtype, device=plan.device) for _ in range(2))
    for place in positions.places:
        low, high = _ends(bounding, batch, place)
        slope = torch.where((low < 0) & (high > 0), high / (high - low), 0.0)
        constant = plan.offset.get(place.before)
        for relu in place.relus:
            if relu not in found.rows:
                continue
            rows = found.rows[relu]
            lost = rows.clamp(max=0) * (slope * low)
            intercept[:, place.columns] += lost
            part = rows * (place.get(constant.unsqueeze(0)) if constant is not None else 0.0)
            smart[:, place.columns] += (torch.minimum(part * (slope - 1), part * slope) - lost).abs()
    free = settled(batch.signs, batch.known) == 0
    return torch.where(free, intercept, -1.0), torch.where(free, smart, -1.0)


def _ends(bounding: Bounding, batch: Splits, place: Place) -> Interval:
    """Intervals ``[K or 1, E]`` of a place's positions."""
    plan = bounding.rough
    if batch.known is not None:
        low, high = (end[:, place.columns].to(plan.dtype) for end in batch.known)
    else:
        low, high = (place.get(end).to(plan.dtype) for end in bounding.positions.root.bounds[place.before])
    return low, high


def _best(scores: tuple[Tensor, Tensor], count: int) -> Tensor:
    """``[K, 2 count]``: the best positions by each score, each once; -1 where there is none."""
    (value, one), (other, two) = (score.topk(min(count, score.shape[1]), 1) for score in scores)
    one, two = torch.where(value >= 0, one, -1), torch.where(other >= 0, two, -1)
    again = (two.unsqueeze(2) == one.unsqueeze(1)).any(2)
    return torch.cat([one, two.masked_fill(again, -1)], 1)


def filtered(
    look: Look, batch: Splits, bound: Tensor, tried: Tensor, first: Tensor, points: Tensor | None = None
) -> Tensor:
    """``[K]``: of the positions ``tried`` ``[K, T]`` (-1: none) the one whose children gain most over ``bound`` ``[K]``
    by ``look``; ``first`` where there is none. ``points`` ``[K, T]``: where they would be split, if not at 0."""
    row, column = (tried >= 0).nonzero(as_tuple=True)
    if not row.shape[0]:
        return first
    pieces = []
    for part in torch.arange(row.shape[0], device=row.device).split(LOOKED_AT // 2):
        at = tried[row[part], column[part]]
        parents = replace(batch.take(row[part]), next=at)
        if points is not None:
            parents = replace(parents, point=points[row[part], column[part]])
        pieces.append(look(children(parents)).reshape(2, -1))
    missing = -bound[row].clamp(max=0)
    gains = (torch.cat(pieces, 1) - bound[row]).minimum(missing)
    value = gains.maximum(LEAST_GAIN * missing).prod(0)
    table = torch.full(tried.shape, -torch.inf, dtype=value.dtype, device=value.device)
    table[row, column] = torch.nan_to_num(value, nan=0.0)
    best, at = table.max(1)
    return torch.where(best > -torch.inf, tried.gather(1, at.unsqueeze(1))[:, 0], first)
