"""Statistical evaluation of robustness: estimates that are named as such, and a proven volume beside them.

    from verifier.statistics import monte_carlo, splitting, violation_volume

    found = splitting(graph, Box.around(x, 0.1), label=3)
    print(found.value, found.lower, found.upper, found.assumptions)

An estimate is an ``Estimate``, never a verdict. What ``violation_volume`` returns is proven, and has its own type.
"""

from __future__ import annotations

from verifier.statistics.estimate import Estimate, Refused, Repeated
from verifier.statistics.extreme import Clever, Targeted, clever
from verifier.statistics.levels import splitting
from verifier.statistics.proportions import clopper_pearson, monte_carlo, samples_needed
from verifier.statistics.volume import VolumeBounds, violation_volume

__all__ = [
    "Clever",
    "Estimate",
    "Refused",
    "Repeated",
    "Targeted",
    "VolumeBounds",
    "clever",
    "clopper_pearson",
    "monte_carlo",
    "samples_needed",
    "splitting",
    "violation_volume",
]
