"""Functions of networks that bend several times: Erf, Gelu, Swish, Mish, HardSwish, Softsign, Atan, Asinh.

Those like ``x`` times a gate that opens around 0 have two inflection points and one minimum. These places are known
to more digits than float64 holds.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.arithmetic import Add, Div, Mul
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten
from bounds.ops.exponential import logarithm, softplus
from bounds.ops.piecewise import Clip
from bounds.ops.smooth import Piece, Smooth


class _Saturating(Smooth):
    """Odd and increasing, convex below 0, concave above."""

    __slots__ = ()

    @abstractmethod
    def distance(self, slope: Tensor) -> Tensor:
        """The ``x >= 0`` with ``f'(x) = slope``."""

    def pieces(self) -> Sequence[Piece]:
        return Piece(-math.inf, 0.0, 1), Piece(0.0, math.inf, -1)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return self.distance(slope.clamp(min=torch.finfo(slope.dtype).tiny)) * -piece.sign


@dataclass(frozen=True, slots=True)
class Erf(_Saturating):
    """The error function."""

    limits = (-1.0, 1.0)
    onnx = (OnnxName("Erf", 9),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.erf(operands[0])

    def derivative(self, x: Tensor) -> Tensor:
        return (-x * x).exp() * (2 / math.sqrt(math.pi))

    def rough(self) -> float:
        return 4.0

    def distance(self, slope: Tensor) -> Tensor:
        return (-logarithm(slope * (math.sqrt(math.pi) / 2))).clamp(min=0).sqrt()


@dataclass(frozen=True, slots=True)
class Softsign(_Saturating):
    """``x / (1 + |x|)``."""

    limits = (-1.0, 1.0)
    onnx = (OnnxName("Softsign", 1),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] / (1 + operands[0].abs())

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x.abs()).square()

    def distance(self, slope: Tensor) -> Tensor:
        return slope.rsqrt() - 1


