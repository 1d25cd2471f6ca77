"""Points are uniform in their region, and moves leave them uniform."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from bounds import Box, LpBall
from verifier.statistics.sampling import Uniform, moved, uniform

SIZE = 4


def source(p: float) -> Uniform:
    centre = torch.arange(SIZE, dtype=torch.float64).reshape(1, 2, 2)
    return uniform(LpBall(centre, torch.tensor([2.0], dtype=torch.float64), p), (2, 2))


def lengths(points: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(points.flatten(1) - torch.arange(SIZE), p, dim=1) / 2


def first_share(p: float) -> tuple[str, tuple[float, ...]]:
    """The distribution of the first coordinate's size in the unit ball."""
    if p == 2:  # its square
        return "beta", (0.5, (SIZE + 1) / 2)
    return ("beta", (1.0, float(SIZE))) if p == 1 else ("uniform", ())


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("moves", [0, 5])
def test_points_are_uniform_in_a_ball(p: float, moves: int) -> None:
    region, generator = source(p), torch.Generator().manual_seed(0)
    noise = region.draw(4000, generator)
    for _ in range(moves):
        noise = moved(noise, torch.tensor(0.4, dtype=torch.float64), generator)
    points = region.points(noise)
    assert points.shape == (4000, 2, 2)
    distance = lengths(points, p)
    assert float(distance.max()) <= 1 + 1e-12
    assert kstest(distance**SIZE, "uniform").pvalue > 0.01
    first = (points.flatten(1)[:, 0] / 2).abs() ** (2 if p == 2 else 1)
    assert kstest(first, *first_share(p)).pvalue > 0.01
    assert abs(float(points.flatten(1)[:, 0].sign().mean())) < 0.05


def test_the_uniform_law_of_a_cap_is_known() -> None:
    """The formula that the benchmark takes as truth, against plain sampling."""
    points = source(2.0).points(source(2.0).draw(20_000, torch.Generator().manual_seed(1))).flatten(1)
    share = float((points[:, 0] / 2 >= 0.5).double().mean())
    assert share == pytest.approx(beta.sf(0.25, 0.5, (SIZE + 1) / 2) / 2, abs=0.01)


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_ball_is_cut_by_its_box(p: float) -> None:
    within = Box(torch.zeros(1, 2), torch.ones(1, 2))
    region = uniform(LpBall(torch.zeros(1, 2), torch.ones(1), p, within), (2,))
    points = region.points(region.draw(2000, torch.Generator().manual_seed(0)))
    assert bool((points >= 0).all() and (points <= 1).all())
    assert float((points[:, 0] > points[:, 1]).double().mean()) == pytest.approx(0.5, abs=0.05)


def test_fixed_inputs_stay_as_they_are() -> None:
    region = uniform(Box(torch.tensor([[0.1, 2.0]]), torch.tensor([[0.1, 3.0]])), (2,))
    points = region.points(region.draw(50, torch.Generator().manual_seed(0)))
    assert bool((points[:, 0] == float(torch.tensor(0.1))).all())
    assert float(points[:, 1].min()) >= 2 and float(points[:, 1].max()) <= 3 and len(points[:, 1].unique()) == 50
