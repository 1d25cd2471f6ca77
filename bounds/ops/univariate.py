"""Elementwise functions of one variable: any slope is allowed, the intercept is exact.

For a slope k the best lower line is ``k x + min (f(x) - k x)``; the minimum over ``[l, u]`` is attained at an end, at
a kink, or where ``f'(x) = k``. So a function supplies its value, its candidates for that minimum and two initial
slopes; soundness does not depend on the slopes (which makes them free to optimise or to store coarsely).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Own, block
from bounds.ops import pieces
from bounds.ops.base import Freedom, Interval, Line, NoDerivativeError, Nonlinear, Parameters, Relaxation, Shape
from bounds.rounding import Rounding

_POINTS = 7
"""Points looked at in each of two rounds when a split is chosen; the second is around the best of the first."""


class Univariate(Nonlinear):
    """``f(x)`` elementwise; further operands are parameters (constants without N).

    ``ulps``: how many units in the last place the computed ``forward`` may be off (0: exact up to one rounding of
    each elementary operation, as in piecewise linear functions); ``grain``: how many units of roundoff of 1 besides.
    """

    __slots__ = ()
    ulps: ClassVar[int] = 4
    grain: ClassVar[float] = 0.0

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return False

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Of a non-decreasing function; others override."""
        (low, high), *rest = operands
        parameters = [p[0] for p in rest]
        return self._outward(self.forward(low, *parameters), self.forward(high, *parameters), rounding)

    def _outward(self, low: Tensor, high: Tensor, rounding: Rounding | None) -> Interval:
        if rounding is None or self.ulps == 0:
            return low, high
        slack, least = 2 * self.ulps * rounding.unit, 2 * self.grain * rounding.unit + rounding.tiny
        return low - (low.abs() * slack + least), high + (high.abs() * slack + least)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """Of a library function; exact where a piecewise linear function only selects."""
        if self.ulps == 0:
            return None
        return machine.function(torch.maximum(result[0].abs(), result[1].abs()))

    @abstractmethod
    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Initial slopes of the lower and the upper line on ``[low, high]`` (any values are sound)."""

    @abstractmethod
    def valleys(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        """Points where ``f(x) - slope x`` can be least inside, each with a bound of what it can be off by.

        Pairs ``(point, excess)``: the point is clamped to ``[low, high]`` by the caller. The least of the values at
        the ends and of ``value - excess`` over all points is at most the true minimum (in exact arithmetic).
        """

    @abstractmethod
    def hills(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        """The same for the maximum: ``value + excess``."""

    @abstractmethod
    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        """Ranges of slopes below and above outside which no line is better anywhere; None: the initial one is best."""

    def least(
        self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None
    ) -> Interval:
        """The minimum over ``[low, high]`` of ``f(x) - slope x``, with ``rounding`` at most the true one, and about
        where it is attained."""
        turning = self.valleys(slope, low, high, *parameters)
        candidates = self._differences(slope, (low, high), turning, parameters, rounding, 1)
        place, value = functools.reduce(_lesser, [(x, value - slack) for x, value, slack in candidates])
        return torch.nan_to_num(value, nan=-math.inf, posinf=-math.inf, neginf=-math.inf), place

    def most(
        self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None
    ) -> Interval:
        """The maximum over ``[low, high]`` of ``f(x) - slope x``, with ``rounding`` at least the true one, and about
        where it is attained."""
        turning = self.hills(slope, low, high, *parameters)
        candidates = self._differences(slope, (low, high), turning, parameters, rounding, -1)
        place, value = functools.reduce(_greater, [(x, value + slack) for x, value, slack in candidates])
        return torch.nan_to_num(value, nan=math.inf, posinf=math.inf, neginf=math.inf), place

    def _differences(
        self,
        slope: Tensor,
        ends: Interval,
        turning: Sequence[Interval],
        parameters: Sequence[Tensor],
        rounding: Rounding | None,
        sign: int,
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """``(x, f(x) - slope x, slack)`` at ends and turning points: slack is what the value can be off by.

        For a minimum (``sign`` 1) what overflowed upward is the largest number, for a maximum the mirror image.
        """
        largest = torch.finfo(ends[0].dtype).max
        limits = {"max": largest} if sign > 0 else {"min": -largest}
        opposite = {"min": -largest} if sign > 0 else {"max": largest}
        zero = torch.zeros_like(ends[0])
        inside = [(torch.minimum(torch.maximum(x, ends[0]), ends[1]), excess) for x, excess in turning]
        found = []
        for x, excess in ((ends[0], zero), (ends[1], zero), *inside):
            value, product = self.forward(x, *parameters).clamp(**limits), (slope * x).clamp(**opposite)
            slack = excess
            if rounding is not None:
                slack = excess * (1 + 4 * rounding.unit) + 2 * rounding.tiny
                sizes = value.abs() * (2 * self.ulps + 6) + product.abs() * 6 + 2 * self.grain
                slack = slack + sizes * rounding.unit
            found.append((x, value - product, slack))
        return found

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """Lines on the first operand's interval; ``chosen`` replaces the initial lower and upper slope.

        On an interval that is infinite, or so large that values overflow, an offset may be infinite: no information.
        """
        low, high, below, above, parameters = self._chosen(operands, chosen)
        least, _ = self.least(below, low, high, *parameters, rounding=rounding)
        most, _ = self.most(above, low, high, *parameters, rounding=rounding)
        return Relaxation((Line((below,), least),), (Line((above,), most),))

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """The slopes."""
        low, high, below, above, parameters = self._chosen(operands, (None, None))
        first, second = self.useful_slopes(low, high, *parameters)
        return (
            None if first is None else Freedom(below, *first),
            None if second is None else Freedom(above, *second),
        )

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """``d/dk (k z + min (f(x) - k x)) = z - x'`` where the minimum is attained at x' (above: the maximum)."""
        low, high, below, above, parameters = self._chosen(operands, chosen)
        (z,) = values
        lower = None if chosen[0] is None else z - self.least(below, low, high, *parameters, rounding=None)[1]
        upper = None if chosen[1] is None else z - self.most(above, low, high, *parameters, rounding=None)[1]
        return lower, upper

    def _chosen(
        self, operands: Sequence[Interval], chosen: Parameters
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        """Ends, lower and upper slopes, parameters."""
        (low, high), *rest = operands
        parameters = [p[0] for p in rest]
        below, above = chosen
        if below is None or above is None:
            initial = [torch.nan_to_num(s, 0.0, 0.0, 0.0) for s in self.slopes(low, high, *parameters)]
            below = initial[0] if below is None else below
            above = initial[1] if above is None else above
        return low, high, below, above, parameters

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        (low, high), *rest = operands
        return (self.derivative_range(low, high, *(p[0] for p in rest), rounding=rounding),)

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        """``(least f', greatest f')`` on ``[low, high]``, with ``rounding`` rounded outward; see ``derivatives``."""
        raise NoDerivativeError(f"bounds of the derivative of {type(self).__name__} are not available")

    def envelope(self, operands: Sequence[Interval], error: float) -> LinearBlock:
        """Segments of each element's interval, with a phase for each, on which its lines are at most ``error`` apart;
        at most ``pieces.SEGMENTS`` segments, even where that leaves them further apart."""
        (low, high), *rest = operands
        rounding, shape, ends = Rounding.of(torch.float64), low.shape, (low.flatten(), high.flatten())
        parameters = [p[0].expand(shape[1:]).flatten() for p in rest]

        def lines(owner: Tensor, below: Tensor, above: Tensor) -> tuple[pieces.Lines, pieces.Lines]:
            given = [(below[None], above[None]), *[(p[owner], p[owner]) for p in parameters]]
            found = self.relaxation(given, rounding)
            one, two = found.lower[0], found.upper[0]
            return (one.slopes[0][0], one.offset[0]), (two.slopes[0][0], two.offset[0])

        own, count = Own(2 * low.numel()), low.numel()
        rows = pieces.disjunction(pieces.refined(ends, lines, error), count, own)
        return block(rows, torch.full((count,), -1), own.joined(), exact=False)

    def split_point(self, low: Tensor, high: Tensor) -> Tensor:
        """Of some points the one that leaves the least area between the lines of both parts."""
        left, right = low, high
        best = low / 2 + high / 2
        for _ in range(2):
            points = [torch.lerp(left, right, k / (_POINTS + 1)) for k in range(1, _POINTS + 1)]
            areas = torch.stack([self._area(low, p) + self._area(p, high) for p in points])
            where = torch.nan_to_num(areas, torch.inf).argmin(0, keepdim=True)
            best = torch.stack(points).gather(0, where)[0]
            step = (right - left) / (_POINTS + 1)
            left, right = best - step, best + step
        return torch.where((low < best) & (best < high), best, torch.nan)

    def _area(self, low: Tensor, high: Tensor) -> Tensor:
        """Between the lines: their distance in the middle times the width."""
        lines, middle = self.relaxation([(low, high)], None), low / 2 + high / 2
        below, above = (line.slopes[0] * middle + line.offset for line in (lines.lower[0], lines.upper[0]))
        return (above - below) * (high - low)

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        return high > low


def _lesser(one: Interval, two: Interval) -> Interval:
    """Of two pairs (place, value) the one of the lesser value, elementwise."""
    better = two[1] < one[1]
    return torch.where(better, two[0], one[0]), torch.minimum(one[1], two[1])


def _greater(one: Interval, two: Interval) -> Interval:
    better = two[1] > one[1]
    return torch.where(better, two[0], one[0]), torch.maximum(one[1], two[1])


class PiecewiseLinear(Univariate):
    """Linear between ``kinks``: the extreme values of ``f(x) - k x`` are at ends and kinks, exactly."""

    __slots__ = ()
    ulps: ClassVar[int] = 2

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """One product, by a constant that may itself be rounded."""
        if self.ulps == 0:
            return None
        return machine.computed(2, torch.maximum(result[0].abs(), result[1].abs()))

    @abstractmethod
    def kinks(self) -> tuple[float, ...]:
        """Where the slope changes."""

    def branches(self, like: Tensor, *parameters: Tensor) -> Sequence[tuple[Tensor | float, Tensor | float]]:
        """Slope and offset of the function between kinks, one more than there are ``kinks``: exact numbers that
        broadcast with ``like``. What ``exact`` is made of; without them there is no exact form."""
        return ()

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """Linear elements are aliases or single rows, a phase for each kink inside: see ``pieces.py``."""
        (low, high), *rest = operands
        branches = self.branches(low, *(p[0] for p in rest))
        if not branches:
            return super().exact(operands)
        least, most = self.interval(operands, Rounding.of(torch.float64))

        def flat(value: Tensor | float) -> Tensor:
            return torch.as_tensor(value, dtype=low.dtype).expand_as(low).flatten()

        numbers = [(flat(slope), flat(offset)) for slope, offset in branches]
        return pieces.bent_block((flat(low), flat(high)), (flat(least), flat(most)), self.kinks(), numbers)

    def valleys(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        zero = torch.zeros_like(low)
        return [(torch.full_like(low, kink), zero) for kink in self.kinks()]

    def hills(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        return self.valleys(slope, low, high, *parameters)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The chord on both sides where it is one of them; subclasses know better for the other."""
        return self.chord(low, high, *parameters), self.chord(low, high, *parameters)

    def chord(self, low: Tensor, high: Tensor, *parameters: Tensor) -> Tensor:
        """Slope of the line through the graph's end points; 0 on a point."""
        width = high - low
        rise = self.forward(high, *parameters) - self.forward(low, *parameters)
        return torch.where(width > 0, rise / torch.where(width > 0, width, torch.ones_like(width)), 0.0)

    def split_point(self, low: Tensor, high: Tensor) -> Tensor:
        """The kink that is nearest to the middle."""
        best, middle = torch.full_like(low, torch.nan), low / 2 + high / 2
        for kink in self.kinks():
            nearer = best.isnan() | ((middle - kink).abs() < (middle - best).abs())
            best = torch.where((low < kink) & (high > kink) & nearer, kink, best)
        return best

    def loose(self, low: Tensor, high: Tensor, *parameters: Tensor) -> Tensor:
        result = torch.zeros_like(low, dtype=torch.bool)
        for kink in self.kinks():
            result |= (low < kink) & (high > kink)
        return result
