"""Multi-level splitting against probabilities that are known, and what it says when it finds nothing."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import digamma
from scipy.stats import beta, t

from bounds import Box, Graph, LpBall, trace
from verifier.errors import InputError
from verifier.statistics import Estimate, clopper_pearson, splitting

ROW = torch.ones(1, 1)


def total(size: int, bias: float = 0.0) -> Graph:
    """``x -> sum x + bias``."""
    layer = torch.nn.Linear(size, 1)
    with torch.no_grad():
        layer.weight[:] = 1.0
        layer.bias[:] = bias
    return trace(layer, torch.zeros(size))


def cube(size: int) -> Box:
    return Box(torch.zeros(1, size), torch.ones(1, size))


def logs(found: Estimate) -> tuple[float, ...]:
    assert found.repeated is not None
    return found.repeated.logs


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("size", "reach"), [(2, 1e-3), (4, 0.1)])
def test_corners_of_a_box(size: int, reach: float) -> None:
    truth = reach**size / math.factorial(size)
    found = splitting(total(size), cube(size), rows=ROW, threshold=reach, samples=300, runs=10)
    assert found.lower <= truth <= found.upper and found.upper < 4 * found.lower


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_caps_of_balls(p: float) -> None:
    direction = torch.nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        direction.weight[:] = torch.tensor([[1.0, 0, 0, 0, 0, 0]])
    graph, height = trace(direction, torch.zeros(6)), 0.9
    truth = 0.5 * (0.1**6 if p == 1 else beta.sf(height**2, 0.5, 3.5))
    ball = LpBall(torch.zeros(1, 6), torch.ones(1), p)
    found = splitting(graph, ball, rows=ROW, threshold=-height, samples=300)
    assert found.lower <= truth <= found.upper


@pytest.mark.usefixtures("one_thread")
def test_a_ball_is_cut_by_its_box() -> None:
    """The quarter of a disc: of its area pi/4 the corner ``x + y <= 0.1`` is 0.005."""
    ball = LpBall(torch.zeros(1, 2), torch.ones(1), 2, cube(2))
    found = splitting(total(2), ball, rows=ROW, threshold=0.1, samples=300)
    assert found.lower <= 0.005 / (math.pi / 4) <= found.upper


@pytest.mark.usefixtures("one_thread")
def test_the_stated_confidence_covers_the_truth() -> None:
    """50 repetitions at 90 %: 45 are expected to cover, fewer than 39 once in 200. The benchmark has 200."""
    graph, box = total(2), cube(2)
    found = [
        splitting(graph, box, rows=ROW, threshold=0.05, samples=100, runs=6, moves=10, confidence=0.9, seed=seed)
        for seed in range(50)
    ]
    assert sum(e.lower <= 0.00125 <= e.upper for e in found) >= 39
    centre = sum(sum(logs(e)) for e in found) / 300  # biased by less than two of its standard errors
    spread = math.sqrt(sum(e.repeated.variance for e in found if e.repeated) / 50 / 300)
    assert abs(centre - math.log(0.00125)) < 3 * spread


def test_the_limits_are_students_of_the_logarithms() -> None:
    found = splitting(total(2), cube(2), rows=ROW, threshold=0.01, samples=100, runs=6, moves=3)
    values = torch.tensor(logs(found), dtype=torch.float64)
    assert found.repeated is not None
    assert found.repeated.variance == pytest.approx(float(values.var()))
    half = t.ppf(0.975, 5) * float(values.std()) / math.sqrt(6)
    assert math.log(found.value) == pytest.approx(float(values.mean()))
    assert math.log(found.upper) == pytest.approx(float(values.mean()) + half)
    assert math.log(found.lower) == pytest.approx(float(values.mean()) - half)


def test_the_logarithm_of_an_order_statistic_has_the_mean_that_is_used() -> None:
    uniform = torch.rand(20_000, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tenth = uniform.kthvalue(10, dim=1).values.log().mean()
    assert float(tenth) == pytest.approx(float(digamma(10) - digamma(41)), abs=0.01)


def test_common_violations_are_sampled_plainly() -> None:
    found = splitting(total(2), cube(2), rows=ROW, threshold=1.0, samples=100, runs=6)
    hits = round(found.value * 600)
    assert found.samples == 600
    assert (found.lower, found.upper) == clopper_pearson(hits, 600)
    everywhere = splitting(total(2), cube(2), rows=ROW, threshold=3.0, samples=100, runs=6)
    assert everywhere.value == everywhere.upper == 1 and everywhere.lower < 1


def test_without_violations_only_an_upper_limit_is_claimed() -> None:
    found = splitting(total(2), cube(2), rows=ROW, threshold=-1.0, samples=50, runs=6, moves=2, smallest=1e-4)
    assert (found.value, found.lower) == (0, 0) and found.upper == pytest.approx(1e-4)
    assert "6 cut off" in found.method and any("median" in sentence for sentence in found.assumptions)
    assert found.repeated is not None and found.repeated.variance == math.inf


def test_a_plateau_ends_a_run() -> None:
    """A score that is constant near its least value: no level can be set, and the run says so."""
    layers = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.ReLU())
    with torch.no_grad():
        layers[0].weight[:] = 1.0
        layers[0].bias[:] = -1.0
    found = splitting(trace(layers, torch.zeros(2)), cube(2), rows=ROW, threshold=-0.5, samples=50, runs=6, moves=2)
    assert found.value == 0 and found.lower == 0 and 1e-3 < found.upper < 0.2


def test_two_seeds_differ_and_one_repeats() -> None:
    first, again, other = (
        splitting(total(2), cube(2), rows=ROW, threshold=0.1, samples=50, runs=6, moves=2, seed=s) for s in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": 5}, "6 independent runs are needed for a confidence of 0.95"),
        ({"runs": 8, "confidence": 0.999}, "11 independent runs"),
        ({"runs": 1}, "runs=1"),
        ({"samples": 10}, "samples=10"),
        ({"samples": 30, "keep": 0.1}, "keep=0.1"),
        ({"keep": 1.0}, "keep=1.0"),
        ({"moves": 0}, "moves=0"),
        ({"smallest": 0.0}, "smallest=0.0"),
        ({"confidence": 1.0}, "confidence 1.0"),
    ],
)
def test_bad_input_is_explained(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        splitting(total(2), cube(2), rows=ROW, **changes)
