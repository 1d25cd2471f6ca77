"""Certificates of smoothed classifiers: probabilistic, and named as that.

A class is chosen with ``n0`` samples; others then estimate how probable it is under noise. With a confidence of
``1 - alpha`` the smoothed classifier g gives it everywhere within the radius (Cohen et al., ICML 2019, algorithm
CERTIFY). A statement about g and exact real arithmetic: not about the base classifier, and rounding in its evaluation
is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scipy.stats import beta
from torch import Tensor

from verifier.errors import InputError
from verifier.smoothing import sequential
from verifier.smoothing.counting import Sampler
from verifier.smoothing.noise import Norm, probability_needed

_DOWN = 1e-12
"""What limits of probabilities are moved outward by: more than the quantiles of scipy are off."""


@dataclass(frozen=True, slots=True)
class ProbablyRobust:
    """With a probability of at least ``confidence`` over the noise drawn, the smoothed classifier gives ``label`` at
    every point within ``radius`` of the input in the ``norm``, in real arithmetic. ``label`` None: it abstains, and
    nothing is claimed. ``guess``: the class of most samples of the selection; ``p``: proven lower limit of its
    probability under ``noise``; ``samples``: drawn in all, selection included."""

    label: int | None
    radius: float
    norm: Norm
    confidence: float
    guess: int
    p: float
    samples: int
    noise: str

    def __str__(self) -> str:
        if self.label is None:
            return f"abstains after {self.samples} samples"
        return (
            f"class {self.label} within {self.radius:.6g} (norm {self.norm}): probabilistic, real arithmetic, "
            f"{percent(1 - self.confidence)}, {self.samples} samples"
        )


class Estimation(Protocol):
    """How the chosen class's probability is estimated."""

    @property
    def most(self) -> int:
        """Samples at most."""

    def limit(self, sampler: Sampler, x: Tensor, label: int, norm: Norm, alpha: float) -> tuple[float, int]:
        """A lower limit that is below the probability but with one of at most ``alpha``, and the samples drawn."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """``most`` samples and the limit of Clopper and Pearson."""

    most: int = 100_000

    def limit(self, sampler: Sampler, x: Tensor, label: int, norm: Norm, alpha: float) -> tuple[float, int]:
        """See ``Estimation``."""
        hits = int(sampler.counts(x, self.most)[label])
        return lower_limit(hits, self.most, alpha), self.most


@dataclass(frozen=True, slots=True)
class Sequential:
    """Samples until the radius is at least the largest of ``radii`` or the next of them is out of reach, ``most`` at
    most; looks after ``first`` samples and then whenever there are a tenth more."""

    radii: Sequence[float]
    most: int = 100_000
    first: int = 100

    def limit(self, sampler: Sampler, x: Tensor, label: int, norm: Norm, alpha: float) -> tuple[float, int]:
        """See ``Estimation``; the limit holds at all looks together (``sequential``). Raises ``InputError``."""
        if self.first < 1:
            raise InputError(f"first={self.first}: at least one sample is drawn before the first look")
        marks = [probability_needed(sampler.noise, norm, len(x), r) for r in sorted({0.0, *self.radii})]
        hits, drawn, reached = 0, 0, 0.0
        while drawn < self.most:
            count = min(max(self.first, drawn // 10), self.most - drawn)
            hits, drawn = hits + int(sampler.counts(x, count)[label]), drawn + count
            reached = max(reached, sequential.lower_limit(hits, drawn, alpha))
            above = [mark for mark in marks if mark >= reached]
            if not above or sequential.hopeless(hits, drawn, self.most - drawn, above[0], alpha):
                break
        return reached, drawn


def certify(
    sampler: Sampler,
    x: Tensor,
    estimation: Estimation,
    *,
    norm: Norm = "2",
    n0: int = 100,
    alpha: float = 0.001,
) -> ProbablyRobust:
    """Certify one input ``x`` ``[n]`` (on the sampler's device). Raises ``InputError`` for numbers that make no
    sense."""
    check(n0, estimation.most, alpha)
    selection = sampler.counts(x, n0)[:-1]
    guess = int(selection.argmax())
    p, drawn = estimation.limit(sampler, x, guess, norm, alpha)
    radius = sampler.noise.radius(norm, len(x), p, 1 - p) if p > 0.5 else 0.0
    label = guess if radius > 0 else None
    return ProbablyRobust(label, radius, norm, confidence_of(alpha), guess, p, n0 + drawn, sampler.noise.words)


def predict(sampler: Sampler, x: Tensor, *, n: int = 1000, alpha: float = 0.001) -> int | None:
    """The class of the smoothed classifier at ``x``, wrong with a probability of at most ``alpha``; None: it abstains
    (Cohen et al., algorithm PREDICT: the counts of the first two classes in a two-sided binomial test, Hung and
    Fithian, 2019)."""
    check(1, n, alpha)
    counts = sampler.counts(x, n)[:-1]
    first, second = counts.topk(2).values.tolist()
    if first + second == 0:
        return None
    from scipy.stats import binomtest

    return int(counts.argmax()) if binomtest(first, first + second, 0.5).pvalue <= alpha else None


def lower_limit(hits: int, samples: int, alpha: float) -> float:
    """One-sided limit of Clopper and Pearson, rounded down: above the probability in a share of at most ``alpha`` of
    all experiments."""
    if hits == 0:
        return 0.0
    return max(0.0, float(beta.ppf(alpha, hits, samples - hits + 1)) - _DOWN)


def upper_limit(hits: int, samples: int, alpha: float) -> float:
    """The other side, rounded up."""
    if hits == samples:
        return 1.0
    return min(1.0, float(beta.ppf(1 - alpha, hits + 1, samples - hits)) + _DOWN)


def percent(alpha: float) -> str:
    """The confidence of a level, with as many digits as it takes to be below 100 %."""
    share = 100 * confidence_of(alpha)
    return next(text for text in (f"{share:.{digits}g}" for digits in range(6, 18)) if float(text) < 100) + " %"


def confidence_of(alpha: float) -> float:
    """``1 - alpha``, below 1 however small a positive ``alpha`` is."""
    return min(1 - alpha, math.nextafter(1, 0))


def check(n0: int, n: int, alpha: float) -> None:
    """Raise ``InputError`` for sample numbers and levels that make no sense, and where even n hits of n certify
    nothing."""
    if n0 < 1 or n < 1:
        raise InputError(f"n0={n0}, n={n}: at least one sample each is needed")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} is not between 0 and 1")
    best = lower_limit(n, n, alpha)
    if best <= 0.5:
        raise InputError(
            f"n={n} samples can certify nothing at alpha={alpha:g}: even if all agree, the probability is only known "
            f"to be above {best:.3f}; {math.floor(math.log(alpha) / math.log(0.5)) + 1} are needed at least"
        )
