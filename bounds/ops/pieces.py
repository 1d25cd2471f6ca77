"""Functions of one variable as rows and phases, from lines on pieces of an element's interval.

With one kink k, between ``g`` on the left of it and ``h`` on the right, and ``h - g = b (x - k)``: for ``b > 0``

    y >= g,  y >= h,  y <= h + b (k - l) (1 - d),  y <= g + b (u - k) d,       a phase d,

for ``b < 0`` mirrored. For ``min(max(x, p), q)`` with both kinks inside, two phases ``e <= d``:

    p + (q - p) e  <=  y  <=  p + (q - p) d,     (p - l) (d - 1)  <=  x - y  <=  (u - q) e,

the incremental formulation (Croxton, Gendron and Magnanti, Management Science 49, 2003) without the lengths of the
pieces, which can be eliminated. Any number of pieces ``[c_i, c_i']``, with a line below and one above on each, is the
disjunction of them, with an x_i and a phase p_i of their own (Balas, SIAM J. Algebraic Discrete Methods 6, 1985):

    x = sum x_i,  1 = sum p_i,  c_i p_i <= x_i <= c_i' p_i,  sum (a_i x_i + b_i p_i) <= y <= sum (A_i x_i + B_i p_i).

All three are ideal: at the corners of their linear relaxation the phases are whole, so that it is the convex hull of
the pieces. In the disjunction all coefficients are given numbers. The others compute distances, but most of those only
have to be large enough, so they are rounded up; what is left is charged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Own, Row, block
from bounds.rounding import Rounding, difference, difference_above

SEGMENTS = 64
"""An element's interval is cut into so many segments at most."""

Lines = tuple[Tensor, Tensor]
"""Slopes and offsets."""

Ends = tuple[Tensor, Tensor]

Terms = Sequence[tuple[Tensor, Tensor | float]]
"""Columns and their coefficients."""


class Segments(NamedTuple):
    """S pieces of the intervals of elements ``owner`` ``[S]`` (ascending, each one's from left to right), and lines."""

    owner: Tensor
    low: Tensor
    high: Tensor
    below: Lines
    above: Lines

    def gap(self) -> Tensor:
        """How far apart the lines are at most, rounded up."""
        rise, rest = self.above[0] - self.below[0], self.above[1] - self.below[1]
        ends = torch.stack([rise * x + rest for x in (self.low, self.high)])
        sizes = torch.stack([s.abs() for s in (*self.below, *self.above)]).sum(0)
        return ends.amax(0) + sizes * (1 + torch.maximum(self.low.abs(), self.high.abs())) * 2**-50

    def take(self, index: Tensor) -> Segments:
        """Those at ``index``, of any shape."""
        return Segments(
            self.owner[index], self.low[index], self.high[index], _at(self.below, index), _at(self.above, index)
        )


def bent_block(operand: Ends, result: Ends, kinks: Sequence[float], branches: Sequence[Lines]) -> LinearBlock:
    """The exact block of a continuous function with ``branches`` (exact numbers ``[n]``) around ascending ``kinks``,
    for an operand between the ends ``operand`` and a result that is known to lie between ``result``, all ``[n]``."""
    (low, high), count = operand, operand[0].shape[0]
    places = torch.tensor(kinks, dtype=low.dtype)
    slopes, offsets = (torch.stack(part, 1) for part in zip(*branches, strict=True))
    active = (low[:, None] < places) & (high[:, None] > places) & (slopes[:, 1:] != slopes[:, :-1])
    bends, first = active.sum(1), (low[:, None] >= places).sum(1, keepdim=True)
    own, same, rows = Own(2 * count), torch.full((count,), -1), list[Row]()
    straight = (bends == 0).nonzero().flatten()
    rows += _straight(straight, same, result, (slopes.gather(1, first)[:, 0], offsets.gather(1, first)[:, 0]))
    for k, kink in enumerate(kinks):
        z = ((bends == 1) & active[:, k]).nonzero().flatten()
        rows += _hinge(z, operand, result, kink, (_at(branches[k], z), _at(branches[k + 1], z)), own)
    clipped = torch.zeros_like(bends, dtype=torch.bool)
    if len(kinks) == 2:
        flat = (slopes == slopes.new_tensor([0.0, 1.0, 0.0])).all(1) & (offsets[:, 1] == 0)
        clipped = (bends == 2) & flat & (places[0] < places[1])
        rows += _clipped(clipped.nonzero().flatten(), operand, kinks, own)
    many = ((bends > 1) & ~clipped).nonzero().flatten()
    if many.shape[0]:
        rows += disjunction(_along(many, operand, places, slopes, offsets), count, own)
    return block(rows, same, own.joined())


