"""Subproblems of an activation split: the condensed ascent against that over the graph, and the choice of splits."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder, Graph
from bounds.ops.arithmetic import Add
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch import point_splits
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.bounding import Bounding
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen
from verifier.branch.scores import chosen, filtered, losses
from verifier.branch.splits import Splits
from verifier.strategy import AscentPlan

D = torch.float64


def network(seed: int, last: type = Relu) -> Graph:
    """Four inputs of which one does not vary, a residual step over three layers of ReLUs, one output."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((4,))
    for k, (before, after) in enumerate(((4, 9), (9, 9), (9, 9), (9, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        y = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        if k < 3:
            y = build.add(last() if k == 2 else Relu(), y)
        x = build.add(Add(), x, y) if k == 1 else y
    return build.finish([x])


def search(planted: ModuleType, graph: Graph, thresholds: tuple[float, ...] = (-9.0, -8.0)) -> ActivationSplit:
    """The search over a box with a clause of one literal for each threshold."""
    box = (np.array([-1, -1, 0.5, -1], dtype=np.float32), np.array([1, 1, 0.5, 1], dtype=np.float32))
    query = planted.query(graph, [box], [(0, [(0, 1, t)]) for t in thresholds])
    plans = prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))
    problem = Problem.of(query)
    ((_, part),) = screen(problem, plans[1])
    return ActivationSplit(problem, plans, refine(problem, plans, part.open[0], 0, 0.0), AscentPlan(batch=8))


def subproblems(searched: ActivationSplit, count: int) -> Splits:
    """Some of the first clause, with random signs, slopes and multipliers."""
    draw = torch.Generator().manual_seed(0)
    size = (count, searched.positions.count)
    batch = searched._root().take(torch.zeros(count, dtype=torch.int64))
    share, side, slopes, betas = (torch.rand(size, generator=draw) for _ in range(4))
    signs = torch.where(share < 0.3, torch.where(side < 0.5, 1, -1), 0).to(torch.int8)
    return replace(batch, signs=signs, slopes=slopes.half(), betas=(0.3 * betas * signs.abs()).half())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("steps", [0, 6])
@torch.no_grad()
def test_condensed_and_whole_network_give_the_same(planted: ModuleType, seed: int, steps: int) -> None:
    searched = search(planted, network(seed))
    condensed = searched.bounding
    assert condensed.condensed is not None
    batch = subproblems(searched, 40)
    one, two = condensed.ascended(batch, steps), replace(condensed, condensed=None).ascended(batch, steps)
    assert float(batch.signs.abs().sum()) > 50
    torch.testing.assert_close(one.bound, two.bound, rtol=1e-3, atol=1e-3)
    if not steps:
        torch.testing.assert_close(one.corner, two.corner)
        assert one.rows.keys() == two.rows.keys()
        for relu, rows in one.rows.items():
            torch.testing.assert_close(rows, two.rows[relu], rtol=1e-4, atol=1e-4)
    else:
        better = one.bound > condensed.ascended(batch, 0).bound + 1e-3
        assert float(better.double().mean()) > 0.5, "the ascent climbs"
    proven = condensed.decided(batch, one)
    torch.testing.assert_close(proven.float(), one.bound, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_split_whose_children_gain_most_is_chosen() -> None:
    """Position u has children with the gains of row u; nothing more than what is missing counts as a gain."""
    gains = torch.tensor([[0.0, 9.0], [0.2, 0.2], [0.1, 0.3], [2.0, 0.1]])
    none = torch.zeros((2, 4))
    whole = torch.zeros(2)
    long, no = whole.long(), none[:, :0]
    batch = Splits(long, none.to(torch.int8), none, none, none, whole.double(), whole.double(), long, no, no, whole)

    def look(many: Splits) -> torch.Tensor:
        at = many.signs.abs().argmax(1)
        side = (many.signs.gather(1, at.unsqueeze(1))[:, 0] < 0).long()
        return gains[at, side] - 1

    tried = torch.tensor([[0, 1, 2, -1], [0, 1, 2, 3]])
    bound, first = torch.full((2,), -1.0), torch.tensor([0, 0])
    assert filtered(look, batch, bound, tried, first).tolist() == [1, 3]
    assert filtered(look, batch, bound, torch.full((2, 3), -1), first).tolist() == [0, 0]


@torch.no_grad()
def test_nothing_is_split_twice(planted: ModuleType) -> None:
    searched = search(planted, network(2))
    batch = subproblems(searched, 30)
    places = chosen(searched.bounding, batch, searched.plain, 3)
    assert bool((batch.signs.gather(1, places.unsqueeze(1)) == 0).all())
    full = replace(batch, signs=torch.ones_like(batch.signs))
    assert bool((chosen(searched.bounding, full, searched.plain, 3) == -1).all())
    for score in losses(searched.bounding, full, searched.bounding.ascended(full, 0)):
        assert bool((score == -1).all())


@pytest.mark.parametrize("candidates", [0, 4])
@torch.no_grad()
def test_searches_decide_what_sampling_allows(planted: ModuleType, candidates: int) -> None:
    """Below the least value of a network the search proves it (some leaves by linear programs alone), just above it
    never does."""
    graph = network(3)
    axis = torch.linspace(-1, 1, 41, dtype=D)
    grid = torch.cartesian_prod(axis, axis, axis)
    points = torch.stack([grid[:, 0], grid[:, 1], torch.full_like(grid[:, 0], 0.5), grid[:, 2]], 1)
    least = float(graph.evaluate(points)[0].min())
    for threshold, proven in ((least - 0.3, True), (least + 1e-3, False)):
        searched = search(planted, graph, (threshold,))
        assert isinstance(searched.bounding, Bounding)
        searched.options = replace(searched.options, candidates=candidates)
        left = [step.open_subproblems for step, _ in zip(searched.run(), range(100), strict=False)]
        assert (left[-1] == 0) is proven


@torch.no_grad()
def test_parts_of_a_batch_are_bounded_as_the_whole_is(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the graph, where memory decides how many subproblems are walked at once."""
    searched = search(planted, network(2))
    bounding, batch = replace(searched.bounding, condensed=None), subproblems(searched, 7)
    whole = bounding.ascended(batch, 3)
    proven = bounding.decided(batch, whole)
    monkeypatch.setattr(point_splits, "ELEMENTS", 3 * bounding.rough.elements)
    parts = bounding.ascended(batch, 3)
    assert [part.size for part in bounding._parts(batch)] == [3, 3, 1]
    for one, two in ((whole.bound, parts.bound), (whole.slopes, parts.slopes), (whole.corner, parts.corner)):
        assert torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(bounding.decided(batch, whole), proven, atol=1e-12)
    assert whole.rows.keys() == parts.rows.keys() and torch.isfinite(proven).all()
