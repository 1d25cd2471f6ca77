"""Intervals of first-layer neurons over a subproblem's half-spaces: true at all points, close to linear programs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.bounding import Bounded
from verifier.branch.half_spaces import HalfSpaces
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen
from verifier.branch.splits import Splits, children
from verifier.strategy import AscentPlan

D = torch.float64
NEURONS = 12


def network(seed: int, sizes: tuple[int, ...] = (4, NEURONS, 6, 1)) -> tuple[Graph, torch.Tensor, torch.Tensor]:
    """Four inputs, layers of ReLUs, one output; and the first layer's weights and constants."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((4,))
    first: list[torch.Tensor] = []
    for before, after in pairwise(sizes):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        first += [weight, bias / 2]
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if after > 1 else x
    return build.finish([x]), first[0], first[1]


def search(planted: ModuleType, graph: Graph, threshold: float, steps: int = 10) -> ActivationSplit:
    box = (np.array([-1, -1, 0.5, -1], dtype=np.float32), np.array([1, 0.5, 0.5, 1], dtype=np.float32))
    query = planted.query(graph, [box], [(0, [(0, 1, threshold)])])
    plans = prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))
    problem = Problem.of(query)
    ((_, part),) = screen(problem, plans[1])
    options = AscentPlan(batch=8, half_space_steps=steps)
    return ActivationSplit(problem, plans, refine(problem, plans, part.open[0], 0, 0.0), options)


def subproblems(
    searched: ActivationSplit, weight: torch.Tensor, bias: torch.Tensor, count: int
) -> tuple[Splits, torch.Tensor]:
    """Some with random splits that a random point of the box fulfils, and those points."""
    draw = torch.Generator().manual_seed(0)
    low, high = searched.positions.root.box.lower[0], searched.positions.root.box.upper[0]
    points = low + (high - low) * torch.rand((count, 4), generator=draw, dtype=D)
    place = searched.positions.places[0]
    z = (points @ weight + bias)[:, place.elements]
    signs = torch.zeros((count, searched.positions.count), dtype=torch.int8)
    split = torch.rand(z.shape, generator=draw) < 0.4
    signs[:, place.columns] = torch.where(split, torch.where(z >= 0, 1, -1), 0).to(torch.int8)
    root = searched._root().take(torch.zeros(count, dtype=torch.int64))
    return replace(root, signs=signs), points


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_intervals_hold_at_every_point_and_come_close_to_the_linear_program(planted: ModuleType, seed: int) -> None:
    graph, weight, bias = network(seed)
    searched = search(planted, graph, 9.0)
    batch, points = subproblems(searched, weight, bias, 30)
    known = searched.bounding.known(batch).known
    assert known is not None
    place = searched.positions.places[0]
    low, high = (end[:, place.columns].double() for end in known)
    root_low, root_high = (place.get(end) for end in searched.positions.root.bounds[place.before])
    z = (points @ weight + bias)[:, place.elements]
    assert bool(((low <= z) & (z <= high)).all())
    box = searched.positions.root.box
    ends = list(zip(box.lower[0].tolist(), box.upper[0].tolist(), strict=True))
    gained = possible = 0.0
    for k in range(10):
        side = batch.signs[k, place.columns].double()
        planes = (side * weight[:, place.elements]).T.numpy()
        for e, element in enumerate(place.elements.tolist()):
            for sign, found, start in ((1, low[k, e], root_low[0, e]), (-1, -high[k, e], -root_high[0, e])):
                level = (side * bias[place.elements]).numpy()
                best = linprog(sign * weight[:, element].numpy(), A_ub=-planes, b_ub=level, bounds=ends)
                least = best.fun + sign * float(bias[element])
                assert best.status == 0 and float(found) <= least + 1e-7
                gained += float(found) - min(float(start), least)
                possible += least - min(float(start), least)
    assert gained > 0.8 * possible > 0


@torch.no_grad()
def test_what_holds_no_input_is_refuted_and_children_inherit(planted: ModuleType) -> None:
    graph, weight, bias = network(0)
    searched = search(planted, graph, 9.0)
    batch, _ = subproblems(searched, weight, bias, 20)
    known = searched.bounding.known(batch)
    assert known.known is not None
    place = searched.positions.places[0]
    low = known.known[0][:, place.columns]
    k, e = ((low > 0.05) & (batch.signs[:, place.columns] == 0)).nonzero()[0].tolist()
    parent = replace(known.take(torch.tensor([k])), next=torch.tensor([place.columns.start + e]))
    above, below = (children(parent).take(torch.tensor([side])) for side in (0, 1))
    bounds = [searched.bounding.ascended(part, 2).bound for part in (above, below)]
    assert bool(torch.isfinite(bounds[0])) and float(bounds[1]) == torch.inf
    found = searched.bounding.ascended(below, 2)
    assert float(searched.bounding.decided(below, found)) == torch.inf
    fresh = replace(below, known=None)  # nothing is believed that was not computed
    assert float(searched.bounding.decided(fresh, found)) == torch.inf


@torch.no_grad()
def test_multipliers_of_the_wrong_sign_cannot_prove(planted: ModuleType) -> None:
    """Any multipliers >= 0 are sound, found or not."""
    graph, weight, bias = network(1)
    searched = search(planted, graph, 9.0)
    spaces = searched.bounding.half_spaces
    assert isinstance(spaces, HalfSpaces)
    batch, points = subproblems(searched, weight, bias, 30)
    place = searched.positions.places[0]
    z = (points @ weight + bias)[:, place.elements]
    lines, there = spaces._opposite(batch.signs[:, spaces.columns])
    drawn = torch.rand((30, spaces.rows.shape[0], lines.shape[1]), generator=torch.Generator().manual_seed(1), dtype=D)
    below = spaces._decided(lines, 3 * drawn * there.unsqueeze(1))
    assert bool((below <= torch.cat([z, -z], 1)).all())
    assert bool((spaces._climbed(lines, there) >= 0).all())


@torch.no_grad()
def test_the_search_needs_fewer_subproblems_and_refutes_only_what_is_refuted(planted: ModuleType) -> None:
    graph, _, _ = network(2, (4, 40, 1))
    box = torch.rand((20000, 4), generator=torch.Generator().manual_seed(0), dtype=D)
    box[:4096] = box[:4096].round()  # corners
    box = torch.tensor([-1, -1, 0.5, -1]) + box * torch.tensor([2, 1.5, 0, 2])
    least = float(graph.evaluate(box)[0].min())
    counts = []
    for steps in (0, 10):
        searched = search(planted, graph, least - 0.5, steps)
        state, step = searched.step(searched.start())
        while not state.finished:
            state, step = searched.step(state)
        counts.append(step.refuted)
        assert not step.open_subproblems
    assert counts[1] < 0.5 * counts[0]
    last = list(search(planted, graph, least + 1e-6).run())[-1]  # attained: it stays open
    assert last.open_subproblems


def test_a_bounded_batch_without_subproblems(planted: ModuleType) -> None:
    graph, _, _ = network(0)
    searched = search(planted, graph, 9.0)
    none = searched._root().take(torch.zeros(0, dtype=torch.int64))
    found = searched.bounding.ascended(none, 1)
    assert isinstance(found, Bounded) and found.bound.shape == (0,)
