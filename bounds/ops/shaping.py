"""Operators that only rename places: Reshape and Transpose, and the ONNX operators that are one of them.

Nothing is computed, so intervals are exact and the transposed step is the inverse move.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten, Shape


@dataclass(frozen=True, slots=True)
class Reshape(Affine):
    """``[N, *shape]`` to ``[N, *target]``; ``target`` has no N and no wildcard."""

    target: Shape
    onnx = (OnnxName("Reshape", 5),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape, wanted = build.shape(x), list(reading.integers(node, build, 1))
        if not reading.flag(node, "allowzero"):
            if any(size == 0 and k >= len(shape) for k, size in enumerate(wanted)):
                raise reading.invalid(node, f"a 0 in {tuple(wanted)} copies a dimension that {shape} does not have")
            wanted = [shape[k] if size == 0 else size for k, size in enumerate(wanted)]
        if -1 in wanted:
            known = reading.product(tuple(s for s in wanted if s != -1))
            wanted[wanted.index(-1)] = reading.product(shape) // known if known else 0
        if reading.product(tuple(wanted)) != reading.product(shape):
            raise reading.invalid(node, f"cannot reshape {shape} to {tuple(wanted)}")
        return (reshape(build, x, tuple(wanted), node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].reshape(operands[0].shape[0], *self.target)

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        return rows.reshape(rows.shape[0], *shape)


@dataclass(frozen=True, slots=True)
class Transpose(Affine):
    """Axis ``k`` of the result is axis ``perm[k]`` of the operand (axes without N)."""

    perm: tuple[int, ...]
    onnx = (OnnxName("Transpose", 1),)
    selects = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        rank = len(build.shape(x))
        perm = reading.ints(node, "perm", range(rank)[::-1])
        if sorted(perm) != list(range(rank)):
            raise reading.invalid(node, f"perm {perm} is not a permutation of {rank} axes")
        return (build.add(cls(perm), x, name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0].permute(0, *(p + 1 for p in self.perm))

    def accumulation(self, *shapes: Shape) -> int:
        return 0

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return rows.permute(0, *(p + 1 for p in inverse))


def reshape(build: BuilderLike, x: int, target: Shape, name: str = "") -> int:
    """``x`` in another shape; itself where it has that shape already."""
    return x if build.shape(x) == target else build.add(Reshape(target), x, name=name)


def align(build: BuilderLike, *operands: int) -> tuple[int, ...]:
    """The operands with equally many dimensions (leading ones added), so that broadcasting never meets N."""
    rank = max(len(build.shape(i)) for i in operands)
    return tuple(reshape(build, i, (1,) * (rank - len(build.shape(i))) + build.shape(i)) for i in operands)


class Flatten(Rewritten):
    """Two dimensions: the axes before ``axis``, and the rest."""

    __slots__ = ()
    onnx = (OnnxName("Flatten", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape, axis = build.shape(x), reading.flag(node, "axis", 1)
        if not -len(shape) <= axis <= len(shape):
            raise reading.invalid(node, f"axis {axis} is outside shape {shape}")
        axis = axis + len(shape) if axis < 0 else axis
        return (reshape(build, x, (reading.product(shape[:axis]), reading.product(shape[axis:])), node.name),)


class Squeeze(Rewritten):
    """Drops axes of size 1."""

    __slots__ = ()
    onnx = (OnnxName("Squeeze", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        axes = reading.axes(node, build, 1, len(shape))
        if axes is None:
            axes = tuple(k for k, size in enumerate(shape) if size == 1)
        if any(shape[k] != 1 for k in axes):
            raise reading.invalid(node, f"axes {axes} of shape {shape} are not all of size 1")
        return (reshape(build, x, tuple(s for k, s in enumerate(shape) if k not in axes), node.name),)


class Unsqueeze(Rewritten):
    """Adds axes of size 1, at places counted in the result."""

    __slots__ = ()
    onnx = (OnnxName("Unsqueeze", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        shape = build.shape(x)
        count = len(reading.integers(node, build, 1) if reading.present(node, 1) else reading.ints(node, "axes", ()))
        axes = reading.axes(node, build, 1, len(shape) + count)
        if axes is None or len(axes) != count:
            raise reading.invalid(node, "axes are missing or repeated")
        rest = iter(shape)
        return (reshape(build, x, tuple(1 if k in axes else next(rest) for k in range(len(shape) + count)), node.name),)


class Identity(Rewritten):
    """The operand itself."""

    __slots__ = ()
    onnx = (OnnxName("Identity", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (reading.operand(node, 0),)


class Dropout(Rewritten):
    """At inference the operand itself; the mask keeps everything."""

    __slots__ = ()
    onnx = (OnnxName("Dropout", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        x = reading.operand(node, 0)
        if reading.present(node, 2) and bool(reading.scalar(node, build, 2)):
            raise reading.unsupported(node, "training_mode is on: export the model for inference")
        if node.outputs < 2:
            return (x,)
        return x, build.constant(torch.ones(build.shape(x), dtype=torch.bool))
