"""The certificate of Lecuyer et al. (S&P 2019), from differential privacy: for comparison, others say more.

A mechanism is (eps, delta)-private for changes of length L if every set S has ``P(M(x) in S) <= e^eps P(M(y) in S) +
delta`` for all x, y at most L apart. Let class A have a probability of at least p at x and each other at most q. At y,
A has at least ``e^-eps (p - delta)`` and each other at most ``e^eps q + delta``, so that A stays first where

    p > e^(2 eps) q + (1 + e^eps) delta                                     (proposition 1 there).

Laplace noise (norm 1) is (L / scale, 0)-private, Gaussian noise (norm 2) is (eps, delta)-private for eps < 1 and
``sigma > sqrt(2 ln(1.25 / delta)) L / eps`` (Dwork and Roth, 2014, theorem A.1).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize_scalar

from verifier.errors import InputError

_DOWN = 1 - 1e-9
_MOST_DELTA = 0.4
"""Where the theorem's proof holds: it takes ``sqrt(2 ln(1.25 / delta))`` to be at least 3/2."""

_GRID = 256


def pixel_dp_radius(mechanism: str, scale: float, p: float, q: float) -> float:
    """The largest L for which the condition above can be met, rounded down (0: for none): in the norm 2 for
    ``mechanism`` "gaussian" of deviation ``scale``, in the norm 1 for "laplace". ``p``: at least the probability of a
    class, ``q``: at least that of every other. Raises ``InputError``."""
    if not (math.isfinite(scale) and scale > 0 and 0 <= p <= 1 and 0 <= q <= 1):
        raise InputError(f"scale={scale}, p={p}, q={q}: a positive scale and two probabilities are needed")
    match mechanism:
        case "laplace":
            return 0.0 if p <= q else scale / 2 * math.log(p / q) * _DOWN if q > 0 else math.inf
        case "gaussian":
            return 0.0 if p <= q else scale * _gaussian(p, q) * _DOWN
    raise InputError(f"mechanism {mechanism!r}: the known ones are gaussian and laplace")


def _gaussian(p: float, q: float) -> float:
    """L / sigma, greatest over eps; the greatest delta for each is that of the condition."""

    def length(eps: float) -> float:
        delta = min((p - math.exp(2 * eps) * q) / (1 + math.exp(eps)), _MOST_DELTA)
        return eps / math.sqrt(2 * math.log(1.25 / delta)) if delta > 0 else 0.0

    most = 1.0 if q == 0 else min(1.0, math.log(p / q) / 2)
    grid = np.linspace(0, most, _GRID + 1)[1:]
    best = int(np.argmax([length(e) for e in grid]))
    ends = (grid[best] - most / _GRID, min(grid[best] + most / _GRID, most))
    found = minimize_scalar(lambda e: -length(e), bounds=ends, method="bounded", options={"xatol": most * 1e-9})
    return max(length(float(found.x)), length(float(grid[best])))
