"""DeepFool: to the nearest plane where the class changes in a linear model, again and again.

Moosavi-Dezfooli, Fawzi and Frossard, DeepFool: a simple and accurate method to fool deep neural networks, CVPR 2016,
algorithm 2. Here the plane's nearest point is looked for inside the data range, so that no step is lost by clipping.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.nearby.measure import Norm, check_norm, onto_plane
from verifier.attacks.nearby.rows import affordable, linear, targets
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial


@dataclass(frozen=True, slots=True)
class DeepFool:
    """At most ``steps`` steps from the example, each for the nearest of ``targets`` classes; points are tried
    ``1 + overshoot`` times as far away as the planes are."""

    norm: Norm = "2"
    steps: int = 50
    overshoot: float = 0.02
    targets: int = 9

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "deepfool"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        check_norm(self.norm, ("inf", "2", "1"), self.name)
        threat, who = trial.problem.threat, trial.open()
        aims = targets(trial, who, self.targets)
        state = _Rows(who, threat.centre[who], torch.zeros_like(threat.centre[who], dtype=torch.float64), aims)
        cost = 1 if aims is None else aims.shape[1]
        for _ in range(self.steps):
            state = kept(state, affordable(trial, state.who, cost))
            if trial.late or not len(state.who):
                return
            model = linear(trial, state.x, state.who, state.aims, self.norm)
            low, high = threat.ends(state.who)
            away = state.away + onto_plane(state.x, model.value, model.slope, low, high, self.norm)
            x = threat.centre[state.who].double() + (1 + self.overshoot) * away
            x = threat.project(x.to(state.x.dtype), state.who)
            state = kept(_Rows(state.who, x, away, state.aims), model.margin > 0)
        state = kept(state, affordable(trial, state.who))
        if len(state.who) and not trial.late:
            trial.evaluate(state.x, state.who)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """P points, all steps so far added up, and the classes aimed at."""

    who: Tensor
    x: Tensor
    away: Tensor
    aims: Tensor | None
