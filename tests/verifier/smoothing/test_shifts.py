"""Radii against published closed forms, against the definition by sampling, against exact optima and hardness."""

from __future__ import annotations

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import bdtrc, betainc, ndtr, ndtri
from scipy.stats import binom, kstest
from scipy.stats import laplace as laplace_law

from verifier.errors import InputError
from verifier.smoothing.hardness import largest_certifiable
from verifier.smoothing.noise import Gaussian, Laplace, Noise, Norm, Uniform, check_norm, sign_tail
from verifier.smoothing.radial import Ball, Cubic, Spherical
from verifier.smoothing.shifts import Larger, Near, Scaled, among_first

NOISES: tuple[Noise, ...] = (Gaussian(0.5), Laplace(0.3), Uniform(0.7), Cubic(0.2), Spherical(0.2), Ball(1.5))
NORMS: tuple[Norm, ...] = ("1", "2", "inf")
names = pytest.mark.parametrize("noise", NOISES, ids=lambda n: n.words)


@pytest.mark.parametrize("p", [0.6, 0.9, 0.999])
def test_radii_are_those_of_the_published_tables(p: float) -> None:
    """Cohen et al.; Teng et al.; Yang et al., table 1 (two classes: q = 1 - p)."""
    q = 1 - p
    beta = brentq(lambda b: betainc(3, 3, b) - q, 0, 1, xtol=1e-15)
    ball = brentq(lambda b: betainc(0.5, 4, b) - (p - 0.5), 0, 1, xtol=1e-15)
    published = (
        (Gaussian(0.5), "2", 7, 0.5 * ndtri(p)),
        (Gaussian(0.5), "1", 7, 0.5 * ndtri(p)),
        (Gaussian(0.5), "inf", 16, 0.5 * ndtri(p) / 4),
        (Laplace(0.3), "1", 7, -0.3 * math.log(2 * q)),
        (Uniform(0.7), "1", 7, 2 * 0.7 * (p - 0.5)),
        (Uniform(0.7), "inf", 7, 2 * 0.7 * (1 - (1.5 - p) ** (1 / 7))),
        (Uniform(0.7), "2", 7, math.sqrt(7) * 2 * 0.7 * (1 - (1.5 - p) ** (1 / 7))),
        (Cubic(0.2), "inf", 7, -0.2 * math.log(2 * q)),
        (Cubic(0.2), "1", 7, 0.2 * (14 * (p - 0.5) if q > 1 / 14 else 6 - math.log(14 * q))),
        (Spherical(0.2), "2", 7, 0.2 * 6 * math.atanh(1 - 2 * beta)),
        (Ball(1.5), "2", 7, 3 * math.sqrt(ball)),
    )
    for noise, norm, size, radius in published:
        found = noise.shift(check_norm(norm), size).radius(p, q)
        assert found == pytest.approx(radius, rel=1e-8)
        assert found < radius * (1 + 1e-15)


@pytest.mark.parametrize(("p", "q"), [(0.9, 0.05), (0.6, 0.1), (0.4, 0.1), (0.99, 1e-9)])
def test_radii_of_two_probabilities(p: float, q: float) -> None:
    """Theorem 1 of Cohen et al.; of Laplace noise at least what Lecuyer et al. and Teng et al. have."""
    assert Gaussian(2.0).shift("2", 3).radius(p, q) == pytest.approx(float(ndtri(p) - ndtri(q)), rel=1e-8)
    assert Uniform(2.0).shift("1", 3).radius(p, q) == pytest.approx(2 * (p - q), rel=1e-8)
    found = Laplace(2.0).shift("1", 3).radius(p, q)
    assert found == pytest.approx(float(laplace_law.ppf(p) - laplace_law.ppf(q)), rel=1e-8)
    assert found >= max(math.log(p / q), -2 * math.log(1 - p + q)) * (1 - 1e-8)


