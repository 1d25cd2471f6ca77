"""Operators that pick, repeat, join and pad: Concat, Slice, Gather, Expand, Pad, and Split as slices.

Forward nothing is computed, so intervals are exact; where an element is used several times the transposed step sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bounds.layouts import Windows
from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.base import BuilderLike, Interval, OnnxName, OnnxNode, Rewritten, Shape, broadcast
from bounds.ops.shaping import reshape
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Concat(Affine):
    """Joins operands along ``axis`` (without N). ``sizes`` are theirs along it; empty: they are all equal."""

    axis: int
    sizes: tuple[int, ...] = ()
    onnx = (OnnxName("Concat", 4),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        operands = [reading.operand(node, k) for k in range(len(node.inputs))]
        if not operands:
            raise reading.invalid(node, "it has no operands")
        axis = reading.axis_of(node, reading.flag(node, "axis"), len(build.shape(operands[0])))
        # Empty tensors (a tensor without elements, of any shape along the axis) need no node.
        operands = [i for i in operands if build.shape(i)[axis]] or operands[:1]
        if len(operands) == 1:
            return (operands[0],)
        return (build.add(cls(axis, tuple(build.shape(i)[axis] for i in operands)), *operands, name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        counts = [x.shape[0] for x in operands]
        rows = next((n for n in counts if n != 1), 1)
        return torch.cat([x.expand(rows, *x.shape[1:]) for x in operands], self.axis + 1)

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def shape(self, *shapes: Shape) -> Shape:
        given = tuple(s[self.axis] for s in shapes)
        if given != (self.sizes or given[:1] * len(given)):
            raise ValueError(f"operands of shapes {shapes} do not have the sizes {self.sizes or 'equal sizes'}")
        if len({s[: self.axis] + s[self.axis + 1 :] for s in shapes}) > 1:
            raise ValueError(f"operands of shapes {shapes} cannot be joined along axis {self.axis}")
        return (*shapes[0][: self.axis], sum(given), *shapes[0][self.axis + 1 :])

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        size = shape[self.axis]
        start = sum(self.sizes[:position]) if self.sizes else position * size
        return rows.narrow(self.axis + 1, start, size)


@dataclass(frozen=True, slots=True)
class Slice(Affine):
    """Element ``k`` along ``axes[i]`` is that at ``range(starts[i], ends[i], steps[i])[k]``; axes are without N.

    Indices are plain, ``0 <= start``; ends beyond the axis are clamped; with a negative step ``end`` may be -1.
    """

    starts: tuple[int, ...]
    ends: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]
    onnx = (OnnxName("Slice", 1),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        given = [_list(node, build, k, name) for k, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
        starts, ends = given[0] or (), given[1] or ()
        axes = given[2] if given[2] is not None else tuple(range(len(starts)))
        steps = given[3] if given[3] is not None else (1,) * len(starts)
        if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
            raise reading.invalid(node, f"starts {starts}, ends {ends}, axes {axes}, steps {steps} do not fit")
        axes = tuple(reading.axis_of(node, a, len(shape)) for a in axes)
        # A Python slice has the meaning of ONNX here: negative indices count from the end, then clamping. Only a start
        # before the first element is that element for ONNX, whatever the step.
        parts = [
            slice(max(s, -shape[a]), e, t).indices(shape[a])
            for s, e, a, t in zip(starts, ends, axes, steps, strict=True)
        ]
        parts = [part if len(range(*part)) else (0, 0, 1) for part in parts]
        return (take(build, x, dict(zip(axes, parts, strict=True)), node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        x = operands[0]
        for start, end, axis, step in zip(self.starts, self.ends, self.axes, self.steps, strict=True):
            if step > 0:
                x = x[(slice(None),) * (axis + 1) + (slice(start, end, step),)]
            else:
                picked = torch.tensor(list(range(start, end, step)), dtype=torch.int64, device=x.device)
                x = x.index_select(axis + 1, picked)
        return x

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        result = rows.new_zeros((rows.shape[0], *shape))
        index: list[slice | Tensor] = [slice(None)] * result.ndim
        flipped = []
        for start, end, axis, step in zip(self.starts, self.ends, self.axes, self.steps, strict=True):
            picked = range(start, min(end, shape[axis]), step)
            if step < 0:
                picked = picked[::-1]
                flipped.append(axis + 1)
            index[axis + 1] = slice(picked.start, picked.stop, picked.step)
        result[tuple(index)] = rows.flip(flipped) if flipped else rows
        return result


@dataclass(frozen=True, slots=True)
class Gather(Affine):
    """Picks along ``axis`` (without N): x ``[N, *shape]`` and an index tensor of any rank, ``0 <= index < size``."""

    axis: int
    onnx = (OnnxName("Gather", 1),)
    parameters = frozenset({1})
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """Indices in arithmetic progression become a ``Slice``, which is cheaper."""
        x, index = reading.operand(node, 0), reading.constant(node, build, 1).to(torch.int64)
        shape = build.shape(x)
        axis = reading.axis_of(node, reading.flag(node, "axis"), len(shape))
        if bool(((index < -shape[axis]) | (index >= shape[axis])).any()):
            raise reading.invalid(node, f"an index is outside axis {axis} of shape {shape}")
        index = torch.where(index < 0, index + shape[axis], index)
        target = shape[:axis] + tuple(index.shape) + shape[axis + 1 :]
        return (reshape(build, pick(build, x, axis, index.flatten().tolist()), target, node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        x, index = operands
        axis = self.axis + 1
        return x.index_select(axis, index.flatten()).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])

    def accumulation(self, *shapes: Shape) -> int:
        return max(1, reading.product(shapes[1]))

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0][: self.axis] + shapes[1] + shapes[0][self.axis + 1 :]

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (low, high), (index, _) = operands
        return self.forward(low, index), self.forward(high, index)

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        index = operands[1]
        assert position == 0 and index is not None
        flat = rows.reshape(rows.shape[0], *shape[: self.axis], index.numel(), *shape[self.axis + 1 :])
        return rows.new_zeros((rows.shape[0], *shape)).index_add_(self.axis + 1, index.flatten(), flat)


@dataclass(frozen=True, slots=True)
class Expand(Affine):
    """Repeats axes of size 1 up to ``target`` (without N, as many axes as the operand)."""

    target: Shape
    onnx = (OnnxName("Expand", 8),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        return (expand(build, x, broadcast(build.shape(x), reading.integers(node, build, 1))),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].expand(operands[0].shape[0], *self.target)

    def accumulation(self, *shapes: Shape) -> int:
        return max(1, reading.product(self.target) // max(1, reading.product(shapes[0])))

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        ((low, high),) = operands
        return self.forward(low), self.forward(high)

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        repeated = [k + 1 for k, size in enumerate(shape) if size != self.target[k]]
        return rows.sum(repeated, keepdim=True) if repeated else rows


@dataclass(frozen=True, slots=True)
class Pad(Affine):
    """Surrounds with ``value``: ``pads`` are begin.. then end.. for every axis without N; negative ones crop."""

    pads: tuple[int, ...]
    value: float = 0.0
    onnx = (OnnxName("Pad", 2),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """``reflect``, ``edge`` and ``wrap`` pick existing elements, axis by axis."""
        x = reading.operand(node, 0)
        shape, mode = build.shape(x), reading.text(node, "mode", "constant")
        pads = reading.integers(node, build, 1) if reading.present(node, 1) else reading.ints(node, "pads", ())
        axes = list(range(len(shape)))
        if reading.present(node, 3):
            axes = [reading.axis_of(node, a, len(shape)) for a in reading.integers(node, build, 3)]
        if len(pads) != 2 * len(axes):
            raise reading.invalid(node, f"pads {pads} do not fit axes {axes}")
        begin, end = [0] * len(shape), [0] * len(shape)
        for k, axis in enumerate(axes):
            begin[axis], end[axis] = pads[k], pads[k + len(axes)]
        if mode == "constant":
            value = float(node.attributes.get("value", 0.0))
            if reading.present(node, 2) and reading.constant(node, build, 2).numel():
                if build.error(reading.operand(node, 2)) is not None:
                    raise reading.unsupported(node, "a value that is computed by inexact operations")
                value = reading.scalar(node, build, 2)
            if not math.isfinite(value):
                raise reading.unsupported(node, f"padding with {value}")
            pads = (*begin, *end)
            return (build.add(cls(pads, value), x, name=node.name) if any(pads) else x,)
        for axis, size in enumerate(shape):
            if begin[axis] or end[axis]:
                places = range(-begin[axis], size + end[axis])
                x = pick(build, x, axis, [_mirrored(node, mode, p, size) for p in places])
        return (x,)

    def forward(self, *operands: Tensor) -> Tensor:
        return functional.pad(operands[0], reversed_pads(self.pads), value=self.value)

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def absolute(self, *operands: Tensor) -> Tensor:
        return functional.pad(operands[0], reversed_pads(self.pads), value=abs(self.value))

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        ((low, high),) = operands
        low, high = self.forward(low), self.forward(high)
        if rounding is None or float(low.new_tensor(self.value).item()) == self.value:
            return low, high
        return rounding.down(low), rounding.up(high)

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return functional.pad(rows, reversed_pads(tuple(-p for p in self.pads)))

    def pullback_windows(
        self, rows: Windows, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """The same windows, counted from the image's corner; what lies on the border is cut off."""
        half = len(self.pads) // 2
        if any(self.pads[k] for k in (0, 1, half, half + 1)):
            return None
        if rows.places.whole:
            return Windows.of_whole(self.pullback(rows.values.unsqueeze(1), position, operands, shape), rows.places)
        return replace(rows, places=rows.places.moved((1, 1), self.pads[2:half]), ragged=True).inside(shape)


