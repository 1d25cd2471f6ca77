"""ReLU, ``max(x, 0)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops import reading
from bounds.ops.base import BuilderLike, Interval, Line, OnnxName, OnnxNode, Parameters, Relaxation
from bounds.ops.univariate import PiecewiseLinear
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Relu(PiecewiseLinear):
    """``max(x, 0)``. Lines for ``l < 0 < u``: ``a x <= relu(x) <= s x + t`` with any ``a`` in [0, 1],
    ``s = u / (u - l)``, ``t = -s l`` (Zhang et al., CROWN, 2018); ``a`` starts at 1 where ``u > -l``, else 0."""

    onnx = (OnnxName("Relu", 6),)
    ulps = 0
    through_origin = True

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (build.add(cls(), reading.operand(node, 0), name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.relu(operands[0])

    def kinks(self) -> tuple[float, ...]:
        return (0.0,)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Exact slopes on stable elements without a test: x / x is 1, and ``high > -low`` knows the sign."""
        above, info = torch.relu(high), torch.finfo(low.dtype)
        upper = above / (above - low.clamp(max=0)).clamp(min=info.tiny * info.eps)  # changes 0 / 0 and nothing else
        return (high > -low).to(low), upper

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """As for any univariate function, but the lower line passes through 0 exactly (stable: exact)."""
        ((low, high),) = operands
        lower, upper = self.slopes(low, high)
        if chosen[0] is not None:  # a given slope applies to unstable neurons only; it is sound anywhere in [0, 1]
            lower = torch.where((low < 0) & (high > 0), chosen[0].clamp(0, 1), lower)
        offset = -upper * low.clamp(max=0)
        if rounding is not None:
            offset = torch.maximum(offset, high - upper * high)
            offset = rounding.up(offset) + rounding.unit * 4 * torch.maximum(high.abs(), low.abs())
            offset = torch.where((low < 0) & (high > 0), offset, 0.0)
            # Infinite ends: no information above.
            upper, offset = torch.nan_to_num(upper, nan=1.0), torch.nan_to_num(offset, nan=torch.inf, posinf=torch.inf)
        return Relaxation((Line((lower,), torch.zeros_like(low)),), (Line((upper,), offset),))

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        return (((low >= 0).to(low), (high > 0).to(low)), None)

    def branches(self, like: Tensor, *parameters: Tensor) -> Sequence[tuple[float, float]]:
        """Where ``l < 0 < u`` the rows are ``y >= z``, ``y <= z - l (1 - d)``, ``y <= u d`` (Tjeng et al., Evaluating
        robustness with mixed integer programming, 2019, section 4.1); ``y >= 0`` is the column's end."""
        return (0.0, 0.0), (1.0, 0.0)

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        return (low > 0).to(low), (high >= 0).to(low)

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """The lower line is ``a z``: its derivative is z, on unstable elements."""
        ((low, high),) = operands
        return values[0] * ((low < 0) & (high > 0)), None
