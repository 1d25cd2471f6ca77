"""The nearest counterexample of each example that a portfolio of attacks finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.nearby.carlini import CarliniWagner, CarliniWagnerSparse
from verifier.attacks.nearby.deepfool import DeepFool
from verifier.attacks.nearby.fab import Fab
from verifier.attacks.nearby.fmn import FastMinimumNorm
from verifier.attacks.nearby.lbfgs import Lbfgs
from verifier.attacks.nearby.measure import Distance, Norm
from verifier.attacks.nearby.polish import Bisect, Restore
from verifier.attacks.nearby.sigma_zero import SigmaZero
from verifier.attacks.trial import Attack, Problem, Trial


@dataclass(frozen=True, slots=True, eq=False)
class Nearest:
    """For each of N examples the nearest counterexample found: ``points`` ``[N, d]`` in the threat model exactly, of
    the model's element type, with the oracle's ``margin`` ``[N]`` (at most 0; still to be replayed), and at least their
    exact ``distance`` ``[N]`` in float64 (inf: none was found, and the point is the example). ``evaluations`` ``[N]``:
    spent on each."""

    points: Tensor
    distance: Tensor
    margin: Tensor
    evaluations: Tensor

    @property
    def found(self) -> Tensor:
        """``[N]`` bool."""
        return self.distance.isfinite()


def nearest_examples(
    problem: Problem,
    norm: Norm,
    attacks: Sequence[Attack] | None = None,
    *,
    seed: int = 0,
    budget: int | None = None,
    until: float = math.inf,
) -> Nearest:
    """Run attacks (None: the ``portfolio`` of the norm) one after the other, each from what is known by then. The
    distance is from the threat model's centres; ``budget`` and ``until`` as in ``Trial``. Raises ``InputError``."""
    distance = Distance(problem.threat.centre, norm)
    trial = Trial(problem, seed=seed, budget=budget, until=until, distance=distance)
    every = torch.arange(problem.size, device=trial.margin.device)
    trial.evaluate(problem.threat.centre, every)
    for method in portfolio(norm) if attacks is None else attacks:
        if trial.over:
            break
        method.run(trial)
    hit = trial.margin <= 0
    far = torch.where(hit, distance(trial.best, every), math.inf)
    return Nearest(trial.best.clone(), far, trial.margin.clone(), trial.evaluations.clone())


def portfolio(norm: Norm) -> tuple[Attack, ...]:
    """The attacks that complement each other in a norm, each followed by what brings its best point nearer."""
    if norm == "0":
        return SigmaZero(sigma=1e-2), Restore(), SigmaZero(), CarliniWagnerSparse(), Restore()
    return FastMinimumNorm(norm), Fab(norm), DeepFool(norm), Bisect(norm)


def known_attacks(norm: Norm) -> tuple[Attack, ...]:
    """Every attack that minimises the norm."""
    if norm == "0":
        return SigmaZero(), CarliniWagnerSparse()
    attacks: tuple[Attack, ...] = (FastMinimumNorm(norm), Fab(norm), DeepFool(norm))
    if norm != "1":
        attacks = (*attacks, CarliniWagner(norm))
    return (*attacks, Lbfgs()) if norm == "2" else attacks
