"""Elementwise functions of one variable: any slope is allowed, the intercept is exact.

For a slope k the best lower line is ``k x + min (f(x) - k x)``; the minimum over ``[l, u]`` is attained at an end, at
a kink, or where ``f'(x) = k``. So a function supplies its value, its candidates for that minimum and two initial
slopes; soundness does not depend on the slopes (which makes them free to optimise or to store coarsely).
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops.base import Interval, Line, Nonlinear, Relaxation, Shape
from bounds.rounding import Rounding


class Univariate(Nonlinear):
    """``f(x)`` elementwise; further operands are parameters (constants without N).

    ``ulps``: how many units in the last place the computed ``forward`` may be off (0: exact up to one rounding of
    each elementary operation, as in piecewise linear functions).
    """

    __slots__ = ()
    ulps: ClassVar[int] = 4

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
        slack = 2 * self.ulps * rounding.unit
        return low - (low.abs() * slack + rounding.tiny), high + (high.abs() * slack + rounding.tiny)

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

    def least(
        self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None
    ) -> Tensor:
        """The minimum over ``[low, high]`` of ``f(x) - slope x``; with ``rounding`` at most the true one."""
        turning = self.valleys(slope, low, high, *parameters)
        values = self._differences(slope, (low, high), turning, parameters, rounding)
        return functools.reduce(torch.minimum, [value - slack for value, slack in values])

    def most(
        self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None
    ) -> Tensor:
        """The maximum over ``[low, high]`` of ``f(x) - slope x``; with ``rounding`` at least the true one."""
        turning = self.hills(slope, low, high, *parameters)
        values = self._differences(slope, (low, high), turning, parameters, rounding)
        return functools.reduce(torch.maximum, [value + slack for value, slack in values])

    def _differences(
        self,
        slope: Tensor,
        ends: Interval,
        turning: Sequence[Interval],
        parameters: Sequence[Tensor],
        rounding: Rounding | None,
    ) -> list[Interval]:
        """``f(x) - slope x`` at the ends and at the turning points, each with what it can be off by."""
        zero = torch.zeros_like(ends[0])
        inside = [(torch.minimum(torch.maximum(x, ends[0]), ends[1]), excess) for x, excess in turning]
        found = []
        for x, excess in ((ends[0], zero), (ends[1], zero), *inside):
            value, product = self.forward(x, *parameters), slope * x
            slack = excess
            if rounding is not None:
                slack = excess * (1 + 4 * rounding.unit) + 2 * rounding.tiny
                slack = slack + (value.abs() * (2 * self.ulps + 6) + product.abs() * 6) * rounding.unit
            found.append((value - product, slack))
        return found

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        slopes: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Relaxation:
        """Lines on the first operand's interval; ``slopes`` replaces the initial lower and upper slope."""
        (low, high), *rest = operands
        parameters = [p[0] for p in rest]
        lower_slope, upper_slope = self.slopes(low, high, *parameters)
        lower_slope = lower_slope if slopes[0] is None else slopes[0]
        upper_slope = upper_slope if slopes[1] is None else slopes[1]
        least = self.least(lower_slope, low, high, *parameters, rounding=rounding)
        most = self.most(upper_slope, low, high, *parameters, rounding=rounding)
        return Relaxation((Line((lower_slope,), least),), (Line((upper_slope,), most),))

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        return high > low


class PiecewiseLinear(Univariate):
    """Linear between ``kinks``: the extreme values of ``f(x) - k x`` are at ends and kinks, exactly."""

    __slots__ = ()
    ulps: ClassVar[int] = 2

    @abstractmethod
    def kinks(self) -> tuple[float, ...]:
        """Where the slope changes."""

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

    def loose(self, low: Tensor, high: Tensor, *parameters: Tensor) -> Tensor:
        result = torch.zeros_like(low, dtype=torch.bool)
        for kink in self.kinks():
            result |= (low < kink) & (high > kink)
        return result
