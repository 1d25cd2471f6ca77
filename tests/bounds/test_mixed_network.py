"""One network through many operators, read node by node: its bounds hold at sampled points, in both dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bounds.box import Box
from bounds.graph import Builder, Graph
from bounds.layouts import Selection
from bounds.ops import readers
from bounds.ops.base import OnnxNode
from bounds.plan import prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding


class Chain:
    """Adds ONNX nodes to a builder."""

    def __init__(self) -> None:
        self.build = Builder()
        self._rng = np.random.default_rng(4)

    def node(self, op_type: str, *operands: int | None, **attributes: Any) -> int:
        node = OnnxNode(op_type, op_type, attributes, operands, 1, 13)
        return readers()[op_type].from_onnx(node, self.build)[0]

    def weights(self, *shape: int) -> int:
        return self.constant(self._rng.standard_normal(shape).astype(np.float32) / 2)

    def constant(self, value: Any) -> int:
        return self.build.constant(torch.as_tensor(value))


def network() -> Graph:
    c = Chain()
    x = c.build.input((1, 2, 6, 6))
    y = c.node("Conv", x, c.weights(4, 2, 3, 3), c.weights(4), pads=[1, 0, 0, 1])
    variance = c.constant(np.array([0.5, 1.0, 2.0, 0.1], dtype=np.float32))
    y = c.node("BatchNormalization", y, c.weights(4), c.weights(4), c.weights(4), variance)
    y = c.node("PRelu", y, c.weights(4, 1, 1))
    y = c.node("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 0, 0], ceil_mode=1)
    y = c.node("Sigmoid", y)
    z = c.node("Tanh", c.node("AveragePool", y, kernel_shape=[2, 2], pads=[1, 1, 0, 0]))
    y = c.node("Min", y, z)
    y = c.node("ConvTranspose", y, c.weights(4, 2, 3, 3), c.weights(2), strides=[2, 2], output_padding=[1, 1])
    y = c.node("Clip", y, c.constant(-0.5), c.constant(0.75))
    scales = c.constant(np.array([1, 1, 2, 1], dtype=np.float32))
    y = c.node("Resize", y, None, scales, mode="nearest", nearest_mode="floor")
    y = c.node("Max", y, c.weights(c.build.shape(y)[-1]))
    y = c.node("Abs", c.node("ReduceMean", y, axes=[3], keepdims=0))
    y = c.node("Concat", c.node("Flatten", y), c.node("Flatten", x), axis=1)
    y = c.node("Gemm", y, c.weights(5, c.build.shape(y)[1]), c.weights(5), transB=1, alpha=0.3)
    return c.build.finish([c.node("Reshape", c.node("LeakyRelu", y, alpha=0.125), c.constant([5]))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_bounds_hold_at_sampled_points(dtype: torch.dtype) -> None:
    graph = network()
    plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(4, 1, 2, 6, 6, generator=generator, dtype=dtype)
    radius = torch.tensor([0.0, 0.01, 0.1, 1.0], dtype=dtype).reshape(4, 1, 1, 1, 1)
    box = Box(centre - radius, centre + radius)
    index, owner = torch.arange(5).repeat(4), torch.arange(4).repeat_interleave(5)
    one = torch.ones(20, dtype=dtype)
    spans = []
    for tighten in (None, crown):
        state, crossed = propagate(plan, box, tighten=tighten)
        assert not crossed.any()
        low, high = state.bounds[plan.output]
        if tighten is crown:
            low = crown(plan, state, plan.output, Selection(index, one, (5,)), owner).reshape(4, 5)
            high = -crown(plan, state, plan.output, Selection(index, -one, (5,)), owner).reshape(4, 5)
        assert not low.requires_grad
        for k in range(100):
            share = torch.rand(centre.shape, generator=generator, dtype=dtype)
            share = share.round() if k % 2 else share
            point = torch.minimum(torch.maximum(box.lower + share * 2 * radius, box.lower), box.upper)
            # The exact value is known to float64; where that is the dtype itself, to a few of its units.
            value = graph.evaluate(point.double())[0]
            unsure = 0.0 if dtype == torch.float32 else 1e-14
            assert bool((low.double() <= value + unsure).all()) and bool((value - unsure <= high.double()).all())
        spans.append((high - low).mean(1))
    assert bool((spans[0][0] < 1e-3).all())
    assert bool(spans[1][1] < spans[0][1])
