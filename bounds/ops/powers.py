"""Powers of x: Reciprocal, Sqrt, and Pow with a constant exponent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode, Rewritten
from bounds.ops.smooth import Piece, Smooth
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Power(Smooth):
    """``x^n`` for a whole number n besides 0 and 1, negative ones included (then 0 is a pole)."""

    exponent: int

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.pow(operands[0], self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent - 1) * self.exponent

    def pieces(self) -> Sequence[Piece]:
        n = self.exponent
        if n > 0 and n % 2 == 0:
            return (Piece(-math.inf, math.inf, 1),)
        return Piece(-math.inf, 0.0, 1 if n % 2 == 0 else -1), Piece(0.0, math.inf, 1)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        """``|x|^(n - 1) = |k / n|``, with the sign that ``f' = n x^(n - 1)`` asks for."""
        n = self.exponent
        ratio, root = slope / n, 1 / (n - 1)
        if n % 2 == 0 and n > 0:
            return ratio.abs() ** root * ratio.sign()
        side = 1.0 if piece.low >= 0 else -1.0
        return (ratio * (side if n % 2 == 0 else 1.0)).clamp(min=0) ** root * side

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """By a library, or by as many products as the exponent says and a quotient."""
        size = torch.maximum(result[0].abs(), result[1].abs()).clamp(min=1)
        return machine.function(size * max(1.0, abs(self.exponent) / 16))

    def turns(self) -> Sequence[float]:
        return (0.0,) if self.exponent > 0 else ()

    def void(self, low: Tensor, high: Tensor) -> Tensor | None:
        return None if self.exponent > 0 else (low <= 0) & (high >= 0)

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        return self.void(*operands[0])


@dataclass(frozen=True, slots=True)
class Reciprocal(Smooth):
    """``1 / x``: an interval with 0 in it says nothing."""

    onnx = (OnnxName("Reciprocal", 6),)

    def forward(self, *operands: Tensor) -> Tensor:
        return 1 / operands[0]

    def derivative(self, x: Tensor) -> Tensor:
        return -1 / (x * x)

    def pieces(self) -> Sequence[Piece]:
        return Piece(-math.inf, 0.0, -1), Piece(0.0, math.inf, 1)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return (-slope).clamp(min=0).rsqrt() * (1.0 if piece.sign > 0 else -1.0)

    def void(self, low: Tensor, high: Tensor) -> Tensor | None:
        return (low <= 0) & (high >= 0)

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        return self.void(*operands[0])


@dataclass(frozen=True, slots=True)
class Sqrt(Smooth):
    """The square root, of numbers from 0 on."""

    domain = (0.0, math.inf)
    limits = (0.0, math.inf)
    onnx = (OnnxName("Sqrt", 6),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].sqrt()

    def derivative(self, x: Tensor) -> Tensor:
        return 0.5 / x.sqrt().abs()  # the root of -0.0 is -0.0: without the sign the derivative there is +inf

    def pieces(self) -> Sequence[Piece]:
        return (Piece(0.0, math.inf, -1),)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return (0.5 / slope.clamp(min=0)).square()


@dataclass(frozen=True, slots=True)
class RealPower(Smooth):
    """``x^p`` for a p that is no whole number, of numbers from 0 on (a negative p: above 0).

    ``p - 1`` must be a number of float64, as it is for every p of float32 that is not tiny.
    """

    exponent: float
    domain = (0.0, math.inf)
    limits = (0.0, math.inf)

    def __post_init__(self) -> None:
        if Fraction(self.exponent) - 1 != Fraction(self.exponent - 1):
            raise ValueError(f"the exponent {self.exponent!r} has too many digits: {self.exponent!r} - 1 is rounded")

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.pow(operands[0], self.exponent)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.pow(x, self.exponent - 1) * self.exponent

    def pieces(self) -> Sequence[Piece]:
        return (Piece(0.0, math.inf, -1 if 0 < self.exponent < 1 else 1),)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return (slope / self.exponent).clamp(min=0) ** (1 / (self.exponent - 1))

    def outside(self, operands: Sequence[Interval]) -> Tensor | None:
        low = operands[0][0]
        return low < 0 if self.exponent > 0 else low <= 0


class Pow(Rewritten):
    """Reads ``x^p`` with a constant p, one number: the operator that is made for it."""

    __slots__ = ()
    onnx = (OnnxName("Pow", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, power = reading.operand(node, 0), reading.operand(node, 1)
        value = reading.constant(node, build, 1)
        if build.error(power) is not None:
            raise reading.unsupported(node, "an exponent that is computed by inexact operations")
        if value.numel() == 0 or bool((value != value.flatten()[0]).any()):
            raise reading.unsupported(node, "exponents that differ between elements")
        if len(value.shape) > len(build.shape(x)) or any(
            v != 1 and v != s for v, s in zip(reversed(value.shape), reversed(build.shape(x)), strict=False)
        ):
            raise reading.unsupported(node, "an exponent that repeats the base")
        return (raised(build, x, float(value.flatten()[0].item()), node),)


def raised(build: BuilderLike, x: int, exponent: float, node: OnnxNode) -> int:
    """``x^exponent`` as a node of the graph; ``node`` is named in errors."""
    if not math.isfinite(exponent):
        raise reading.invalid(node, f"the exponent is {exponent}")
    if exponent == 1:
        return x
    if exponent == 0:
        return build.constant(torch.ones(build.shape(x), dtype=torch.float64))
    special = {0.5: Sqrt(), -1.0: Reciprocal()}
    if exponent in special:
        return build.add(special[exponent], x, name=node.name)
    if exponent.is_integer():
        return build.add(Power(int(exponent)), x, name=node.name)
    try:
        return build.add(RealPower(exponent), x, name=node.name)
    except ValueError as error:
        raise reading.unsupported(node, str(error)) from error
