"""Pooling over one or two spatial axes.

Average pooling is affine. Max pooling is read as maxima of two values: along one axis after the other, each window
place is a strided slice, and the slices are combined in a balanced tree. Padding never wins a maximum, so instead of
padding, a place outside is replaced by another place of the same window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bounds.layouts import Windows
from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import Div, Mul
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape
from bounds.ops.conv import Conv
from bounds.ops.extremum import Max, tree
from bounds.ops.indexing import Pad, pick
from bounds.ops.windows import Axis, read_axes


@dataclass(frozen=True, slots=True)
class AveragePool(Affine):
    """Mean over full windows (no padding, no dilation): x ``[N, M, C, *spatial]``."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    onnx = (OnnxName("AveragePool", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """Pads with zeros; where windows average fewer elements than they span, sums are divided by their counts."""
        x, axes = _read(node, build)
        padded = _padded(build, x, axes)
        kernel, strides = tuple(a.kernel for a in axes), tuple(a.stride for a in axes)
        counts = _counts(axes, bool(reading.flag(node, "count_include_pad")))
        full = reading.product(kernel)
        if any(a.dilation > 1 for a in axes):
            total = _dilated_sum(build, padded, axes)
        elif bool((counts == full).all()):
            return (build.add(cls(kernel, strides), padded, name=node.name),)
        else:
            factor = build.constant(torch.full(tuple(counts.shape), float(full), dtype=torch.float64))
            total = build.add(Mul(), build.add(cls(kernel, strides), padded), factor)
        return (build.add(Div(), total, build.constant(counts), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        x = operands[0]
        pool = functional.avg_pool1d if len(self.kernel) == 1 else functional.avg_pool2d
        result = pool(x.flatten(0, 1), self.kernel, self.strides)
        return result.reshape(*x.shape[:2], *result.shape[1:])

    def accumulation(self, *shapes: Shape) -> int:
        return reading.product(self.kernel) + 2

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        """Each window spreads its coefficient evenly (one spatial axis is treated as two, the first of size 1)."""
        lead = (1,) * (2 - len(self.kernel))
        flat = rows.reshape(-1, shape[1], *lead, *rows.shape[3:])
        like = rows.new_zeros(()).expand(flat.shape[0], shape[1], *lead, *shape[2:])
        kernel, strides = [*lead, *self.kernel], [*lead, *self.strides]
        spread = torch.ops.aten.avg_pool2d_backward(flat, like, kernel, strides, [0, 0], False, True, None)
        return spread.reshape(rows.shape[0], *shape)

    def pullback_windows(
        self, rows: Windows, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """Each window of the rows on its own, as an image of just the size that it averages."""
        if rows.places.whole:
            return Windows.of_whole(self.pullback(rows.values.unsqueeze(1), position, operands, shape), rows.places)
        size = tuple((n - 1) * s + k for n, s, k in zip(rows.size, self.strides, self.kernel, strict=True))
        images = self.pullback(rows.values.unsqueeze(1), position, operands, (1, shape[1], *size))
        return Windows.of_images(images.squeeze(1), rows.places.moved(self.strides, (0, 0)), shape)


class MaxPool(Rewritten):
    """Maxima along one axis after the other."""

    __slots__ = ()
    onnx = (OnnxName("MaxPool", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, axes = _read(node, build)
        # The last axis first: its slices stay contiguous in the others.
        for k in reversed(range(len(axes))):
            x = tree(build, Max(), [pick(build, x, k + 2, column) for column in _columns(node, axes[k])])
        return (x,)


def _read(node: OnnxNode, build: BuilderLike) -> tuple[int, tuple[Axis, ...]]:
    x = reading.operand(node, 0)
    shape = build.shape(x)
    if len(shape) not in (3, 4):
        raise reading.unsupported(node, f"an operand of shape {shape}: one or two spatial axes are supported")
    return x, read_axes(node, shape[2:], reading.ints(node, "kernel_shape", ()))


def _columns(node: OnnxNode, axis: Axis) -> list[list[int]]:
    """For each place of the window which element each output sees there; a place outside repeats one inside."""
    rows = []
    for output in range(axis.count):
        inside = [p for p in axis.places(output) if 0 <= p < axis.size]
        if not inside:
            raise reading.unsupported(node, "a window that lies in the padding altogether")
        rows.append([min(max(p, inside[0]), inside[-1]) for p in axis.places(output)])
    return [list(column) for column in zip(*rows, strict=True)]


def _padded(build: BuilderLike, x: int, axes: tuple[Axis, ...]) -> int:
    """Zeros around, exactly as far as the windows reach (a negative pad crops)."""
    ends = [(a.count - 1) * a.stride + a.extent - a.size - a.begin for a in axes]
    # What no window reaches may stay: a pooling without padding leaves it aside by itself.
    ends = [e if e > 0 else (min(0, a.end)) for e, a in zip(ends, axes, strict=True)]
    pads = (0, 0, *(a.begin for a in axes), 0, 0, *ends)
    return build.add(Pad(pads), x) if any(pads) else x


def _counts(axes: tuple[Axis, ...], padding: bool) -> Tensor:
    """How many elements each window averages, ``[1, 1, *counts]``; ``padding`` counts what the pads add."""
    result = torch.ones((1, 1, *(a.count for a in axes)), dtype=torch.float64)
    for k, axis in enumerate(axes):
        first, last = (-axis.begin, axis.size + axis.end) if padding else (0, axis.size)
        seen = [sum(first <= p < last for p in axis.places(o)) for o in range(axis.count)]
        result = result * torch.tensor(seen, dtype=torch.float64).reshape(-1, *(1,) * (len(axes) - 1 - k))
    return result


def _dilated_sum(build: BuilderLike, x: int, axes: tuple[Axis, ...]) -> int:
    """Sums over windows with gaps: a convolution of each channel by ones."""
    channels = build.shape(x)[1]
    ones = build.constant(torch.ones((channels, 1, *(a.kernel for a in axes)), dtype=torch.float64))
    strides, dilations = tuple(a.stride for a in axes), tuple(a.dilation for a in axes)
    return build.add(Conv(strides, dilations, (0,) * 2 * len(axes), channels), x, ones)
