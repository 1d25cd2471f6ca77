"""The fully connected layer ``x W + b`` over the last axis: Gemm, and MatMul by a constant on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops.base import Affine, BuilderLike, OnnxName, OnnxNode, Shape, UnsupportedOperatorError


@dataclass(frozen=True, slots=True)
class Gemm(Affine):
    """``x W + b``: x ``[N, ..., k]``, W ``[k, m]``, b ``[m]`` or absent."""

    onnx = (OnnxName("Gemm", 7),)
    parameters = frozenset({1, 2})
    offsets = frozenset({2})

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        raise UnsupportedOperatorError("to be written")

    def forward(self, *operands: Tensor) -> Tensor:
        x, weight, *bias = operands
        result = torch.matmul(x, weight)
        return result + bias[0] if bias else result

    def accumulation(self, *shapes: Shape) -> int:
        return max(shapes[1]) + 1

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        weight = operands[1]
        assert position == 0 and weight is not None
        return torch.matmul(rows, weight.T)

    def unit_rows(self, index: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor | None:
        weight = operands[1]
        assert position == 0 and weight is not None
        if any(n != 1 for n in shape[:-1]):
            return None
        return weight.T[index].reshape(-1, *shape)