class Split(Rewritten):
    """One slice for each output."""

    __slots__ = ()
    onnx = (OnnxName("Split", 2),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        axis = reading.axis_of(node, reading.flag(node, "axis"), len(shape))
        size, count = shape[axis], reading.flag(node, "num_outputs", node.outputs)
        if reading.present(node, 1):
            sizes = reading.integers(node, build, 1)
        else:
            part = -(-size // count)
            sizes = reading.ints(node, "split", [min(part, max(0, size - k * part)) for k in range(count)])
        if sum(sizes) != size or min(sizes) < 0:
            raise reading.invalid(node, f"parts {sizes} do not add up to axis {axis} of shape {shape}")
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return tuple(take(build, x, {axis: (s, s + n, 1)}) for s, n in zip(starts, sizes, strict=True))


def take(build: BuilderLike, x: int, parts: dict[int, tuple[int, int, int]], name: str = "") -> int:
    """``x`` at ``range(*parts[axis])`` along each axis; itself where that is all of it."""
    shape = build.shape(x)
    kept = {axis: part for axis, part in parts.items() if part != (0, shape[axis], 1)}
    if not kept:
        return x
    starts, ends, steps = zip(*kept.values(), strict=True)
    return build.add(Slice(starts, ends, tuple(kept), steps), x, name=name)


def pick(build: BuilderLike, x: int, axis: int, places: Sequence[int]) -> int:
    """``x`` at the given places along an axis, by a slice where they are evenly spaced."""
    step = places[1] - places[0] if len(places) > 1 else 1
    if places and step and list(places) == list(range(places[0], places[-1] + (1 if step > 0 else -1), step)):
        return take(build, x, {axis: (places[0], places[-1] + (1 if step > 0 else -1), step)})
    return build.add(Gather(axis), x, build.constant(reading.indices(places)))


def expand(build: BuilderLike, x: int, target: Shape, name: str = "") -> int:
    """``x`` repeated to ``target``; itself where it has that shape."""
    x = reshape(build, x, (1,) * (len(target) - len(build.shape(x))) + build.shape(x))
    return x if build.shape(x) == target else build.add(Expand(target), x, name=name)


def reversed_pads(pads: Sequence[int]) -> list[int]:
    """Begin.. end.. pads of ONNX in torch's order: last axis first, (begin, end) pairs."""
    half = len(pads) // 2
    return [p for k in reversed(range(half)) for p in (pads[k], pads[k + half])]


def _list(node: OnnxNode, build: BuilderLike, position: int, name: str) -> tuple[int, ...] | None:
    """Constant operand ``position``, or the attribute of older opsets, or None."""
    if reading.present(node, position):
        return reading.integers(node, build, position)
    return reading.ints(node, name, ()) if name in node.attributes else None


def _mirrored(node: OnnxNode, mode: str, place: int, size: int) -> int:
    """Which element stands at a place outside ``[0, size)`` in each padding mode."""
    if mode == "edge":
        return min(max(place, 0), size - 1)
    if mode == "wrap":
        return place % size
    if mode == "reflect":
        period = 2 * (size - 1)
        place = place % period if period else 0
        return min(place, period - place) if period else 0
    raise reading.unsupported(node, f"mode {mode!r}")
