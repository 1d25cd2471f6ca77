"""Elementwise arithmetic: Add, Sub, Neg, and Mul and Div by constants.

Operands have equally many dimensions (the reader adds leading ones), so they broadcast as usual behind N. The
transposed step sums over axes along which an operand was repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode, Shape, broadcast
from bounds.ops.shaping import align
from bounds.rounding import Rounding


def unbroadcast(rows: Tensor, shape: Shape) -> Tensor:
    """Sum rows ``[R, *out]`` over the axes along which an operand of ``shape`` was repeated: ``[R, *shape]``."""
    if rows.shape[1:] == shape:
        return rows
    repeated = [k + 1 for k, size in enumerate(shape) if size == 1 and rows.shape[k + 1] != 1]
    return rows.sum(repeated, keepdim=True)


def repetition(*shapes: Shape) -> int:
    """How often, at most, one element of an operand is used when these shapes broadcast."""
    result = 1
    for sizes in zip(*shapes, strict=True):
        result *= max(sizes) if min(sizes) == 1 else 1
    return result


def same_rank(*shapes: Shape) -> None:
    """Raise ``ValueError`` where a missing leading dimension would be taken for N."""
    if len({len(s) for s in shapes}) > 1:
        raise ValueError(f"operands of shapes {shapes} differ in rank: reshape the smaller one first")


def outward(low: Tensor, high: Tensor, rounding: Rounding | None) -> Interval:
    """The interval rounded outward, as it is without ``rounding``."""
    return (low, high) if rounding is None else (rounding.down(low), rounding.up(high))


class _Binary(Affine):
    """Two operands of equal rank, one rounding."""

    __slots__ = ()
    elementwise = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        left, right = align(build, reading.operand(node, 0), reading.operand(node, 1))
        return (build.add(cls(), left, right, name=node.name),)

    def accumulation(self, *shapes: Shape) -> int:
        return max(2, repetition(*shapes))

    def shape(self, *shapes: Shape) -> Shape:
        same_rank(*shapes)
        return broadcast(*shapes)


@dataclass(frozen=True, slots=True)
class Add(_Binary):
    """``x + y``."""

    onnx = (OnnxName("Add", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] + operands[1]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return unbroadcast(rows, shape)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (a, b), (c, d) = operands
        return outward(a + c, b + d, rounding)


@dataclass(frozen=True, slots=True)
class Sub(_Binary):
    """``x - y``."""

    onnx = (OnnxName("Sub", 7),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] - operands[1]

    def absolute(self, *operands: Tensor) -> Tensor:
        return operands[0] + operands[1]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return unbroadcast(-rows if position else rows, shape)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (a, b), (c, d) = operands
        return outward(a - d, b - c, rounding)


@dataclass(frozen=True, slots=True)
class Mul(_Binary):
    """``x c`` with at most one variable operand."""

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return sum(variable) <= 1

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * operands[1]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        factor = operands[1 - position]
        assert factor is not None
        return unbroadcast(rows * factor, shape)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """All four products of ends: holds for two variable operands too."""
        (a, b), (c, d) = operands
        if c is d or a is b:
            one, two = (a * c, b * c) if c is d else (a * c, a * d)
            return outward(torch.minimum(one, two), torch.maximum(one, two), rounding)
        ends = torch.stack(torch.broadcast_tensors(a * c, a * d, b * c, b * d))
        return outward(ends.amin(0), ends.amax(0), rounding)


@dataclass(frozen=True, slots=True)
class Div(_Binary):
    """``x / c`` with a constant divisor, which is exact and never zero (no reciprocal is formed)."""

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        left, right = align(build, reading.operand(node, 0), reading.operand(node, 1))
        divisor, dividend = build.value(right), build.value(left)
        assert divisor is not None  # ``Division`` reads the others
        if bool((divisor == 0).any()):
            raise reading.invalid(node, "division by a constant that is exactly zero")
        if dividend is not None and not dividend.is_floating_point() and not divisor.is_floating_point():
            return (build.constant(torch.div(dividend, divisor, rounding_mode="trunc"), name=node.name),)
        error = build.error(right)
        if error is None and bool((divisor.to(torch.float32) == divisor).all()):
            return (build.add(cls(), left, right, name=node.name),)
        return (build.add(Mul(), left, _reciprocal(node, build, divisor, error), name=node.name),)

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return not variable[1]

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] / operands[1]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        divisor = operands[1]
        assert position == 0 and divisor is not None
        return unbroadcast(rows / divisor, shape)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (a, b), (c, _) = operands
        one, two = a / c, b / c
        return outward(torch.minimum(one, two), torch.maximum(one, two), rounding)


def _reciprocal(node: OnnxNode, build: BuilderLike, divisor: Tensor, error: Tensor | None) -> int:
    """``1 / c`` for a divisor that is itself inexact (or not a float32), with its error bound."""
    value = 1 / divisor.to(torch.float64)
    slack = torch.zeros_like(value) if error is None else error
    least = divisor.abs() - slack
    if bool((least <= 0).any()):
        raise reading.invalid(node, "division by a computed constant that may be zero")
    # |1/c' - 1/c| <= e / (|c| (|c| - e)); the factor and the second term cover all roundings here.
    bound = slack / (divisor.abs() * least) * (1 + 2**-40) + value.abs() * 2**-50
    return build.constant(value, bound)


@dataclass(frozen=True, slots=True)
class Neg(Affine):
    """``-x``, exact."""

    onnx = (OnnxName("Neg", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return -operands[0]

    def accumulation(self, *shapes: Shape) -> int:
        return 1

    def absolute(self, *operands: Tensor) -> Tensor:
        return operands[0]

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return -rows

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        ((low, high),) = operands
        return -high, -low
