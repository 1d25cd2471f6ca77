"""The nearest input of another class that an attack finds: the start of a search for a radius."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.attacks.goals import Misclassified
from verifier.attacks.nearby.fmn import FastMinimumNorm
from verifier.attacks.nearby.measure import Distance, Norm
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.threats import Boxes
from verifier.attacks.trial import Problem, Trial
from verifier.radii import Centre


def nearest(centre: Centre, known: Tensor | None, first: float, seed: int, until: float) -> Tensor:
    """Points ``[K, *input shape]`` in float64 where another class is ahead, as computed in float32, the nearest first
    (K may be 0), one at most from each descent of ``FastMinimumNorm``. ``known``: such a point, where one is known;
    ``first``: a radius to begin with; ``seed``: of random starts. Stops at the time ``until`` (of ``limits.now``)."""
    x, norm = centre.x.flatten().float()[None], _norm(centre.norm)
    low, high = centre.inner or (-math.inf, math.inf)
    threat = Boxes.of(torch.full_like(x, low), torch.full_like(x, high), x)
    goal = Misclassified(torch.tensor([centre.label]))
    problem = Problem(GraphOracle.of(centre.graph), goal, threat)
    trial = Trial(problem, seed=seed, until=until, distance=Distance(x, norm))
    start = None if known is None else known.flatten().float()[None]
    found = FastMinimumNorm(norm, first=first, known=start).descend(trial)
    hit = found.best.isfinite()
    order = found.best[hit].argsort()
    return found.best_at[hit][order].double().reshape(-1, *centre.x.shape)


def _norm(name: str) -> Norm:
    match name:
        case "inf" | "2" | "1":
            return name
    raise AssertionError(f"a centre of the norm {name}")