@dataclass(frozen=True, slots=True)
class Atan(_Saturating):
    """The arc of the tangent."""

    limits = (-1.5707963267948968, 1.5707963267948968)  # pi / 2, rounded up
    onnx = (OnnxName("Atan", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].atan()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / (1 + x * x)

    def distance(self, slope: Tensor) -> Tensor:
        return (1 / slope - 1).clamp(min=0).sqrt()


@dataclass(frozen=True, slots=True)
class Asinh(_Saturating):
    """The inverse of Sinh."""

    onnx = (OnnxName("Asinh", 9),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].asinh()

    def derivative(self, x: Tensor) -> Tensor:
        return 1 / torch.hypot(x, torch.ones_like(x))

    def distance(self, slope: Tensor) -> Tensor:
        return (1 / slope.square() - 1).clamp(min=0).sqrt()


class _Gate(Smooth):
    """``x`` times a gate: convex between two inflection points, with one minimum, concave outside."""

    __slots__ = ()
    grain = 4.0

    @abstractmethod
    def bends(self) -> tuple[float, float]:
        """The inflection points."""

    def pieces(self) -> Sequence[Piece]:
        left, right = self.bends()
        return Piece(-math.inf, left, -1), Piece(left, right, 1), Piece(right, math.inf, -1)

    def rough(self) -> float:
        return 16.0


@dataclass(frozen=True, slots=True)
class Gelu(_Gate):
    """``x`` times the normal distribution function of x."""

    far = 9.0
    limits = (-0.17, math.inf)
    onnx = (OnnxName("Gelu", 20),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        kind = reading.text(node, "approximate", "none")
        if kind not in {"none", "tanh"}:
            raise reading.invalid(node, f"approximate is {kind!r}, not 'none' or 'tanh'")
        op = cls() if kind == "none" else GeluTanh()
        return (build.add(op, reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        return torch.where(x > -40, x / 2 * torch.erfc(x * -math.sqrt(0.5)), 0.0)

    def _density(self, x: Tensor) -> Tensor:
        return (x * x * -0.5).exp() * math.sqrt(0.5 / math.pi)

    def derivative(self, x: Tensor) -> Tensor:
        x = x.clamp(-40, 40)
        return torch.erfc(x * -math.sqrt(0.5)) / 2 + x * self._density(x)

    def curvature(self, x: Tensor) -> Tensor:
        return self._density(x) * (2 - x * x)

    def bends(self) -> tuple[float, float]:
        return -math.sqrt(2), math.sqrt(2)

    def turns(self) -> Sequence[float]:
        return (-0.7517915246935645,)


_TANH = math.sqrt(2 / math.pi)


@dataclass(frozen=True, slots=True)
class GeluTanh(_Gate):
    """``x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))``, which is ``x s(2 u)`` for the sigmoid s."""

    far = 9.0
    limits = (-0.171, math.inf)

    def _double(self, x: Tensor) -> Tensor:
        return (x + 0.044715 * x * x * x) * (2 * _TANH)

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        return x * torch.sigmoid(self._double(x.clamp(-40, 40)))

    def derivative(self, x: Tensor) -> Tensor:
        x = x.clamp(-40, 40)
        gate, closed = torch.sigmoid(self._double(x)), torch.sigmoid(-self._double(x))
        return gate + x * gate * closed * ((1 + 0.134145 * x * x) * (2 * _TANH))

    def curvature(self, x: Tensor) -> Tensor:
        gate, closed = torch.sigmoid(self._double(x)), torch.sigmoid(-self._double(x))
        rate, bend = (1 + 0.134145 * x * x) * (2 * _TANH), 0.26829 * x * (2 * _TANH)
        return gate * closed * (2 * rate + x * (bend + (closed - gate) * rate * rate))

    def bends(self) -> tuple[float, float]:
        return -1.4185040087908284, 1.4185040087908284

    def turns(self) -> Sequence[float]:
        return (-0.752461422071016258,)


@dataclass(frozen=True, slots=True)
class Swish(_Gate):
    """``x s(x)`` for the sigmoid s (SiLU)."""

    far = 45.0
    limits = (-0.279, math.inf)
    onnx = (OnnxName("Swish", 24),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """``x s(a x)`` is ``Swish(a x) / a``."""
        x, alpha = reading.operand(node, 0), float(node.attributes.get("alpha", 1.0))
        if alpha == 1:
            return (build.add(cls(), x, name=node.name),)
        if alpha == 0 or not math.isfinite(alpha):
            raise reading.unsupported(node, f"alpha = {alpha}")
        factor = build.constant(torch.full((1,) * len(build.shape(x)), alpha, dtype=torch.float64))
        swish = build.add(cls(), build.add(Mul(), x, factor))
        return (build.add(Div(), swish, factor, name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * torch.sigmoid(operands[0])

    def derivative(self, x: Tensor) -> Tensor:
        gate, closed = torch.sigmoid(x), torch.sigmoid(-x)
        return gate + x * gate * closed

    def curvature(self, x: Tensor) -> Tensor:
        gate, closed = torch.sigmoid(x), torch.sigmoid(-x)
        return gate * closed * (2 + x * (closed - gate))

    def bends(self) -> tuple[float, float]:
        return -2.3993572805154677, 2.3993572805154677

    def turns(self) -> Sequence[float]:
        return (-1.2784645427610738,)


@dataclass(frozen=True, slots=True)
class Mish(_Gate):
    """``x tanh(log(1 + e^x))``."""

    far = 45.0
    limits = (-0.309, math.inf)
    onnx = (OnnxName("Mish", 18),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * torch.tanh(softplus(operands[0]))

    def derivative(self, x: Tensor) -> Tensor:
        gate = torch.tanh(softplus(x))
        return gate + x * (1 - gate * gate) * torch.sigmoid(x)

    def curvature(self, x: Tensor) -> Tensor:
        gate, rate = torch.tanh(softplus(x)), torch.sigmoid(x)
        return (1 - gate * gate) * rate * (2 + x * (1 - rate - 2 * gate * rate))

    def bends(self) -> tuple[float, float]:
        return -2.2563763963607931, 1.4905711794854284

    def turns(self) -> Sequence[float]:
        return (-1.1924312145154952,)


@dataclass(frozen=True, slots=True)
class HardSwish(Smooth):
    """``x min(max(x / 6 + 1/2, 0), 1)``, with exactly a sixth: a parabola from -3 to 3 between two lines."""

    limits = (-0.375, math.inf)
    onnx = (OnnxName("HardSwish", 14),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * ((operands[0] + 3).clamp(0, 6) / 6)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, (2 * x + 3) / 6))

    def pieces(self) -> Sequence[Piece]:
        return (Piece(-3.0, 3.0, 1),)

    def stationary(self, slope: Tensor, piece: Piece, low: Tensor, high: Tensor) -> Tensor:
        return slope * 3 - 1.5

    def kinks(self) -> Sequence[tuple[float, float]]:
        return (-3.0, 0.0), (3.0, 1.0)

    def turns(self) -> Sequence[float]:
        return (-1.5,)


class HardSigmoid(Rewritten):
    """``min(max(alpha x + beta, 0), 1)``: an affine function and a Clip."""

    __slots__ = ()
    onnx = (OnnxName("HardSigmoid", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        given = [float(node.attributes.get(k, d)) for k, d in (("alpha", 0.20000000298023224), ("beta", 0.5))]
        if not all(map(math.isfinite, given)):
            raise reading.invalid(node, f"alpha is {given[0]}, beta {given[1]}")
        like = (1,) * len(build.shape(x))
        alpha, beta = (build.constant(torch.full(like, v, dtype=torch.float64)) for v in given)
        return (build.add(Clip(0.0, 1.0), build.add(Add(), build.add(Mul(), x, alpha), beta), name=node.name),)
