"""Comparisons and logic, whose results are 0 or 1, and what depends on them: Where, Cast, and functions with a jump.

``x > y`` is a step of ``x - y``; booleans are real numbers here, so ``not`` is ``1 - x``, ``and`` a minimum, ``or`` a
maximum. Comparisons of exact constants are decided on reading, in the constants' own types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import Add, Div, Mul, Neg, Sub
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape, broadcast
from bounds.ops.bilinear import Product
from bounds.ops.extremum import Max, Min
from bounds.ops.indexing import expand
from bounds.ops.jumps import Floor, Step
from bounds.ops.piecewise import Abs
from bounds.ops.relu import Relu

_FLOATS: Mapping[int, torch.dtype] = MappingProxyType(
    {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
)
_INTEGERS: Mapping[int, torch.dtype] = MappingProxyType(
    {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}
)
_WHOLE = 2**53
"""Integers up to here are numbers of float64."""

Fold = Callable[[Tensor, Tensor], Tensor]


class _Comparison(Rewritten):
    """A step of the difference of two operands."""

    __slots__ = ()

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        fold, step = _COMPARISONS[node.op_type]
        values = [exact(node, build, k) for k in range(2)]
        if values[0] is not None and values[1] is not None:
            return (build.constant(fold(values[0], values[1]), name=node.name),)
        x, y = together(build, *(_real(node, build, k) for k in range(2)))
        return (build.add(step, build.add(Sub(), x, y), name=node.name),)


class Greater(_Comparison):
    """``x > y``."""

    __slots__ = ()
    onnx = (OnnxName("Greater", 7),)


class GreaterOrEqual(_Comparison):
    """``x >= y``."""

    __slots__ = ()
    onnx = (OnnxName("GreaterOrEqual", 12),)


class Less(_Comparison):
    """``x < y``."""

    __slots__ = ()
    onnx = (OnnxName("Less", 7),)


class LessOrEqual(_Comparison):
    """``x <= y``."""

    __slots__ = ()
    onnx = (OnnxName("LessOrEqual", 12),)


class Equal(_Comparison):
    """``x = y``."""

    __slots__ = ()
    onnx = (OnnxName("Equal", 7),)


class _Logic(Rewritten):
    """An operation on 0 and 1."""

    __slots__ = ()

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        values = [exact(node, build, k) for k in range(2)]
        if values[0] is not None and values[1] is not None:
            return (build.constant(_LOGIC[node.op_type](values[0].bool(), values[1].bool()), name=node.name),)
        x, y = together(build, *(_real(node, build, k) for k in range(2)))
        if node.op_type == "Xor":
            return (build.add(Abs(), build.add(Sub(), x, y), name=node.name),)
        return (build.add(Min() if node.op_type == "And" else Max(), x, y, name=node.name),)


class And(_Logic):
    """The minimum."""

    __slots__ = ()
    onnx = (OnnxName("And", 7),)


class Or(_Logic):
    """The maximum."""

    __slots__ = ()
    onnx = (OnnxName("Or", 7),)


class Xor(_Logic):
    """``|x - y|``."""

    __slots__ = ()
    onnx = (OnnxName("Xor", 7),)


class Not(Rewritten):
    """``1 - x``."""

    __slots__ = ()
    onnx = (OnnxName("Not", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        value = exact(node, build, 0)
        if value is not None:
            return (build.constant(value == 0, name=node.name),)
        x = reading.operand(node, 0)
        return (build.add(Sub(), number(build, 1.0, len(build.shape(x))), x, name=node.name),)


@dataclass(frozen=True, slots=True)
class Select(Affine):
    """Elements of the second operand where the first, constant integers without N, is not 0; of the third elsewhere.

    All have one shape; nothing is computed.
    """

    parameters = frozenset({0})
    selects = True

    def forward(self, *operands: Tensor) -> Tensor:
        mask, x, y = operands
        return torch.where(mask != 0, x, y)

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def shape(self, *shapes: Shape) -> Shape:
        if len(set(shapes)) > 1:
            raise ValueError(f"operands of shapes {shapes} are not of one shape")
        return shapes[1]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        mask = operands[0]
        assert mask is not None
        return torch.where((mask != 0) == (position == 1), rows, 0.0)


class Where(Rewritten):
    """A selection where the condition is constant; else ``y + c (x - y)``, with c in {0, 1}."""

    __slots__ = ()
    onnx = (OnnxName("Where", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        mask, one, two = (exact(node, build, k) for k in range(3))
        if mask is not None and one is not None and two is not None:
            return (build.constant(torch.where(mask.bool(), one, two), name=node.name),)
        condition, x, y = together(build, *(_real(node, build, k) for k in range(3)))
        if mask is not None:
            chosen = build.value(condition)
            assert chosen is not None
            return (build.add(Select(), build.constant((chosen != 0).to(torch.int64)), x, y, name=node.name),)
        change = build.add(Sub(), x, y)
        product = build.add(Mul() if build.value(change) is not None else Product(), condition, change)
        return (build.add(Add(), y, product, name=node.name),)


class Cast(Rewritten):
    """Between floating types of at least 32 bits nothing changes in real arithmetic; constants are converted.

    A computed value loses its fraction when it becomes an integer; as a boolean it is 0 or 1.
    """

    __slots__ = ()
    onnx = (OnnxName("Cast", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, to = reading.operand(node, 0), reading.flag(node, "to")
        value = exact(node, build, 0)
        if value is not None:
            if to in _FLOATS:
                return (build.constant(value.to(_FLOATS[to]).to(torch.float64), name=node.name),)
            if to in _INTEGERS:
                return (build.constant(value.to(_INTEGERS[to]), name=node.name),)
            raise reading.unsupported(node, f"a cast to element type number {to}")
        if to in (1, 11):
            return (x,)
        if to == 9:
            return (build.add(Step(1.0, 0.0, 1.0), x, name=node.name),)
        if to in (6, 7):
            return (truncated(build, x, node.name),)
        raise reading.unsupported(node, f"a cast of a computed value to element type number {to}")


class Mod(Rewritten):
    """``x - y trunc(x / y)`` (``fmod`` 1) for a constant y."""

    __slots__ = ()
    onnx = (OnnxName("Mod", 10),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        fmod, values = reading.flag(node, "fmod"), [exact(node, build, k) for k in range(2)]
        if values[1] is None or bool((values[1] == 0).any()):
            raise reading.unsupported(node, "a modulus that is not an exact constant other than 0")
        if values[0] is not None:
            op = torch.fmod if fmod else torch.remainder
            return (build.constant(op(values[0], values[1]), name=node.name),)
        if not fmod:
            raise reading.unsupported(node, "fmod 0, for integers, of a computed value")
        x, y = together(build, *(_real(node, build, k) for k in range(2)))
        whole = truncated(build, build.add(Div(), x, y))
        return (build.add(Sub(), x, build.add(Mul(), whole, y), name=node.name),)


class ThresholdedRelu(Rewritten):
    """``x`` for ``x > alpha``, else 0: ``relu(x - alpha) + alpha (x > alpha)``."""

    __slots__ = ()
    onnx = (OnnxName("ThresholdedRelu", 10),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        alpha = _attribute(node, "alpha", 1.0)
        return (_beyond(build, reading.operand(node, 0), alpha, alpha),)


class Shrink(Rewritten):
    """``x - bias`` for ``x > lambd``, ``x + bias`` for ``x < -lambd``, else 0."""

    __slots__ = ()
    onnx = (OnnxName("Shrink", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        limit, bias = _attribute(node, "lambd", 0.5), _attribute(node, "bias", 0.0)
        if limit < 0:
            raise reading.unsupported(node, f"a negative lambd ({limit})")
        left = _beyond(build, build.add(Neg(), x), limit, limit - bias)
        return (build.add(Sub(), _beyond(build, x, limit, limit - bias), left, name=node.name),)


def _beyond(build: BuilderLike, x: int, limit: float, jump: float) -> int:
    """``x - limit + jump`` for ``x > limit``, else 0."""
    rank = len(build.shape(x))
    above = build.add(Sub(), x, number(build, limit, rank))
    if jump == 0:
        return build.add(Relu(), above)
    height = build.add(Mul(), build.add(Step(0.0, 0.0, 1.0), above), number(build, jump, rank))
    return build.add(Add(), build.add(Relu(), above), height)


def truncated(build: BuilderLike, x: int, name: str = "") -> int:
    """``x`` without its fraction: ``floor(relu(x)) - floor(relu(-x))``."""
    parts = [build.add(Floor(), build.add(Relu(), part)) for part in (x, build.add(Neg(), x))]
    return build.add(Sub(), *parts, name=name)


def together(build: BuilderLike, *operands: int) -> tuple[int, ...]:
    """The operands broadcast to one shape."""
    rank = max(len(build.shape(i)) for i in operands)
    target = broadcast(*((1,) * (rank - len(build.shape(i))) + build.shape(i) for i in operands))
    return tuple(expand(build, i, target) for i in operands)


def number(build: BuilderLike, value: float, rank: int) -> int:
    """A constant of ``rank`` dimensions of size 1."""
    return build.constant(torch.full((1,) * rank, value, dtype=torch.float64))


def exact(node: OnnxNode, build: BuilderLike, position: int) -> Tensor | None:
    """The value of an operand that is an exact constant, else None."""
    index = reading.operand(node, position)
    return None if build.error(index) is not None else build.value(index)


def _real(node: OnnxNode, build: BuilderLike, position: int) -> int:
    """An operand as real numbers: integer and boolean constants become floating ones."""
    index = reading.operand(node, position)
    value = build.value(index)
    if value is None or value.is_floating_point():
        return index
    if value.numel() and int(value.to(torch.int64).abs().max()) > _WHOLE:
        raise reading.unsupported(node, f"operand {position} holds integers beyond 2^53")
    return build.constant(value.to(torch.float64))


def _attribute(node: OnnxNode, name: str, default: float) -> float:
    value = float(node.attributes.get(name, default))
    if not math.isfinite(value):
        raise reading.invalid(node, f"{name} is {value}")
    return value


_COMPARISONS: Mapping[str, tuple[Fold, Step]] = MappingProxyType(
    {
        "Greater": (torch.gt, Step(0.0, 0.0, 1.0)),
        "GreaterOrEqual": (torch.ge, Step(0.0, 1.0, 1.0)),
        "Less": (torch.lt, Step(1.0, 0.0, 0.0)),
        "LessOrEqual": (torch.le, Step(1.0, 1.0, 0.0)),
        "Equal": (torch.eq, Step(0.0, 1.0, 0.0)),
    }
)
_LOGIC: Mapping[str, Fold] = MappingProxyType(
    {"And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor}
)
