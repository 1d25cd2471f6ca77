"""Sin, Cos and Tan.

Around its least places ``c + 2 pi n`` a sine or cosine is convex for a quarter period on both sides, and
``f'(x) = sin(x - c)``. Over several whole periods the minimum of ``f(x) - k x`` is in the first or the last of them,
because it moves by ``-2 pi k`` from each to the next; so two periods at either end of the interval are looked at.
Places are multiples of pi in float64, off by less than 1e-7 below ``2^26``, which moves a derivative by less than
1e-14 at an inflection point; beyond ``2^26`` nothing but ``-1 <= f <= 1`` is claimed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops.base import Interval, OnnxName
from bounds.ops.smooth import Piece, Smooth
from bounds.rounding import Rounding

_PERIOD = 2 * math.pi
_LARGEST = 2.0**26


class _Wave(Smooth):
    __slots__ = ()
    limits = (-1.0, 1.0)
    grain = 1.0

    @abstractmethod
    def trough(self) -> float:
        """A place where f is -1."""

    def pieces(self) -> Sequence[Piece]:
        """Without end: see ``_turning_points`` and ``curved``."""
        return ()

    def rough(self) -> float:
        return 16.0

    def void(self, low: Tensor, high: Tensor) -> Tensor | None:
        return ~((low.abs() <= _LARGEST) & (high.abs() <= _LARGEST))

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        return None

    def _reaches(self, low: Tensor, high: Tensor, place: float) -> Tensor:
        """Whether ``place + 2 pi n`` lies in ``[low, high]`` for some n, or nearly."""
        near = torch.finfo(low.dtype).eps * 8 * (1 + low.abs())
        first = ((low - near - place) / _PERIOD).ceil()
        return (first * _PERIOD + place <= high + near) | (high - low >= _PERIOD)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        low, high = operands[0]
        if rounding is not None and low.dtype == torch.float32:
            return Smooth.interval(self, operands, rounding)
        void, trough = self.void(low, high), self.trough()
        one, two = self.forward(low), self.forward(high)
        least = torch.where(self._reaches(low, high, trough), -1.0, torch.minimum(one, two))
        most = torch.where(self._reaches(low, high, trough + math.pi), 1.0, torch.maximum(one, two))
        return self._enclosed(least, most, void, rounding)

    def _slope_range(self, low: Tensor, high: Tensor) -> Interval:
        one, two = self.derivative(low), self.derivative(high)
        steepest = self.trough() + math.pi / 2
        least = torch.where(self._reaches(low, high, steepest + math.pi), -1.0, torch.minimum(one, two))
        return least, torch.where(self._reaches(low, high, steepest), 1.0, torch.maximum(one, two))

    def _turning_points(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Sequence[Interval]:
        place = self.trough() + (0.0 if sign > 0 else math.pi)
        tilt = slope.clamp(-1, 1).asin() * sign
        found = []
        for end in (low, high):
            period = ((end - place) / _PERIOD).floor()
            for step in (0, 1):
                centre = (period + step) * _PERIOD + place
                left = torch.maximum(low, centre - math.pi / 2)
                right = torch.minimum(high, centre + math.pi / 2)
                found.append(self.turning(centre + tilt, slope, left, right, sign))
        return found

    def curved(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        place = self.trough() + (0.0 if sign > 0 else math.pi)
        centre = ((low / 2 + high / 2 - place) / _PERIOD).round() * _PERIOD + place
        return (low >= centre - math.pi / 2) & (high <= centre + math.pi / 2)


@dataclass(frozen=True, slots=True)
class Sin(_Wave):
    """The sine."""

    onnx = (OnnxName("Sin", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].sin()

    def derivative(self, x: Tensor) -> Tensor:
        return x.cos()

    def trough(self) -> float:
        return -math.pi / 2


@dataclass(frozen=True, slots=True)
class Cos(_Wave):
    """The cosine."""

    onnx = (OnnxName("Cos", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].cos()

    def derivative(self, x: Tensor) -> Tensor:
        return -x.sin()

    def trough(self) -> float:
        return math.pi


@dataclass(frozen=True, slots=True)
class Tan(Smooth):
    """The tangent, on intervals between two of its poles: concave up to the zero there, convex behind it."""

    onnx = (OnnxName("Tan", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].tan()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 + x.tan().square()

    def pieces(self) -> Sequence[Piece]:
        """Without end: see ``_turning_points`` and ``curved``."""
        return ()

    def void(self, low: Tensor, high: Tensor) -> Tensor | None:
        """With a pole inside or nearly; there is always one beyond 2^26, where places are not known well enough."""
        near = torch.finfo(low.dtype).eps * 8 * (1 + low.abs())
        first = ((low - near) / math.pi - 0.5).ceil()
        clear = ((first + 0.5) * math.pi > high + near) & (low.abs() <= _LARGEST) & (high.abs() <= _LARGEST)
        return ~clear

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        return self.void(*operands[0])

    def _tame(self, low: Tensor, high: Tensor, void: Tensor | None) -> Interval:
        assert void is not None
        return torch.where(void, 0.5, low), torch.where(void, 0.5, high)

    def _zero(self, low: Tensor, high: Tensor) -> Tensor:
        """The inflection point in the middle of the branch."""
        return ((low / 2 + high / 2) / math.pi).round() * math.pi

    def _slope_range(self, low: Tensor, high: Tensor) -> Interval:
        one, two = self.derivative(low), self.derivative(high)
        zero, near = self._zero(low, high), torch.finfo(low.dtype).eps * 8 * (1 + low.abs())
        flat = (low - near <= zero) & (zero <= high + near)
        return torch.where(flat, 1.0, torch.minimum(one, two)), torch.maximum(one, two)

    def _turning_points(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Sequence[Interval]:
        zero = self._zero(low, high)
        place = zero + (slope - 1).clamp(min=0).sqrt().atan() * sign
        left = torch.maximum(low, zero) if sign > 0 else low
        right = high if sign > 0 else torch.minimum(high, zero)
        return [self.turning(place, slope, left, right, sign)]

    def curved(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        zero = self._zero(low, high)
        return low >= zero if sign > 0 else high <= zero
