"""Shared parameters above a memory limit: sound, never below CROWN, and small."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds import Alpha, Box, Crown, compute_bounds
from bounds.climb import Pace
from bounds.graph import Builder, Graph
from bounds.layouts import Selection
from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Tanh
from bounds.plan import prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding
from bounds.shared import Layer, optimised_within_memory
from bounds.views import of_box

D = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def network(op: Op, gain: float, layers: int = 4) -> Graph:
    """Layers of ten neurons between five inputs and three outputs."""
    build = Builder()
    x = build.input((5,))
    for k in range(layers):
        width = build.shape(x)[0]
        x = build.add(
            op, build.add(Gemm(), x, build.constant(gain * normal(k, width, 10)), build.constant(normal(k + 9, 10)))
        )
    return build.finish([build.add(Gemm(), x, build.constant(normal(20, 10, 3)))])


def boxes() -> Box:
    middle = normal(30, 2, 5)
    return Box(middle - torch.tensor([[0.4], [0.2]], dtype=D), middle + torch.tensor([[0.4], [0.2]], dtype=D))


CASES = [
    pytest.param(network(Relu(), 0.5), "real", id="relu, proven"),
    pytest.param(network(Relu(), 0.5), None, id="relu"),
    pytest.param(network(Tanh(), 0.4, 3), "real", id="tanh, proven"),
]


@pytest.mark.parametrize(("graph", "semantics"), CASES)
def test_a_layer_shares_where_its_own_parameters_do_not_fit(graph: Graph, semantics: str | None) -> None:
    """Bounds of watched nodes lie between CROWN's over the same lines and those of rows that ascend by themselves."""
    plan = prepare(graph, D)
    exact = prepare(graph, D, rounding=Rounding.of(D) if semantics else None)
    own, _ = propagate(exact, boxes(), tighten=optimised_within_memory(plan, 6))
    shared, _ = propagate(replace(exact, memory=8000), boxes(), tighten=optimised_within_memory(plan, 6))
    plain, _ = propagate(exact, boxes(), tighten=crown)
    assert any(not torch.equal(own.bounds[n][0], shared.bounds[n][0]) for n in plan.watched)
    assert all(bool((shared.bounds[n][0] >= plain.bounds[n][0] - 1e-9).all()) for n in plan.watched[:2])
    widths = [sum(float((s.bounds[n][1] - s.bounds[n][0]).sum()) for n in plan.watched) for s in (own, shared, plain)]
    assert widths[0] <= widths[1] + 1e-9 < widths[2] - 1e-3
    share = torch.rand((3000, 1, 5), generator=torch.Generator().manual_seed(4), dtype=D)
    share[:1000] = share[:1000].round()
    points = boxes().lower + (boxes().upper - boxes().lower) * share
    for node in plan.watched:
        value = replace(graph, outputs=(node,)).evaluate(points.flatten(0, 1))[0].reshape(3000, 2, -1)
        slack = 0.0 if semantics else 1e-9
        assert bool((value >= shared.bounds[node][0] - slack).all() and (value <= shared.bounds[node][1] + slack).all())


def test_rows_are_never_below_crown_one_by_one() -> None:
    """Over the same lines: each row keeps the best of all steps, the first of which is CROWN; walks stay in budget."""
    graph = network(Relu(), 0.5)
    plan = replace(prepare(graph, D), memory=8000)
    state, _ = propagate(plan, boxes(), tighten=crown)
    node = plan.output
    for box in range(2):
        one = of_box(state, box)
        places = torch.arange(3)
        sign = torch.ones(6, dtype=D)
        sign[3:] = -1
        units = Selection(torch.cat([places, places]), sign, (3,), mirrored=True)
        base = crown(plan, one, node, units, torch.zeros(6, dtype=torch.int64))
        layer = Layer(plan, one, node, units, base)
        found = layer.climbed(Pace(8, 0.3))
        decided = layer.decided(plan, one, math.inf)
        assert bool((found >= base - 1e-9).all()) and float((found - base).max()) > 1e-3
        assert torch.allclose(found, torch.maximum(decided, base), atol=1e-9)
        assert all(p.shape[0] == 1 for p in layer.points) and len(layer.points) == 9


def test_the_front_door_shares_within_its_memory() -> None:
    graph = network(Relu(), 0.5)
    rows = normal(3, 2, 3)
    plain = compute_bounds(graph, boxes(), Crown(), rows=rows)
    own = compute_bounds(graph, boxes(), Alpha(10), rows=rows)
    little = compute_bounds(graph, boxes(), Alpha(10), rows=rows, memory=8000)
    assert bool((little.lower >= plain.lower - 1e-4).all()) and bool((little.lower != own.lower).any())
