"""Exact limits of a proportion, the number of samples, plain sampling, and that an estimate is no verdict."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from scipy.stats import binom

from bounds import Box, Graph, LpBall, trace
from verifier.errors import InputError
from verifier.statistics import Estimate, clopper_pearson, monte_carlo, samples_needed
from verifier.verdict import Verdict

ROW = torch.ones(1, 1)


@pytest.fixture
def total() -> Graph:
    """``x -> x_0 + x_1``, which is at most t in the unit square with probability t^2 / 2."""
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = 1.0
    return trace(layer, torch.zeros(2))


@pytest.fixture
def square() -> Box:
    return Box(torch.zeros(1, 2), torch.ones(1, 2))


@pytest.mark.parametrize(("hits", "samples"), [(0, 7), (1, 40), (20, 40), (39, 40), (40, 40)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_limits_are_where_the_binomial_tails_say(hits: int, samples: int, confidence: float) -> None:
    lower, upper = clopper_pearson(hits, samples, confidence)
    tail = (1 - confidence) / 2
    assert lower <= hits / samples <= upper
    assert lower == 0 if hits == 0 else binom.sf(hits - 1, samples, lower) == pytest.approx(tail)
    assert upper == 1 if hits == samples else binom.cdf(hits, samples, upper) == pytest.approx(tail)


@pytest.mark.parametrize("truth", [0.003, 0.1, 0.5])
def test_limits_cover_every_probability(truth: float) -> None:
    """Exactly computed, not sampled: the share of counts whose limits hold the truth."""
    limits = [clopper_pearson(hits, 50) for hits in range(51)]
    covered = sum(binom.pmf(k, 50, truth) for k, (low, high) in enumerate(limits) if low <= truth <= high)
    assert covered >= 0.95


@pytest.mark.parametrize(("accuracy", "confidence"), [(0.2, 0.99), (0.1, 0.9), (0.03, 0.95), (0.4, 0.5)])
def test_samples_needed_are_the_fewest_for_every_count(accuracy: float, confidence: float) -> None:
    def farthest(samples: int) -> float:
        return max(
            max(high - hits / samples, hits / samples - low)
            for hits in range(samples + 1)
            for low, high in [clopper_pearson(hits, samples, confidence)]
        )

    needed = samples_needed(accuracy, confidence)
    assert farthest(needed) <= accuracy < farthest(needed - 1)


def test_accuracies_too_fine_to_be_counted_are_refused(total: Graph, square: Box) -> None:
    with pytest.raises(InputError, match="would need about"):
        samples_needed(1e-9)
    with pytest.raises(InputError, match="would need about"):
        monte_carlo(total, square, rows=ROW, samples=1000, accuracy=1e-9)


def test_samples_needed_without_hits_have_a_formula() -> None:
    assert samples_needed(0.001, hits="none") == math.ceil(math.log(0.025) / math.log(0.999))


def test_too_few_samples_are_refused_with_the_number_that_is_needed(total: Graph, square: Box) -> None:
    with pytest.raises(InputError, match=f"{samples_needed(0.001)} are needed .3688 if no violation"):
        monte_carlo(total, square, rows=ROW, samples=1000, accuracy=0.001)
    with pytest.raises(InputError, match="404 are needed"):
        monte_carlo(total, square, rows=ROW, samples=403, accuracy=0.05)
    needed = samples_needed(0.05)
    found = monte_carlo(total, square, rows=ROW, threshold=1.0, samples=needed, accuracy=0.05)
    assert found.upper - found.value <= 0.05 and found.value - found.lower <= 0.05


def test_sampling_covers_a_known_probability(total: Graph, square: Box) -> None:
    found = [monte_carlo(total, square, rows=ROW, threshold=0.5, samples=400, seed=seed) for seed in range(200)]
    assert sum(e.lower <= 0.125 <= e.upper for e in found) >= 184  # 190 are expected; fewer once in 1000
    assert sum(e.value for e in found) / 200 == pytest.approx(0.125, abs=0.005)


def test_a_label_means_that_another_class_scores_as_much(square: Box) -> None:
    layer = torch.nn.Linear(2, 2, bias=False)  # x_0 >= 2 x_1 with probability 1 / 4
    with torch.no_grad():
        layer.weight[:] = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    graph = trace(layer, torch.zeros(2))
    assert monte_carlo(graph, square, label=1).value == pytest.approx(0.25, abs=0.02)
    assert monte_carlo(graph, square, label=0).value == pytest.approx(0.75, abs=0.02)


def test_no_hits_leave_an_upper_limit(total: Graph, square: Box) -> None:
    found = monte_carlo(total, square, rows=ROW, threshold=-1.0, samples=1000)
    assert (found.value, found.lower) == (0, 0)
    assert found.upper == pytest.approx(1 - 0.025**0.001)


def test_an_estimate_is_no_verdict(total: Graph, square: Box) -> None:
    found = monte_carlo(total, square, rows=ROW, threshold=1.0, samples=100)
    assert not isinstance(found, Verdict) and "word" not in dir(found)
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(found)
    with pytest.raises(FrozenInstanceError):
        found.value = 0.0  # type: ignore[misc]
    assert str(found).startswith("estimate: ") and found.assumptions and found.samples == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": None}, "what is a violation"),
        ({"label": 0}, "what is a violation"),
        ({"rows": None, "label": 0}, "one output"),
        ({"rows": torch.ones(1, 3)}, "rows .1, 3. for an output"),
        ({"rows": torch.full((1, 1), math.nan)}, "finite"),
        ({"threshold": math.inf}, "finite"),
        ({"samples": 0}, "samples=0"),
        ({"confidence": 95}, "confidence 95"),
        ({"accuracy": 2.0}, "accuracy 2.0"),
        ({"region": Box(torch.zeros(1, 3), torch.ones(1, 3))}, "one of shape .1, 2."),
        ({"region": Box(torch.ones(1, 2), torch.zeros(1, 2))}, "empty"),
        ({"region": Box(torch.zeros(1, 2), torch.full((1, 2), math.inf))}, "infinite ends"),
        ({"region": torch.zeros(1, 2)}, "bounds.Box"),
        ({"graph": torch.nn.Linear(2, 1)}, "trace"),
    ],
)
def test_bad_input_is_explained(total: Graph, square: Box, changes: dict, message: str) -> None:
    arguments = {"graph": total, "region": square, "rows": ROW} | changes
    with pytest.raises(InputError, match=message):
        monte_carlo(arguments.pop("graph"), arguments.pop("region"), **arguments)


def test_outputs_that_are_not_finite_are_refused() -> None:
    class Reciprocal(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.0 / x

    graph = trace(Reciprocal(), torch.ones(2))
    zero = Box(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 2.0]]))
    with pytest.raises(InputError, match="not finite"):
        monte_carlo(graph, zero, rows=torch.ones(1, 2), samples=10)


def test_a_ball_that_hardly_meets_its_box_is_refused(total: Graph) -> None:
    far = Box(torch.full((1, 2), 0.70), torch.ones(1, 2))
    ball = LpBall(torch.zeros(1, 2), torch.ones(1), 2, Box(far.lower + 0.00705, far.upper))
    with pytest.raises(InputError, match="lie within its box"):
        monte_carlo(total, ball, rows=ROW, samples=1000)


def test_estimates_are_frozen_values() -> None:
    sentence = ("none",)
    found = Estimate(0.5, 0.4, 0.6, 0.95, "a share", "by hand", 10, sentence)
    assert found == Estimate(0.5, 0.4, 0.6, 0.95, "a share", "by hand", 10, sentence)
