"""Forward linear bounds hold in exact arithmetic, at every node, as functions and as intervals."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.box import Box
from bounds.forward import Functions, step
from bounds.graph import Builder, Graph
from bounds.layouts import flat
from bounds.ops.arithmetic import Add, Mul, Sub
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat, Pad
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding, cast_outward

DTYPES = (torch.float32, torch.float64)
D = torch.float64


def boxes(graph: Graph, rng: np.random.Generator, dtype: torch.dtype) -> Box:
    """Two boxes, the second one a corner of the first; some inputs do not vary."""
    size = graph.nodes[graph.inputs[0]].shape[0]
    middle, radius = rng.normal(size=size), rng.random(size) * rng.choice([0.01, 0.3, 1.5])
    radius[rng.random(size) < 0.3] = 0
    low = torch.from_numpy(np.stack([middle - radius] * 2))
    high = torch.from_numpy(np.stack([middle + radius, middle - radius / 3]))
    return Box(*cast_outward(low, high, dtype))


def pushed(plan: Plan, box: Box, chosen: torch.Tensor) -> dict[int, Functions]:
    """The functions of all nodes, with the lines that the bounds themselves gave."""
    state, crossed = propagate(plan, box, variables=chosen)
    assert not bool(crossed.any())
    functions = {plan.input: Functions.of_box(box, chosen, plan.rounding)}
    for node in plan.graph.nodes:
        if node.id in plan.operands:
            functions[node.id] = step(plan, node, functions, state.relaxations)
    return functions


def check(graph: Graph, dtype: torch.dtype, exact: ModuleType, rng: np.random.Generator, points: int) -> None:
    """Values at points of the box lie between the functions there, and in the intervals: no tolerance."""
    plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
    box = boxes(graph, rng, dtype)
    varying = (box.upper > box.lower).any(0).nonzero().flatten()
    chosen = varying[rng.random(len(varying)) < 0.8]  # those left out count as distance
    functions = pushed(plan, box, chosen)
    state, _ = propagate(plan, box, variables=chosen)
    for k in (0, 1):
        low, high = exact.exact(box.lower[k].double()), exact.exact(box.upper[k].double())
        start = functions[plan.input]
        middle = exact.exact(start.middle[k, -1].double())
        radius = np.array([Fraction(float(start.middle[k, i, c])) for i, c in enumerate(chosen)], dtype=object)
        for trial in range(points):
            share = rng.integers(0, 2, low.shape) if trial % 2 else rng.random(low.shape)
            x = low + (high - low) * exact.exact(share)
            part = [(x[c] - middle[c]) / r if r else Fraction(0) for c, r in zip(chosen.tolist(), radius, strict=True)]
            variables = np.array([*part, Fraction(1)], dtype=object)
            assert all(abs(e) <= 1 for e in part)
            values = exact.evaluate(graph, x, rng)
            for node, function in functions.items():
                between(function, k, variables, values[node], exact, str(graph.nodes[node]))
                below, above = (end[k].double().numpy().reshape(-1) for end in state.bounds[node])
                assert all(a <= v <= b for a, v, b in zip(below, np.reshape(values[node], -1), above, strict=True))


def between(f: Functions, k: int, variables: np.ndarray, value: np.ndarray, exact: ModuleType, name: str) -> None:
    middle, distance = flat(f.middle[k].double()), flat(f.distance[k].double())
    given = np.asarray(value, dtype=object).reshape(-1)
    usable = (torch.isfinite(middle) & torch.isfinite(distance)).all(0)
    for i in usable.nonzero().flatten().tolist():
        centre = sum(exact.exact(middle[:, i]) * variables)
        assert abs(given[i] - centre) <= sum(exact.exact(distance[:, i]) * variables), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["plain", "inexact", "cancelling", "huge", "tiny"])
def test_no_value_leaves_the_functions(networks: ModuleType, exact: ModuleType, kind: str, dtype: torch.dtype) -> None:
    scales = {
        "plain": networks.Scales(),
        "inexact": networks.Scales(single=False, smooth=False),
        "cancelling": networks.Scales(cancel=True, smooth=False),
        "huge": networks.Scales(weight=1e8, smooth=False),
        "tiny": networks.Scales(weight=1e-40 if dtype == torch.float32 else 1e-309, single=False, smooth=False),
    }[kind]
    for seed in range(8 if kind == "plain" else 5):
        rng = np.random.default_rng(seed)
        check(networks.random_graph(rng, scales), dtype, exact, rng, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_that_are_added(exact: ModuleType, dtype: torch.dtype) -> None:
    """Summands that no operator declares as one: operands of Add, Sub and Concat, and the value of Pad."""
    build = Builder()
    x = build.input((2,))
    y = build.add(Add(), x, build.constant(torch.tensor([2.0**24, -0.1], dtype=D)))
    y = build.add(Sub(), build.constant(torch.tensor([2.0**24, 0.3], dtype=D), torch.full((2,), 1e-9, dtype=D)), y)
    y = build.add(Pad((1, 1), 0.7), y)
    y = build.add(Concat(0, (4, 2)), y, build.constant(torch.tensor([-1e6, 0.1], dtype=D)))
    y = build.add(Mul(), y, build.constant(torch.tensor([1.0, -3.0, 0.5, 0.1, 1.0, -2.0], dtype=D)))
    graph = build.finish([y])
    for seed in range(10):
        check(graph, dtype, exact, np.random.default_rng(seed), 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_never_looser_than_intervals(networks: ModuleType, dtype: torch.dtype) -> None:
    """At any node, but for what rounding makes of the same steps on narrower operands."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng, networks.Scales())
        plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
        box = boxes(graph, rng, dtype)
        plain, _ = propagate(plan, box)
        better, _ = propagate(plan, box, variables=torch.arange(box.lower.shape[1]))
        for node, (low, high) in plain.bounds.items():
            slack = (high - low).abs().clamp(min=1) * (1e-12 if dtype == D else 1e-4)
            slack = slack + torch.maximum(low.abs(), high.abs()) * (1e-12 if dtype == D else 1e-4)
            assert bool((better.bounds[node][0] >= low - slack).all())
            assert bool((better.bounds[node][1] <= high + slack).all())


