"""CLEVER: the fit against scipy and known distributions, constants that are known, and every way to be refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import weibull_max
from torch import Tensor, nn

from bounds import Graph, trace
from verifier.errors import InputError, UnsupportedError
from verifier.statistics import Clever, Estimate, Refused, clever
from verifier.statistics.weibull import distances, fitted, location_limits, resampled


class Ridge(nn.Module):
    """Scores ``(c, sigmoid(x_0 - 1))``, c = sigmoid(-0.3): the margin is 0 where ``x_0 = 0.7``, and its slope grows
    with x_0 as long as that is below 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        value = torch.sigmoid(x[..., :1] - 1)
        return torch.cat([0 * value + 1 / (1 + math.exp(0.3)), value], -1)


RADIUS = 0.9
CONSTANT = 1 / (1 + math.exp(0.1)) * (1 - 1 / (1 + math.exp(0.1)))


def ridge(size: int = 2) -> Graph:
    return trace(Ridge(size), torch.zeros(size))


def drawn(shape: float, count: int = 300, samples: int = 1, seed: int = 0) -> np.ndarray:
    """Samples whose end point is 5."""
    return 5 - 2 * np.random.default_rng(seed).weibull(shape, (samples, count))


@pytest.mark.parametrize("shape", [1.5, 3.0, 8.0])
def test_the_fit_is_the_most_likely_one(shape: float) -> None:
    maxima = drawn(shape)
    found = fitted(maxima)
    ours = weibull_max.logpdf(maxima[0], found.shape[0], found.location[0], found.scale[0]).sum()
    assert found.likelihood[0] == pytest.approx(ours, abs=1e-6)
    theirs = weibull_max.logpdf(maxima[0], *weibull_max.fit(maxima[0])).sum()
    assert ours >= theirs - 1e-4
    distance = np.abs(
        np.arange(1, 301) / 300 - weibull_max.cdf(np.sort(maxima[0]), found.shape, found.location, found.scale)
    )
    assert distances(found, maxima)[0] == pytest.approx(distance.max(), abs=1 / 300)


def test_samples_of_a_batch_are_fitted_alone() -> None:
    maxima = drawn(3.0, 100, 5)
    together = fitted(maxima)
    for k in range(5):
        alone = fitted(maxima[k : k + 1])
        assert alone.location[0] == pytest.approx(together.location[k])


def test_limits_of_the_end_point_cover_it() -> None:
    """Of 200 samples at 90 % 180 are expected; fewer than 167 once in 500."""
    hits = 0
    for seed in range(200):
        maxima = drawn(3.0, 200, seed=seed)
        low, high = location_limits(fitted(maxima), maxima, 0.9, 1.0)
        assert low >= maxima.max()
        hits += low <= 5 <= high
    assert hits >= 167


def p_value(maxima: np.ndarray, draws: int, seed: int) -> float:
    fit = fitted(maxima)
    return resampled(fit, maxima.shape[1], draws, seed).p_value(float(distances(fit, maxima)[0]))


def test_the_test_of_fit_accepts_and_rejects() -> None:
    assert p_value(drawn(3.0), 99, 0) > 0.05
    mixed = np.concatenate([drawn(6.0, 150), drawn(6.0, 150) - 3], 1)  # two humps
    assert p_value(mixed, 99, 0) == 0.01


def test_p_values_of_true_fits_are_spread_evenly() -> None:
    """The usual table, which ignores that parameters were fitted, would give hardly any below 0.3."""
    values = [p_value(drawn(3.0, 60, seed=s), 39, s) for s in range(60)]
    assert 6 <= sum(v <= 0.25 for v in values) <= 25
    assert 20 <= sum(v <= 0.5 for v in values) <= 40


def test_the_likelihood_ratio_is_that_of_scipy() -> None:
    """One sample, drawn and fitted as in ``resampled``; scipy maximises the likelihood at the true end point."""
    maxima = drawn(3.0)
    fit = fitted(maxima)
    found = resampled(fit, 100, 1, 7).ratio
    again = -np.random.default_rng(7).weibull(fit.shape[0], 100)
    shape, end, scale = weibull_max.fit(again, floc=0.0)
    there = weibull_max.logpdf(again, shape, end, scale).sum()
    assert found == pytest.approx(2 * (fitted(again[None]).likelihood[0] - there), abs=1e-3)


