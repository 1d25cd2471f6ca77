"""Fast minimum-norm attack: each descent has a radius that shrinks at counterexamples and grows elsewhere.

Points so settle where the class changes. Before a counterexample is known, a radius is how far the margin's linear
model says that one is. (Pintor et al., Fast minimum-norm adversarial attacks, NeurIPS 2021, section 2.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.losses import Margin
from verifier.attacks.nearby.measure import Norm, check_norm, dual
from verifier.attacks.nearby.rows import affordable
from verifier.attacks.rows import kept
from verifier.attacks.threats import project_onto_ball
from verifier.attacks.trial import Trial

FURTHEST = 64.0
"""Starts lie between the first radius and so many times it: far ones may be counterexamples at once, and come nearer
from there by other ways."""

RADIUS_RATES, STEP_RATES = (0.1, 0.002), (0.5, 0.01)
"""By how much a radius changes in a step, and the length of a step as a share of it: at first and at last."""


@dataclass(frozen=True, slots=True, eq=False)
class Descents:
    """P descents: ``away`` from the example, the radius, and the nearest counterexample ``best_at`` at the length
    ``best`` (inf: none)."""

    who: Tensor
    away: Tensor
    radius: Tensor
    best: Tensor
    best_at: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class FastMinimumNorm:
    """``points`` descents of ``steps`` steps for each example. ``first``: a radius to begin with (None: where the
    linear model puts the boundary). ``known`` ``[N, d]``: where the second descent of each example begins (None: at the
    trial's counterexample, where it has one)."""

    norm: Norm = "2"
    points: int = 16
    steps: int = 200
    first: float | None = None
    known: Tensor | None = None

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "fmn"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        self.descend(trial)

    def descend(self, trial: Trial) -> Descents:
        """Run, and say where the descents ended. Raises ``InputError`` for the norm 0."""
        check_norm(self.norm, ("inf", "2", "1"), self.name)
        state = self._start(trial)
        for step in range(self.steps):
            keep = affordable(trial, state.who)
            if trial.late or not bool(keep.any()):
                break
            state = self._step(trial, kept(state, keep), step / self.steps)
        return state

    def _start(self, trial: Trial) -> Descents:
        centre, every = trial.problem.threat.centre, trial.open()
        first = self._first(trial, every)
        wider = FURTHEST ** (torch.arange(self.points, device=every.device) / max(1, self.points - 1))
        radius = (first[:, None] * wider).to(centre.dtype).flatten()
        who = every.repeat_interleave(self.points)
        x = centre[who]
        start = torch.randn(x.shape, generator=trial.draw, dtype=x.dtype, device=x.device)
        away = start * (radius / start.norm(p=float(self.norm), dim=1).clamp(min=1e-30))[:, None]
        away[:: self.points] = 0.0
        if self.points > 1:
            hit = trial.margin[every] <= 0
            if self.known is not None:
                away[1 :: self.points] = (self.known.to(centre) - centre)[every]
            elif bool(hit.any()):
                away[1 :: self.points][hit] = (trial.best - centre)[every][hit]
        return Descents(who, away, radius, x.new_full((len(x),), math.inf), x)

    def _first(self, trial: Trial, who: Tensor) -> Tensor:
        """The first radius of each example."""
        centre = trial.problem.threat.centre[who]
        if self.first is not None:
            return centre.new_full((len(who),), self.first)
        _, margin, slope = trial.descend(centre, who, Margin())
        far = margin / dual(slope, self.norm).clamp(min=1e-12)
        size = 1 + centre.norm(p=float(self.norm), dim=1)
        return torch.where(far.isfinite(), torch.minimum(far.clamp(min=1e-6), size), size / FURTHEST)

    def _step(self, trial: Trial, state: Descents, share: float) -> Descents:
        """One step of all descents, after this share of them."""
        threat, who, p = trial.problem.threat, state.who, float(self.norm)
        x = threat.centre[who]
        points = threat.project(x + state.away, who)
        _, margin, slope = trial.descend(points, who, Margin())
        away = points - x
        length = away.norm(p=p, dim=1)
        hit = margin <= 0
        better = hit & (length < state.best)
        best = torch.where(better, length, state.best)
        best_at = torch.where(better[:, None], points, state.best_at)
        rate, size = (a + (b - a) * (1 - math.cos(math.pi * share)) / 2 for a, b in (RADIUS_RATES, STEP_RATES))
        linear = length + margin / dual(slope, self.norm).clamp(min=1e-12)
        grown = torch.where(best.isfinite() | ~linear.isfinite(), state.radius * (1 + rate), linear)
        radius = torch.where(hit, torch.minimum(state.radius, best) * (1 - rate), grown)
        if self.norm == "inf":
            way = slope.sign()
        else:
            way = slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return Descents(who, project_onto_ball(away - size * radius[:, None] * way, radius, p), radius, best, best_at)