def relu_network(rng: np.random.Generator, widths: tuple[int, ...]) -> Graph:
    build = Builder()
    x = build.input((widths[0],))
    for k, (a, b) in enumerate(pairwise(widths)):
        weight = build.constant(torch.from_numpy(rng.normal(size=(a, b)) / a**0.5))
        x = build.add(Gemm(), x if k == 0 else build.add(Relu(), x), weight, build.constant(torch.zeros(b, dtype=D)))
    return build.finish([x])


def test_exact_without_unstable_neurons() -> None:
    """On boxes where all neurons are stable the functions are the network."""
    rng = np.random.default_rng(0)
    graph = relu_network(rng, (3, 20, 20, 2))
    plan = prepare(graph, D, rounding=Rounding.of(D))
    x = torch.from_numpy(rng.normal(size=(1, 3)))
    box = Box(x - 1e-6, x + 1e-6)
    state, _ = propagate(plan, box, variables=torch.arange(3))
    corners = torch.cartesian_prod(*(torch.stack([a, b]) for a, b in zip(box.lower[0], box.upper[0], strict=True)))
    (values,) = graph.evaluate(corners)
    low, high = state.bounds[plan.output]
    assert torch.allclose(low[0], values.amin(0), rtol=0, atol=1e-13)
    assert torch.allclose(high[0], values.amax(0), rtol=0, atol=1e-13)
    intervals, _ = propagate(plan, box)
    assert bool((intervals.bounds[plan.output][1] - intervals.bounds[plan.output][0] > 2 * (high - low)).all())


def test_error_terms_are_small() -> None:
    """Search and proof agree up to rounding, and backward bounds on top are no looser."""
    rng = np.random.default_rng(1)
    graph = relu_network(rng, (3, 40, 40, 40, 2))
    box = Box(-torch.ones(1, 3, dtype=D) / 4, torch.ones(1, 3, dtype=D) / 4)
    chosen = torch.arange(3)
    proof, _ = propagate(prepare(graph, D, rounding=Rounding.of(D)), box, variables=chosen)
    search, _ = propagate(prepare(graph, D), box, variables=chosen)
    both, _ = propagate(prepare(graph, D, rounding=Rounding.of(D)), box, variables=chosen, tighten=crown)
    for node, (low, high) in proof.bounds.items():
        assert torch.allclose(low, search.bounds[node][0], rtol=0, atol=1e-11)
        assert torch.allclose(high, search.bounds[node][1], rtol=0, atol=1e-11)
        assert bool((both.bounds[node][1] - both.bounds[node][0] <= high - low + 1e-12).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_least_values_of_many_variables(exact: ModuleType, dtype: torch.dtype) -> None:
    """A sum over 200 coefficients rounds at every step, and here the constant cancels most of it."""
    rng = np.random.default_rng(0)
    middle = torch.from_numpy(rng.normal(size=(1, 201, 30))).to(dtype)
    middle[0, -1] = middle[0, :-1].abs().sum(0) * torch.linspace(-1, 1, 30).sign()
    function = Functions(middle, torch.zeros_like(middle))
    low, high = function.interval(Rounding.of(dtype))
    for i in range(30):
        values = exact.exact(middle[0, :, i].double())
        reach = sum(abs(v) for v in values[:-1])
        assert Fraction(float(low[0, i])) <= values[-1] - reach
        assert Fraction(float(high[0, i])) >= values[-1] + reach


def test_a_large_summand_swallows_every_coefficient(exact: ModuleType) -> None:
    """In float32 ``0.9 + 2^24`` is ``2^24``: sixty coefficients are lost, and all of it is charged."""
    build = Builder()
    weight = build.constant(torch.full((60, 1), 0.9, dtype=D))
    total = build.add(Gemm(), build.input((60,)), weight)
    graph = build.finish([build.add(Add(), total, build.constant(torch.tensor([2.0**24], dtype=D)))])
    plan = prepare(graph, torch.float32, rounding=Rounding.of(torch.float32))
    function = pushed(plan, Box(-torch.ones(1, 60), torch.ones(1, 60)), torch.arange(60))[plan.output]
    for end in (-1, 1):
        x = np.array([Fraction(end)] * 60, dtype=object)
        value = exact.evaluate(graph, x)[plan.output]
        between(function, 0, np.array([*x, Fraction(1)], dtype=object), value, exact, "sum")
