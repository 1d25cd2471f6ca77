"""Refinements against exact minima by programs: they contain the truth at every step, never widen, and end at it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from bounds import Box, Graph, LpBall, trace
from milp import minimum
from verifier.anytime.enclosure import Enclosure
from verifier.anytime.refinement import refine

GAP = 1e-6


def network(seed: int) -> tuple[Graph, Box]:
    """A small network with one output, dense or with a residual part, on a box of two to four inputs."""
    torch.manual_seed(seed)
    n, width = 2 + seed % 3, 4 + seed % 5
    layers = [nn.Linear(n, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU() if seed % 2 else nn.LeakyReLU(0.1)]
    graph = trace(nn.Sequential(*layers, nn.Linear(width, 1)), torch.zeros(1, n))
    centre, radius = torch.randn(1, 1, n, dtype=torch.float64), torch.rand(1, 1, n, dtype=torch.float64) + 0.2
    return graph, Box(centre - radius, centre + radius)


def check(graph: Graph, box: Box) -> list[Enclosure]:
    """All enclosures of a refinement, each compared with the exact ends and with the one before."""
    row = torch.ones(graph.nodes[graph.outputs[0]].shape, dtype=torch.float64)
    low, high = minimum(graph, box, row, gap=GAP / 10), minimum(graph, box, -row, gap=GAP / 10)
    found = list(itertools.islice(refine(graph, box, gap=GAP), 3000))
    for last in found:
        assert last.lower <= low.value and last.least >= low.bound
        assert last.upper >= -high.value and last.greatest <= -high.bound
    for one, two in itertools.pairwise(found):
        assert one.lower <= two.lower and two.least <= one.least
        assert one.upper >= two.upper and two.greatest >= one.greatest
    assert found[-1].status == "exact"
    assert found[-1].lower == pytest.approx(low.bound, abs=GAP, rel=0)
    assert found[-1].upper == pytest.approx(-high.bound, abs=GAP, rel=0)
    return found


@pytest.mark.parametrize("seed", [*range(8), 108])  # 108: monotone, so the region becomes a face
def test_ranges_close_in_on_the_exact_one(seed: int) -> None:
    graph, box = network(seed)
    last = check(graph, box)[-1]
    for point, value in ((last.least_at, last.least), (last.greatest_at, last.greatest)):
        assert point is not None
        inside = (box.lower[0] <= point) & (point <= box.upper[0])
        assert bool(inside.all())
        assert float(graph.to(torch.float64).evaluate(point.unsqueeze(0))[0]) == pytest.approx(value, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_ranges_of_many_networks(part: int) -> None:
    """200 networks in all."""
    for seed in range(8 + 20 * part, 28 + 20 * part):
        check(*network(seed))


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_ranges_over_balls_contain_samples_and_lie_within_the_box(p: float) -> None:
    graph, box = network(1)
    centre, radius = (box.lower + box.upper) / 2, float((box.upper - box.lower).min() / 2)
    ball = LpBall(centre, torch.tensor([radius], dtype=torch.float64), p)
    last = list(itertools.islice(refine(graph, ball, gap=1e-3), 2000))[-1]
    assert last.status == "exact"
    draw = torch.randn((4000, *centre.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = draw / draw.flatten(1).norm(p=p, dim=1)[:, None, None] * radius * torch.rand(4000, 1, 1)
    values = graph.to(torch.float64).evaluate(centre + draw)[0]
    assert last.lower <= float(values.min()) and float(values.max()) <= last.upper
    assert last.least_at is not None
    assert float((last.least_at - centre[0]).flatten().norm(p=p)) <= radius
    around = list(refine(graph, ball.box(), gap=1e-3))[-1]
    assert around.lower - 1e-3 <= last.lower and last.upper <= around.upper + 1e-3


def test_one_side_alone_says_nothing_of_the_other() -> None:
    graph, box = network(0)
    last = list(refine(graph, box, of="min", gap=1e-3))[-1]
    assert math.isinf(last.upper) and math.isinf(last.greatest) and last.greatest_at is None
    assert last.least - last.lower <= 1e-3 and last.status == "exact"


def test_rows_and_margins_close_in_on_exact_ones() -> None:
    """A row over three outputs, and the margin of a class: the least one over each other class."""
    torch.manual_seed(2)
    graph = trace(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 2))
    box = Box(*(torch.full((1, 1, 2), end, dtype=torch.float64) for end in (-1.0, 1.0)))
    row = torch.tensor([[0.5, -2.0, 1.0]], dtype=torch.float64)
    last = list(refine(graph, box, row, gap=1e-5))[-1]
    low, high = minimum(graph, box, row, gap=1e-6), minimum(graph, box, -row, gap=1e-6)
    assert last.status == "exact" and last.lower <= low.value and -high.value <= last.upper
    assert low.bound <= last.least <= low.value + 1e-5 and -high.value - 1e-5 <= last.greatest <= -high.bound
    for label in range(3):
        one, *others = torch.eye(3, dtype=torch.float64).roll(-label, 0).unsqueeze(1)
        margins = [minimum(graph, box, one - other, gap=1e-6) for other in others]
        last = list(refine(graph, box, label=label, of="min", gap=1e-5))[-1]
        assert last.status == "exact" and last.lower <= min(m.value for m in margins)
        assert min(m.bound for m in margins) <= last.least <= min(m.value for m in margins) + 1e-5
