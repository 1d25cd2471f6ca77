"""FAB, the fast adaptive boundary attack: along linear models of the boundary, drawn back towards the example.

Croce and Hein, Minimally distorted adversarial examples with a fast adaptive boundary attack, ICML 2020, algorithm 1.
All restarts go side by side; the search on the segment at its end is ``polish.Bisect``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.nearby.measure import Norm, check_norm, dual, onto_plane
from verifier.attacks.nearby.polish import Bisect
from verifier.attacks.nearby.rows import affordable, linear, targets
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial


@dataclass(frozen=True, slots=True)
class Fab:
    """``steps`` steps of ``restarts`` points: one begins at the example, the others around it, half as far away as the
    best counterexample (or the plane of the linear model). Planes are overshot ``extrapolation`` times; ``bias`` is how
    much a step takes at most from the example's own; after a hit a point keeps the share ``backward`` of its way."""

    norm: Norm = "2"
    steps: int = 100
    restarts: int = 3
    targets: int = 9
    bias: float = 0.1
    extrapolation: float = 1.05
    backward: float = 0.9

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "fab"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        check_norm(self.norm, ("inf", "2", "1"), self.name)
        who = trial.open()
        aims = targets(trial, who, self.targets)
        state = self._start(trial, who, aims)
        cost = 1 if aims is None else aims.shape[1]
        for _ in range(self.steps):
            state = kept(state, affordable(trial, state.who, cost + 1))
            if trial.late or not len(state.who):
                break
            state = self._step(trial, state)
        Bisect(self.norm).run(trial)

    def _start(self, trial: Trial, who: Tensor, aims: Tensor | None) -> _Rows:
        threat = trial.problem.threat
        centre = threat.centre[who]
        model = linear(trial, centre, who, aims, self.norm)
        far = (model.value / dual(model.slope, self.norm).clamp(min=1e-12)).clamp(min=0)
        if trial.distance is not None:
            far = torch.minimum(far, trial.rank[who])
        owner = who.repeat(self.restarts)
        away = torch.randn((len(owner), centre.shape[1]), generator=trial.draw, dtype=centre.dtype, device=who.device)
        away = away / away.norm(p=float(self.norm), dim=1, keepdim=True).clamp(min=1e-30)
        away = away * (far / 2).repeat(self.restarts)[:, None]
        away[: len(who)] = 0
        every = None if aims is None else aims.repeat(self.restarts, 1)
        return _Rows(owner, threat.project(centre.repeat(self.restarts, 1) + away, owner), every)

    def _step(self, trial: Trial, state: _Rows) -> _Rows:
        threat, who, x = trial.problem.threat, state.who, state.x
        centre = threat.centre[who]
        model, (low, high) = linear(trial, x, who, state.aims, self.norm), threat.ends(who)
        change = onto_plane(x, model.value, model.slope, low, high, self.norm)
        between = (model.slope.double() * (centre.double() - x.double())).sum(1)
        own = onto_plane(centre, model.value.double() + between, model.slope, low, high, self.norm)
        one, two = (a.norm(p=float(self.norm), dim=1, keepdim=True) for a in (change, own))
        share = (one / (one + two).clamp(min=1e-300)).clamp(max=self.bias)
        moved = (1 - share) * (x + self.extrapolation * change) + share * (centre + self.extrapolation * own)
        y = threat.project(moved.to(x.dtype), who)
        hit = trial.evaluate(y, who) <= 0
        back = threat.project(centre + self.backward * (y - centre), who)
        return _Rows(who, torch.where(hit[:, None], back, y), state.aims)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """P points and the classes aimed at."""

    who: Tensor
    x: Tensor
    aims: Tensor | None
