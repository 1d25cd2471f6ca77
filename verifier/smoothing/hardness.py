"""How large a radius noise of some variance could certify at all."""

from __future__ import annotations

import math

from verifier.smoothing.noise import Norm


def largest_certifiable(variance: float, norm: Norm, size: int, p: float) -> float:
    """No noise whose elements have this variance on average certifies more than this radius from a probability p alone
    (with q = 1 - p), in the manner of Blum et al. (JMLR 2020).

    For a shift v of r in the norm inf with signs s, the sum T of the elements times s has, for some s, a variance of at
    most size * variance (it is their average over all s). By Cantelli's inequality the half-space T <= t holds with
    probability p at t = sd sqrt(p / (1 - p)), and after the shift, by r size, with less than 1/2 where r size > t + sd.
    So r <= sd (1 + sqrt(p / (1 - p))) / size with sd = sqrt(size * variance): it shrinks with the root of the size. In
    the norm 2 a shift of r has r / sqrt(size) in each element, in the norm 1 r / size.
    """
    if not 0.5 <= p < 1:
        return math.inf if p >= 1 else 0.0
    inf = math.sqrt(variance / size) * (1 + math.sqrt(p / (1 - p)))
    return inf * {"inf": 1.0, "2": math.sqrt(size), "1": float(size)}[norm]
