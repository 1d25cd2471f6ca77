"""Exp, Log, and functions made of exponentials that bend one way or about 0: Softplus, Elu, Selu, Celu, Sinh, Cosh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode
from bounds.ops.smooth import Piece, Smooth
from bounds.rounding import Rounding

_EVERYWHERE = Piece(-math.inf, math.inf, 1)


def logarithm(x: Tensor) -> Tensor:
    """Of a number, or of the least normal one where it is not positive."""
    return x.clamp(min=torch.finfo(x.dtype).tiny).log()


def softplus(x: Tensor) -> Tensor:
    """``log(1 + e^x)``, without overflow."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


@dataclass(frozen=True, slots=True)
class Exp(Smooth):
    """``e^x``."""

    limits = (0.0, math.inf)
    onnx = (OnnxName("Exp", 6),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].exp()

    def derivative(self, x: Tensor) -> Tensor:
        return x.exp()

    def pieces(self) -> Sequence[Piece]:
        return (_EVERYWHERE,)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return logarithm(slope)

    def touch(self, low: Tensor, high: Tensor, sign: int) -> Tensor:
        """Not further right than where the tangent is still positive at the left end."""
        return torch.minimum(low / 2 + high / 2, low + 0.99)


@dataclass(frozen=True, slots=True)
class Log(Smooth):
    """The natural logarithm, of numbers above 0."""

    domain = (0.0, math.inf)
    opened = True
    onnx = (OnnxName("Log", 6),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].log()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / x.abs()  # at -0.0 it is +inf too

    def pieces(self) -> Sequence[Piece]:
        return (Piece(0.0, math.inf, -1),)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return 1 / slope.clamp(min=0)


@dataclass(frozen=True, slots=True)
class Softplus(Smooth):
    """``log(1 + e^x)``."""

    limits = (0.0, math.inf)
    onnx = (OnnxName("Softplus", 1),)

    def forward(self, *operands: Tensor) -> Tensor:
        return softplus(operands[0])

    def derivative(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def pieces(self) -> Sequence[Piece]:
        return (_EVERYWHERE,)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return logarithm(slope) - torch.log1p(-slope.clamp(max=1))


@dataclass(frozen=True, slots=True)
class Elu(Smooth):
    """``scale x`` above 0, ``scale alpha (e^(x / width) - 1)`` below: Elu, Selu (a scale) and Celu (width = alpha)."""

    alpha: float = 1.0
    scale: float = 1.0
    width: float = 1.0
    onnx = (OnnxName("Elu", 6), OnnxName("Selu", 6), OnnxName("Celu", 12))

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        selu = node.op_type == "Selu"
        alpha = float(node.attributes.get("alpha", 1.6732631921768188 if selu else 1.0))
        scale = float(node.attributes.get("gamma", 1.0507010221481323)) if selu else 1.0
        width = alpha if node.op_type == "Celu" else 1.0
        if not (math.isfinite(alpha) and math.isfinite(scale)):
            raise reading.invalid(node, f"alpha is {alpha}, gamma {scale}")
        if width <= 0 or scale <= 0:
            raise reading.unsupported(node, f"alpha = {alpha}, gamma = {scale}: the sign is not covered")
        return (build.add(cls(alpha, scale, width), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        x = operands[0]
        bent = torch.expm1(x.clamp(max=0) / self.width) * (self.alpha * self.scale)
        return torch.where(x > 0, x * self.scale, bent)

    def _steepest(self) -> float:
        """The derivative just below 0."""
        return self.alpha * self.scale / self.width

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, self.scale, (x.clamp(max=0) / self.width).exp() * self._steepest())

    def rough(self) -> float:
        return 4 * abs(self._steepest())

    def pieces(self) -> Sequence[Piece]:
        return (Piece(-math.inf, 0.0, 1 if self.alpha >= 0 else -1),)

    def spans(self) -> Sequence[Piece]:
        """Convex across 0 where the slope does not fall there."""
        convex = 0 <= self._steepest() <= self.scale
        return (_EVERYWHERE,) if convex else self.pieces()

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        steepest = self._steepest()
        return logarithm(slope / steepest) * self.width if steepest else torch.zeros_like(slope)

    def kinks(self) -> Sequence[tuple[float, float]]:
        return ((0.0, self.scale),)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """A library's exponential less 1 is off by units of 1, and then multiplied."""
        size = torch.maximum(result[0].abs(), result[1].abs()).clamp(min=1)
        return machine.function(size * max(1.0, abs(self.alpha * self.scale)))

    def turns(self) -> Sequence[float]:
        return (0.0,)


@dataclass(frozen=True, slots=True)
class Sinh(Smooth):
    """``(e^x - e^-x) / 2``."""

    onnx = (OnnxName("Sinh", 9),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].sinh()

    def derivative(self, x: Tensor) -> Tensor:
        return x.cosh()

    def pieces(self) -> Sequence[Piece]:
        return Piece(-math.inf, 0.0, -1), Piece(0.0, math.inf, 1)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return slope.clamp(min=1).acosh() * piece.sign


@dataclass(frozen=True, slots=True)
class Cosh(Smooth):
    """``(e^x + e^-x) / 2``."""

    limits = (1.0, math.inf)
    onnx = (OnnxName("Cosh", 9),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].cosh()

    def derivative(self, x: Tensor) -> Tensor:
        return x.sinh()

    def pieces(self) -> Sequence[Piece]:
        return (_EVERYWHERE,)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return slope.asinh()

    def turns(self) -> Sequence[float]:
        return (0.0,)
