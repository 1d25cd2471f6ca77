"""Lower limits of a probability that hold at every moment of sampling, so that it may stop whenever enough is known.

For "the probability is at most p0" the likelihood ratio of what was seen, averaged over all larger probabilities,

    M_n(p0) = 1 / (1 - p0) * integral over (p0, 1) of p^S (1 - p)^(n - S) dp / (p0^S (1 - p0)^(n - S)),

with S hits of n, is a nonnegative supermartingale that begins at 1 under every probability up to p0 (the ratio of each
larger p against p0 is one: it grows with every hit and shrinks with every miss). By Ville's inequality it ever reaches
1 / alpha with a probability of at most alpha. So p0 may be rejected at the first moment it does (Robbins, 1970; Howard
et al., 2021). The lower limit is the largest p0 below which all are rejected.
"""

from __future__ import annotations

import math

from scipy.special import betaincc, betaln

from verifier.smoothing.roots import last_up

_LEAST = 1e-12
"""A smaller probability is called 0."""


def log_evidence(hits: int, samples: int, p0: float) -> float:
    """``log M_n(p0)`` of the module's text, for ``0 < p0 < 1``; it is off by at most ``rounding(samples)`` where it is
    small."""
    misses = samples - hits
    tail = float(betaincc(hits + 1, misses + 1, p0))
    if tail <= 0:
        return -math.inf
    mixed = float(betaln(hits + 1, misses + 1)) + math.log(tail) - math.log1p(-p0)
    return mixed - hits * math.log(p0) - misses * math.log1p(-p0)


def rounding(samples: int) -> float:
    """What ``log_evidence`` may be off by: the logarithms that it is the difference of are as large as
    ``n log n`` of n samples, and a few times 2^-52 of these is what the special functions miss."""
    return 1e-9 + samples * math.log(samples + 2) * 2.0**-50


def surplus(hits: int, samples: int, p0: float, alpha: float) -> float:
    """At least 0 exactly where "the probability is at most ``p0``" is refuted at level ``alpha``, at any time this is
    asked, for ``0 < p0 < 1``."""
    # A ratio that exceeds its mark by rounding alone is none.
    return log_evidence(hits, samples, p0) + math.log(alpha) * (1 + 1e-9) - rounding(samples)


def lower_limit(hits: int, samples: int, alpha: float) -> float:
    """The largest p0 found such that it and all below are refuted: below the true probability at all times together
    with a probability of at most ``alpha``. 0 where nothing is refuted.

    ``M`` falls as p0 grows up to S / (n + 1): the derivative of its logarithm there is at most
    (n - S + 1) / (1 - p0) - S / p0 < 0. So what is found refuted below that is refuted with all below it.
    """
    if not hits or surplus(hits, samples, _LEAST, alpha) < 0:
        return 0.0
    return last_up(lambda p0: surplus(hits, samples, p0, alpha), _LEAST, hits / (samples + 1))