def test_where_the_ratio_is_not_chi_squared_the_limits_are_wider() -> None:
    """Near shape 1 the largest observation alone tells of the end point, and twice the log-likelihood falls by about
    1.5 in the mean, not by 1: without correction 90 % would cover less. At shape 6 it falls by about 1."""
    for shape, low, high in ((1.05, 1.3, 2.0), (6.0, 0.85, 1.2)):
        ratios = [resampled(fitted(drawn(shape, 200, seed=s)), 200, 99, s).ratio for s in range(5)]
        assert low < np.mean(ratios) < high
    maxima = drawn(1.2, 200)
    plain, wide, below = (location_limits(fitted(maxima), maxima, 0.9, ratio) for ratio in (1.0, 1.5, 0.5))
    assert wide[0] <= plain[0] and wide[1] > plain[1] and below == plain


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("norm", ["1", "2", "inf"])
def test_a_known_constant_and_a_known_distortion(norm: str) -> None:
    found = clever(ridge(), torch.zeros(2), 0, RADIUS, norm, batches=100, samples=100, confidence=0.999, seed=3)  # type: ignore[arg-type]
    (target,) = found.targeted
    assert isinstance(target.lipschitz, Estimate) and isinstance(found.untargeted, Estimate)
    assert target.lipschitz.lower <= CONSTANT <= target.lipschitz.upper
    bound = target.margin / CONSTANT
    assert found.untargeted.lower <= bound <= found.untargeted.upper < 0.7
    assert found.untargeted.value == pytest.approx(target.margin / target.lipschitz.value)
    assert found.untargeted.value == pytest.approx(bound, rel=1e-3)
    assert found.untargeted.samples == 10_000
    assert any("Kolmogorov-Smirnov, p = " in sentence for sentence in found.untargeted.assumptions)


@pytest.mark.usefixtures("one_thread")
def test_the_radius_cuts_the_distortion() -> None:
    found = clever(ridge(), torch.zeros(2), 0, 0.05, "2", batches=50, samples=50).untargeted
    assert isinstance(found, Estimate)
    assert found.value == found.lower == found.upper == 0.05


@pytest.mark.usefixtures("one_thread")
def test_classes_share_the_confidence_and_the_least_counts() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = torch.sigmoid(x[..., :1] - 1)
            return torch.cat([0 * value + 0.5, value, 0.5 * torch.sigmoid(-x[..., 1:2] - 1)], -1)

    x = torch.zeros(2)
    found = clever(trace(Three(), x), x, 0, RADIUS, batches=100, samples=100, seed=2)
    assert [t.target for t in found.targeted] == [1, 2]
    singles = [t.distortion for t in found.targeted]
    assert all(isinstance(e, Estimate) and e.confidence == 0.975 for e in singles)
    assert isinstance(found.untargeted, Estimate) and found.untargeted.confidence == 0.95
    assert found.untargeted.value == min(e.value for e in singles if isinstance(e, Estimate))
    (only,) = clever(trace(Three(), x), x, 0, RADIUS, targets=[2], batches=100, samples=100, seed=2).targeted
    assert only.target == 2 and only.distortion.samples == 10_000


def refusal(found: Clever) -> Refused:
    assert isinstance(found.untargeted, Refused)
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(found.untargeted)
    return found.untargeted


@pytest.mark.usefixtures("one_thread")
def test_a_gradient_that_is_constant_on_pieces_is_refused() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.zeros(2)
    found = refusal(clever(trace(module, x), x, int(module(x).argmax()), 1.0, batches=50, samples=50))
    assert "are the same" in found.reason and "exact_radius" in found.reason
    assert found.p_value is None and found.samples == 2500


@pytest.mark.usefixtures("one_thread")
def test_a_fit_that_the_test_rejects_is_refused_with_its_p_value() -> None:
    """Two steep places, of which a batch sees none, one or both: maxima with humps."""

    class Humps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = 0.01 * torch.tanh(30 * (x[..., :1] - 0.9)) + 0.01 * torch.tanh(3 * x[..., 1:2])
            return torch.cat([0 * value + 1.0, value], -1)

    x = torch.zeros(2)
    found = refusal(clever(trace(Humps(), x), x, 0, 1.0, "inf", batches=100, samples=20))
    assert found.p_value is not None and found.p_value < 0.05
    assert f"p = {found.p_value:.3g}" in found.reason and "100 batches of 20 samples" in found.reason


@pytest.mark.usefixtures("one_thread")
def test_a_network_with_jumps_is_refused() -> None:
    class Jump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, torch.floor(x)], -1)

    graph = trace(Jump(), torch.zeros(1))
    with pytest.raises(UnsupportedError, match=r"jumps at node \d+ \(Floor\): it has no Lipschitz constant"):
        clever(graph, torch.tensor([0.5]), 0, 0.1)


def test_a_margin_that_is_no_number_is_named() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    with pytest.raises(InputError, match="the margin over class 1 is nan"):
        clever(trace(Logarithm(), torch.ones(2)), -torch.ones(2), 0, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": 20}, "batches=20: a whole number of at least 50"),
        ({"samples": 1}, "samples=1"),
        ({"label": 1}, "class 0 scores as much or more"),
        ({"label": 7}, "label 7"),
        ({"targets": [0]}, "targets .0."),
        ({"targets": []}, "targets"),
        ({"radius": 0.0}, "radius 0.0"),
        ({"norm": "3"}, "norm '3'"),
        ({"x": torch.zeros(3)}, "one tensor of"),
        ({"x": torch.full((2,), math.nan)}, "finite centre"),
        ({"confidence": 0.0}, "confidence 0.0"),
    ],
)
def test_bad_input_is_explained(changes: dict, message: str) -> None:
    given = {"x": torch.zeros(2), "label": 0, "radius": 0.5} | changes
    with pytest.raises(InputError, match=message):
        clever(ridge(), **given)