@pytest.mark.parametrize("noise", [Laplace(0.3), Cubic(0.2), Spherical(0.2)], ids=lambda n: n.words)
@pytest.mark.parametrize("norm", ["1", "inf"])
def test_a_ladder_has_the_mean_of_two_radii(noise: Noise, norm: Norm) -> None:
    """What holds for two classes says it for all: half of it comes from p, half from 1 - q."""
    shift = noise.shift(norm, 5)
    for p, q in ((0.9, 0.05), (0.6, 0.3)):
        mean = (shift.radius(p, 1 - p) + shift.radius(1 - q, q)) / 2
        assert shift.radius(p, q) == pytest.approx(mean, rel=1e-12)


@names
@pytest.mark.parametrize("norm", NORMS)
def test_radii_grow_with_the_probability_and_vanish_without_a_lead(noise: Noise, norm: Norm) -> None:
    shift = noise.shift(norm, 5)
    radii = [shift.radius(p, 1 - p) for p in (0.3, 0.5, 0.51, 0.9, 0.9999, 1 - 1e-15)]
    assert radii[:2] == [0, 0]
    assert all(a < b < math.inf for a, b in pairwise(radii[1:]))
    assert shift.radius(0.5, 0.2) > shift.radius(0.5, 0.4) > 0
    assert shift.radius(1.0, 0.0) < math.inf


@names
@pytest.mark.parametrize("norm", NORMS)
def test_least_and_radius_say_the_same(noise: Noise, norm: Norm) -> None:
    """Just within the radius the two probabilities have not met, just beyond they could have."""
    shift = noise.shift(norm, 4)
    for p, q in ((0.9, 0.1), (0.6, 0.3), (0.45, 0.2), (0.999, 0.0005)):
        radius = shift.radius(p, q)
        near, far = (shift.least(p, r) - (1 - shift.least(1 - q, r)) for r in (0.999 * radius, 1.001 * radius))
        assert near > 0
        assert far < 0 or isinstance(shift, Larger)  # each probability by the better of two: a little more
        assert shift.least(p, 0.0) == pytest.approx(p, abs=1e-8)
        assert shift.least(p, 0.0) <= p


@names
def test_no_set_loses_more_than_the_least(noise: Noise) -> None:
    """Against sampling: sets {x_1 < t}, {|x|_1 < t}, {|x|_inf < t}, {|x|_2 < t}, {sum < t} of known probability, and
    their complements, shifted in every norm along one axis and along the diagonal, keep what is said (but for
    sampling); half-spaces attain it where it is attained."""
    size, count = 3, 200_000
    drawn = noise.draw(count, size, torch.Generator().manual_seed(3), torch.float64)
    ones = torch.ones(size, dtype=torch.float64)
    views = (lambda z: z[:, 0], lambda z: z.abs().sum(1), lambda z: z.abs().amax(1), lambda z: z.norm(dim=1),
             lambda z: z.sum(1))  # fmt: skip
    for value in views:
        for share in (0.3, 0.7, 0.95):
            t = torch.quantile(value(drawn), share)
            for norm in NORMS:
                shift = noise.shift(norm, size)
                for r in (0.3, 1.0):
                    length = r * shift.radius(0.9, 0.1)
                    for way in (torch.eye(size, dtype=torch.float64)[0], ones / ones.norm(p=float(norm))):
                        kept = (value(drawn + length * way) < t).double().mean()
                        assert float(kept) > shift.least(share, length) - 0.005
                        assert float(1 - kept) > shift.least(1 - share, length) - 0.005


