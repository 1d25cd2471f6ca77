"""Piecewise linear functions besides ReLU: LeakyRelu, PRelu and Abs (one kink at 0), and Clip (two kinks)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode, broadcast
from bounds.ops.indexing import expand
from bounds.ops.relu import Relu
from bounds.ops.shaping import align
from bounds.ops.univariate import PiecewiseLinear
from bounds.rounding import Rounding


class _Hinge(PiecewiseLinear):
    """``x`` for ``x >= 0``, ``a x`` below; convex for ``a <= 1``, concave for ``a >= 1``, any sign of ``a``.

    For ``l < 0 < u`` the chord bounds one side; on the other side any slope between ``a`` and 1 passes through 0, and
    the one of the longer branch is where it starts.
    """

    __slots__ = ()

    @abstractmethod
    def left(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """The slope ``a``, of a shape that broadcasts with ``x``."""

    def forward(self, *operands: Tensor) -> Tensor:
        x, *parameters = operands
        return torch.where(x >= 0, x, x * self.left(x, *parameters))

    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def branches(self, like: Tensor, *parameters: Tensor) -> Sequence[tuple[Tensor | float, Tensor | float]]:
        return (self.left(like, *parameters), 0.0), (1.0, 0.0)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (low, high), *rest = operands
        parameters = [p[0] for p in rest]
        one, two = self.forward(low, *parameters), self.forward(high, *parameters)
        least, most = self._outward(torch.minimum(one, two), torch.maximum(one, two), rounding)
        inside = (low < 0) & (high > 0)
        return torch.where(inside, least.clamp(max=0), least), torch.where(inside, most.clamp(min=0), most)

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        left, right = self.left(low, *parameters).to(low).expand_as(low), torch.ones_like(low)
        one, two = torch.where(low > 0, right, left), torch.where(high < 0, left, right)
        return torch.minimum(one, two), torch.maximum(one, two)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        left = self.left(low, *parameters).to(low)
        chord = self.chord(low, high, *parameters)
        chord = torch.where(low >= 0, 1.0, torch.where(high <= 0, left, chord))
        free = torch.where(high > -low, 1.0, left)
        return torch.where(left <= 1, free, chord), torch.where(left <= 1, chord, free)

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        """Between the two branches on the side that bends away, on the other the chord."""
        left, right = self.left(low, *parameters).to(low).expand_as(low), torch.ones_like(low)
        below, above = self.slopes(low, high, *parameters)
        inside = (low < 0) & (high > 0)

        def between(start: Tensor, free: Tensor) -> Interval:
            return torch.where(free, left, start), torch.where(free, right, start)

        first, second = between(below, inside & (left < 1)), between(above, inside & (left > 1))
        return (torch.minimum(*first), torch.maximum(*first)), (torch.minimum(*second), torch.maximum(*second))


@dataclass(frozen=True, slots=True)
class LeakyRelu(_Hinge):
    """``x`` for ``x >= 0``, ``alpha x`` below."""

    alpha: float
    onnx = (OnnxName("LeakyRelu", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        alpha = float(node.attributes.get("alpha", 0.009999999776482582))
        if not math.isfinite(alpha):
            raise reading.invalid(node, f"alpha is {alpha}")
        op = Relu() if alpha == 0 else cls(alpha)
        return (build.add(op, reading.operand(node, 0), name=node.name),)

    def left(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return x.new_full((), self.alpha)


@dataclass(frozen=True, slots=True)
class PRelu(_Hinge):
    """``x`` for ``x >= 0``, ``a x`` below with a constant slope ``a`` for each element (no N)."""

    onnx = (OnnxName("PRelu", 7),)
    parameters = frozenset({1})

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        reading.constant(node, build, 1)
        x, slope = align(build, reading.operand(node, 0), reading.operand(node, 1))
        if build.error(slope) is not None:
            raise reading.unsupported(node, "a slope that is computed by inexact operations")
        shape = broadcast(build.shape(x), build.shape(slope))
        return (build.add(cls(), expand(build, x, shape), slope, name=node.name),)

    def left(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return parameters[0]


@dataclass(frozen=True, slots=True)
class Abs(_Hinge):
    """``|x|``, exact."""

    ulps = 0
    onnx = (OnnxName("Abs", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def left(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return x.new_full((), -1.0)


@dataclass(frozen=True, slots=True)
class Clip(PiecewiseLinear):
    """``min(max(x, low), high)`` with ``low <= high``; None: no limit.

    Convex at ``low``, concave at ``high``. Below, with ``l < low < u``: a line through the kink ``(low, low)``, of
    slope 0 or through the end at u, whichever is higher in the middle; above mirrored.
    """

    low: float | None
    high: float | None
    onnx = (OnnxName("Clip", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """Limits are attributes up to opset 10, operands after."""
        x = reading.operand(node, 0)
        limits = []
        for k, name in enumerate(("min", "max")):
            if reading.present(node, k + 1):
                if build.error(reading.operand(node, k + 1)) is not None:
                    raise reading.unsupported(node, "a limit that is computed by inexact operations")
                limits.append(reading.scalar(node, build, k + 1))
            else:
                limits.append(float(node.attributes.get(name, (-math.inf, math.inf)[k])))
        low, high = limits
        if math.isnan(low) or math.isnan(high) or low == math.inf or high == -math.inf:
            raise reading.invalid(node, f"limits {low} and {high}")
        low = min(low, high)  # a lower limit above the upper one gives the upper one everywhere
        # The extreme float32 numbers are how exporters write "no limit".
        limit = 3.4e38
        op = cls(None if low < -limit else low, None if high > limit else high)
        if op.low is None and op.high is None:
            return (x,)
        relu = op.low == 0 and op.high is None
        return (build.add(Relu() if relu else op, x, name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].clamp(self.low, self.high)

    def kinks(self) -> tuple[float, ...]:
        return tuple(k for k in (self.low, self.high) if k is not None)

    def branches(self, like: Tensor, *parameters: Tensor) -> Sequence[tuple[float, float]]:
        below = () if self.low is None else ((0.0, self.low),)
        above = () if self.high is None else ((0.0, self.high),)
        return (*below, (1.0, 0.0), *above)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Exact where the dtype holds the limits."""
        low, high = self.forward(operands[0][0]), self.forward(operands[0][1])
        exact = all(float(low.new_tensor(k).item()) == k for k in self.kinks())
        return (low, high) if exact else self._outward(low, high, rounding)

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        """1 strictly between the limits, 0 strictly outside."""
        least = -math.inf if self.low is None else self.low
        most = math.inf if self.high is None else self.high
        return ((low > least) & (high < most)).to(low), ((high >= least) & (low <= most)).to(low)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        least = -math.inf if self.low is None else self.low
        most = math.inf if self.high is None else self.high
        return _below(low, high, least, most), _below(-high, -low, -most, -least)

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        """0 to 1 on both sides wherever there is a kink inside."""
        below, above = self.slopes(low, high, *parameters)
        bent = self.loose(low, high)
        zero, one = torch.zeros_like(low), torch.ones_like(low)
        return (
            (torch.where(bent, zero, below), torch.where(bent, one, below)),
            (torch.where(bent, zero, above), torch.where(bent, one, above)),
        )


def _below(low: Tensor, high: Tensor, least: float, most: float) -> Tensor:
    """Slope of the lower line of ``min(max(x, least), most)``: from the kink (or the low end) to the high end."""
    start = low.clamp(min=least)
    width = high - start
    rise = high.clamp(max=most) - start.clamp(max=most)
    slope = torch.where(width > 0, rise / torch.where(width > 0, width, 1.0), 0.0).clamp(0, 1)
    point = torch.where((low >= least) & (low < most), 1.0, 0.0)
    slope = torch.where(high > low, slope, point.to(low))
    flat = (low < least) & (low + high < 2 * least) if math.isfinite(least) else torch.zeros_like(low, dtype=torch.bool)
    return torch.where(flat, 0.0, slope)
