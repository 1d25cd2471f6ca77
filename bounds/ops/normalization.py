"""Batch normalisation at inference: one factor and one shift for each channel."""

from __future__ import annotations

import torch

from bounds.ops import reading
from bounds.ops.arithmetic import Add, Mul, Sub
from bounds.ops.base import BuilderLike, OnnxName, OnnxNode, Rewritten
from bounds.ops.shaping import reshape


class BatchNormalization(Rewritten):
    """``x f + (B - mean f)`` with ``f = scale / sqrt(var + epsilon)``; both constants carry error bounds."""

    __slots__ = ()
    onnx = (OnnxName("BatchNormalization", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        if reading.flag(node, "training_mode") or not reading.flag(node, "spatial", 1):
            raise reading.unsupported(node, "training mode, or statistics for each element (spatial = 0)")
        x = reading.operand(node, 0)
        scale, _, _, variance = (reading.constant(node, build, k).to(torch.float64) for k in range(1, 5))
        if any(build.error(reading.operand(node, k)) is not None for k in (1, 4)):
            raise reading.unsupported(node, "scale or variance are computed by inexact operations")
        total = variance + float(node.attributes.get("epsilon", 1e-5))
        if bool((total <= 0).any()):
            raise reading.invalid(node, "variance + epsilon is not positive")
        factor = scale / total.sqrt()
        # Sum, root and quotient round once each: under 3 units; 8 are charged, and underflow.
        info = torch.finfo(torch.float64)
        error = torch.where(factor == 0, 0.0, factor.abs() * (4 * info.eps) + info.tiny)
        column = (1, -1, *(1,) * (len(build.shape(x)) - 2)) if len(build.shape(x)) > 1 else (-1,)
        target = tuple(factor.numel() if n == -1 else n for n in column)
        slope = build.constant(factor.reshape(target), error.reshape(target))
        mean, shift = (reshape(build, reading.operand(node, k), target) for k in (3, 2))
        offset = build.add(Sub(), shift, build.add(Mul(), mean, slope))
        return (build.add(Add(), build.add(Mul(), x, slope), offset, name=node.name),)
