"""Matrix products: the fully connected layer ``x W + b`` (Gemm, MatMul by a constant on the right), and MatMul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import Add, Mul, same_rank, unbroadcast
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Shape, broadcast
from bounds.ops.bilinear import multiply_matrices
from bounds.ops.indexing import Expand
from bounds.ops.shaping import Transpose, align, reshape


@dataclass(frozen=True, slots=True)
class Gemm(Affine):
    """``x W + b``: x ``[N, ..., k]``, W ``[k, m]``, b ``[m]`` or absent."""

    onnx = (OnnxName("Gemm", 7),)
    parameters = frozenset({1, 2})
    offsets = frozenset({2})

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """``alpha A' B' + beta C`` with the factors multiplied into constants (their rounding is recorded)."""
        left, right = reading.operand(node, 0), reading.operand(node, 1)
        if reading.flag(node, "transA"):
            left = build.add(Transpose((1, 0)), left)
        if reading.flag(node, "transB"):
            right = build.add(Transpose((1, 0)), right)
        alpha, beta = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
        bias = _scaled(build, reading.operand(node, 2), beta) if reading.present(node, 2) and beta != 0 else None
        if build.value(right) is None:
            left = _scaled(build, left, alpha)
            result = (
                multiply_matrices(build, left, right) if build.value(left) is None else build.add(MatMul(), left, right)
            )
            return (result if bias is None else build.add(Add(), *align(build, result, bias), name=node.name),)
        right = _scaled(build, right, alpha)
        columns = build.shape(right)[1]
        if bias is not None and build.value(bias) is not None and all(n == 1 for n in build.shape(bias)[:-1]):
            row = reshape(build, bias, (build.shape(bias)[-1],) if build.shape(bias) else (1,))
            row = row if build.shape(row) == (columns,) else build.add(Expand((columns,)), row)
            return (build.add(cls(), left, right, row, name=node.name),)
        result = build.add(cls(), left, right)
        return (result if bias is None else build.add(Add(), *align(build, result, bias), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        x, weight, *bias = operands
        result = torch.matmul(x, weight)
        return result + bias[0] if bias else result

    def shape(self, *shapes: Shape) -> Shape:
        if shapes[0][-1] != shapes[1][0]:
            raise ValueError(f"cannot multiply shapes {shapes[0]} and {shapes[1]}")
        return (*shapes[0][:-1], shapes[1][1])

    def accumulation(self, *shapes: Shape) -> int:
        return max(shapes[1]) + 1

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        weight = operands[1]
        assert position == 0 and weight is not None
        return torch.matmul(rows, weight.T)

    def matrix(self, operands: Sequence[Tensor | None], position: int, shape: Shape) -> Tensor | None:
        return operands[1] if all(n == 1 for n in shape[:-1]) else None

    def unit_rows(self, index: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor | None:
        weight = operands[1]
        assert position == 0 and weight is not None
        if any(n != 1 for n in shape[:-1]):
            return None
        return weight.T[index].reshape(-1, *shape)


@dataclass(frozen=True, slots=True)
class MatMul(Affine):
    """``A B`` over the last two axes, one of them constant; ranks are equal and leading axes broadcast."""

    onnx = (OnnxName("MatMul", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """A constant matrix on the right gives ``Gemm``, two variable ones ``MatrixProduct``; vectors become matrices
        and lose the axis again."""
        left, right = reading.operand(node, 0), reading.operand(node, 1)
        one, two = build.shape(left), build.shape(right)
        if not one or not two:
            raise reading.invalid(node, f"operands of shapes {one} and {two}: a scalar has no matrix product")
        if len(two) == 1:
            right = reshape(build, right, (*two, 1))
        if build.value(right) is not None and len(build.shape(right)) == 2:
            result = build.add(Gemm(), left, right)
        else:
            left = reshape(build, left, (1, *one)) if len(one) == 1 else left
            variable = build.value(left) is None and build.value(right) is None
            result = multiply_matrices(build, left, right) if variable else build.add(cls(), *align(build, left, right))
            if len(one) == 1:
                shape = build.shape(result)
                result = reshape(build, result, shape[:-2] + shape[-1:])
        if len(two) == 1:
            result = reshape(build, result, build.shape(result)[:-1])
        return (result,)

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return sum(variable) <= 1

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.matmul(operands[0], operands[1])

    def accumulation(self, *shapes: Shape) -> int:
        one, two = shapes
        repeated = 1
        for a, b in zip(one[:-2], two[:-2], strict=True):
            repeated *= max(a, b) if a != b else 1
        return max(one[-1], max(one[-2], two[-1]) * repeated) + 1

    def shape(self, *shapes: Shape) -> Shape:
        same_rank(*shapes)
        one, two = shapes
        if one[-1] != two[-2]:
            raise ValueError(f"cannot multiply matrices of shapes {one} and {two}")
        return (*broadcast(one[:-2], two[:-2]), one[-2], two[-1])

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        other = operands[1 - position]
        assert other is not None
        moved = other.transpose(-1, -2)
        return unbroadcast(torch.matmul(moved, rows) if position else torch.matmul(rows, moved), shape)


def _scaled(build: BuilderLike, x: int, factor: float) -> int:
    if factor == 1.0:
        return x
    return build.add(Mul(), x, build.constant(torch.full((1,) * len(build.shape(x)), factor, dtype=torch.float64)))
