"""Operators that only make constants here: Shape, Size, Constant, ConstantOfShape, Range, NonZero.

Every shape is static, so the shape arithmetic that exporters write into a model is computed while it is read.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten


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
        start, limit, delta = (_exact(node, build, k).flatten()[0] for k in range(3))
        if float(delta) == 0:
            raise reading.invalid(node, "a step of zero")
        if not start.is_floating_point():
            return (build.constant(torch.arange(int(start), int(limit), int(delta)), name=node.name),)
        first, step = Fraction(float(start)), Fraction(float(delta))
        values = [first + k * step for k in range(max(0, ceil((Fraction(float(limit)) - first) / step)))]
        value = torch.tensor([float(v) for v in values], dtype=torch.float64)
        exact = all(Fraction(float(v)) == v for v in values)
        return (build.constant(value, None if exact else value.abs() * 2.0**-52, name=node.name),)


class Size(Rewritten):
    """The number of elements."""

    __slots__ = ()
    onnx = (OnnxName("Size", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        count = reading.product(build.shape(reading.operand(node, 0)))
        return (build.constant(torch.tensor(count), name=node.name),)


class NonZero(Rewritten):
    """The places of a constant where it is not zero."""

    __slots__ = ()
    onnx = (OnnxName("NonZero", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.constant(_exact(node, build, 0).nonzero().T.contiguous(), name=node.name),)


def _exact(node: OnnxNode, build: BuilderLike, position: int) -> Tensor:
    """A constant operand that was not rounded on the way."""
    value = reading.constant(node, build, position)
    if build.error(reading.operand(node, position)) is not None:
        raise reading.unsupported(node, f"operand {position} is computed by inexact operations")
    return value
