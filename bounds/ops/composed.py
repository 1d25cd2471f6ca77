"""ONNX operators that are read as several others: division, reductions, normalisation by statistics of the input.

Each identity holds exactly for real numbers, so what is proven of the parts holds of the operator; their relaxations
are those of the parts, which lose what two parts have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bounds.ops import reading
from bounds.ops.arithmetic import Add, Div, Sub
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Op, Rewritten
from bounds.ops.bilinear import multiply
from bounds.ops.exponential import Log
from bounds.ops.extremum import Max, Min
from bounds.ops.indexing import Concat, take
from bounds.ops.piecewise import Abs
from bounds.ops.powers import Power, RealPower, Reciprocal, Sqrt
from bounds.ops.reduction import ReduceMean, ReduceSum, reduced
from bounds.ops.relu import Relu
from bounds.ops.shaping import Transpose, align, reshape
from bounds.ops.softmax import LogSoftmax


class Division(Rewritten):
    """``x / y``: by a constant affine, by a variable ``x (1 / y)``, whose interval is that of the quotient."""

    __slots__ = ()
    onnx = (OnnxName("Div", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        left, right = reading.operand(node, 0), reading.operand(node, 1)
        if build.value(right) is not None:
            return Div.from_onnx(node, build)
        return (multiply(build, left, build.add(Reciprocal(), right), node.name),)


class Sum(Rewritten):
    """The sum of all operands."""

    __slots__ = ()
    onnx = (OnnxName("Sum", 8),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_total(node, build),)


class Mean(Rewritten):
    """The mean of all operands."""

    __slots__ = ()
    onnx = (OnnxName("Mean", 8),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        total = _total(node, build)
        return (build.add(Div(), *align(build, total, _number(build, len(node.inputs))), name=node.name),)


class ReduceMax(Rewritten):
    """A tree of ``Max`` over the axes."""

    __slots__ = ()
    onnx = (OnnxName("ReduceMax", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_halved(Max(), node, build),)


class ReduceMin(Rewritten):
    """A tree of ``Min`` over the axes."""

    __slots__ = ()
    onnx = (OnnxName("ReduceMin", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_halved(Min(), node, build),)


class ReduceL1(Rewritten):
    """``sum |x|``."""

    __slots__ = ()
    onnx = (OnnxName("ReduceL1", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_summed([Abs()], [], node, build),)


class ReduceL2(Rewritten):
    """``sqrt(sum x^2)``; the ReLU keeps what rounding takes from a sum of zeros out of the root."""

    __slots__ = ()
    onnx = (OnnxName("ReduceL2", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_summed([Power(2)], [Relu(), Sqrt()], node, build),)


class ReduceSumSquare(Rewritten):
    """``sum x^2``."""

    __slots__ = ()
    onnx = (OnnxName("ReduceSumSquare", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_summed([Power(2)], [], node, build),)


class ReduceLogSum(Rewritten):
    """``log(sum x)``."""

    __slots__ = ()
    onnx = (OnnxName("ReduceLogSum", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_summed([], [Log()], node, build),)


class ReduceLogSumExp(Rewritten):
    """``log(sum exp(x))``: any element less its log-softmax."""

    __slots__ = ()
    onnx = (OnnxName("ReduceLogSumExp", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, axes, keep = reduced(node, build)
        if not axes:
            return (x,)
        flat, target = _last(build, x, axes, keep)
        first = {len(build.shape(flat)) - 1: (0, 1, 1)}
        one, two = (take(build, i, first) for i in (flat, build.add(LogSoftmax(-1), flat)))
        return (reshape(build, build.add(Sub(), one, two), target, node.name),)


class LayerNormalization(Rewritten):
    """``(x - mean) / sqrt(variance + epsilon)`` over the axes from ``axis`` on, then scale and shift."""

    __slots__ = ()
    onnx = (OnnxName("LayerNormalization", 17),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        rank = len(build.shape(x))
        axes = tuple(range(reading.axis_of(node, reading.flag(node, "axis", -1), rank), rank))
        result, mean, inverse = _standardised(build, x, axes, float(node.attributes.get("epsilon", 1e-5)))
        result = multiply(build, result, reading.operand(node, 1))
        if reading.present(node, 2):
            result = build.add(Add(), *align(build, result, reading.operand(node, 2)), name=node.name)
        return result, mean, inverse


class InstanceNormalization(Rewritten):
    """The same over the spatial axes, with a scale and a shift for each channel."""

    __slots__ = ()
    onnx = (OnnxName("InstanceNormalization", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        if len(shape) < 3:
            raise reading.invalid(node, f"an operand of shape {shape} has no spatial axes")
        axes, column = tuple(range(2, len(shape))), (1, shape[1], *(1,) * (len(shape) - 2))
        scale, shift = (reshape(build, reading.operand(node, k), column) for k in (1, 2))
        result, _, _ = _standardised(build, x, axes, float(node.attributes.get("epsilon", 1e-5)))
        return (build.add(Add(), multiply(build, result, scale), shift, name=node.name),)


def _standardised(build: BuilderLike, x: int, axes: tuple[int, ...], epsilon: float) -> tuple[int, int, int]:
    """``x`` less its mean, over its standard deviation; the mean, and the inverse of the deviation."""
    mean = build.add(ReduceMean(axes, True), x)
    centred = build.add(Sub(), x, mean)
    variance = build.add(ReduceMean(axes, True), build.add(Power(2), centred))
    shifted = build.add(Add(), *align(build, variance, _number(build, epsilon)))
    inverse = build.add(RealPower(-0.5), shifted)
    return multiply(build, centred, inverse), mean, inverse


def _number(build: BuilderLike, value: float) -> int:
    return build.constant(torch.full((1,), value, dtype=torch.float64))


def _total(node: OnnxNode, build: BuilderLike) -> int:
    total = reading.operand(node, 0)
    for k in range(1, len(node.inputs)):
        total = build.add(Add(), *align(build, total, reading.operand(node, k)))
    return total


def _summed(before: Sequence[Op], after: Sequence[Op], node: OnnxNode, build: BuilderLike) -> int:
    """A sum between functions of one variable."""
    x, axes, keep = reduced(node, build)
    for op in before:
        x = build.add(op, x)
    x = build.add(ReduceSum(axes, keep), x) if axes else x
    for op in after:
        x = build.add(op, x)
    return x


def _last(build: BuilderLike, x: int, axes: tuple[int, ...], keep: bool) -> tuple[int, tuple[int, ...]]:
    """The operand with the reduced axes as one last axis, and the shape of the reduction."""
    shape = build.shape(x)
    kept = tuple(a for a in range(len(shape)) if a not in axes)
    if kept + axes != tuple(range(len(shape))):
        x = build.add(Transpose(kept + axes), x)
    front = tuple(shape[a] for a in kept)
    target = tuple(1 if a in axes else n for a, n in enumerate(shape)) if keep else front
    return reshape(build, x, (*front, reading.product(tuple(shape[a] for a in axes)))), target


def _halved(op: Op, node: OnnxNode, build: BuilderLike) -> int:
    """A tree of a two-operand operator: one half of the axis against the other until one element is left."""
    x, axes, keep = reduced(node, build)
    if not axes:
        return x
    x, target = _last(build, x, axes, keep)
    axis = len(build.shape(x)) - 1
    size = build.shape(x)[axis]
    if not size:
        raise reading.invalid(node, "an extremum over no elements")
    while size > 1:
        half = size // 2
        parts = [take(build, x, {axis: part}) for part in ((0, half, 1), (half, 2 * half, 1))]
        best = build.add(op, *parts)
        if size % 2:
            best = build.add(Concat(axis, (half, 1)), best, take(build, x, {axis: (size - 1, size, 1)}))
        x, size = best, half + size % 2
    return reshape(build, x, target, node.name)
