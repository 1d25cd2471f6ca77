"""Convolutions over one or two spatial axes, and their transposes.

Each is the other's transposed step. Unequal padding at the two ends is done by padding (or cropping) explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bounds.layouts import Places, Selection, Windows
from bounds.ops import phases, reading
from bounds.ops.affine import Affine, Entries, Slide
from bounds.ops.arithmetic import Add
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Shape
from bounds.ops.indexing import reversed_pads
from bounds.ops.shaping import reshape
from bounds.ops.windows import read_axes

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Conv(Affine):
    """x ``[N, M, C, *spatial]``, W ``[K, C / groups, *kernel]``, b ``[K]`` or absent; pads are begin.. then end.."""

    strides: Sizes
    dilations: Sizes
    pads: Sizes
    groups: int = 1
    onnx = (OnnxName("Conv", 1),)
    parameters = frozenset({1, 2})
    offsets = frozenset({2})

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, weight, spatial, kernel = _operands(node, build)
        axes = read_axes(node, spatial, kernel)
        pads = (*(a.begin for a in axes), *(a.end for a in axes))
        op = cls(
            tuple(a.stride for a in axes),
            tuple(a.dilation for a in axes),
            pads,
            reading.flag(node, "group", 1),
        )
        channels, wanted = build.shape(x)[1], build.shape(weight)[1] * op.groups
        if channels != wanted:
            raise reading.invalid(node, f"its weights want {wanted} channels and its operand has {channels}")
        return (_with_bias(node, build, op, x, weight),)

    def forward(self, *operands: Tensor) -> Tensor:
        x, weight, *bias = operands
        half = len(self.strides)
        flat, padding = x.flatten(0, 1), self.pads[:half]
        if self.pads[half:] != padding or min(padding) < 0:
            flat, padding = functional.pad(flat, reversed_pads(self.pads)), (0,) * half
        convolve = functional.conv1d if half == 1 else functional.conv2d
        result = convolve(flat, weight, bias[0] if bias else None, self.strides, padding, self.dilations, self.groups)
        return result.reshape(*x.shape[:2], *result.shape[1:])

    def accumulation(self, *shapes: Shape) -> int:
        outputs, inputs, *kernel = shapes[1]
        return max(outputs // self.groups, inputs) * reading.product(tuple(kernel)) + 1

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        weight = operands[1]
        assert position == 0 and weight is not None
        half = len(self.strides)
        if self._tiles(weight):
            return self._tiled(rows, weight, shape)
        begin, end = self.pads[:half], self.pads[half:]
        padding = begin if begin == end and min(begin) >= 0 else (0,) * half
        # The part of the (padded) input that no window reaches, at its end, is what output_padding restores.
        rest = []
        for k, size in enumerate(shape[2:]):
            extent = (weight.shape[k + 2] - 1) * self.dilations[k] + 1
            rest.append((size + begin[k] + end[k] - extent) % self.strides[k])
        flat = rows.flatten(0, 1)
        if half == 1:
            flat = functional.conv_transpose1d(
                flat, weight, None, self.strides, padding, tuple(rest), self.groups, self.dilations
            )
        else:
            flat = self._transposed(flat, weight, padding, tuple(rest))
        if padding != begin or padding != end:
            flat = functional.pad(flat, reversed_pads([-p for p in self.pads]))
        return flat.reshape(rows.shape[0], *shape)

    def _tiles(self, weight: Tensor) -> bool:
        """Whether no two of its windows overlap, and each is more than a point."""
        plain = len(self.strides) == 2 and self.groups == 1 and self.dilations == (1, 1)
        return plain and tuple(weight.shape[2:]) == self.strides and max(self.strides) > 1

    def _tiled(self, rows: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        """The transposed step of windows that lie side by side: one matrix product, and its results laid out."""
        (tall, wide), flat = self.strides, rows.flatten(0, 1)
        (count, _, height, width), channels = flat.shape, weight.shape[1]  # there may be no rows
        tiles = (flat.permute(0, 2, 3, 1) @ weight.flatten(1)).reshape(count, height, width, channels, tall, wide)
        images = tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, height * tall, width * wide)
        ends = [shape[2] - height * tall + self.pads[0], shape[3] - width * wide + self.pads[1]]
        return functional.pad(images, (-self.pads[1], ends[1], -self.pads[0], ends[0])).reshape(rows.shape[0], *shape)

    def pullback_windows(
        self, rows: Windows, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """The full transposed convolution of each window; what falls outside the image is cut off."""
        weight = operands[1]
        assert position == 0 and weight is not None
        if rows.places.whole:
            return Windows.of_whole(self.pullback(rows.values.unsqueeze(1), position, operands, shape), rows.places)
        images = self._transposed(rows.values, weight, (0, 0), (0, 0))
        return Windows(images.contiguous(), rows.places.moved(self.strides, self.pads[:2]), ragged=True)

    def spans(self, rows: Windows, position: int, operands: Sequence[Tensor | None], radius: Tensor) -> Tensor | None:
        """Phase by phase (``phases.py``)."""
        weight = operands[1]
        assert position == 0 and weight is not None
        plain = weight.dtype == torch.float32 and self.groups == 1 and self.dilations == (1, 1)
        if not plain or min(self.pads) < 0 or self.strides[0] != self.strides[1]:
            return None
        return phases.spans(rows, weight, self.strides[0], self.pads, radius)

    def _transposed(self, rows: Tensor, weight: Tensor, padding: Sizes, rest: Sizes) -> Tensor:
        """The transposed step ``[R, K, h, w]`` to ``[R, C, ...]``, cropped by ``padding`` at both ends."""
        if weight.dtype == torch.float32 and self.dilations == (1, 1) and self.groups == 1:
            return phases.transposed(rows, weight, self.strides, padding, rest)
        return functional.conv_transpose2d(rows, weight, None, self.strides, padding, rest, self.groups, self.dilations)

    def slide(self, operands: Sequence[Tensor | None]) -> Slide | None:
        weight = operands[1]
        if len(self.strides) != 2 or weight is None:
            return None
        tall, wide = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], self.dilations, strict=True))
        plain = replace(self, pads=(0,) * 4)
        return Slide(plain, (self.strides[0], self.strides[1]), (self.pads[0], self.pads[1]), (tall, wide))

    def unit_windows(
        self, units: Selection, places: Places, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """Each row is one filter."""
        weight = operands[1]
        assert position == 0 and weight is not None
        if self.groups != 1 or any(d != 1 for d in self.dilations):
            return None
        plane = units.shape[2] * units.shape[3]
        filters = weight[units.index // plane] * units.sign.reshape(-1, 1, 1, 1)
        return Windows(filters, places.moved(self.strides, self.pads[:2]), ragged=True)

    def unit_rows(self, index: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor | None:
        """Each row is one filter, laid into zeros at its window."""
        weight = operands[1]
        assert position == 0 and weight is not None
        if shape[0] != 1 or self.groups != 1:
            return None
        channels, kernel = weight.shape[1], weight.shape[2:]
        half = len(kernel)
        counts = [
            (size + self.pads[k] + self.pads[k + half] - (kernel[k] - 1) * self.dilations[k] - 1) // self.strides[k] + 1
            for k, size in enumerate(shape[2:])
        ]
        rows = torch.arange(index.shape[0], device=index.device)
        place = torch.zeros((index.shape[0],) + (1,) * half, dtype=torch.int64, device=index.device)
        inside = torch.ones_like(place, dtype=torch.bool)
        rest = index
        found = []
        for k in reversed(range(half)):
            found.append(rest % counts[k])
            rest = rest // counts[k]
        for k, output in enumerate(reversed(found)):
            offsets = torch.arange(kernel[k], device=index.device) * self.dilations[k] - self.pads[k]
            along = output.reshape(-1, *(1,) * half) * self.strides[k] + offsets.reshape(-1, *(1,) * (half - 1 - k))
            inside = inside & (along >= 0) & (along < shape[k + 2])
            place = place * shape[k + 2] + along
        values = weight[rest] * inside.unsqueeze(1)
        size = reading.product(shape[2:])
        flat = values.new_zeros((rows.shape[0], channels, size))
        where = torch.where(inside, place, 0).flatten(1).unsqueeze(1).expand(-1, channels, -1)
        return flat.scatter_add_(2, where, values.flatten(2)).reshape(rows.shape[0], *shape)

    def entries(self, position: int, operands: Sequence[Tensor], shape: Shape, result: Shape) -> Entries:
        """Which element every place of every window reads, by moving the elements' numbers as the windows lie."""
        weight, half = operands[1], len(self.strides)
        numbers = torch.arange(1.0, reading.product(shape) + 1, dtype=torch.float64).reshape(shape)
        padded = functional.pad(numbers, reversed_pads(self.pads))
        lead = (1,) * (2 - half)  # one spatial axis is treated as two, the first of size 1
        windows = functional.unfold(
            padded.reshape(*shape[:2], *lead, *padded.shape[2:]),
            (*lead, *weight.shape[2:]), (*lead, *self.dilations), 0, (*lead, *self.strides),
        ).long()  # fmt: skip
        read = windows.reshape(shape[0], self.groups, 1, -1, windows.shape[2]).transpose(-1, -2)
        value = weight.reshape(1, self.groups, weight.shape[0] // self.groups, 1, -1)
        column, value = torch.broadcast_tensors(read, value)
        row = torch.arange(reading.product(result)).reshape(*column.shape[:-1], 1).expand(column.shape)
        there = (column > 0) & (value != 0)
        return Entries(row[there], column[there] - 1, value[there])


@dataclass(frozen=True, slots=True)
class ConvTranspose(Affine):
    """x ``[N, M, C, *spatial]``, W ``[C, K / groups, *kernel]``; the full result is cropped by ``pads`` (begin.. then
    end..; a negative end appends zeros before the bias is added)."""

    strides: Sizes
    dilations: Sizes
    pads: Sizes
    groups: int = 1
    onnx = (OnnxName("ConvTranspose", 1),)
    parameters = frozenset({1, 2})
    offsets = frozenset({2})

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, weight, spatial, kernel = _operands(node, build)
        rank = len(spatial)
        strides, dilations = reading.ints(node, "strides", (1,) * rank), reading.ints(node, "dilations", (1,) * rank)
        if build.shape(x)[1] != build.shape(weight)[0]:
            raise reading.invalid(node, f"weights {build.shape(weight)} do not fit an operand {build.shape(x)}")
        full = [(n - 1) * s + (k - 1) * d + 1 for n, k, s, d in zip(spatial, kernel, strides, dilations, strict=True)]
        op = cls(strides, dilations, _crop(node, spatial, full, strides), reading.flag(node, "group", 1))
        return (_with_bias(node, build, op, x, weight),)

    def forward(self, *operands: Tensor) -> Tensor:
        x, weight, *bias = operands
        half = len(self.strides)
        zeros = (0,) * half
        transpose = functional.conv_transpose1d if half == 1 else functional.conv_transpose2d
        flat = transpose(x.flatten(0, 1), weight, None, self.strides, zeros, zeros, self.groups, self.dilations)
        if any(self.pads):
            flat = functional.pad(flat, reversed_pads([-p for p in self.pads]))
        if bias:
            flat = flat + bias[0].reshape(-1, *(1,) * half)
        return flat.reshape(*x.shape[:2], *flat.shape[1:])

    def accumulation(self, *shapes: Shape) -> int:
        inputs, outputs, *kernel = shapes[1]
        return max(inputs // self.groups, outputs) * reading.product(tuple(kernel)) + 1

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        weight = operands[1]
        assert position == 0 and weight is not None
        half = len(self.strides)
        flat, padding = rows.flatten(0, 1), self.pads[:half]
        if self.pads[half:] != padding or min(padding) < 0:
            flat, padding = functional.pad(flat, reversed_pads(self.pads)), (0,) * half
        convolve = functional.conv1d if half == 1 else functional.conv2d
        flat = convolve(flat, weight, None, self.strides, padding, self.dilations, self.groups)
        return flat.reshape(rows.shape[0], *shape)


def _operands(node: OnnxNode, build: BuilderLike) -> tuple[int, int, Shape, Shape]:
    """Ids of data and (constant) weights, and the spatial sizes of both."""
    x, weight = reading.operand(node, 0), reading.operand(node, 1)
    shape, kernel = build.shape(x), build.shape(weight)
    reading.constant(node, build, 1)
    if len(shape) not in (3, 4):
        raise reading.unsupported(node, f"an operand of shape {shape}: one or two spatial axes are supported")
    if len(kernel) != len(shape):
        raise reading.invalid(node, f"weights of shape {kernel} do not fit an operand of shape {shape}")
    return x, weight, shape[2:], kernel[2:]


def _with_bias(node: OnnxNode, build: BuilderLike, op: Conv | ConvTranspose, x: int, weight: int) -> int:
    if not reading.present(node, 2):
        return build.add(op, x, weight, name=node.name)
    bias = reading.operand(node, 2)
    if build.value(bias) is not None:
        return build.add(op, x, weight, bias, name=node.name)
    column = reshape(build, bias, (1, *build.shape(bias), *(1,) * len(op.strides)))
    return build.add(Add(), build.add(op, x, weight), column, name=node.name)


def _crop(node: OnnxNode, spatial: Shape, full: Sequence[int], strides: Sizes) -> Sizes:
    """What is cropped from the full result, begin.. then end.., from pads, auto_pad, output_shape, output_padding."""
    rank = len(spatial)
    extra = reading.ints(node, "output_padding", (0,) * rank)
    auto, wanted = reading.text(node, "auto_pad", "NOTSET"), reading.ints(node, "output_shape", ())[-rank:]
    pads = reading.ints(node, "pads", (0,) * 2 * rank)
    begin, end = [], []
    for k in range(rank):
        if wanted or auto.startswith("SAME"):
            target = wanted[k] if wanted else spatial[k] * strides[k]
            total = max(0, full[k] + extra[k] - target)
            # SAME never adds: strides beyond the kernel leave the result smaller than size times stride.
            target = target if wanted else full[k] + extra[k] - total
            # The odd element is cropped at the end for SAME_UPPER, else at the begin.
            begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
            end.append(full[k] - target - begin[k])
        elif auto == "VALID":
            begin.append(0)
            end.append(-extra[k])
        else:
            begin.append(pads[k])
            end.append(pads[k + rank] - extra[k])
    return (*begin, *end)