@pytest.mark.parametrize(
    ("noise", "norm"),
    [(Gaussian(0.5), "2"), (Laplace(0.3), "1"), (Uniform(0.7), "1")],
    ids=["gaussian", "laplace", "uniform"],
)
def test_half_spaces_attain_the_radius(noise: Noise, norm: Norm) -> None:
    """{x_1 < t}: its probability after a shift along the axis is the least, exactly."""
    law = {"gaussian": lambda z: ndtr(z / 0.5), "laplace": lambda z: laplace_law.cdf(z / 0.3),
           "uniform": lambda z: np.clip((z + 0.7) / 1.4, 0, 1)}[noise.words.split()[0]]  # fmt: skip
    for p in (0.6, 0.9, 0.99):
        t = brentq(lambda z: law(z) - p, -5, 5)  # noqa: B023
        radius = noise.shift(norm, 6).radius(p, 1 - p)
        assert law(t - radius) == pytest.approx(0.5, abs=1e-7)
        assert law(t - radius) >= 0.5
        assert noise.shift(norm, 6).least(p, radius / 2) == pytest.approx(float(law(t - radius / 2)), abs=1e-7)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10, 21])
def test_signs_are_summed_exactly(size: int) -> None:
    """The integral of 1 / phi in rational numbers of 60 digits, phi being the gain of the largest sums."""
    with mpmath.workdps(60):
        corners, gain, at = [(mpmath.mpf(0), mpmath.mpf(0))], mpmath.mpf(0), mpmath.mpf(0)
        for k in range(size, -1, -1):
            share = mpmath.binomial(size, k) / mpmath.mpf(2) ** size
            at, gain = at + share, gain + share * (2 * k - size)
            corners.append((at, gain))
        for t in (0.49, 0.3, 0.1, 0.01, 1e-4, 1e-9):
            total = mpmath.mpf(0)
            for (a, low), (b, high) in pairwise(corners):
                start, end = max(a, mpmath.mpf(t)), min(b, mpmath.mpf(1) / 2)
                if start < end:
                    slope = (high - low) / (b - a)
                    ends = [low + slope * (s - a) for s in (start, end)]
                    flat = abs(slope) < mpmath.mpf(10) ** -40
                    total += (end - start) / ends[0] if flat else mpmath.log(ends[1] / ends[0]) / slope
            assert sign_tail(t, size) == pytest.approx(float(total), rel=1e-10)


def test_many_signs_are_almost_normal() -> None:
    for size, near in ((3072, 1e-3), (150_528, 3e-5)):
        shift = Laplace(1.0).shift("inf", size)
        for p in (0.6, 0.99, 1 - 1e-6):
            assert shift.radius(p, 1 - p) * math.sqrt(size) == pytest.approx(float(ndtri(p)), rel=near)


@pytest.mark.parametrize("size", [2, 784, 150_528])
@pytest.mark.parametrize("t", [0.4, 0.01, 1e-9])
def test_quantiles_of_beta_distributions_are_exact_enough(size: int, t: float) -> None:
    """The factor 1 - 1e-9 has to cover what scipy's quantiles are off by, in 40 digits."""
    shift = Spherical(1.0).shift("2", size)
    with mpmath.workdps(40):
        b = (1 - mpmath.tanh(mpmath.mpf(shift.radius(1 - t, t)) / (size - 1))) / 2
        half = mpmath.mpf(size - 1) / 2
        norm = mpmath.log(mpmath.beta(half, half))
        share = mpmath.quad(
            lambda u: mpmath.exp((half - 1) * (mpmath.log(u) + mpmath.log1p(-u)) - norm),
            mpmath.linspace(max(0, b - 12 * mpmath.sqrt(b * (1 - b) / size)), b, 9),
        )
        # A radius at most the true one leaves at least t beyond it (the probability is the float's, not 1 - t).
        assert share >= (1 - mpmath.mpf(1 - t)) * (1 - mpmath.mpf(10) ** -13)
        assert share <= t * 1.001