def bound(terms: Terms, offset: Tensor, sign: float, error: Tensor | float = 0.0) -> Row:
    """``terms >= offset`` (``sign`` 1) or ``terms <= offset`` (-1)."""
    return Row(terms, lower=offset, error=error) if sign > 0 else Row(terms, upper=offset, error=error)


def _straight(z: Tensor, same: Tensor, result: Ends, branch: Lines) -> list[Row]:
    """Elements on one branch: the identity is an alias, constants are what the result's ends say."""
    (slope, offset), count = _at(branch, z), same.shape[0]
    alias = (slope == 1) & (offset == 0)
    same[z[alias]] = z[alias]
    known = (slope == 0) & (result[0][z] == offset) & (result[1][z] == offset)
    rest = ~alias & ~known
    z, slope, offset = z[rest], slope[rest], offset[rest]
    return [Row(((count + z, 1.0), (z, -slope)), offset, offset)]


def _hinge(z: Tensor, operand: Ends, result: Ends, kink: float, sides: tuple[Lines, Lines], own: Own) -> list[Row]:
    """Elements with one kink inside; a constant branch on the side that it bounds is what the result's ends say."""
    rows, count, convex = list[Row](), operand[0].shape[0], sides[1][0] > sides[0][0]
    for here, sign in ((convex, 1.0), (~convex, -1.0)):
        x, (left, start), (right, end) = z[here], _at(sides[0], here), _at(sides[1], here)
        y, d, place = count + x, own.phases(int(here.sum())), torch.full_like(left, kink)
        for slope, offset in ((left, start), (right, end)):
            known = result[0][x] >= offset if sign > 0 else result[1][x] <= offset
            there = ~known | (slope != 0)
            rows.append(bound([(y[there], 1.0), (x[there], -slope[there])], offset[there], sign))
        bend = difference_above(right, left) if sign > 0 else difference_above(left, right)
        far_left = _product_above(bend, difference_above(place, operand[0][x]))
        far_right = _product_above(bend, difference_above(operand[1][x], place))
        level, rest = difference(end, -sign * far_left)
        rows.append(bound([(y, 1.0), (x, -right), (d, sign * far_left)], level, -sign, rest.abs()))
        rows.append(bound([(y, 1.0), (x, -left), (d, -sign * far_right)], start, -sign))
    return rows


def _clipped(z: Tensor, operand: Ends, kinks: Sequence[float], own: Own) -> list[Row]:
    """``min(max(x, p), q)`` with p and q inside the interval."""
    y, low, high = operand[0].shape[0] + z, operand[0][z], operand[1][z]
    p, q = (torch.full_like(low, kink) for kink in kinks)
    d, e = own.phases(2, z.shape[0])
    width, rest = difference(q, p)
    before = difference_above(p, low)
    return [
        Row(((y, 1.0), (e, -width)), lower=p, error=rest.abs()),
        Row(((y, 1.0), (d, -difference_above(q, p))), upper=p),
        Row(((z, 1.0), (y, -1.0), (d, -before)), lower=-before),
        Row(((z, 1.0), (y, -1.0), (e, -difference_above(high, q))), upper=0.0),
    ]


def two_levels(x: Tensor, y: Tensor, ends: Ends, step: tuple[Tensor, Tensor, Tensor], own: Own) -> list[Row]:
    """Rows of ``y = before`` for ``x <= jump``, ``after`` for ``x >= jump`` (either at the jump), ideal: with a phase
    ``y = before + (after - before) d`` and ``l + (jump - l) d <= x <= jump + (u - jump) d``. ``step``: the jump, in
    the interval, and the two levels."""
    (low, high), (jump, before, after), d = ends, step, own.phases(x.shape[0])
    height, lost = difference(after, before)
    left, rest = difference(jump, low)
    return [
        Row(((y, 1.0), (d, -height)), before, before, lost.abs()),
        Row(((x, 1.0), (d, -difference_above(high, jump))), upper=jump),
        Row(((x, 1.0), (d, -left)), lower=low, error=rest.abs()),
    ]


def disjunction(pieces: Segments, count: int, own: Own) -> list[Row]:
    """Rows of the disjunction of each element's pieces, for ``count`` elements in all; one piece needs no phase. Where
    lines are infinite, nothing is said of the element."""
    rows, numbers, same = list[Row](), torch.bincount(pieces.owner, minlength=count), pieces.below is pieces.above
    finite = torch.isfinite(torch.stack([*pieces.below, *pieces.above])).all(0)
    first = numbers.cumsum(0) - numbers
    numbers[pieces.owner[~finite]] = 0
    for many in numbers.unique().tolist():
        x = (numbers == many).nonzero().flatten()
        y, part = count + x, pieces.take(first[x, None] + torch.arange(many))
        if many == 1:
            terms: list[Terms] = [[(y, 1.0), (x, -slope[:, 0])] for slope, _ in (part.below, part.above)]
            rows += _between(terms, (part.below[1][:, 0], part.above[1][:, 0]), same)
        elif many:
            parts, phase = own.columns(part.low.clamp(max=0), part.high.clamp(min=0)), own.phases(*part.low.shape)
            rows.append(Row(((x, 1.0), *[(c, -1.0) for c in parts.T]), 0.0, 0.0))
            rows.append(Row([(c, 1.0) for c in phase.T], 1.0, 1.0))
            for end, sign in ((part.low, 1.0), (part.high, -1.0)):
                rows.append(bound([(parts.flatten(), 1.0), (phase.flatten(), -end.flatten())], _zeros(parts), sign))
            own_columns = (*parts.T, *phase.T)
            terms = [
                [(y, 1.0), *[(c, -v) for c, v in zip(own_columns, (*slope.T, *offset.T), strict=True)]]
                for slope, offset in (part.below, part.above)
            ]
            rows += _between(terms, (_zeros(y), _zeros(y)), same)
    return rows


