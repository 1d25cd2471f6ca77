"""ReLU, ``max(x, 0)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, Line, OnnxName, OnnxNode, Relaxation
from bounds.ops.univariate import PiecewiseLinear
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Relu(PiecewiseLinear):
    """``max(x, 0)``. Lines for ``l < 0 < u``: ``a x <= relu(x) <= s x + t`` with any ``a`` in [0, 1],
    ``s = u / (u - l)``, ``t = -s l`` (Zhang et al., CROWN, 2018); ``a`` starts at 1 where ``u > -l``, else 0."""

    onnx = (OnnxName("Relu", 6),)
    ulps = 0

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.relu(operands[0])

    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        above = torch.relu(high)
        upper = above / (above - low.clamp(max=0)).clamp(min=torch.finfo(low.dtype).tiny)
        upper = torch.where(low >= 0, 1.0, upper).clamp(0, 1)
        return torch.where((low >= 0) | (high > -low), 1.0, 0.0).to(low) * (high > 0), upper

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        slopes: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Relaxation:
        """As for any univariate function, but the lower line passes through 0 exactly (stable: exact)."""
        (low, high), = operands
        initial, upper = self.slopes(low, high)
        # A given slope applies to unstable neurons only; it is sound anywhere in [0, 1].
        stable = (low >= 0) | (high <= 0)
        lower = initial if slopes[0] is None else torch.where(stable, initial, slopes[0].clamp(0, 1))
        offset = torch.maximum(-upper * low, high - upper * high)
        if rounding is not None:
            offset = rounding.up(offset) + rounding.unit * 4 * torch.maximum(high.abs(), low.abs())
        offset = torch.where(stable, 0.0, offset)
        return Relaxation((Line((lower,), torch.zeros_like(low)),), (Line((upper,), offset),))
