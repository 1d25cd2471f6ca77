"""S-shaped functions: Sigmoid and Tanh (convex below 0, concave above, increasing, odd about 0).

Any slope is sound because the intercept is exact; the initial slopes are the tight ones. For ``f(x) - k x`` the
stationary points solve ``f'(x) = k``: one in the convex half (the minimum there), one in the concave half (the
maximum there). A computed stationary point p is not exact, and in the convex half

    f(x) - k x  >=  f(p) - k p + (f'(p) - k)(x - p),

so the true minimum lies at most the largest of ``-(f'(p) - k)(x - p)`` over that half below the value at p; the
concave half is mirrored. ``f'`` is computed as ``s(x) s(-x)`` of the sigmoid s, accurate in both tails.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode
from bounds.ops.univariate import Univariate
from bounds.rounding import Rounding

_STEPS = 9
_FAR = 64.0
_NARROW = 1e-3


class _SShape(Univariate):
    """An increasing odd-symmetric S; ``steepest`` is ``f'(0)``."""

    __slots__ = ()

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """``f'(x)``, within 16 units in the last place (or below the smallest normal number)."""

    @abstractmethod
    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f, f', f''``, quickly and roughly: for slopes, not for bounds."""

    @abstractmethod
    def stationary(self, slope: Tensor) -> Tensor:
        """About the x >= 0 with ``f'(x) = slope``; 0 for slopes above ``f'(0)``, large for slopes <= 0."""

    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The values at minus and plus infinity."""

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Increasing and between its limits."""
        ((low, high),) = operands
        least, most = self._outward(self.forward(low), self.forward(high), rounding)
        return least.clamp(*self.limits()), most.clamp(*self.limits())

    def valleys(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        return (self._turning(-self.stationary(slope), slope, low, high.clamp(max=0), 1.0),)

    def hills(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        return (self._turning(self.stationary(slope), slope, low.clamp(min=0), high, -1.0),)

    def _turning(self, place: Tensor, slope: Tensor, low: Tensor, high: Tensor, sign: float) -> Interval:
        """The point in ``[low, high]`` (empty where low > high) and how far the extreme can lie beyond it.

        ``sign`` 1: a minimum in the convex half; -1: a maximum in the concave half. The place carries no gradient: at
        an extreme the value does not change with it, and the root that gives the place has none at the steepest slope.
        """
        point = torch.maximum(torch.minimum(place.detach(), high), low)
        derivative = self.derivative(point)
        info = torch.finfo(low.dtype)
        doubt = derivative * (16 * info.eps) + slope.abs() * info.eps + info.tiny
        rate = (derivative - slope) * sign
        excess = torch.maximum((rate + doubt) * (point - low), (doubt - rate) * (high - point))
        # Rounding of the products and of the widths: far below one part in a thousand.
        excess = excess.detach().clamp(min=0) * 1.001
        return point, torch.where(low <= high, excess, 0.0)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        below, above = self._lower_slope(torch.stack((low, -high)), torch.stack((high, -low)))
        return below, above

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        """Even, and falling away from 0."""
        least = torch.minimum(self.derivative(low), self.derivative(high))
        most = self.derivative(torch.zeros_like(low).clamp(low, high))
        if rounding is None:
            return least, most
        slack = 32 * rounding.unit
        return (least * (1 - 2 * slack) - rounding.tiny).clamp(min=0), most * (1 + 2 * slack) + rounding.tiny

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        """The derivatives that occur: steepest at 0, falling away from it."""
        ends = self.derivative(low), self.derivative(high)
        steepest = self.derivative(torch.zeros_like(low).clamp(low, high))
        ranges = torch.minimum(*ends), torch.maximum(steepest, torch.maximum(*ends))
        return ranges, ranges

    def _lower_slope(self, low: Tensor, high: Tensor) -> Tensor:
        """Slope of a tight lower line (upper slopes follow by symmetry: they are those of ``[-high, -low]``).

        Convex part only: the tangent in the middle. Concave part only: the chord. Both: the chord where it stays
        below, else the tangent through the high end that touches at ``d <= 0``.
        """
        middle = self.derivative(low / 2 + high / 2)
        width = high - low
        ends = self.forward(high) - self.forward(low)
        chord = torch.where(width > _NARROW, ends / width.clamp(min=_NARROW), middle)
        slope = torch.where(high <= 0, middle, chord)
        crossing = ((low < 0) & (high > 0) & (chord > self.derivative(low))).nonzero(as_tuple=True)
        if crossing[0].shape[0]:
            slope[crossing] = self.derivative(self._touch(low[crossing], high[crossing]))
        return slope

    def _touch(self, low: Tensor, high: Tensor) -> Tensor:
        """Roughly the largest ``d`` in ``[low, 0]`` with ``f(d) + f'(d) (high - d) <= f(high)``.

        Its derivative is that of the implicit function: ``f''(d) (high - d) dd = (f'(high) - f'(d)) dhigh``.
        """
        with torch.no_grad():
            d = self._search(low, high)
        if not (high.requires_grad and torch.is_grad_enabled()):
            return d
        value, first, second = self.curve(d)
        excess = value + first * (high - d) - self.curve(high)[0]
        step = excess / (second * (high - d)).detach().clamp(min=1e-6)
        return d - (step - step.detach())

    def _search(self, low: Tensor, high: Tensor) -> Tensor:
        """Newton's method on the difference, which increases in d (its derivative is ``f''(d) (high - d)``), kept in a
        bracket; a step that leaves the bracket is replaced by its middle.
        """
        target, _, _ = self.curve(high)
        left, right = low.clamp(-_FAR, 0), torch.zeros_like(low)
        d = (left / 8 + right) / 2
        for _ in range(_STEPS):
            value, first, second = self.curve(d)
            width = high - d
            excess = value + first * width - target
            under = excess <= 0
            left, right = torch.where(under, d, left), torch.where(under, right, d)
            step = d - excess / (second * width).clamp(min=1e-30)
            d = torch.where((step > left) & (step < right), step, (left + right) / 2)
        return d


def _logistic_derivative(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _logistic_stationary(slope: Tensor) -> Tensor:
    """``x >= 0`` with ``s(x) s(-x) = slope``: the smaller root of ``s (1 - s) = slope`` is free of cancellation."""
    slope = slope.clamp(torch.finfo(slope.dtype).tiny, 0.25)
    small = 2 * slope / (1 + (1 - 4 * slope).clamp(min=0).sqrt())
    return torch.log1p(-small) - torch.log(small)


@dataclass(frozen=True, slots=True)
class Sigmoid(_SShape):
    """``1 / (1 + exp(-x))``."""

    onnx = (OnnxName("Sigmoid", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.sigmoid(operands[0])

    def derivative(self, x: Tensor) -> Tensor:
        return _logistic_derivative(x)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.sigmoid(x)
        first = value * (1 - value)
        return value, first, first * (1 - 2 * value)

    def stationary(self, slope: Tensor) -> Tensor:
        return _logistic_stationary(slope)

    def limits(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True, slots=True)
class Tanh(_SShape):
    """``tanh x = 2 s(2x) - 1`` for the sigmoid s, so ``tanh' x = 4 s(2x) s(-2x)``."""

    onnx = (OnnxName("Tanh", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.tanh(operands[0])

    def derivative(self, x: Tensor) -> Tensor:
        return 4 * _logistic_derivative(2 * x)

    def curve(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value = torch.tanh(x)
        first = 1 - value * value
        return value, first, -2 * value * first

    def stationary(self, slope: Tensor) -> Tensor:
        return _logistic_stationary(slope / 4) / 2

    def limits(self) -> tuple[float, float]:
        return -1.0, 1.0