@names
def test_noise_is_distributed_as_it_says(noise: Noise) -> None:
    size, count = 4, 20_000
    z = noise.draw(count, size, torch.Generator().manual_seed(5), torch.float64)
    assert float(z.mean()) == pytest.approx(0, abs=4 * math.sqrt(noise.variance(size) / count / size))
    assert float(z.var()) == pytest.approx(noise.variance(size), rel=0.05)
    match noise:
        case Gaussian(sigma):
            found = kstest(z[:, 0].numpy() / sigma, "norm")
        case Laplace(scale):
            found = kstest(z[:, 1].numpy() / scale, "laplace")
        case Uniform(width):
            found = kstest(z[:, 2].numpy() / width, "uniform", args=(-1, 2))
        case Cubic(scale):
            found = kstest(z.abs().amax(1).numpy() / scale, "gamma", args=(size,))
        case Spherical(scale):
            found = kstest(z.norm(dim=1).numpy() / scale, "gamma", args=(size,))
        case Ball(width):
            found = kstest((z.norm(dim=1).numpy() / width) ** size, "uniform")
        case _:
            raise AssertionError
    assert found.pvalue > 1e-3
    if isinstance(noise, Spherical | Ball):  # (1 + cosine) / 2 of any direction
        cosine = z[:, 1] / z.norm(dim=1)
        assert kstest((1 + cosine.numpy()) / 2, "beta", args=(1.5, 1.5)).pvalue > 1e-3


def test_no_noise_certifies_more_than_the_bound_on_all() -> None:
    for noise in NOISES:
        for size in (1, 10, 3072):
            for p in (0.6, 0.99, 0.999999):
                for norm in NORMS:
                    most = largest_certifiable(noise.variance(size), norm, size, p)
                    assert noise.shift(norm, size).radius(p, 1 - p) <= most


@given(st.integers(0, 10**9))
def test_classes_among_the_first(seed: int) -> None:
    """Half-spaces in one dimension, whose probabilities after a shift are known: within the radius no k others have
    more than the label (their limits are their probabilities)."""
    random = np.random.default_rng(seed)
    classes, k = int(random.integers(3, 7)), int(random.integers(1, 3))
    shares = random.dirichlet(np.ones(classes) * 0.7)
    cuts = np.concatenate([[-np.inf], ndtri(np.clip(np.cumsum(shares)[:-1], 0, 1)), [np.inf]])
    label = int(random.integers(classes))
    others = [float(s) for c, s in enumerate(shares) if c != label]
    radius = among_first(Gaussian(1.0).shift("2", 1), float(shares[label]), others, k)
    without = among_first(Gaussian(1.0).shift("2", 1), float(shares[label]), [1.0] * (classes - 1), k)
    assert radius >= without * (1 - 1e-8)
    if radius == 0:
        return
    for r in np.linspace(-radius, radius, 41):
        moved = np.diff(ndtr(cuts - r))
        assert int((moved > moved[label]).sum()) < k or abs(r) > radius * (1 - 1e-9)


def test_the_first_k_solve_the_published_equation() -> None:
    """Jia et al., theorem 1, for Gaussian noise."""
    p, others, k, sigma = 0.4, [0.3, 0.25, 0.2, 0.1], 3, 0.5
    found = among_first(Gaussian(sigma).shift("2", 9), p, others, k)

    def equation(r: float) -> float:
        own = ndtr(ndtri(p) - r / sigma)
        sums = (0.2, 0.45, 0.6)
        return float(own - min(ndtr(ndtri(s) + r / sigma) / t for t, s in enumerate(sums, start=1)))

    assert found == pytest.approx(brentq(equation, 0, 3), rel=1e-8)
    assert found > among_first(Gaussian(sigma).shift("2", 9), p, others, 2) > 0
    one = among_first(Gaussian(sigma).shift("2", 9), p, others, 1)
    assert one == pytest.approx(Gaussian(sigma).shift("2", 9).radius(p, 0.3), rel=1e-10)
    assert among_first(Gaussian(sigma).shift("2", 9), 0.1, [0.3, 0.3, 0.3], 2) == 0


