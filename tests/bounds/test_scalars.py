"""Inputs and outputs that are one number, and inputs of another shape than the graph's."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from bounds import Alpha, Box, Crown, Forward, Interval, LpBall, compute_bounds, jacobian_bounds
from bounds.forward_error import forward_error
from bounds.graph import Builder, Graph
from bounds.methods import Method
from bounds.ops.arithmetic import Add, Mul
from bounds.ops.gemm import Gemm
from bounds.ops.periodic import Sin
from bounds.ops.shaping import Reshape

D = torch.float64
METHODS = [Interval(), Forward(), Crown(), Alpha(steps=3)]
LOW, HIGH = torch.tensor([0.0, 1.0], dtype=D), torch.tensor([0.125, 1.5], dtype=D)
REGIONS = [
    Box(LOW, HIGH),
    LpBall((LOW + HIGH) / 2, (HIGH - LOW) / 2, 2),
    LpBall((LOW + HIGH) / 2, HIGH - LOW, 1, Box(LOW, HIGH)),
]


def wave() -> Graph:
    """``sin(3 x)``, from a number to a number."""
    build = Builder()
    return build.finish([build.add(Sin(), build.add(Mul(), build.input(()), build.constant(torch.tensor(3.0))))])


def waves() -> Graph:
    """``sin((x, -2 x, 3 x))``, from a number to a vector."""
    build = Builder()
    x = build.add(Reshape((1,)), build.input(()))
    return build.finish([build.add(Sin(), build.add(Gemm(), x, build.constant(torch.tensor([[1.0, -2.0, 3.0]]))))])


@pytest.mark.parametrize("semantics", ["real", "float32", None])
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("graph", [wave(), waves()], ids=["number", "vector"])
def test_bounds_over_one_number(graph: Graph, method: Method, semantics: Literal["real", "float32"] | None) -> None:
    """They hold the values and the slopes at points between the ends, over boxes, balls and both."""
    x = LOW + torch.linspace(0, 1, 41, dtype=D).unsqueeze(1) * (HIGH - LOW)
    values = graph.evaluate(x.flatten())[0].reshape(41, 2, -1)
    factors = torch.tensor([3.0], dtype=D) if values.shape[2] == 1 else torch.tensor([1.0, -2.0, 3.0], dtype=D)
    slopes = factors * (factors * x.unsqueeze(2)).cos()
    for region in REGIONS:
        found = compute_bounds(graph, region, method, semantics=semantics)
        assert (found.lower.reshape(2, -1) <= values.amin(0) + 1e-12).all()
        assert (found.upper.reshape(2, -1) >= values.amax(0) - 1e-12).all()
        assert (found.upper - found.lower).amax() < 2.0
        if semantics == "float32":
            assert (forward_error(graph, region, method) < 1e-4).all()
            continue
        change = jacobian_bounds(graph, region, method, semantics=semantics)
        assert change.lower.shape == (2, values.shape[2])
        assert (change.lower <= slopes.amin(0) + 1e-12).all()
        assert (change.upper >= slopes.amax(0) - 1e-12).all()


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("graph", [wave(), waves()], ids=["number", "vector"])
def test_norms_of_derivatives_by_one_number(graph: Graph, p: float) -> None:
    """A column: its norm is that of the largest sizes of its entries, a row's norm its only entry."""
    found = jacobian_bounds(graph, REGIONS[0])
    sizes = torch.maximum(found.lower.abs(), found.upper.abs())
    torch.testing.assert_close(found.row_norms(p), sizes)
    wanted = torch.linalg.vector_norm(sizes, p, dim=1)
    assert (found.norm(p) >= wanted).all()
    torch.testing.assert_close(found.norm(p), wanted, rtol=1e-5, atol=0)
    one, two = (graph.evaluate(end)[0].reshape(2, -1) for end in (LOW, HIGH))
    assert (torch.linalg.vector_norm(one - two, p, dim=1) <= found.norm(p) * (HIGH - LOW) * (1 + 1e-9)).all()


def test_inputs_without_the_number_of_points_are_refused() -> None:
    build = Builder()
    x, y = build.input((2, 3)), build.input(())
    scaled = build.add(Reshape((2, 3)), x)
    graph = build.finish([build.add(Add(), scaled, scaled), build.add(Mul(), y, build.constant(torch.tensor(2.0)))])
    point = torch.ones(2, 3)
    assert [tuple(v.shape) for v in graph.evaluate(point.unsqueeze(0), torch.ones(1))] == [(1, 2, 3), (1,)]
    with pytest.raises(ValueError, match=r"input 0 takes the shape \[N, 2, 3\], not \[2, 3\].*x.unsqueeze\(0\)"):
        graph.evaluate(point, torch.ones(1))
    with pytest.raises(ValueError, match=r"input 1 takes the shape \[N\], not \[\].*x.unsqueeze\(0\)"):
        graph.evaluate(point.unsqueeze(0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"input 0 takes the shape \[N, 2, 3\], not \[1, 6\]"):
        graph.evaluate(torch.ones(1, 6), torch.ones(1))
    with pytest.raises(ValueError, match="1 inputs for a graph of 2"):
        graph.values(point.unsqueeze(0))
