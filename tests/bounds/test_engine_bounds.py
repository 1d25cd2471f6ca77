"""Bounds of random graphs hold in exact arithmetic: every node, every point tried, no tolerance at all."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.ascent import optimised
from bounds.backward import LinearBounds, State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.graph import Builder, Graph
from bounds.layouts import Owner
from bounds.ops.arithmetic import Add
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Slice
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding, cast_outward

DTYPES = (torch.float32, torch.float64)
D = torch.float64


@dataclass(frozen=True)
class Case:
    """Bounds of two boxes (the second one a corner of the first)."""

    graph: Graph
    plan: Plan
    box: Box
    state: State
    lines: LinearBounds
    values: torch.Tensor


@torch.no_grad()
def bounded(graph: Graph, lower: np.ndarray, upper: np.ndarray, dtype: torch.dtype, steps: int = 0) -> Case:
    plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
    low, high = torch.from_numpy(np.stack([lower, lower])), torch.from_numpy(np.stack([upper, lower]))
    high[1] += (high[0] - low[0]) / 3
    box = Box(*cast_outward(low, torch.minimum(high, high[:1]), dtype))
    tighten = optimised(prepare(graph, torch.float32), steps) if steps else crown
    state, crossed = propagate(plan, box, tighten=tighten)
    assert not bool(crossed.any())
    size = graph.nodes[plan.output].shape[0]
    rows = torch.cat([torch.eye(size), -torch.eye(size), torch.linspace(-1, 2, size)[None]]).to(dtype)
    lines = backward(plan, state, plan.output, rows, Owner.shared(rows.shape[0]))
    return Case(graph, plan, box, state, lines, concretize(plan, lines, box).reshape(2, -1))


def check(case: Case, exact: ModuleType, rng: np.random.Generator, points: int) -> None:
    """Every node's interval, and the output's lines and their least values, at corners and inside."""
    for box in (0, 1):
        low, high = (exact.exact(b[box].double()) for b in (case.box.lower, case.box.upper))
        for k in range(points):
            share = rng.integers(0, 2, low.shape) if k % 2 else rng.random(low.shape)
            x = low + (high - low) * exact.exact(share)
            values = exact.evaluate(case.graph, x, rng)
            for node, (below, above) in case.state.bounds.items():
                assert holds(below[box], values[node], exact), f"lower bound of node {node}: {case.graph.nodes[node]}"
                assert holds(-above[box], -values[node], exact), f"upper bound of node {node}: {case.graph.nodes[node]}"
            check_lines(case, box, x, values[case.plan.output], exact)


def holds(lower: torch.Tensor, value: np.ndarray, exact: ModuleType) -> bool:
    """``lower <= value`` elementwise; -inf always holds, +inf never."""
    given = lower.double().numpy().reshape(-1)
    assert not np.isnan(given).any()
    flat = np.asarray(value, dtype=object).reshape(-1)
    return all(b == -np.inf or (b < np.inf and Fraction(float(b)) <= v) for b, v in zip(given, flat, strict=True))


def check_lines(case: Case, box: int, x: np.ndarray, output: np.ndarray, exact: ModuleType) -> None:
    rows = case.lines.rows.reshape(2, -1, x.size)[box]
    bias = (case.lines.bias.reshape(2, -1)[box], case.lines.error.reshape(2, -1)[box])
    size = output.size
    for r in range(2 * size):
        target = output[r % size] * (1 if r < size else -1)
        assert holds(case.values[box, r : r + 1], np.array([target], dtype=object), exact)
        if bool(torch.isfinite(rows[r]).all()) and all(bool(torch.isfinite(b[r])) for b in bias):
            line = sum(exact.exact(rows[r].double()) * x.reshape(-1)) + Fraction(float(bias[0][r]))
            assert line - Fraction(float(bias[1][r])) <= target, "the line lies above the output"


def random_box(graph: Graph, rng: np.random.Generator, centre: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    size = graph.nodes[graph.inputs[0]].shape[0]
    middle, radius = rng.normal(size=size) * centre, rng.random(size) * rng.choice([0.01, 0.3, 1.5])
    radius[rng.random(size) < 0.15] = 0
    return middle - radius, middle + radius


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "inexact", "cancelling", "huge", "tiny", "jumping", "multiplied", "high"])
def test_no_point_leaves_the_bounds(networks: ModuleType, exact: ModuleType, kind: str, dtype: torch.dtype) -> None:
    scales = {
        "plain": networks.Scales(),
        "inexact": networks.Scales(single=False, smooth=False),
        "cancelling": networks.Scales(cancel=True, smooth=False),
        "huge": networks.Scales(weight=1e8, smooth=False),
        "jumping": networks.Scales(jumps=True, smooth=False),
        "multiplied": networks.Scales(jumps=True, products=True, smooth=False, single=False),
        "high": networks.Scales(weight=1e5, jumps=True, products=True, smooth=False),
        "tiny": networks.Scales(weight=1e-40 if dtype == torch.float32 else 1e-309, single=False, smooth=False),
    }[kind]
    for seed in range(16 if kind == "plain" else 8):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng, scales)
        lower, upper = random_box(graph, rng)
        check(bounded(graph, lower, upper, dtype), exact, rng, 2)


@pytest.mark.parametrize("seed", range(6))
def test_ascended_intermediate_bounds_hold(networks: ModuleType, exact: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    graph = networks.random_graph(rng, networks.Scales(smooth=False))
    check(bounded(graph, *random_box(graph, rng), torch.float64, steps=3), exact, rng, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_walked_on_windows(networks: ModuleType, exact: ModuleType, dtype: torch.dtype) -> None:
    """Images wider than a tile, with a residual sum and an operand that is repeated over the image."""
    rng = np.random.default_rng(0)
    check(bounded(wide_image(rng), -rng.random(42), rng.random(42), dtype), exact, rng, 1)


def wide_image(rng: np.random.Generator) -> Graph:
    build = Builder()
    x = build.add(Reshape((1, 1, 6, 7)), build.input((42,)))

    def conv(x: int, channels: int, out: int, *op: tuple[int, ...]) -> int:
        weight = build.constant(torch.from_numpy(rng.integers(-99, 99, (out, channels, 3, 3)) / 256))
        return build.add(Conv(*op), x, weight, build.constant(torch.from_numpy(rng.integers(-99, 99, out) / 256)))

    y = build.add(Relu(), conv(x, 1, 2, (1, 1), (1, 1), (1, 1, 1, 1)))
    z = build.add(Relu(), build.add(Add(), y, conv(y, 2, 2, (1, 1), (1, 1), (1, 1, 1, 1))))
    one = build.add(Slice((4, 5), (5, 6), (2, 3), (1, 1)), z)
    z = build.add(Relu(), build.add(Add(), conv(z, 2, 2, (1, 1), (1, 1), (2, 1, 0, 1)), one))
    z = build.add(Relu(), conv(z, 2, 1, (2, 1), (1, 2), (1, 2, 2, 2)))
    size = int(np.prod(build.shape(z)))
    weight = build.constant(torch.from_numpy(rng.normal(size=(size, 2)).round(3)))
    return build.finish([build.add(Gemm(), build.add(Reshape((size,)), z), weight)])


def test_cancellation_at_ten_million(exact: ModuleType) -> None:
    """``(x + 2^24) - 2^24`` in float32: every rounding is as large as the result."""
    build = Builder()
    x = build.input((2,))
    up = build.constant(torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=D))
    far = build.constant(torch.tensor([2.0**24, -(2.0**24)], dtype=D))
    y = build.add(Gemm(), x, up, far)
    total = build.add(Gemm(), y, build.constant(torch.ones((2, 1), dtype=D)))
    graph = build.finish([total])
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        check(bounded(graph, np.array([-0.3, 0.1]), np.array([0.7, 0.4]), dtype), exact, rng, 8)


def test_overflow_is_no_information() -> None:
    """Float32 overflows on the way; nothing is claimed where it does, and float64 knows better."""
    build = Builder()
    x = build.input((2,))
    for _ in range(3):
        weight = build.constant(torch.tensor([[1e20, -1e20], [1e20, 2e20]], dtype=D))
        x = build.add(Relu(), build.add(Gemm(), x, weight, build.constant(torch.tensor([1.0, -1.0], dtype=D))))
    graph = build.finish([build.add(Gemm(), x, build.constant(torch.ones((2, 1), dtype=D)))])
    rough = bounded(graph, -np.ones(2), np.ones(2), torch.float32)
    assert bool((rough.values == -torch.inf).all())
    fine = bounded(graph, -np.ones(2), np.ones(2), torch.float64)
    assert bool(torch.isfinite(fine.values).all())


def test_an_inexact_summand_costs_its_error_alone() -> None:
    build = Builder()
    x = build.input((2,))
    error = torch.full((2,), 1e-12, dtype=D)
    shifted = build.add(Add(), x, build.constant(torch.tensor([1.0, 2.0], dtype=D), error))
    weight = build.constant(torch.eye(2, dtype=D))
    graph = build.finish(
        [build.add(Gemm(), shifted, weight, build.constant(torch.tensor([1.0, -1.0], dtype=D), error))]
    )
    case = bounded(graph, np.zeros(2), np.ones(2), torch.float64)
    low, high = case.state.bounds[case.plan.output]
    assert bool(((low[0] < torch.tensor([2.0, 1.0]) - 2e-12) & (high[0] > torch.tensor([3.0, 2.0]) + 2e-12)).all())
    assert bool((high[0] - low[0] < 1 + 1e-11).all())


def test_windows_that_see_only_padding(exact: ModuleType) -> None:
    """Tiles of an image beyond the edge of what the convolution before it reads, on both sides."""
    rng = np.random.default_rng(1)
    for pads in ((6, 6, 0, 0), (0, 0, 6, 6), (5, 0, 4, 7)):
        build = Builder()
        x = build.add(Reshape((1, 1, 3, 3)), build.input((9,)))
        one, two = (build.constant(torch.from_numpy(rng.integers(-9, 9, (1, 1, 3, 3)) / 8)) for _ in range(2))
        shift = build.constant(torch.from_numpy(rng.integers(-9, 9, 1) / 8))
        y = build.add(Relu(), build.add(Conv((1, 1), (1, 1), (1, 1, 1, 1)), x, one, shift))
        z = build.add(Relu(), build.add(Conv((1, 1), (1, 1), pads), y, two, shift))
        graph = build.finish([build.add(Reshape((int(np.prod(build.shape(z))),)), z)])
        check(bounded(graph, -rng.random(9), rng.random(9), torch.float64), exact, rng, 1)