def test_other_rods_and_other_distributions() -> None:
    shift = Gaussian(1.0).shift("2", 3)
    assert Scaled(shift, 0.5).radius(0.9, 0.1) == pytest.approx(shift.radius(0.9, 0.1) / 2, rel=1e-8)
    assert Scaled(shift, 0.5).least(0.9, 0.4) == pytest.approx(shift.least(0.9, 0.8), rel=1e-6)
    assert Near(shift, 0.01).radius(0.9, 0.1) == shift.radius(0.89, 0.11)
    assert Near(shift, 0.01).least(0.9, 0.3) == shift.least(0.89, 0.3)
    assert Near(shift, 0.5).radius(0.9, 0.1) == 0


def test_scales_that_are_none_are_refused() -> None:
    for make in (Gaussian, Laplace, Uniform, Cubic, Spherical, Ball):
        for value in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(InputError, match="positive"):
                make(value)
    with pytest.raises(InputError, match="norm '3'"):
        check_norm("3")


@pytest.mark.parametrize("t", [0.4, 1e-3, 1e-6, 1e-12])
def test_two_functions_of_binomial_tails_agree(t: float) -> None:
    """``sign_tail`` takes its corner from one and the probability there from another."""
    for size in (20, 3072, 150_528):
        k = int(binom.isf(t, size, 0.5))
        assert bdtrc(k, size, 0.5) <= t < bdtrc(k - 1, size, 0.5)


@pytest.mark.parametrize("size", [784, 3072])
def test_sign_tails_far_out_are_no_longer_than_the_truth(size: int) -> None:
    """Beyond 2^-53 quantiles of binomial numbers are wrong, and corners underflow."""
    shift = Laplace(1.0).shift("inf", size)
    assert shift.radius(0.99, 1e-20) <= shift.radius(0.99, 1e-15) * 1.2
    assert sign_tail(1e-300, size) <= sign_tail(2.0**-53, size)
    assert 0 < among_first(shift, 0.6, [0.3, 0.2, 0.1], 2) < math.inf


def test_sign_tails_of_large_inputs() -> None:
    """Against the integral in 40 digits, of the last part alone: from 0.49 to 1/2."""
    size = 150_528
    with mpmath.workdps(40):
        gain = mpmath.binomial(size - 1, size // 2) * size / mpmath.mpf(2) ** size
        middle = (1 - mpmath.binomial(size, size // 2) / mpmath.mpf(2) ** size) / 2
        flat = (mpmath.mpf(0.5) - middle) / gain
        parts, at, k = mpmath.mpf(0), middle, size // 2 + 1
        while at > 0.49:
            mass = mpmath.binomial(size, k) / mpmath.mpf(2) ** size
            below = max(at - mass, mpmath.mpf(0.49))
            less = gain - (2 * k - size) * (at - below)
            parts += mpmath.log(gain / less) / (2 * k - size)
            at, gain, k = below, less, k + 1
        assert sign_tail(0.49, size) == pytest.approx(float(flat + parts), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_scales_whose_squares_are_out_of_range_are_refused(scale: float) -> None:
    with pytest.raises(InputError, match="not between"):
        Laplace(scale)


@pytest.mark.parametrize("beyond", [1.0, 50.0, 300.0])
def test_shifts_that_leave_hardly_anything(beyond: float) -> None:
    size, p = 784, 0.3
    r = 2 * size * p - 1 + beyond  # down to one face, and on from there
    shift = Cubic(1.0).shift("1", size)
    assert shift.least(p, r) == pytest.approx(math.exp(-beyond) / (2 * size), rel=1e-4)
    assert Gaussian(1.0).shift("2", size).least(0.5, beyond / 10) == pytest.approx(ndtr(-beyond / 10), rel=1e-4)


def test_one_of_many_classes_among_the_first() -> None:
    shift, p, others = Cubic(1.0).shift("1", 784), 0.34, [1e-4] * 999
    found = among_first(shift, p, others, 5)
    assert found > shift.radius(p, 5e-4)
    own, rivals = shift.least(p, found), [1 - shift.least(1 - t * 1e-4, found) for t in range(1, 6)]
    assert any(t * own >= rival for t, rival in enumerate(rivals, start=1))
