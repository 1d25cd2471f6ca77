"""Limits against exact binomials and simulated walks; what counts show of a claim."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.special import betaincc
from scipy.stats import binom

from verifier.errors import InputError
from verifier.smoothing import sequential
from verifier.smoothing.certificates import Claim, ClopperPearson, Mixture, ProbablyRobust, check_samples, percent
from verifier.smoothing.noise import Gaussian

SHIFT = Gaussian(1.0).shift("2", 5)
EXACT, ANYTIME = ClopperPearson(), Mixture()


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


@pytest.mark.parametrize("p", [0.03, 0.5, 0.8, 0.97, 0.999])
def test_sequential_limits_hold_at_all_times(p: float) -> None:
    """Of 400 walks of 2,000 samples, looked at often, at most a share alpha (and sampling) ever says too much, from
    below or from above."""
    alpha, walks = 0.1, 400
    random = np.random.default_rng(int(1000 * p))
    low = high = 0
    for _ in range(walks):
        total = (random.random(2000) < p).cumsum()
        looks = [(int(total[n - 1]), n) for n in (10, 20, 40, 80, 160, 320, 640, 1280, 2000)]
        low += any(ANYTIME.lower(hits, n, alpha) > p for hits, n in looks)
        high += any(ANYTIME.upper(hits, n, alpha) < p for hits, n in looks)
    assert max(low, high) <= binom.ppf(0.9999, walks, alpha)


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


def test_sequential_limits_close_in() -> None:
    assert ANYTIME.lower(9_000, 10_000, 0.001) > 0.885
    assert ANYTIME.lower(10_000, 10_000, 0.001) > 0.998
    assert ANYTIME.lower(0, 100, 0.001) == 0
    assert ANYTIME.lower(5, 10, 0.001) < 0.5
    assert ANYTIME.upper(0, 10_000, 0.001) < 0.002
    assert ANYTIME.upper(100, 100, 0.001) == 1
    for hits, samples in ((90, 100), (9_999, 10_000)):
        limit = ANYTIME.lower(hits, samples, 0.01)
        assert (
            sequential.surplus(hits, samples, limit, 0.01) >= 0 > sequential.surplus(hits, samples, limit + 1e-6, 0.01)
        )


def test_fixed_limits_are_exact() -> None:
    """Clopper and Pearson: at the limit, as many hits or more (fewer) have a probability of alpha."""
    for hits, samples in ((1, 10), (95, 100), (100, 100)):
        limit = EXACT.lower(hits, samples, 0.01)
        assert binom.sf(hits - 1, samples, limit) == pytest.approx(0.01, rel=1e-6)
        assert binom.sf(hits - 1, samples, limit) <= 0.01
    assert EXACT.lower(0, 10, 0.01) == 0
    assert EXACT.upper(10, 10, 0.01) == 1
    for hits, samples in ((0, 10), (3, 10), (99, 100)):
        limit = EXACT.upper(hits, samples, 0.01)
        assert binom.cdf(hits, samples, limit) == pytest.approx(0.01, rel=1e-6)
        assert binom.cdf(hits, samples, limit) <= 0.01


@pytest.mark.parametrize("alpha", [1e-3, 1e-6, 4e-9, 1e-15, 1e-17, 1e-300])
def test_no_confidence_is_said_to_be_certainty(alpha: float) -> None:
    assert "100 %" not in percent(alpha)
    assert float(percent(alpha).removesuffix(" %")) == pytest.approx(100 * (1 - alpha), rel=1e-7)


def test_every_result_says_what_it_is() -> None:
    for label in (3, None):
        found = ProbablyRobust(label, 0.5, "2", 0.999, 3, 0.9, 1000, "gaussian sigma=0.25")
        assert "probabilistic, real arithmetic, 99.9 %" in str(found)
    assert str(ProbablyRobust(3, 0.5, "1", 0.999, 3, 0.9, 9, "", k=5)).startswith(
        "class 3 among the first 5 within 0.5"
    )


def test_a_claim_by_what_the_label_does_not_have() -> None:
    radius, p = Claim(0, SHIFT, 0.001).radius((900, 60, 40, 0), EXACT)
    assert p == EXACT.lower(900, 1000, 0.001)
    assert radius == SHIFT.radius(p, 1 - p)
    assert Claim(1, SHIFT, 0.001).radius((900, 60, 40, 0), EXACT)[0] == 0


def test_a_claim_with_limits_of_the_rivals() -> None:
    """Half of alpha for the label, and half over the others together, samples of no class being one of them."""
    counts = (4500, 2500, 2000, 1000, 0)
    radius, p = Claim(0, SHIFT, 0.01, rivals=True).radius(counts, EXACT)
    assert p == EXACT.lower(4500, 10_000, 0.005)
    assert radius == SHIFT.radius(p, EXACT.upper(2500, 10_000, 0.005 / 4))
    assert radius > 0 == Claim(0, SHIFT, 0.01).radius(counts, EXACT)[0]
    sure = (9990, 5, 5, 0)
    assert Claim(0, SHIFT, 0.01, rivals=True).radius(sure, EXACT)[0] > 2


def test_a_claim_about_the_first_k() -> None:
    counts = (30_000, 28_000, 27_000, 10_000, 5_000, 0)
    found = [Claim(0, SHIFT, 0.001, k, rivals).radius(counts, EXACT)[0] for rivals in (True, False) for k in (1, 2, 3)]
    assert 0 < found[0] < found[1] < found[2]
    assert found[3:5] == [0, 0]  # what the label lacks, 0.72, could be two classes of 0.36, not three of more than 0.28
    assert found[5] > 0
    assert Claim(4, SHIFT, 0.001, 3, rivals=True).radius(counts, EXACT)[0] == 0


@pytest.mark.parametrize("limits", [EXACT, ANYTIME], ids=["exact", "anytime"])
def test_limits_of_rivals_are_false_together_more_rarely_than_alpha(limits: ClopperPearson | Mixture) -> None:
    """A claim may be false only where the label has less than its limit, or another class more than its own."""
    alpha, count, wrong = 0.05, 300, 0
    random = np.random.default_rng(3)
    for _ in range(count):
        shares = np.sort(random.dirichlet(np.ones(4)))[::-1]
        drawn = (*random.multinomial(1000, shares).tolist(), 0)
        claim = Claim(0, SHIFT, alpha, rivals=True)
        radius, p = claim.radius(drawn, limits)
        wrong += p > shares[0] or radius > SHIFT.radius(float(shares[0]), float(shares[1]))
    assert wrong <= binom.ppf(0.9999, count, alpha)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="10 are needed at least"):
        check_samples(100, 9, 0.001)
    check_samples(100, 10, 0.001)
    with pytest.raises(InputError, match="at least one sample"):
        check_samples(0, 100, 0.001)
    with pytest.raises(InputError, match="alpha"):
        check_samples(100, 100, 1.5)


@pytest.mark.parametrize(("alpha", "text"), [(0.001, "99.9 %"), (0.001 / 3, "99.9666 %"), (1.4e-6, "99.99986 %")])
def test_no_more_confidence_is_said_than_there_is(alpha: float, text: str) -> None:
    assert percent(alpha) == text
    assert percent(1 - (1 - alpha)) == text
