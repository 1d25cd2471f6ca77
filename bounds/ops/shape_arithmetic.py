"""Operators that only make constants here: Shape, Constant, ConstantOfShape, Range; Cast, Equal, Where on constants.

Every shape is static, so the shape arithmetic that exporters write into a model is computed while it is read.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten

_FLOATS = MappingProxyType({1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16})
_INTEGERS = MappingProxyType(
    {2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool}
)


class Constant(Rewritten):
    """A tensor, a number or a list of numbers."""

    __slots__ = ()
    onnx = (OnnxName("Constant", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
            if name in node.attributes:
                value = node.attributes[name]
                if not isinstance(value, Tensor):
                    value = torch.tensor(value, dtype=torch.float64 if "float" in name else torch.int64)
                return (build.constant(value, name=node.name),)
        raise reading.unsupported(node, f"a value given as {', '.join(node.attributes) or 'nothing'}")


class ConstantOfShape(Rewritten):
    """One value everywhere."""

    __slots__ = ()
    onnx = (OnnxName("ConstantOfShape", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        value = node.attributes.get("value", torch.zeros(1, dtype=torch.float64))
        return (build.constant(value.flatten()[0].expand(reading.integers(node, build, 0)).clone(), name=node.name),)


class OfShape(Rewritten):
    """The (static) sizes of the operand, from ``start`` to ``end``."""

    __slots__ = ()
    onnx = (OnnxName("Shape", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        shape = build.shape(reading.operand(node, 0))
        part = shape[reading.flag(node, "start") : reading.flag(node, "end", len(shape))]
        return (build.constant(reading.indices(part), name=node.name),)


class Range(Rewritten):
    """``start + k delta`` up to ``limit``, of constants."""

    __slots__ = ()
    onnx = (OnnxName("Range", 11),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        start, limit, delta = (_exact(node, build, k) for k in range(3))
        if start.is_floating_point():
            raise reading.unsupported(node, "a range of floating-point numbers")
        return (build.constant(torch.arange(int(start), int(limit), int(delta)), name=node.name),)


class Cast(Rewritten):
    """Between floating types of at least 32 bits nothing changes in real arithmetic; constants are converted."""

    __slots__ = ()
    onnx = (OnnxName("Cast", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, to = reading.operand(node, 0), reading.flag(node, "to")
        value = build.value(x)
        if value is None or build.error(x) is not None:
            if to not in (1, 11):
                raise reading.unsupported(node, f"a cast of a computed value to element type number {to}")
            return (x,)
        if to in _FLOATS:
            return (build.constant(value.to(_FLOATS[to]).to(torch.float64), name=node.name),)
        if to in _INTEGERS:
            return (build.constant(value.to(_INTEGERS[to]), name=node.name),)
        raise reading.unsupported(node, f"a cast to element type number {to}")


class Equal(Rewritten):
    """Elementwise equality of constants."""

    __slots__ = ()
    onnx = (OnnxName("Equal", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.constant(_exact(node, build, 0) == _exact(node, build, 1), name=node.name),)


class Where(Rewritten):
    """The elements of one constant or of another."""

    __slots__ = ()
    onnx = (OnnxName("Where", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        condition, one, two = (_exact(node, build, k) for k in range(3))
        return (build.constant(torch.where(condition.to(torch.bool), one, two), name=node.name),)


def _exact(node: OnnxNode, build: BuilderLike, position: int) -> Tensor:
    """A constant operand that was not rounded on the way."""
    value = reading.constant(node, build, position)
    if build.error(reading.operand(node, position)) is not None:
        raise reading.unsupported(node, f"operand {position} is computed by inexact operations")
    return value
