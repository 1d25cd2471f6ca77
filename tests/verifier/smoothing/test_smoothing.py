"""Radii against their definitions, limits against simulated truth, certificates of classifiers that are known."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import betaincc, ndtr, ndtri
from scipy.stats import binom, kstest
from torch import Tensor

import verifier
from verifier.errors import InputError
from verifier.smoothing import sequential
from verifier.smoothing.certify import Fixed, Sequential, certify, lower_limit, percent, predict, upper_limit
from verifier.smoothing.counting import Sampler, Scores
from verifier.smoothing.noise import (
    Cubic,
    Gaussian,
    Laplace,
    Noise,
    Norm,
    Uniform,
    check_norm,
    largest_certifiable,
    probability_needed,
)
from verifier.smoothing.smoothed import smooth

NOISES: tuple[Noise, ...] = (Gaussian(0.5), Laplace(0.3), Uniform(0.7), Cubic(0.2))
NORMS: tuple[Norm, ...] = ("1", "2", "inf")


def half_space(threshold: float) -> Scores:
    """Class 0 where the first element is below the threshold, else class 1."""
    return lambda x: torch.stack([(x[:, 0] < threshold).double(), (x[:, 0] >= threshold).double()], 1)


def sampler(noise: Noise, scores: Scores, seed: int = 0, classes: int = 2) -> Sampler:
    return Sampler(scores, classes, noise, 5000, torch.Generator().manual_seed(seed), torch.float64)


def test_radii_are_those_of_the_published_table() -> None:
    """Cohen et al.; Teng et al.; Yang et al., table 1 (two classes: q = 1 - p)."""
    for p in (0.6, 0.9, 0.999):
        q = 1 - p
        expected = {
            (Gaussian(0.5), "2", 7): 0.5 * ndtri(p),
            (Gaussian(0.5), "1", 7): 0.5 * ndtri(p),
            (Gaussian(0.5), "inf", 16): 0.5 * ndtri(p) / 4,
            (Laplace(0.3), "1", 7): -0.3 * math.log(2 * q),
            (Uniform(0.7), "1", 7): 2 * 0.7 * (p - 0.5),
            (Uniform(0.7), "inf", 7): 2 * 0.7 * (1 - (1.5 - p) ** (1 / 7)),
            (Cubic(0.2), "inf", 7): -0.2 * math.log(2 * q),
        }
        for (noise, norm, size), radius in expected.items():
            assert noise.radius(check_norm(norm), size, p, q) == pytest.approx(radius, rel=1e-8)  # type: ignore[attr-defined]
            assert noise.radius(check_norm(norm), size, p, q) < radius * (1 + 1e-15)  # type: ignore[attr-defined]


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.words)
@pytest.mark.parametrize("norm", NORMS)
def test_radii_grow_with_the_probability_and_vanish_without_a_lead(noise: Noise, norm: Norm) -> None:
    radii = [noise.radius(norm, 5, p, 1 - p) for p in (0.3, 0.5, 0.51, 0.9, 0.9999, 1 - 1e-15)]
    assert radii[:2] == [0, 0]
    assert all(a < b < math.inf for a, b in pairwise(radii[1:]))
    assert noise.radius(norm, 5, 0.5, 0.2) > noise.radius(norm, 5, 0.5, 0.4) > 0
    needed = probability_needed(noise, norm, 5, radii[3])
    assert needed == pytest.approx(0.9, abs=1e-6)
    assert probability_needed(noise, norm, 5, 1e9) == math.inf


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.words)
def test_no_set_loses_its_majority_within_the_radius(noise: Noise) -> None:
    """Against sampling: sets {x_1 < t}, {|x|_1 < t}, {|x|_inf < t} of known probability p, shifted by the radius in
    every norm, along one axis and along the diagonal, still hold more than half of the noise (up to sampling)."""
    size, count = 3, 200_000
    drawn = noise.draw(count, size, torch.Generator().manual_seed(3), torch.float64)
    for value in (lambda z: z[:, 0], lambda z: z.abs().sum(1), lambda z: z.abs().amax(1), lambda z: z.sum(1)):
        for share in (0.7, 0.95):
            t = torch.quantile(value(drawn), share)
            for norm in NORMS:
                radius = noise.radius(norm, size, share, 1 - share)
                ones = torch.ones(size, dtype=torch.float64)
                ways = (torch.eye(size, dtype=torch.float64)[0], ones / ones.norm(p=float(norm)))
                for way in ways:
                    kept = (value(drawn + 0.999 * radius * way) < t).double().mean()
                    assert float(kept) > 0.5 - 0.005


@pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.words)
def test_noise_is_distributed_as_it_says(noise: Noise) -> None:
    size, count = 4, 20_000
    z = noise.draw(count, size, torch.Generator().manual_seed(5), torch.float64)
    assert float(z.mean()) == pytest.approx(0, abs=4 * math.sqrt(noise.variance(size) / count / size))
    assert float(z.var()) == pytest.approx(noise.variance(size), rel=0.05)
    match noise:
        case Gaussian(sigma):
            assert kstest(z[:, 0].numpy() / sigma, "norm").pvalue > 1e-3
        case Laplace(scale):
            assert kstest(z[:, 1].numpy() / scale, "laplace").pvalue > 1e-3
        case Uniform(width):
            assert kstest(z[:, 2].numpy() / width, "uniform", args=(-1, 2)).pvalue > 1e-3
        case Cubic(scale):
            assert kstest(z.abs().amax(1).numpy() / scale, "gamma", args=(size,)).pvalue > 1e-3


def test_no_noise_certifies_more_than_the_bound_on_all() -> None:
    for noise in NOISES:
        for size in (1, 10, 3072):
            for p in (0.6, 0.99, 0.999999):
                for norm in NORMS:
                    most = largest_certifiable(noise.variance(size), norm, size, p)
                    assert noise.radius(norm, size, p, 1 - p) <= most


def test_evidence_is_a_supermartingale() -> None:
    """Exactly: one more sample changes its mean by nothing under p0, and lowers it under a smaller probability."""
    for p0, p in ((0.5, 0.5), (0.9, 0.9), (0.9, 0.7), (0.99, 0.5)):
        for hits, samples in ((0, 0), (3, 4), (50, 60), (999, 1000), (0, 5)):
            now = math.exp(sequential.log_evidence(hits, samples, p0))
            hit = math.exp(sequential.log_evidence(hits + 1, samples + 1, p0))
            miss = math.exp(sequential.log_evidence(hits, samples + 1, p0))
            mean = p * hit + (1 - p) * miss
            assert mean <= now * (1 + 1e-9)
            if p == p0:
                assert mean == pytest.approx(now, rel=1e-9)
    assert sequential.log_evidence(0, 0, 0.3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("p", [0.5, 0.8, 0.97, 0.999])
def test_sequential_limits_hold_at_all_times(p: float) -> None:
    """Of 400 walks of 2,000 samples, looked at often, at most a share alpha (and sampling) ever says too much."""
    alpha, walks = 0.1, 400
    random = np.random.default_rng(int(1000 * p))
    wrong = 0
    for _ in range(walks):
        hits = random.random(2000) < p
        total = hits.cumsum()
        looks = [10, 20, 40, 80, 160, 320, 640, 1280, 2000]
        wrong += any(sequential.lower_limit(int(total[n - 1]), n, alpha) > p for n in looks)
    assert wrong <= binom.ppf(0.9999, walks, alpha)


@pytest.mark.parametrize(
    ("hits", "samples", "alpha"), [(9165366, 17625705, 1e-6), (19071773, 19097890, 1e-6), (8961759, 17923519, 1e-9)]
)
def test_what_sequential_limits_refute_is_refuted_with_many_samples(hits: int, samples: int, alpha: float) -> None:
    """In 60 digits, but for the tail (near 1 there): logarithms of this many samples have lost digits in float64."""
    p0 = sequential.lower_limit(hits, samples, alpha)
    assert p0 > hits / samples - 0.002
    misses = samples - hits
    with mpmath.workdps(60):
        p = mpmath.mpf(p0)
        mixed = mpmath.loggamma(hits + 1) + mpmath.loggamma(misses + 1) - mpmath.loggamma(samples + 2)
        tail = mpmath.log(float(betaincc(hits + 1, misses + 1, p0)))
        evidence = mixed + tail - mpmath.log1p(-p) - hits * mpmath.log(p) - misses * mpmath.log1p(-p)
        assert evidence >= -mpmath.log(alpha)


@pytest.mark.parametrize("alpha", [1e-3, 1e-6, 4e-9, 1e-15, 1e-17, 1e-300])
def test_no_confidence_is_said_to_be_certainty(alpha: float) -> None:
    source = sampler(Gaussian(0.5), lambda x: torch.stack([torch.ones(len(x)), torch.zeros(len(x))], 1))
    found = certify(source, torch.zeros(2, dtype=torch.float64), Fixed(2000), alpha=alpha)
    assert found.label == 0
    assert found.confidence < 1
    assert "100 %" not in str(found)
    assert float(percent(alpha).removesuffix(" %")) == pytest.approx(100 * (1 - alpha), rel=1e-7)


def test_sequential_limits_close_in() -> None:
    assert sequential.lower_limit(9_000, 10_000, 0.001) > 0.885
    assert sequential.lower_limit(10_000, 10_000, 0.001) > 0.998
    assert sequential.lower_limit(0, 100, 0.001) == 0
    assert sequential.lower_limit(5, 10, 0.001) < 0.5
    assert not sequential.rejects(10, 10, 1.0, 0.5)
    assert sequential.hopeless(50, 100, 100, 0.9, 0.001)
    assert not sequential.hopeless(100, 100, 10_000, 0.99, 0.001)


def test_fixed_limits_are_exact() -> None:
    """Clopper and Pearson: at the limit, as many hits or more have a probability of alpha."""
    for hits, samples in ((1, 10), (95, 100), (100, 100)):
        limit = lower_limit(hits, samples, 0.01)
        assert binom.sf(hits - 1, samples, limit) == pytest.approx(0.01, rel=1e-6)
        assert binom.sf(hits - 1, samples, limit) <= 0.01
    assert lower_limit(0, 10, 0.01) == 0
    assert upper_limit(10, 10, 0.01) == 1
    assert binom.cdf(3, 10, upper_limit(3, 10, 0.01)) == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("estimation", [Fixed(1000), Sequential((0.1, 0.3, 0.5), 3000)], ids=["fixed", "sequential"])
def test_false_certificates_are_rarer_than_alpha(estimation: Fixed | Sequential) -> None:
    """Half-spaces, whose smoothed radius is sigma Phi^-1(p) exactly: a larger one or another class is false."""
    alpha, count, sigma = 0.05, 300, 0.5
    random = np.random.default_rng(7)
    wrong = 0
    for k in range(count):
        p = random.uniform(0.5, 0.999)
        source = sampler(Gaussian(sigma), half_space(sigma * float(ndtri(p))), seed=k)
        found = certify(source, torch.zeros(2, dtype=torch.float64), estimation, alpha=alpha)
        wrong += found.label == 1 or (found.label == 0 and found.radius > sigma * float(ndtri(p)))
    assert wrong <= binom.ppf(0.9999, count, alpha)


def test_certificates_of_a_half_space() -> None:
    source = sampler(Gaussian(0.5), half_space(0.5))
    found = certify(source, torch.zeros(3, dtype=torch.float64), Fixed(20_000))
    assert found.label == 0
    assert 0.45 < found.radius < 0.5
    assert found.p < float(ndtr(1))
    assert found.samples == 20_100
    assert "probabilistic, real arithmetic, 99.9 %" in str(found)


def test_sequential_sampling_stops_when_enough_is_known() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    easy = certify(sampler(Gaussian(0.5), half_space(2.0)), x, Sequential((0.25, 0.5), 100_000))
    assert easy.label == 0
    assert easy.radius >= 0.5
    assert easy.samples < 2000
    even = certify(sampler(Gaussian(0.5), half_space(0.0)), x, Sequential((0.25,), 100_000))
    assert even.label is None or even.radius < 0.25
    between = certify(sampler(Gaussian(0.5), half_space(0.3)), x, Sequential((0.25, 0.5), 100_000))
    assert 0.25 <= between.radius < 0.3
    assert between.samples < 50_000


def test_scores_that_are_not_finite_are_of_no_class() -> None:
    def broken(x: Tensor) -> Tensor:
        scores = torch.zeros(len(x), 2, dtype=torch.float64)
        scores[:, 0] = torch.where(x[:, 0] < 0, torch.nan, 1.0)
        return scores

    counts = sampler(Gaussian(1.0), broken).counts(torch.zeros(1, dtype=torch.float64), 10_000)
    assert int(counts.sum()) == 10_000
    assert 4_500 < int(counts[2]) < 5_500
    assert certify(sampler(Gaussian(1.0), broken), torch.zeros(1, dtype=torch.float64), Fixed(5000)).label is None


def test_predictions_abstain_at_a_draw() -> None:
    x = torch.zeros(1, dtype=torch.float64)
    assert predict(sampler(Gaussian(1.0), half_space(1.0)), x) == 0
    assert predict(sampler(Gaussian(1.0), half_space(-1.0)), x) == 1
    assert predict(sampler(Gaussian(1.0), half_space(0.0)), x, alpha=1e-6) is None


def test_too_few_samples_are_refused() -> None:
    source, x = sampler(Gaussian(1.0), half_space(1.0)), torch.zeros(1, dtype=torch.float64)
    with pytest.raises(InputError, match="10 are needed at least"):
        certify(source, x, Fixed(9))
    assert certify(source, x, Fixed(10)).samples == 110
    with pytest.raises(InputError, match="at least one sample"):
        certify(source, x, Sequential((0.1,), first=0))
    with pytest.raises(InputError, match="alpha"):
        certify(source, x, Fixed(100), alpha=1.5)
    for make in (Gaussian, Laplace, Uniform, Cubic):
        with pytest.raises(InputError, match="positive"):
            make(0.0)


def test_models_of_all_kinds_are_smoothed_alike(checkout: Path) -> None:
    """The same network as ONNX, as a graph and as a module draws the same noise and gets the same certificates."""
    path = checkout / "benchmarks" / "digits" / "digits.onnx"
    graph = verifier.load(path)

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.to(torch.float32)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner.evaluate(x)[0].flatten(1)

    x = np.full((2, 1, 8, 8), 0.25, dtype=np.float32)
    found = [
        smooth(model, 0.1, shape=(1, 1, 8, 8), rows=500).certify(x, Fixed(2000))
        for model in (path, graph, Module().eval())
    ]
    assert found[0] == found[1] == found[2]
    assert found[0][0].samples == 2100
    assert smooth(path, 0.1).predict(x) == (found[0][0].guess,) * 2
    with pytest.raises(InputError, match="shape"):
        smooth(Module().eval(), 0.1)
    with pytest.raises(InputError, match="training mode"):
        smooth(Module(), 0.1, shape=(1, 8, 8))
