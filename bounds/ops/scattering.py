"""Moving elements to and from constant places: Scatter, GatherElements, GatherND, Tile, DepthToSpace, OneHot, Trilu.

All of it is reshaping and picking: a scatter picks each element of its result from the data or from the updates.
Places that depend on the network's input are not supported, except in OneHot, which compares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.arithmetic import Add, Mul, Sub
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape
from bounds.ops.comparison import Select, exact, number
from bounds.ops.indexing import Concat, expand, pick
from bounds.ops.jumps import Step
from bounds.ops.shaping import Transpose, reshape


class ScatterND(Rewritten):
    """The data with slices (or elements) replaced by the updates."""

    __slots__ = ()
    onnx = (OnnxName("ScatterND", 11),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        shape = build.shape(reading.operand(node, 0))
        index = reading.constant(node, build, 1).to(torch.int64)
        _same(node, index.shape[:-1] + shape[index.shape[-1] :], build.shape(reading.operand(node, 2)))
        return (_scatter(node, build, _slices(node, index, shape)),)


class ScatterElements(Rewritten):
    """The data with single elements replaced; ``Scatter`` is its old name."""

    __slots__ = ()
    onnx = (OnnxName("ScatterElements", 11), OnnxName("Scatter", 9))

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        shape = build.shape(reading.operand(node, 0))
        index = reading.constant(node, build, 1).to(torch.int64)
        _same(node, tuple(index.shape), build.shape(reading.operand(node, 2)))
        return (_scatter(node, build, _elements(node, index, shape)),)


class GatherElements(Rewritten):
    """Element by element, from the place that the indices name along one axis."""

    __slots__ = ()
    onnx = (OnnxName("GatherElements", 11),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, index = reading.operand(node, 0), reading.constant(node, build, 1).to(torch.int64)
        return (_picked(build, x, _elements(node, index, build.shape(x)), node.name),)


class GatherND(Rewritten):
    """Slices (or elements) at index tuples."""

    __slots__ = ()
    onnx = (OnnxName("GatherND", 11),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, index = reading.operand(node, 0), reading.constant(node, build, 1).to(torch.int64)
        shape, batch = build.shape(x), reading.flag(node, "batch_dims")
        _same(node, tuple(index.shape[:batch]), shape[:batch])
        if batch:  # the numbers of the batch's elements become part of the index
            grids = torch.meshgrid(*(torch.arange(n) for n in shape[:batch]), indexing="ij")
            spread = [g.reshape(*g.shape, *[1] * (index.ndim - batch)).expand(*index.shape[:-1], 1) for g in grids]
            index = torch.cat([*spread, index], -1)
        return (_picked(build, x, _slices(node, index, shape), node.name),)


class OneHot(Rewritten):
    """``on`` at the index and ``off`` elsewhere along a new axis; a computed index is compared with each place."""

    __slots__ = ()
    onnx = (OnnxName("OneHot", 9),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, depth = reading.operand(node, 0), int(reading.scalar(node, build, 1))
        if exact(node, build, 2) is None:
            raise reading.unsupported(node, "values that are not exact constants")
        off, on = reading.constant(node, build, 2).flatten().tolist()
        shape = build.shape(x)
        axis = reading.axis_of(node, reading.flag(node, "axis", -1), len(shape) + 1)
        target = (*shape[:axis], depth, *shape[axis:])
        classes = torch.arange(depth).reshape(-1, *[1] * (len(shape) - axis))
        given = exact(node, build, 0)
        if given is not None:
            index = torch.where(given < 0, given + depth, given).to(torch.int64).unsqueeze(axis)
            hot = torch.where((index == classes).expand(target), on, off)
            kind = reading.constant(node, build, 2).dtype
            return (build.constant(hot.to(kind), name=node.name),)
        spread = expand(build, reshape(build, x, (*shape[:axis], 1, *shape[axis:])), target)
        parts = []
        for shift in (0, -depth):  # a negative index counts from the end
            places = build.constant((classes + shift).expand(target).to(torch.float64))
            parts.append(build.add(Step(0.0, 1.0, 0.0), build.add(Sub(), spread, places)))
        scaled = build.add(Mul(), build.add(Add(), *parts), number(build, on - off, len(target)))
        return (build.add(Add(), scaled, number(build, off, len(target)), name=node.name),)


class Tile(Rewritten):
    """Repeats the whole tensor along each axis."""

    __slots__ = ()
    onnx = (OnnxName("Tile", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, repeats = reading.operand(node, 0), reading.integers(node, build, 1)
        shape = build.shape(x)
        if len(repeats) != len(shape):
            raise reading.invalid(node, f"repeats {repeats} do not fit shape {shape}")
        apart = reshape(build, x, tuple(size for n in shape for size in (1, n)))
        apart = expand(build, apart, tuple(size for r, n in zip(repeats, shape, strict=True) for size in (r, n)))
        target = tuple(r * n for r, n in zip(repeats, shape, strict=True))
        return (reshape(build, apart, target, node.name),)


class DepthToSpace(Rewritten):
    """Blocks of channels become blocks of pixels."""

    __slots__ = ()
    onnx = (OnnxName("DepthToSpace", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, size = reading.operand(node, 0), reading.flag(node, "blocksize")
        n, channels, height, width = build.shape(x)
        channels //= size * size
        columns = reading.text(node, "mode", "DCR") == "CRD"
        blocks = (n, channels, size, size, height, width) if columns else (n, size, size, channels, height, width)
        order = (0, 1, 4, 2, 5, 3) if columns else (0, 3, 4, 1, 5, 2)
        moved = build.add(Transpose(order), reshape(build, x, blocks))
        return (reshape(build, moved, (n, channels, height * size, width * size), node.name),)


class SpaceToDepth(Rewritten):
    """Blocks of pixels become blocks of channels."""

    __slots__ = ()
    onnx = (OnnxName("SpaceToDepth", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x, size = reading.operand(node, 0), reading.flag(node, "blocksize")
        n, channels, height, width = build.shape(x)
        height, width = height // size, width // size
        blocks = reshape(build, x, (n, channels, height, size, width, size))
        order = (0, 1, 3, 5, 2, 4) if reading.text(node, "mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
        moved = build.add(Transpose(order), blocks)
        return (reshape(build, moved, (n, channels * size * size, height, width), node.name),)


class Trilu(Rewritten):
    """A triangle of each matrix, zero elsewhere."""

    __slots__ = ()
    onnx = (OnnxName("Trilu", 14),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        diagonal = int(reading.scalar(node, build, 1)) if reading.present(node, 1) else 0
        ones = torch.ones(build.shape(x), dtype=torch.float64)
        mask = torch.triu(ones, diagonal) if reading.flag(node, "upper", 1) else torch.tril(ones, diagonal)
        value = build.value(x)
        if value is not None and not value.is_floating_point():
            return (build.constant(torch.where(mask != 0, value, 0), name=node.name),)
        zero = build.constant(torch.zeros_like(ones))
        return (build.add(Select(), build.constant(mask.to(torch.int64)), x, zero, name=node.name),)


def _scatter(node: OnnxNode, build: BuilderLike, places: Tensor) -> int:
    """Flat ``places`` of the data take the updates, one for each; as ``reduction`` says they are added."""
    data, updates = reading.operand(node, 0), reading.operand(node, 2)
    shape, reduction = build.shape(data), reading.text(node, "reduction", "none")
    total, count = reading.product(shape), places.numel()
    if reduction not in ("none", "add"):
        raise reading.unsupported(node, f"reduction {reduction!r}")
    if places.unique().numel() != count:
        raise reading.unsupported(node, "indices that name an element twice")
    source = build.constant(torch.zeros(1, dtype=torch.float64)) if reduction == "add" else _flat(build, data)
    first = build.shape(source)[0]
    chosen = torch.zeros(total, dtype=torch.int64) if reduction == "add" else torch.arange(total)
    chosen[places.flatten()] = first + torch.arange(count)
    joined = build.add(Concat(0, (first, count)), source, _flat(build, updates)) if count else source
    result = reshape(build, pick(build, joined, 0, chosen.tolist()), shape)
    return build.add(Add(), data, result, name=node.name) if reduction == "add" else result


def _flat(build: BuilderLike, x: int) -> int:
    return reshape(build, x, (reading.product(build.shape(x)),))


def _picked(build: BuilderLike, x: int, places: Tensor, name: str) -> int:
    """The elements at flat places, in the shape of ``places``."""
    return reshape(build, pick(build, _flat(build, x), 0, places.flatten().tolist()), tuple(places.shape), name)


def _numbers(shape: Shape) -> Tensor:
    return torch.arange(reading.product(shape)).reshape(shape)


def _within(node: OnnxNode, index: Tensor, size: int) -> Tensor:
    if bool(((index < -size) | (index >= size)).any()):
        raise reading.invalid(node, f"an index is outside an axis of size {size}")
    return torch.where(index < 0, index + size, index)


def _slices(node: OnnxNode, index: Tensor, shape: Shape) -> Tensor:
    """Flat places of the slices at index tuples ``[..., depth]``: ``[..., *shape[depth:]]``."""
    depth = index.shape[-1]
    if depth > len(shape):
        raise reading.invalid(node, f"index tuples of {depth} numbers for shape {shape}")
    parts = [_within(node, index[..., k], shape[k]) for k in range(depth)]
    return _numbers(shape)[tuple(parts)] if depth else _numbers(shape).expand(*index.shape[:-1], *shape)


def _elements(node: OnnxNode, index: Tensor, shape: Shape) -> Tensor:
    """Flat places: as the index says along the node's axis, as the element itself stands along the others."""
    axis = reading.axis_of(node, reading.flag(node, "axis"), len(shape))
    if index.ndim != len(shape):
        raise reading.invalid(node, f"indices of shape {tuple(index.shape)} for data of shape {shape}")
    index = _within(node, index, shape[axis])
    cropped = _numbers(shape)[tuple(slice(None) if k == axis else slice(n) for k, n in enumerate(index.shape))]
    return cropped.gather(axis, index)


def _same(node: OnnxNode, wanted: Shape | torch.Size, given: Shape) -> None:
    if tuple(wanted) != tuple(given):
        raise reading.invalid(node, f"shapes {tuple(wanted)} and {tuple(given)} should be the same")
