"""Functions with jumps: a step at 0 (Sign, and what comparisons are made of), and staircases (Floor, Round).

Such a function is constant between its jumps, so for a slope k the least of ``f(x) - k x`` over ``[l, u]`` is found at
an end or at a jump; and at a jump count the value there and the values on both sides, because points come arbitrarily
close. Of a staircase only the first and the last jump matter: from each jump to the next ``f(x) - k x`` changes by the
same amount.

The initial lines are the best ones in the middle of the interval. With a step of height h at 0 and ``l < 0 < u`` the
lower line is ``f(l)`` or ``f(l) + h x / u``, the upper one ``f(u)`` or ``f(u) + h x / (-l)``; a steeper one gains only
close to an end.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Own, Row, block
from bounds.ops import reading
from bounds.ops.arithmetic import Neg
from bounds.ops.base import (
    BuilderLike,
    Freedom,
    Interval,
    Line,
    NoDerivativeError,
    Nonlinear,
    OnnxName,
    OnnxNode,
    Parameters,
    Relaxation,
    Rewritten,
    Shape,
)
from bounds.ops.pieces import two_levels
from bounds.rounding import Rounding, difference

NEAR_JUMP = 1 / 64
"""Where a jump lies at an end, so much of the width around it is split off."""

STEEPEST = 8.0
"""The steepest slope that is of use, in rises of the function over the width of the interval."""


class Jumping(Nonlinear):
    """An elementwise function of one variable, constant between its jumps."""

    __slots__ = ()

    @abstractmethod
    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The limits from the left and from the right."""

    @abstractmethod
    def jumps(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """The first and the last jump strictly between ``low`` and ``high``; ``low`` where there is none."""

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return False

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """A selection: on which side of a jump the computed operand lies is exact."""
        return None

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """The least and the greatest value, exact."""
        ((low, high),) = operands
        least = torch.stack([value for _, value in self._outline(low, high, 1)]).amin(0)
        return least, torch.stack([value for _, value in self._outline(low, high, -1)]).amax(0)

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """Lines with the initial or the ``chosen`` slopes and the best intercepts for them."""
        ((low, high),) = operands
        below, above = (self._hull(low, high, s)[0] if c is None else c for c, s in zip(chosen, (1, -1), strict=True))
        least, _ = self._extreme(below, low, high, rounding, 1)
        most, _ = self._extreme(above, low, high, rounding, -1)
        return Relaxation((Line((below,), least),), (Line((above,), most),))

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """The slopes, between those of the sides of the function's convex hull."""
        ((low, high),) = operands
        return Freedom(*self._hull(low, high, 1)), Freedom(*self._hull(low, high, -1))

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """``d/dk (k z + min (f(x) - k x)) = z - x'`` where the minimum is attained at x' (above: the maximum)."""
        ((low, high),) = operands
        below, above = chosen
        lower = None if below is None else values[0] - self._extreme(below, low, high, None, 1)[1]
        upper = None if above is None else values[0] - self._extreme(above, low, high, None, -1)[1]
        return lower, upper

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        """Raises ``NoDerivativeError``."""
        raise NoDerivativeError(f"{type(self).__name__} has jumps, where no derivative is bounded")

    def split_point(self, low: Tensor, high: Tensor) -> Tensor:
        """A jump inside, the last one before the middle if there is one; where a jump is an end, a place near it: what
        is left there is small, and the rest constant."""
        middle, width = low / 2 + high / 2, high - low
        first, before = self.jumps(low, high)[0], self.jumps(low, middle)[-1]
        at_low, at_high = self.sides(low)[1] != self.forward(low), self.sides(high)[0] != self.forward(high)
        aside = torch.where(at_low, low + width * NEAR_JUMP, torch.where(at_high, high - width * NEAR_JUMP, torch.nan))
        return torch.where(before > low, before, torch.where(first > low, first, aside))

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        """Where the function is not constant."""
        least, most = self.interval([(low, high)], None)
        return least < most

    def _outline(self, low: Tensor, high: Tensor, sign: int) -> list[tuple[Tensor, Tensor]]:
        """From left to right the places where ``sign * (f(x) - k x)`` can be least, each with the least (``sign`` -1:
        greatest) value there or next to it inside the interval."""
        found = []
        for place in (low, *self.jumps(low, high), high):
            before, after = self.sides(place)
            value = self.forward(place)
            values = torch.stack(
                [value, torch.where(place > low, before, value), torch.where(place < high, after, value)]
            )
            found.append((place, values.amin(0) if sign > 0 else values.amax(0)))
        return found

    def _extreme(self, slope: Tensor, low: Tensor, high: Tensor, rounding: Rounding | None, sign: int) -> Interval:
        """The least (``sign`` -1: greatest) value of ``f(x) - slope x`` and its place; with ``rounding`` outward."""
        values, places = [], []
        for place, value in self._outline(low, high, sign):
            product = torch.where(slope == 0, 0.0, slope * place)
            found = value - product
            if rounding is not None:
                slack = (value.abs() + product.abs()) * (8 * rounding.unit) + rounding.tiny
                # Constant lines are exact, unless numbers are so large that not all integers are among them.
                exact = (slope == 0) & (value.abs() * (16 * rounding.unit) < 1)
                found = torch.where(exact, value, found - sign * slack)
            found = torch.nan_to_num(found, nan=-sign * torch.inf, posinf=torch.inf, neginf=-torch.inf)
            values.append(found * sign)
            places.append(place.expand_as(found))
        best, where = torch.stack(values).min(0)
        return best * sign, torch.stack(places).gather(0, where.unsqueeze(0))[0]

    def _hull(self, low: Tensor, high: Tensor, sign: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the hull's lower (``sign`` -1: upper) side: the slope in the middle, the least and the greatest slope."""
        points = self._outline(low, high, sign)
        heights = torch.stack([v for _, v in points])
        width = torch.where(high > low, high - low, 1.0)
        # No infinite slopes on intervals that are next to nothing.
        limit = (STEEPEST * (heights.amax(0) - heights.amin(0)) / width).clamp(max=torch.finfo(low.dtype).max ** 0.5)
        limit = torch.nan_to_num(limit)  # infinite ends: constant lines
        middle = low / 2 + high / 2
        slope = least = greatest = torch.zeros_like(low)
        for (a, v), (b, w) in itertools.pairwise(points):
            gap = b - a
            side = (w - v) / torch.where(gap > 0, gap, 1.0)
            side = torch.where(gap > 0, torch.minimum(torch.maximum(side, -limit), limit), 0.0)
            side = torch.nan_to_num(side)
            slope = torch.where((gap > 0) & (a <= middle), side, slope)
            least, greatest = torch.minimum(least, side), torch.maximum(greatest, side)
        return slope, least, greatest


@dataclass(frozen=True, slots=True)
class Step(Jumping):
    """``left`` for x < 0, ``at`` for x = 0, ``right`` for x > 0: numbers that float32 holds."""

    left: float
    at: float
    right: float
    onnx = (OnnxName("Sign", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(-1.0, 0.0, 1.0), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        value = torch.where(x > 0, self.right, torch.where(x < 0, self.left, self.at)).to(x.dtype)
        return torch.where(torch.isnan(x), x, value)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = self.forward(x)
        return torch.where(x == 0, self.left, value), torch.where(x == 0, self.right, value)

    def jumps(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        return (torch.where((low < 0) & (high > 0), 0.0, low),)

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """Two levels, one of which holds up to 0 and the other from 0 on; or, where the value at 0 is a third one,
        ``y = at + (left - at) n + (right - at) p``, ``l n <= x <= u p``, ``n + p <= 1`` with two phases."""
        low, high = (end.flatten() for end in operands[0])
        before = torch.where(low < 0, self.left, torch.where(low > 0, self.right, self.at)).to(low)
        after = torch.where(high > 0, self.right, torch.where(high < 0, self.left, self.at)).to(low)
        third = (low < 0) & (high > 0) & (self.at not in (self.left, self.right))
        own, count, zero = Own(2 * low.shape[0]), low.shape[0], torch.zeros_like(low)
        x = ((before != after) & ~third).nonzero().flatten()
        rows = two_levels(x, count + x, (low[x], high[x]), (zero[x], before[x], after[x]), own)
        x = third.nonzero().flatten()
        n, p = own.phases(2, x.shape[0])
        levels = [difference(side[x], torch.full_like(low[x], self.at)) for side in (before, after)]
        (left, lost), (right, rest) = levels
        rows += [
            Row(((count + x, 1.0), (n, -left), (p, -right)), self.at, self.at, lost.abs() + rest.abs()),
            Row(((x, 1.0), (n, -low[x])), lower=0.0),
            Row(((x, 1.0), (p, -high[x])), upper=0.0),
            Row(((n, 1.0), (p, 1.0)), upper=1.0),
        ]
        return block(rows, torch.full((count,), -1), own.joined())


@dataclass(frozen=True, slots=True)
class Floor(Jumping):
    """The greatest integer that is at most x."""

    onnx = (OnnxName("Floor", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.floor(operands[0])

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """``x - 1 <= y <= x`` for a whole number."""
        return _staircase(self, operands, 1.0)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ceil(x) - 1, torch.floor(x)

    def jumps(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        return _inner(torch.floor(low) + 1, torch.ceil(high) - 1, low, high)


@dataclass(frozen=True, slots=True)
class Round(Jumping):
    """The nearest integer, the even one of two."""

    onnx = (OnnxName("Round", 11),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.round(operands[0])

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """``x - 1/2 <= y <= x + 1/2`` for a whole number."""
        return _staircase(self, operands, 0.5)

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, below = torch.round(x), torch.floor(x)
        tie = x - below == 0.5
        return torch.where(tie, below, value), torch.where(tie, below + 1, value)

    def jumps(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """Half above the integers that follow ``low`` and precede ``high`` on its side."""
        return _inner(self.sides(low)[1] + 0.5, self.sides(high)[0] - 0.5, low, high)


def _inner(first: Tensor, last: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The first and last jump where they are inside, ``low`` elsewhere."""
    inside = (first > low) & (last < high) & (first <= last)
    return torch.where(inside, first, low), torch.where(inside, last, low)


def _staircase(op: Jumping, operands: Sequence[Interval], ahead: float) -> LinearBlock:
    """Whole numbers y with ``ahead - 1 <= x - y <= ahead``, as columns of their own; where there are but two, the two
    levels around their jump. Where x stays on one, the result's ends say it."""
    low, high = (end.flatten() for end in operands[0])
    least, most = (end.flatten() for end in op.interval(operands, Rounding.of(torch.float64)))
    own, count = Own(2 * low.shape[0]), low.shape[0]
    jump, lost = difference(least, torch.full_like(least, -ahead))
    two = (most - least == 1) & (lost == 0)
    x = two.nonzero().flatten()
    rows = two_levels(x, count + x, (low[x], high[x]), (jump[x], least[x], most[x]), own)
    x = ((most > least) & ~two).nonzero().flatten()
    whole = own.columns(least[x], most[x], integer=True)
    rows += [
        Row(((count + x, 1.0), (whole, -1.0)), 0.0, 0.0),
        Row(((x, 1.0), (whole, -1.0)), ahead - 1, ahead),
    ]
    return block(rows, torch.full((count,), -1), own.joined())


class Ceil(Rewritten):
    """``-floor(-x)``."""

    __slots__ = ()
    onnx = (OnnxName("Ceil", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        floor = build.add(Floor(), build.add(Neg(), reading.operand(node, 0)))
        return (build.add(Neg(), floor, name=node.name),)
