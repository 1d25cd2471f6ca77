"""Dual ascent: gradients equal those of automatic differentiation, bounds never fall and never pass the truth."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.ascent import DualRows, ascend
from bounds.box import Box
from bounds.dual import Dual, Multipliers, Objective, evaluate, initial, recast
from bounds.graph import Builder, Graph
from bounds.ops.base import Parameters
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding

D = torch.float64


@dataclass(frozen=True)
class Net:
    """A fully connected ReLU network: weights ``[k, m]`` and biases of its layers, and its graph."""

    layers: list[tuple[Tensor, Tensor]]
    graph: Graph

    @property
    def relus(self) -> list[int]:
        return [n.id for n in self.graph.nodes if isinstance(n.op, Relu)]


def network(rng: np.random.Generator) -> Net:
    sizes = [3, *(int(n) for n in rng.integers(3, 7, size=2)), 3]
    build = Builder()
    x, layers = build.input((3,)), []
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        layers.append(tuple(torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,))))
        x = build.add(Gemm(), x, *(build.constant(c) for c in layers[-1]))
        x = build.add(Relu(), x) if k < 2 else x
    return Net(layers, build.finish([x]))


def lower(pair: Parameters) -> Tensor:
    """The lower slopes of a ReLU."""
    assert pair[0] is not None and pair[1] is None
    return pair[0]


def problem(net: Net, rng: np.random.Generator, rounding: Rounding | None = None) -> tuple[Dual, Multipliers]:
    """Four rows over one box each, of three literals, with some unstable neurons split, at random multipliers."""
    plan = prepare(net.graph, D, rounding=rounding)
    middle = torch.from_numpy(rng.normal(size=(1, 3))).expand(4, 3)
    state, _ = propagate(plan, Box(middle - 0.8, middle + 0.8), tighten=crown)
    signs, betas, slopes = {}, {}, {}
    for relu in net.relus:
        before = net.graph.nodes[relu].inputs[0]
        low, high = state.bounds[before]
        free = (low < 0) & (high > 0)
        signs[before] = torch.from_numpy(rng.integers(-1, 2, size=tuple(low.shape)).astype(float)) * free
        betas[before] = torch.from_numpy(rng.random(tuple(low.shape)))
        slopes[relu] = (
            torch.where(free, torch.from_numpy(rng.random(tuple(low.shape))), lower(initial(plan, state)[relu])),
            None,
        )
    weights = torch.from_numpy(rng.random((4, 3)) + 0.1)
    rows, rhs = torch.from_numpy(rng.normal(size=(4, 3, 3))), torch.from_numpy(rng.normal(size=(4, 3)))
    objective = Objective(rows, rhs, weights / weights.sum(1, keepdim=True))
    return Dual(plan, state, plan.output, objective, signs), Multipliers(slopes, betas, objective.weights)


def reference(net: Net, dual: Dual, multipliers: Multipliers) -> Tensor:
    """The same bound ``[R]`` by plain tensor operations that autograd follows: CROWN, written independently."""
    objective, state = dual.objective, dual.state
    rows = (multipliers.weights.unsqueeze(-1) * objective.rows).sum(1)
    bias = -(multipliers.weights * objective.rhs).sum(1)
    for k in reversed(range(3)):
        weight, shift = net.layers[k]
        bias = bias + rows @ shift
        rows = rows @ weight.T
        if k == 0:
            break
        relu = net.relus[k - 1]
        before = net.graph.nodes[relu].inputs[0]
        low, high = state.bounds[before]
        free = (low < 0) & (high > 0)
        slope = torch.where(free, high / torch.where(free, high - low, 1.0), (low >= 0).double())
        above, below = rows.clamp(max=0), rows.clamp(min=0)
        bias = bias + (above * torch.where(free, -slope * low, 0.0)).sum(1)
        rows = below * torch.where(free, lower(multipliers.slopes[relu]), (low >= 0).double()) + above * slope
        rows = rows - multipliers.betas[before] * dual.signs[before]
    box = state.box
    return bias + (rows.clamp(min=0) * box.lower + rows.clamp(max=0) * box.upper).sum(1)


@pytest.mark.parametrize("seed", range(8))
def test_gradients_equal_automatic_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = network(rng)
    with torch.no_grad():
        dual, multipliers = problem(net, rng)
        _, bound = evaluate(dual, multipliers)
        rows, point, _ = DualRows.of(dual, multipliers)
        assert torch.equal(rows.value(point), bound)
        found = rows.gradient()
    variables = [*map(lower, multipliers.slopes.values()), *multipliers.betas.values(), multipliers.weights]
    for variable in variables:
        variable.requires_grad_()
    value = reference(net, dual, multipliers)
    assert torch.allclose(bound, value, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(value.sum(), variables)
    assert torch.allclose(found, torch.cat([e.flatten(1) for e in expected], 1), rtol=1e-6, atol=1e-9)
    assert all(bool((e != 0).any()) for e in expected[:4])


@pytest.mark.parametrize("seed", range(6))
def test_the_best_bound_never_falls(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    net = network(rng)
    with torch.no_grad():
        dual, start = problem(net, rng)
        # Far from being refuted, so that no row stops early.
        dual = Dual(
            dual.plan,
            dual.state,
            dual.target,
            Objective(dual.objective.rows, dual.objective.rhs + 1e3, dual.objective.weights),
            dual.signs,
        )
        series = [ascend(dual, start, steps) for steps in (0, 1, 2, 5, 10, 20, 40)]
        for before, after in itertools.pairwise(series):
            assert bool((after.bound >= before.bound).all())
        assert bool((series[-1].bound > series[0].bound).any())
        for one in series:
            _, again = evaluate(dual, one.multipliers)
            assert torch.equal(again, one.bound)
            for node, pair in one.multipliers.slopes.items():
                assert bool(((lower(pair) >= 0) & (lower(pair) <= 1)).all()), node
            assert all(bool((b >= 0).all()) for b in one.multipliers.betas.values())
            assert bool((one.multipliers.weights >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_decided_bounds_stay_below_every_point(dtype: torch.dtype) -> None:
    """With error terms, at the multipliers that a search without them found: below the weighted literals at every
    sampled point that fulfils the splits."""
    held = 0
    for seed in range(12):
        rng = np.random.default_rng(200 + seed)
        net = network(rng)
        with torch.no_grad():
            dual, start = problem(net, rng, Rounding.of(D))
            plan = prepare(net.graph, dtype)
            rough = Dual(
                plan,
                recast(plan, dual.state),
                dual.target,
                cast(dual.objective, dtype),
                {n: s.to(dtype) for n, s in dual.signs.items()},
            )
            found = ascend(rough, start.take(torch.arange(4), dtype), 12).multipliers.take(torch.arange(4), D)
            _, bound = evaluate(dual, found)
            box = dual.state.box
            share = torch.from_numpy(np.concatenate([rng.random((4000, 3)), rng.integers(0, 2, (64, 3))]))
            for r in range(4):
                points = box.lower[r] + (box.upper[r] - box.lower[r]) * share
                values = net.graph.values(points)
                good = torch.ones(len(points), dtype=torch.bool)
                for node, sign in dual.signs.items():
                    good &= (sign[r] * values[node] >= 0).all(1)
                literals = values[dual.target] @ dual.objective.rows[r].T - dual.objective.rhs[r]
                assert bool(((literals @ found.weights[r])[good] >= bound[r]).all())
                held += int(good.sum())
    assert held > 1000


def cast(objective: Objective, dtype: torch.dtype) -> Objective:
    return Objective(objective.rows.to(dtype), objective.rhs.to(dtype), objective.weights.to(dtype))


def test_a_plain_chain_reaches_its_exact_minimum() -> None:
    """One unstable neuron, ``relu(x) - x / 2`` on [-1, 1]: the best slope is 1/2 and the bound 0, the true minimum."""
    build = Builder()
    y = build.add(Gemm(), build.input((1,)), build.constant(torch.tensor([[1.0, 1.0, -1.0]], dtype=D)))
    weight = torch.tensor([[1.0], [-0.5], [0.5]], dtype=D)
    graph = build.finish([build.add(Gemm(), build.add(Relu(), y), build.constant(weight))])
    with torch.no_grad():
        plan: Plan = prepare(graph, D)
        state, _ = propagate(plan, Box(-torch.ones(1, 1, dtype=D), torch.ones(1, 1, dtype=D)), tighten=crown)
        dual = Dual(plan, state, plan.output, Objective.single(torch.ones(1, 1, dtype=D)), {})
        found = ascend(dual, Multipliers(initial(plan, state), {}, dual.objective.weights), 200)
    assert -0.26 < float(found.bound) <= 0
