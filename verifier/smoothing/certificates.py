"""What is claimed of a smoothed classifier, and what counts show of it: probabilistic, and named as that.

With a confidence of ``1 - alpha`` over the noise drawn, the smoothed classifier g gives a class everywhere within the
radius (Cohen et al., ICML 2019). A statement about g, not about the base classifier, and about exact real arithmetic
unless the noise is that of ``exact``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Protocol

from scipy.stats import beta

from verifier.errors import InputError
from verifier.smoothing import sequential
from verifier.smoothing.noise import Norm
from verifier.smoothing.shifts import Shift, among_first

_OUTWARD = 1e-12
"""What limits of probabilities are moved outward by: more than the quantiles of scipy are off."""


@dataclass(frozen=True, slots=True)
class ProbablyRobust:
    """With a probability of at least ``confidence`` over the noise drawn, the smoothed classifier gives ``label`` (one
    of its ``k`` most probable classes) at every point within ``radius`` of the input in the ``norm``. ``label`` None:
    it abstains, and nothing is claimed. ``guess``: the class that was looked at; ``p``: proven lower limit of its
    probability under ``noise``; ``samples``: drawn in all, selection included. ``arithmetic``: "real arithmetic", where
    rounding in the evaluation is not covered, or "floating point included"."""

    label: int | None
    radius: float
    norm: Norm
    confidence: float
    guess: int
    p: float
    samples: int
    noise: str
    k: int = 1
    arithmetic: str = "real arithmetic"

    def __str__(self) -> str:
        how = f"probabilistic, {self.arithmetic}, {percent(1 - self.confidence)}, {self.samples} samples"
        if self.label is None:
            return f"abstains ({how})"
        among = "" if self.k == 1 else f" among the first {self.k}"
        return f"class {self.label}{among} within {self.radius:.6g} (norm {self.norm}): {how}"


class Limits(Protocol):
    """Limits of a probability from hits in samples: a limit is on the wrong side of it with a probability of at most
    ``alpha``."""

    def lower(self, hits: int, samples: int, alpha: float) -> float:
        """A lower limit."""

    def upper(self, hits: int, samples: int, alpha: float) -> float:
        """An upper limit."""


@dataclass(frozen=True, slots=True)
class ClopperPearson:
    """Exact, for a number of samples that does not depend on what they are (Clopper and Pearson, 1934)."""

    def lower(self, hits: int, samples: int, alpha: float) -> float:
        """See ``Limits``; rounded down."""
        if hits == 0:
            return 0.0
        return max(0.0, float(beta.ppf(alpha, hits, samples - hits + 1)) - _OUTWARD)

    def upper(self, hits: int, samples: int, alpha: float) -> float:
        """See ``Limits``; rounded up."""
        if hits == samples:
            return 1.0
        return min(1.0, float(beta.isf(alpha, hits + 1, samples - hits)) + _OUTWARD)


@dataclass(frozen=True, slots=True)
class Mixture:
    """For all moments of sampling at once (``sequential``)."""

    def lower(self, hits: int, samples: int, alpha: float) -> float:
        """See ``Limits``."""
        return sequential.lower_limit(hits, samples, alpha)

    def upper(self, hits: int, samples: int, alpha: float) -> float:
        """See ``Limits``."""
        return 1 - sequential.lower_limit(samples - hits, samples, alpha) + 2.0**-53


@dataclass(frozen=True, slots=True)
class Claim:
    """That ``label`` stays among the ``k`` most probable classes of g whatever ``shift`` does, but with a probability
    of at most ``alpha``.

    ``rivals``: every other class gets an upper limit of its own, and half of alpha is for these; without it they are
    only known to have what ``label`` does not (enough where it has more than a half, and cheaper).
    """

    label: int
    shift: Shift
    alpha: float
    k: int = 1
    rivals: bool = False

    def radius(self, counts: Sequence[int], limits: Limits) -> tuple[float, float]:
        """The radius that ``counts`` (by class; of none last) show, and the lower limit of the label's probability. 0:
        nothing is shown."""
        samples, hits = sum(counts), counts[self.label]
        p = limits.lower(hits, samples, self.alpha / 2 if self.rivals else self.alpha)
        others = self._others(counts, samples, limits) if self.rivals else [1.0] * self.k
        if self.k == 1:
            return self.shift.radius(p, min(max(others), 1 - p)), p
        return among_first(self.shift, p, others, self.k), p

    def _others(self, counts: Sequence[int], samples: int, limits: Limits) -> list[float]:
        """One limit for each other class, that of none included, all together wrong with a probability of at most
        alpha / 2."""
        rest = [hits for c, hits in enumerate(counts) if c != self.label]
        known = {hits: limits.upper(hits, samples, self.alpha / 2 / len(rest)) for hits in set(rest)}
        return [known[hits] for hits in rest]


def percent(alpha: float) -> str:
    """The confidence of a level, rounded down, with as many digits, six at least, as it takes to say how far it is
    from 100 %."""
    share = 100 * confidence_of(alpha)
    near = Decimal(f"{share:.15g}")  # of floating point: 1 - 0.001 is meant to be 0.999
    whole = near if near < 100 else Decimal(share)
    shown = (Context(prec=digits, rounding=ROUND_FLOOR).plus(whole) for digits in range(6, 18))
    return f"{next((one for one in shown if 100 - one <= (100 - whole) * Decimal('1.1')), whole).normalize():f} %"


def confidence_of(alpha: float) -> float:
    """``1 - alpha``, below 1 however small a positive ``alpha`` is."""
    return min(1 - alpha, math.nextafter(1, 0))


def check_samples(n0: int, n: int, alpha: float) -> None:
    """Raise ``InputError`` for sample numbers and levels that make no sense, and where even n hits of n certify
    nothing."""
    if n0 < 1 or n < 1:
        raise InputError(f"n0={n0}, n={n}: at least one sample each is needed")
    if not 0 < alpha < 1:
        raise InputError(f"alpha: {alpha} is not between 0 and 1")
    best = ClopperPearson().lower(n, n, alpha)
    if best <= 0.5:
        raise InputError(
            f"n={n} samples can certify nothing at alpha={alpha:g}: even if all agree, the probability is only known "
            f"to be above {best:.3f}; {math.floor(math.log(alpha) / math.log(0.5)) + 1} are needed at least"
        )
