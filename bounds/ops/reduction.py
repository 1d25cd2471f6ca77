"""Sums and means over axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode, Rewritten, Shape
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class ReduceSum(Affine):
    """Sum over ``axes`` (at least one; without N)."""

    axes: tuple[int, ...]
    keepdims: bool
    onnx = (OnnxName("ReduceSum", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, axes, keep = reduced(node, build)
        return (build.add(cls(axes, keep), x, name=node.name) if axes else x,)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].sum([a + 1 for a in self.axes], keepdim=self.keepdims)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        return _ends(self, operands[0], rounding)

    def accumulation(self, *shapes: Shape) -> int:
        return reading.product(tuple(shapes[0][a] for a in self.axes)) + 1

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return _spread(rows, self.axes, shape)


@dataclass(frozen=True, slots=True)
class ReduceMean(Affine):
    """Mean over ``axes`` (at least one; without N)."""

    axes: tuple[int, ...]
    keepdims: bool
    onnx = (OnnxName("ReduceMean", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, axes, keep = reduced(node, build)
        return (build.add(cls(axes, keep), x, name=node.name) if axes else x,)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].mean([a + 1 for a in self.axes], keepdim=self.keepdims)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        return _ends(self, operands[0], rounding)

    def accumulation(self, *shapes: Shape) -> int:
        return reading.product(tuple(shapes[0][a] for a in self.axes)) + 2

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return _spread(rows / reading.product(tuple(shape[a] for a in self.axes)), self.axes, shape)


class GlobalAveragePool(Rewritten):
    """The mean over all spatial axes."""

    __slots__ = ()
    onnx = (OnnxName("GlobalAveragePool", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        spatial = tuple(range(2, len(build.shape(x))))
        return (build.add(ReduceMean(spatial, True), x, name=node.name) if spatial else x,)


def _ends(op: Affine, operand: Interval, rounding: Rounding | None) -> Interval:
    """Each end by itself. Terms of one sign keep it, rounding or not: a sum of squares has a root."""
    low, high = (op.forward(end) for end in operand)
    if rounding is None:
        return low, high
    count = op.accumulation(tuple(operand[0].shape[1:]))
    sizes = [op.forward(end.abs()) for end in operand]
    below, above = (rounding.affine(count, size) for size in sizes)
    least, greatest = rounding.down(low - below), rounding.up(high + above)
    positive, negative = op.forward((operand[0] < 0).to(low)) == 0, op.forward((operand[1] > 0).to(low)) == 0
    return torch.where(positive, least.clamp(min=0), least), torch.where(negative, greatest.clamp(max=0), greatest)


def _spread(rows: Tensor, axes: tuple[int, ...], shape: Shape) -> Tensor:
    """Rows ``[R, *out]`` (reduced axes kept or not) repeated along the reduced axes: ``[R, *shape]``."""
    kept = (1 if a in axes else n for a, n in enumerate(shape))
    return rows.reshape(rows.shape[0], *kept).expand(rows.shape[0], *shape)


def reduced(node: OnnxNode, build: BuilderLike) -> tuple[int, tuple[int, ...], bool]:
    """What a reduction is of: operand, axes without N (empty: nothing to reduce), keepdims."""
    x = reading.operand(node, 0)
    rank = len(build.shape(x))
    axes = reading.axes(node, build, 1, rank)
    if not axes:
        axes = () if reading.flag(node, "noop_with_empty_axes") else tuple(range(rank))
    return x, axes, bool(reading.flag(node, "keepdims", 1))
