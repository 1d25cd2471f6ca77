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

_STEPS = 4
_FAR = 1e30
_NARROW = 1e-3


class _SShape(Univariate):
    """An increasing odd-symmetric S; ``steepest`` is ``f'(0)``."""

    __slots__ = ()

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """``f'(x)``, within 16 units in the last place (or below the smallest normal number)."""

    @abstractmethod
    def touch(self, high: Tensor) -> Tensor:
        """About the ``d < 0`` where the tangent meets the curve again at ``high > 0``."""

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
        below, else the tangent in the middle or, where that one is too high at the high end, the one through that end:
        of all lines below, the highest in the middle, which leaves the least area.
        """
        middle = self.derivative(low / 2 + high / 2)
        width = high - low
        ends = self.forward(high) - self.forward(low)
        chord = torch.where(width > _NARROW, ends / width.clamp(min=_NARROW), middle)
        slope = torch.where(high <= 0, middle, chord)
        crossing = ((low < 0) & (high > 0) & (chord > self.derivative(low))).nonzero(as_tuple=True)
        if crossing[0].shape[0]:
            left, right = low[crossing], high[crossing]
            slope[crossing] = self.derivative(torch.minimum(self.touch(right), left / 2 + right / 2))
        return slope


def _logistic_derivative(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _logistic_stationary(slope: Tensor) -> Tensor:
    """``x >= 0`` with ``s(x) s(-x) = slope``: the smaller root of ``s (1 - s) = slope`` is free of cancellation."""
    slope = slope.clamp(torch.finfo(slope.dtype).tiny, 0.25)
    small = 2 * slope / (1 + (1 - 4 * slope).clamp(min=0).sqrt())
    return torch.log1p(-small) - torch.log(small)


def _logistic_touch(high: Tensor) -> Tensor:
    """About the ``d < 0`` with ``s(d) + s'(d) (high - d) = s(high)``, for ``high > 0``.

    With ``e = -d`` and ``t = tanh(high / 2)`` that is ``t (1 + cosh e) + sinh e = high + e``, convex and increasing in
    e: Newton's method cannot go astray. Only the last step is differentiated, which gives the implicit derivative.
    """
    high = high.clamp(max=_FAR)
    t = torch.tanh(high / 2)
    with torch.no_grad():
        e = torch.minimum(high / 2, torch.log1p(high))
        for _ in range(_STEPS):
            e = _newton(e, t, high)
    return -_newton(e, t, high)


def _newton(e: Tensor, t: Tensor, high: Tensor) -> Tensor:
    cosh, sinh = torch.cosh(e), torch.sinh(e)
    slope = (t * sinh + (cosh - 1)).detach().clamp(min=torch.finfo(e.dtype).tiny)
    return torch.minimum((e - (t * (1 + cosh) + sinh - e - high) / slope).clamp(min=0), high)


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

    def touch(self, high: Tensor) -> Tensor:
        return _logistic_touch(high)

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

    def touch(self, high: Tensor) -> Tensor:
        return _logistic_touch(2 * high) / 2

    def stationary(self, slope: Tensor) -> Tensor:
        return _logistic_stationary(slope / 4) / 2

    def limits(self) -> tuple[float, float]:
        return -1.0, 1.0
