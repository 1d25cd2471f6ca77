"""The minimum of an affine form over a set of inputs: a box, an Lp ball, or what both have in common.

For a row ``A`` and any split of it into two parts, ``A = B + C``, every x of the box ``[l, u]`` and of the ball
``|x - c|_p <= r`` has

    A x  >=  B+ l + B- u  +  C c - r |C|_q              (1/p + 1/q = 1),

since the first part is least at a corner of the box and the second one is bounded by the dual norm. Every split is
sound; the best one attains the minimum over the intersection (Fenchel duality). ``C = 0`` is the box alone and
``B = 0`` the ball alone; between them

- p = 1: ``C = clamp(A, -t, t)``, where t is the coefficient at which the radius is spent when the inputs move to their
  ends in the order of their coefficients (the greedy solution);
- p = 2: the minimiser is ``d = clip(-m A, l - c, u - c)`` with the multiplier m at which its length is r, and
  ``C = -d / m``: equal to ``A`` where the box does not cut. m is found by Newton's method in ``m^2``, in a bracket.

So only the value needs error terms: how t and m were found does not matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.backward import LinearBounds
from bounds.box import Box, LpBall
from bounds.layouts import Owner, dot, flat
from bounds.plan import Plan
from bounds.rounding import Rounding

STEPS = 12
"""Newton steps for the multiplier of an L2 ball that a box cuts."""


def concretize(plan: Plan, lines: LinearBounds, box: Box, ball: LpBall | None = None) -> Tensor:
    """``[R]``: the least value of each line on its owner's box, and where ``ball`` is given on what the two have in
    common; with a rounding model a true lower bound, else the minimum up to rounding."""
    rows = flat(lines.rows)
    value = _over_box(lines.owner, rows, box)
    result = _decided(plan, lines, value, _box_size(rows, box), rows.shape[1])
    if ball is None or ball.p == math.inf:
        return result
    part = split(lines.owner, rows, box, ball).part.reshape(rows.shape)
    rest = rows - part
    value = _over_box(lines.owner, rest, box) + dot(lines.owner, part, ball.centre)
    reach = _dual_norm(part, ball.p, plan.rounding) * _each(lines.owner, ball.radius, rows.shape[0])
    size = _box_size(rest, box) + part.abs() @ flat(ball.centre.abs().amax(0, keepdim=True))[0] + reach
    return torch.maximum(result, _decided(plan, lines, value - reach, size, 2 * rows.shape[1]))


def minimiser(lines: LinearBounds, box: Box, ball: LpBall | None = None) -> Tensor:
    """A point ``[R, *input shape]`` of each row's set where its line is least (up to rounding)."""
    rows = flat(lines.rows)
    viewed, low = lines.owner.of(flat(box.lower), rows)
    _, high = lines.owner.of(flat(box.upper), rows)
    if ball is None or ball.p == math.inf:
        return torch.where(viewed > 0, low, high).reshape(lines.rows.shape)
    _, centre = lines.owner.of(flat(ball.centre), rows)
    step = split(lines.owner, rows, box, ball).step
    return torch.minimum(torch.maximum(centre + step, low), high).reshape(lines.rows.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """For R rows ``[R, n]``: the ``part`` C that the ball takes, and the ``step`` from its centre to the minimiser."""

    part: Tensor
    step: Tensor


def split(owner: Owner, rows: Tensor, box: Box, ball: LpBall) -> Parts:
    """The best split of rows ``[R, n]`` between their box and their ball (p = 1 or 2); see the module."""
    viewed, centre = owner.of(flat(ball.centre), rows)
    low = owner.of(flat(box.lower), rows)[1] - centre
    high = owner.of(flat(box.upper), rows)[1] - centre
    radius = owner.of(ball.radius.unsqueeze(1), rows)[1]
    return _split_one(viewed, low, high, radius) if ball.p == 1 else _split_two(viewed, low, high, radius)


def _split_one(rows: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Parts:
    """Greedy: the largest coefficients first, each input to its end, until the radius is spent."""
    low, high = low.expand(rows.shape), high.expand(rows.shape)
    base = torch.zeros_like(rows).clamp(low, high)  # what a box that misses the centre takes in any case
    end = torch.where(rows > 0, low, torch.where(rows < 0, high, base))
    size, order = rows.abs().sort(dim=-1, descending=True)
    cost = (end.abs() - base.abs()).gather(-1, order)
    left = radius - base.abs().sum(-1, keepdim=True)
    spent = cost.cumsum(-1)
    short = spent >= left
    first = torch.where(short.any(-1, keepdim=True), short.long().argmax(-1, keepdim=True), rows.shape[-1] - 1)
    within = ~short.any(-1, keepdim=True)  # the corner of the box is in the ball: the box alone decides
    level = torch.where(within, 0.0, size.gather(-1, first))
    part = torch.minimum(torch.maximum(rows, -level), level)
    part = torch.where(low > 0, -level, torch.where(high < 0, level, part))
    place = torch.arange(rows.shape[-1], device=rows.device).expand_as(order)
    before = (left - (spent - cost)).clamp(min=0)
    share = torch.where((place < first) | within, 1.0, 0.0)
    partial = (before / torch.where(cost > 0, cost, 1.0)).clamp(max=1)
    share = torch.where((place == first) & ~within, partial, share)
    moved = torch.zeros_like(rows).scatter(-1, order, share)
    return Parts(part, base + moved * (end - base))


def _split_two(rows: Tensor, low: Tensor, high: Tensor, radius: Tensor) -> Parts:
    """The multiplier at which the clipped step has the length of the radius."""
    most = rows.detach().abs().amax(-1, keepdim=True)
    scaled = rows.detach() / torch.where(most > 0, most, 1.0)
    square, wanted = scaled * scaled, radius * radius
    total = square.sum(-1, keepdim=True)
    m2 = wanted / torch.where(total > 0, total, 1.0)
    least, greatest = torch.zeros_like(m2), torch.full_like(m2, math.inf)
    for _ in range(STEPS):
        far = -scaled * m2.sqrt()
        free = (far > low) & (far < high)
        step = torch.minimum(torch.maximum(far, low), high)
        fixed = torch.where(free, 0.0, step * step).sum(-1, keepdim=True)
        slope = (square * free).sum(-1, keepdim=True)
        under = fixed + slope * m2 <= wanted
        least, greatest = torch.where(under, m2, least), torch.where(under, greatest, m2)
        target = (wanted - fixed) / torch.where(slope > 0, slope, 1.0)
        # Where nothing is free and radius is left, a longer step changes nothing (or frees another input).
        target = torch.where(slope > 0, target, m2 * 4)
        middle = torch.where(torch.isinf(greatest), m2 * 4, (least + greatest) / 2)
        m2 = torch.where((target >= least) & (target <= greatest), target, middle)
    multiplier = m2.sqrt()
    far = -scaled * multiplier
    free = (far >= low) & (far <= high)
    step = torch.minimum(torch.maximum(far, low), high)
    cut = -step / torch.where(multiplier > 0, multiplier, 1.0) * most
    return Parts(torch.where(free, rows, cut), step)


def _over_box(owner: Owner, rows: Tensor, box: Box) -> Tensor:
    return dot(owner, rows.clamp(min=0), box.lower) + dot(owner, rows.clamp(max=0), box.upper)


def _box_size(rows: Tensor, box: Box) -> Tensor:
    """``|rows| m``, with the largest absolute value m of each input over all boxes."""
    return rows.abs() @ torch.maximum(box.lower.abs(), box.upper.abs()).amax(0).flatten()


def _each(owner: Owner, values: Tensor, rows: int) -> Tensor:
    """Values ``[N]`` of the boxes for each of their rows, ``[R]``."""
    if owner.index is not None:
        return values.expand(rows) if values.shape[0] == 1 else values[owner.index]
    return values.repeat_interleave(rows // values.shape[0])


def _dual_norm(part: Tensor, p: float, rounding: Rounding | None) -> Tensor:
    """``|part|_q`` by rows, rounded up; scaled by the largest element so that no square overflows or vanishes."""
    most = part.abs().amax(1)
    if p == 1:
        return most
    scale = torch.where(most > 0, most, torch.ones_like(most)).detach()
    length = (part / scale.unsqueeze(1)).square().sum(1)
    length = torch.where(length > 0, length, 1.0).sqrt() * scale * (most > 0)
    if rounding is None:
        return length
    # Relative errors of the quotients, squares, sum, root and product; subnormal quotients are far below the sum >= 1.
    return rounding.up(length * (1 + rounding.gamma(part.shape[1] + 8)))


def _decided(plan: Plan, lines: LinearBounds, value: Tensor, size: Tensor, terms: int) -> Tensor:
    """``value + bias`` less all that rounding can have added: ``size`` is the sum of the absolute products."""
    value = value + lines.bias
    if plan.rounding is None:
        return value
    gamma = plan.rounding.gamma(terms + 8)
    error = lines.error + size * (gamma * (1 + 2 * gamma)) + (terms + 8) * 4 * plan.rounding.tiny
    # Overflow on the way (NaN, or a sum that became +inf) says nothing about the true value.
    result = plan.rounding.down(value - error * (1 + 8 * plan.rounding.unit))
    return torch.nan_to_num(result, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