def _between(terms: Sequence[Terms], ends: Ends, same: bool) -> list[Row]:
    """Of the terms below at least the first end, of those above at most the second; one row where they are the same."""
    if same:
        return [Row(terms[0], *ends)]
    return [bound(terms[0], ends[0], 1.0), bound(terms[1], ends[1], -1.0)]


def refined(
    operand: Ends, lines: Callable[[Tensor, Tensor, Tensor], tuple[Lines, Lines]], error: float, most: int = SEGMENTS
) -> Segments:
    """Halve intervals ``[n]`` until the lines on each segment are at most ``error`` apart, or there are ``most`` of an
    element; then join neighbours where the lines allow it. ``lines`` of segments ``(owner, low, high)``."""

    def made(owner: Tensor, low: Tensor, high: Tensor) -> Segments:
        return Segments(owner, low, high, *lines(owner, low, high))

    (low, high), count = operand, operand[0].shape[0]
    found = made(torch.arange(count), low.clone(), high.clone())
    while True:
        place = found.low / 2 + found.high / 2
        wide = (found.gap() > error) & (place > found.low) & (place < found.high)
        cut = _greatest(found.owner, torch.where(wide, found.gap(), -1.0), most, count) & wide
        if not bool(cut.any()):
            break
        owner = found.owner.repeat_interleave(1 + cut.long())
        low, high = (end.repeat_interleave(1 + cut.long()) for end in (found.low, found.high))
        right = (1 + cut.long()).cumsum(0)[cut] - 1
        low[right], high[right - 1] = place[cut], place[cut]
        found = made(owner, low, high)
    idle = 0
    while idle < 2:
        rank = torch.arange(found.owner.shape[0]) - torch.searchsorted(found.owner, found.owner)
        pairs = ((rank % 2 == idle) & (found.owner == found.owner.roll(-1))).nonzero().flatten()
        pairs = pairs[pairs + 1 < found.owner.shape[0]]
        joined = made(found.owner[pairs], found.low[pairs], found.high[pairs + 1])
        pairs = pairs[joined.gap() <= error]
        idle = idle + 1 if not pairs.shape[0] else 0
        if pairs.shape[0]:
            found.high[pairs] = found.high[pairs + 1]
            kept = torch.ones_like(found.owner, dtype=torch.bool)
            kept[pairs + 1] = False
            found = made(found.owner[kept], found.low[kept], found.high[kept])
    return found


def _greatest(owner: Tensor, gap: Tensor, most: int, count: int) -> Tensor:
    """Which segments may be cut so that no element has more than ``most``: those of the greatest gaps."""
    numbers = torch.bincount(owner, minlength=count)
    order = gap.argsort(descending=True, stable=True)
    order = order[owner[order].argsort(stable=True)]
    rank = torch.empty_like(owner)
    rank[order] = torch.arange(owner.shape[0]) - (numbers.cumsum(0) - numbers)[owner[order]]
    return rank < most - numbers[owner]


def _along(z: Tensor, operand: Ends, places: Tensor, slopes: Tensor, offsets: Tensor) -> Segments:
    """The branches of elements ``z`` on the parts of their intervals between kinks."""
    low, high = operand[0][z, None], operand[1][z, None]
    inner = torch.minimum(torch.maximum(places, low), high)
    starts, stops = torch.cat([low, inner], 1), torch.cat([inner, high], 1)
    there = starts < stops
    lines = slopes[z][there], offsets[z][there]
    return Segments(z[:, None].expand_as(starts)[there], starts[there], stops[there], lines, lines)


def _product_above(a: Tensor, b: Tensor) -> Tensor:
    """At least ``a b`` for numbers that are not negative; exact where ``a`` is 1."""
    return torch.where(a == 1, b, Rounding.of(torch.float64).up(a * b))


def _at(lines: Lines, index: Tensor) -> Lines:
    return lines[0][index], lines[1][index]


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.numel(), dtype=torch.float64)
