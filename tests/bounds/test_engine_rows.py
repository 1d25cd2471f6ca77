"""The ways of holding and walking rows give the same bounds: by owners, by boxes, in chunks, as units, on windows."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.backward import State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.graph import Graph
from bounds.layouts import Owner, Selection
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding

D = torch.float64


def close(one: Tensor, two: Tensor) -> bool:
    return bool(torch.isclose(one, two, rtol=1e-9, atol=1e-9).all())


def boxes(graph: Graph, rng: np.random.Generator, count: int) -> Box:
    size = graph.nodes[graph.inputs[0]].shape[0]
    middle = torch.from_numpy(rng.normal(size=(count, size)))
    radius = torch.from_numpy(rng.random((count, size)) * 0.5)
    return Box(middle - radius, middle + radius)


def setting(networks: ModuleType, seed: int, count: int = 3) -> tuple[Graph, Plan, Box, np.random.Generator]:
    rng = np.random.default_rng(seed)
    graph = networks.random_graph(rng, networks.Scales(smooth=False))  # kinked: no slope is found by iteration
    return graph, prepare(graph, D, rounding=Rounding.of(D)), boxes(graph, rng, count), rng


@pytest.mark.parametrize("seed", range(10))
def test_rows_with_owners_equal_rows_of_each_box(networks: ModuleType, seed: int) -> None:
    with torch.no_grad():
        graph, plan, box, rng = setting(networks, seed)
        state, _ = propagate(plan, box, tighten=crown)
        size = graph.nodes[plan.output].shape[0]
        rows = torch.from_numpy(rng.normal(size=(5, size)))
        shared = backward(plan, state, plan.output, rows, Owner.shared(5))
        owner = torch.arange(3).repeat_interleave(5)
        owned = backward(plan, state, plan.output, rows.repeat(3, 1), Owner.by_index(owner))
        shuffled = torch.from_numpy(rng.permutation(15))
        mixed = backward(plan, state, plan.output, rows.repeat(3, 1)[shuffled], Owner.by_index(owner[shuffled]))
        value = concretize(plan, shared, box)
        assert close(shared.rows, owned.rows) and close(shared.bias, owned.bias)
        assert close(value, concretize(plan, owned, box))
        assert close(value[shuffled], concretize(plan, mixed, box))
        for k in range(3):  # a box alone has its own, smaller charges: bounds agree up to those
            alone, _ = propagate(plan, box.take(torch.tensor([k])), tighten=crown)
            single = backward(plan, alone, plan.output, rows, Owner.shared(5))
            assert close(value[5 * k : 5 * k + 5], concretize(plan, single, alone.box))


@pytest.mark.parametrize("seed", range(6))
def test_chunks_and_whole_batches_on_windows_and_dense_agree(networks: ModuleType, seed: int) -> None:
    with torch.no_grad():
        _, plan, box, _ = setting(networks, seed + 100)
        whole, _ = propagate(plan, box, tighten=crown)
        least = 6 * 8 * max(int(np.prod(n.shape)) for n in plan.graph.nodes)
        chunked, _ = propagate(replace(plan, memory=least), box, tighten=crown)
        dense, _ = propagate(replace(plan, windows=False), box, tighten=crown)
    for other in (chunked, dense):
        assert same(whole, other)


def same(one: State, two: State) -> bool:
    return all(close(a, b) for node in one.bounds for a, b in zip(one.bounds[node], two.bounds[node], strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_unit_rows_equal_dense_rows(networks: ModuleType, seed: int) -> None:
    """From every affine node, with both signs (of all elements once, in any order)."""
    with torch.no_grad():
        graph, plan, box, rng = setting(networks, seed + 200, 2)
        state, _ = propagate(plan, box, tighten=crown)
        for node in sorted(plan.affine):
            shape = graph.nodes[node].shape
            count = int(np.prod(shape))
            index = torch.from_numpy(rng.permutation(count))
            sign = torch.from_numpy(rng.choice([-1.0, 1.0], size=count))
            units = Selection(index, sign, shape)
            owner = Owner.by_index(torch.from_numpy(rng.integers(0, 2, count)))
            one = backward(plan, state, node, units, owner)
            two = backward(plan, state, node, units.dense(), owner)
            assert close(one.rows, two.rows) and close(one.bias, two.bias)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@pytest.mark.parametrize("seed", range(4))
def test_inherited_bounds_never_loosen(networks: ModuleType, seed: int, dtype: torch.dtype) -> None:
    with torch.no_grad():
        graph, _, box, _ = setting(networks, seed + 300)
        plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
        box = box.to(dtype)
        parent, _ = propagate(plan, box, tighten=crown)
        third = (box.upper - box.lower) / 3
        child = Box(box.lower + third, box.upper - third)
        inherited = {i: parent.bounds[i] for i in plan.watched}
        for tighten in (crown, None):
            state, crossed = propagate(plan, child, inherited=inherited, tighten=tighten)
            assert not bool(crossed.any())
            for node, (low, high) in inherited.items():
                assert bool((state.bounds[node][0] >= low).all() and (state.bounds[node][1] <= high).all())


def test_a_contradiction_is_seen_and_keeps_its_lines_sound(networks: ModuleType) -> None:
    """Inherited bounds that no point of the box fulfils mark that box, and no other."""
    found = 0
    for seed in range(20):
        _, plan, box, _ = setting(networks, seed + 400, 2)
        if not plan.watched:
            continue
        with torch.no_grad():
            state, _ = propagate(plan, box, tighten=crown)
            node = plan.watched[0]
            low, high = (b.clone() for b in state.bounds[node])
            low[1], high[1] = high[1] + 1, high[1] + 2
            _, crossed = propagate(plan, box, inherited={node: (low, high)}, tighten=crown)
        assert crossed.tolist() == [False, True]
        found += 1
    assert found >= 10
