"""Smooth functions by their shape: where they are convex, where concave, and their derivative.

The extreme values of ``f(x) - k x`` over an interval lie at its ends, at kinks, or where ``f'(x) = k``: a minimum in a
convex piece, a maximum in a concave one. The point p that is computed for it need not be exact, because in a convex
piece

    f(x) - k x  >=  f(p) - k p + (f'(p) - k)(x - p),

so the true minimum lies at most the largest of ``-(f'(p) - k)(x - p)`` over the piece below the value at p; a concave
piece is mirrored. The ends of pieces are inflection points rounded to float64; within the d between the true one and
the rounded one ``f'`` moves by no more than ``d^2 max |f'''| / 2``, far less than the error that is charged to ``f'``.

Lines that are claimed are computed in float64 also where float32 is asked for, and rounded outward at the end: the
accuracy of torch's functions is relied on in float64 alone. ``benchmarks/function_errors.py`` measures it; ``ulps``,
``grain`` and ``rough`` of a class are at least twice what was found.

The initial line on a side is the one that is best in the middle of the interval (of all lines below f it leaves the
least area): the tangent there, the chord, or a bridge between two places where the line touches, found by walking
down to it from the chord. Every other slope is sound as well.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, Line, OnnxNode, Parameters, Relaxation
from bounds.ops.univariate import Univariate
from bounds.rounding import Rounding, cast_outward

_WALK = 8  # steps from the chord to the bridge
_HALVINGS, _NEWTON = 5, 5  # steps to a place of given derivative


@dataclass(frozen=True, slots=True)
class Piece:
    """f is convex (``sign`` 1) or concave (-1) on ``[low, high]``."""

    low: float
    high: float
    sign: int


class Smooth(Univariate):
    """A function of one variable that is convex or concave on each of a few pieces.

    ``limits``: what values lie between. ``domain``: where it is defined; ``opened`` says that the ends do not belong
    to it. Between pieces, at the ends of linear parts, lie ``kinks``. Beyond ``far`` nothing bends noticeably.
    """

    __slots__ = ()
    far: ClassVar[float] = 64.0
    limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    domain: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    opened: ClassVar[bool] = False

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """A function without attributes."""
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """The curved pieces; parts that belong to none are linear."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """``f'(x)``; at a kink that of the curved piece."""

    def rough(self) -> float:
        """The error of ``derivative`` is at most 16 units in its last place plus this many of 1's."""
        return 0.0

    def curvature(self, x: Tensor) -> Tensor:
        """``f''(x)``, roughly: for operators without a ``stationary`` of their own."""
        raise NotImplementedError(f"{type(self).__name__} has neither a curvature nor stationary points")

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        """About the place in ``[low, high]``, a part of a piece, where ``f' = slope``; else the end nearer to it.

        Newton's method in a bracket, after some halvings.
        """
        left, right = low.clamp(-self.far, self.far), high.clamp(-self.far, self.far)
        x = (left + right) / 2
        for step in range(_HALVINGS + _NEWTON):
            excess = (self.derivative(x) - slope) * piece.sign
            left, right = torch.where(excess <= 0, x, left), torch.where(excess > 0, x, right)
            if step < _HALVINGS:
                x = (left + right) / 2
            else:
                newton = x - excess / (self.curvature(x) * piece.sign).clamp(min=1e-30)
                x = torch.minimum(torch.maximum(newton, left), right)
        x = torch.where((self.derivative(low) - slope) * piece.sign >= 0, low, x)
        return torch.where((self.derivative(high) - slope) * piece.sign <= 0, high, x)

    def spans(self) -> Sequence[Piece]:
        """Where f bends one way only, across kinks."""
        return self.pieces()

    def kinks(self) -> Sequence[tuple[float, float]]:
        """Ends of linear parts, with the slope of the linear part."""
        return ()

    def turns(self) -> Sequence[float]:
        """Places besides the ends where f can have its extreme values."""
        return ()

    def void(self, low: Tensor, high: Tensor) -> Tensor | None:
        """Intervals about which nothing can be said, since f has no value somewhere in them; None: none is.

        Nothing, not even that f would keep its limits elsewhere: a runtime goes on with NaN, and a comparison or a
        maximum further on may turn that into a number again.
        """
        least, greatest = self.domain
        if math.isinf(least) and math.isinf(greatest):
            return None
        return (low <= least) | (high >= greatest) if self.opened else (low < least) | (high > greatest)

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        return self.void(*operands[0])

    # Bounds of values ------------------------------------------------------------------------------------------------

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """From the values at ends and turning points, between the limits; where void, infinite."""
        low, high = operands[0]
        if rounding is not None and low.dtype == torch.float32:
            return cast_outward(*self.interval([(low.double(), high.double())], Rounding.of(torch.float64)), low.dtype)
        void = self.void(low, high)
        low, high = self._tame(low, high, void)
        one, two = self.forward(low), self.forward(high)
        least, most = torch.minimum(one, two), torch.maximum(one, two)
        for place in self.turns():
            value = self.forward(low.new_tensor(place))
            inside = (low <= place) & (high >= place)
            least = torch.where(inside, torch.minimum(least, value), least)
            most = torch.where(inside, torch.maximum(most, value), most)
        return self._enclosed(least, most, void, rounding)

    def _enclosed(self, least: Tensor, most: Tensor, void: Tensor | None, rounding: Rounding | None) -> Interval:
        """Rounded outward, between the limits; what overflows is infinite."""
        largest = torch.finfo(least.dtype).max
        least, most = self._outward(least.clamp(max=largest), most.clamp(min=-largest), rounding)
        least, most = least.clamp(*self.limits), most.clamp(*self.limits)
        if void is not None:
            least, most = torch.where(void, -math.inf, least), torch.where(void, math.inf, most)
        return least, most

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        """Monotone on pieces: from the ends of the interval, of pieces and of linear parts."""
        void = self.void(low, high)
        low, high = self._tame(low, high, void)
        least, most = self._slope_range(low, high)
        if rounding is not None:
            unit = rounding.unit

            def doubt(value: Tensor) -> Tensor:
                return value.abs() * (40 * unit) + (4 * self.rough() * unit + 2 * rounding.tiny)

            least, most = least - doubt(least), most + doubt(most)
        if void is not None:
            least, most = torch.where(void, -math.inf, least), torch.where(void, math.inf, most)
        return torch.nan_to_num(least, -math.inf, -math.inf, -math.inf), torch.nan_to_num(most, math.inf, math.inf)

    def _slope_range(self, low: Tensor, high: Tensor) -> Interval:
        one, two = self.derivative(low), self.derivative(high)
        least, most = torch.minimum(one, two), torch.maximum(one, two)
        for place, value in (*self._bends(low), *((p, low.new_tensor(s)) for p, s in self.kinks())):
            inside = (low <= place) & (high >= place)
            least = torch.where(inside, torch.minimum(least, value), least)
            most = torch.where(inside, torch.maximum(most, value), most)
        return least, most

    def _bends(self, like: Tensor) -> list[tuple[float, Tensor]]:
        """Inner ends of pieces, and the derivative there."""
        ends = {e for piece in self.pieces() for e in (piece.low, piece.high) if math.isfinite(e)} - set(self.domain)
        return [(e, self.derivative(like.new_tensor(e))) for e in sorted(ends)]

    def _tame(self, low: Tensor, high: Tensor, void: Tensor | None) -> Interval:
        """The interval within the domain; a harmless one where it is void."""
        if void is None:
            return low, high
        low, high = low.clamp(*self.domain), high.clamp(*self.domain)
        harmless = min(max(0.5, self.domain[0] + 0.5), self.domain[1])
        return torch.where(void, harmless, low), torch.where(void, harmless, high)

    # Lines -----------------------------------------------------------------------------------------------------------

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """As of any univariate function; the claim is computed in float64."""
        low, high = operands[0]
        dtype = low.dtype
        if rounding is None or dtype == torch.float64:
            lines = Univariate.relaxation(self, operands, rounding, chosen)
        else:
            _, _, below, above, _ = self._chosen(operands, chosen)
            exact = (below.double(), above.double())
            lines = Univariate.relaxation(self, [(low.double(), high.double())], Rounding.of(torch.float64), exact)
            least, most = cast_outward(lines.lower[0].offset, lines.upper[0].offset, dtype)
            lines = Relaxation((Line((below,), least),), (Line((above,), most),))
        void = self._unfit(low, high)
        if not bool(void.any()):
            return lines
        least, most = self.interval(operands, rounding)
        (lower,), (upper,) = lines.lower, lines.upper
        below, above = (torch.where(void, 0.0, line.slopes[0]) for line in (lower, upper))
        return Relaxation(
            (
                Line(
                    (below,), torch.where(void, torch.nan_to_num(least, nan=-math.inf, neginf=-math.inf), lower.offset)
                ),
            ),
            (Line((above,), torch.where(void, torch.nan_to_num(most, nan=math.inf, posinf=math.inf), upper.offset)),),
        )

    def _unfit(self, low: Tensor, high: Tensor) -> Tensor:
        """Intervals on which the lines are those of the values' interval: infinite, or void."""
        void = self.void(low, high)
        infinite = ~((high - low) < math.inf)
        return infinite if void is None else infinite | void

    def _chosen(
        self, operands: Sequence[Interval], chosen: Parameters
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
        low, high = operands[0]
        return Univariate._chosen(self, [self._tame(low, high, self._unfit(low, high))], chosen)

    def valleys(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        return self._turning_points(slope, low, high, 1)

    def hills(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> Sequence[Interval]:
        return self._turning_points(slope, low, high, -1)

    def _turning_points(self, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Sequence[Interval]:
        found = []
        for piece in self.pieces():
            if piece.sign == sign:
                left, right = low.clamp(min=piece.low), high.clamp(max=piece.high)
                place = self.stationary(slope, piece, left, right)
                found.append(self.turning(place, slope, left, right, sign))
        zero = torch.zeros_like(low)
        return found + [(torch.full_like(low, place), zero) for place, _ in self.kinks()]

    def turning(self, place: Tensor, slope: Tensor, low: Tensor, high: Tensor, sign: int) -> Interval:
        """The point in ``[low, high]`` (nothing where low > high) and how far the extreme can lie beyond it."""
        point = torch.maximum(torch.minimum(torch.nan_to_num(place), high), low)
        derivative = self.derivative(point)
        info = torch.finfo(low.dtype)
        doubt = derivative.abs() * (16 * info.eps) + slope.abs() * info.eps + (self.rough() * info.eps + info.tiny)
        rate = (derivative - slope) * sign
        excess = torch.maximum(
            torch.where(point > low, (rate + doubt) * (point - low), 0.0),  # no 0 times infinity
            torch.where(point < high, (doubt - rate) * (high - point), 0.0),
        )
        # Rounding of the products and of the widths: far below one part in a thousand.
        excess = excess.clamp(min=0) * 1.001
        return point, torch.where(low <= high, excess, 0.0)

    # Slopes ----------------------------------------------------------------------------------------------------------

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        """The derivatives that occur; where f bends one way only, its chord on the other side."""
        span = (high - low) / 4096  # steps away from a vertical tangent at an end of the domain
        one, two = self.derivative(low), self.derivative(high)
        left = torch.where(one.isfinite(), low, low + span)
        right = torch.where(two.isfinite(), high, high - span)
        least, most = self._slope_range(left, right)
        least = torch.nan_to_num(torch.where(least.isfinite(), least, most), 0.0, 0.0, 0.0)
        most = torch.where(most.isfinite(), most, least)
        chord = torch.nan_to_num(self.chord(low, high), 0.0, 0.0, 0.0)
        concave, convex = self.curved(low, high, -1), self.curved(low, high, 1)
        return (
            (torch.where(concave, chord, least), torch.where(concave, chord, most)),
            (torch.where(convex, chord, least), torch.where(convex, chord, most)),
        )

    def curved(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Whether an interval lies in a piece that is convex (``sign`` 1) or concave (-1)."""
        found = torch.zeros_like(low, dtype=torch.bool)
        for piece in self.spans():
            if piece.sign == sign:
                found = found | ((low >= piece.low) & (high <= piece.high))
        return found

    def touch(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Where the initial tangent touches on an interval that bends one way."""
        return low / 2 + high / 2

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        """Slope of the line through the graph's end points; that of the tangent where they are close together."""
        middle, width = low / 2 + high / 2, high - low
        wide = width > (1 + middle.abs()) * 2e-4
        rise = self.forward(high) - self.forward(low)
        return torch.where(wide, rise / torch.where(wide, width, 1.0), self.derivative(middle))

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        chord = self.chord(low, high)
        convex, concave = self.curved(low, high, 1), self.curved(low, high, -1)
        below = torch.where(convex, self.derivative(self.touch(low, high, 1)), chord)
        above = torch.where(concave, self.derivative(self.touch(low, high, -1)), chord)
        mixed = (~(convex | concave) & (high > low)).nonzero(as_tuple=True)
        if mixed[0].shape[0]:
            ends = low[mixed], high[mixed]
            below[mixed] = self._bridge(*ends, chord[mixed], 1)
            above[mixed] = self._bridge(*ends, chord[mixed], -1)
        return below, above

    def _bridge(self, low: Tensor, high: Tensor, chord: Tensor, sign: int) -> Tensor:
        """Slope of the line on one side of f that is best in the middle.

        The line of slope k touches at x(k); where that is left of the middle, a line through a point further right is
        better. So the next slope is that of the chord between the nearest touching points on both sides.
        """
        middle = low / 2 + high / 2
        left, right, slope = low, high, chord
        best, gain = slope, torch.full_like(low, -math.inf)
        for step in range(_WALK + 1):
            if step == _WALK:
                slope = self.derivative(middle)
            extreme, place = (self.least if sign > 0 else self.most)(slope, low, high, rounding=None)
            value = (extreme + slope * middle) * sign
            better = value > gain
            best, gain = torch.where(better, slope, best), torch.where(better, value, gain)
            left, right = torch.where(place < middle, place, left), torch.where(place >= middle, place, right)
            between = right - left
            rise = self.forward(right) - self.forward(left)
            slope = torch.where(between > 0, rise / torch.where(between > 0, between, 1.0), slope)
        return best
