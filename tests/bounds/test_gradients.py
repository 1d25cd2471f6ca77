"""Bounds without a claim are differentiable: gradients are finite, and those of finite differences.

On intervals that cross the middle of an S-shape the initial slope is found by a few steps of an iteration, which finite
differences would see; there only finiteness is asked for.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds import Box, Builder, Crown, Graph, compute_bounds
from bounds.graph import Constant
from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid, Tanh

D = torch.float64


def network(op: Op, seed: int, scale: float, shift: float = 0.0) -> Graph:
    """Three inputs, two layers of five, one output; ``scale`` widens the pre-activations, ``shift`` moves them."""
    draw = torch.Generator().manual_seed(seed)
    build = Builder()
    x = build.input((3,))
    for width in (5, 5):
        weight = torch.randn((build.shape(x)[0], width), generator=draw, dtype=D) * scale
        bias = build.constant(torch.randn(width, generator=draw, dtype=D) + shift)
        x = build.add(op, build.add(Gemm(), x, build.constant(weight), bias))
    return build.finish([build.add(Gemm(), x, build.constant(torch.randn((5, 1), generator=draw, dtype=D)))])


def lower_bound(graph: Graph, values: dict[int, Tensor], box: Box) -> Tensor:
    constants = {**graph.constants, **{i: Constant(value) for i, value in values.items()}}
    return compute_bounds(graph.with_constants(constants), box, Crown(), semantics=None).lower.sum()


def around(seed: int) -> Box:
    middle = torch.randn((1, 3), dtype=D, generator=torch.Generator().manual_seed(seed))
    return Box(middle - 0.2, middle + 0.2)


@pytest.mark.parametrize("op", [Relu(), Sigmoid(), Tanh()], ids=repr)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_gradients_are_finite(op: Op, scale: float) -> None:
    for seed in range(6):
        graph = network(op, seed, scale)
        box = around(seed)
        leaves = {i: c.value.clone().requires_grad_() for i, c in graph.constants.items()}
        lower_bound(graph, leaves, box).backward()
        assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize(("op", "shift"), [(Relu(), 0.0), (Sigmoid(), 6.0), (Tanh(), -6.0)], ids=repr)
def test_gradients_are_those_of_finite_differences(op: Op, shift: float) -> None:
    for seed in range(6):
        graph, box = network(op, seed, 0.5, shift), around(seed)
        leaves = {i: c.value.clone().requires_grad_() for i, c in graph.constants.items()}
        lower_bound(graph, leaves, box).backward()
        direction = {i: torch.randn_like(leaf) for i, leaf in leaves.items()}
        claimed = sum((leaf.grad * direction[i]).sum() for i, leaf in leaves.items() if leaf.grad is not None)
        step = 1e-6
        with torch.no_grad():
            ends = [
                lower_bound(graph, {i: leaf + s * step * direction[i] for i, leaf in leaves.items()}, box)
                for s in (1, -1)
            ]
        measured = (ends[0] - ends[1]) / (2 * step)
        assert torch.allclose(measured, torch.as_tensor(claimed), rtol=1e-4, atol=1e-7), (seed, measured, claimed)
