"""Sigma-zero: few elements changed, by descent on a smooth count of them.

Cinà et al., sigma-zero: gradient-based optimization of l0-norm adversarial examples, ICLR 2025, algorithm 1. Taken
rather than projections onto a fixed count (PGD0, Croce and Hein, ICCV 2019) or greedy pairs (JSMA, Papernot et al.,
EuroS&P 2016): one descent minimises the count, all examples go at once, and no step costs a gradient of each class.
Here the margin's gradient is scaled by itself first, as the whole one is in the paper: models have scores of any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.losses import Margin
from verifier.attacks.nearby.rows import affordable
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class SigmaZero:
    """``steps`` steps, in shares of each element's range; ``sigma``: how sharp the count ``change^2 / (change^2 +
    sigma)`` is; changes below a ``threshold`` are undone, which moves by ``pace`` steps: up at counterexamples."""

    steps: int = 300
    sigma: float = 1e-3
    threshold: float = 0.3
    pace: float = 0.01

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "sigma-zero"

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` where an element has no ends."""
        threat, who = trial.problem.threat, trial.open()
        low, high = threat.ends(who)
        width = high - low
        if not bool(width.isfinite().all()):
            raise InputError("the norm 0 counts elements, however much they change: give a data range")
        state = _Rows(who, torch.zeros_like(width), width, torch.full_like(width[:, 0], self.threshold))
        for step in range(self.steps):
            state = kept(state, affordable(trial, state.who))
            if trial.late or not len(state.who):
                return
            state = self._step(trial, state, step)

    def _step(self, trial: Trial, state: _Rows, step: int) -> _Rows:
        threat, who, change = trial.problem.threat, state.who, state.change
        centre = threat.centre[who]
        x = threat.project(torch.where(change != 0, centre + change * state.width, centre), who)
        _, margin, slope = trial.descend(x, who, Margin())
        hit = margin <= 0
        fall = torch.where(hit[:, None], 0.0, slope * state.width)
        count = 2 * self.sigma * change / (change.square() + self.sigma).square() / change.shape[1]
        gradient = _unit(_unit(fall) + count)
        rate = (1 + math.cos(math.pi * step / self.steps)) / 2
        change = (change - rate * gradient).clamp(-1, 1)
        moved = threat.project(centre + change * state.width, who) - centre
        change = torch.where(state.width > 0, moved / state.width.clamp(min=1e-30), 0.0)
        way = torch.where(hit, 1.0, -1.0)
        threshold = (state.threshold + self.pace * rate * way).clamp(0, 1)
        return _Rows(who, torch.where(change.abs() < threshold[:, None], 0.0, change), state.width, threshold)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """P points: the changes in shares of the ``width`` of each element's range, and the thresholds ``[P]``."""

    who: Tensor
    change: Tensor
    width: Tensor
    threshold: Tensor


def _unit(gradient: Tensor) -> Tensor:
    return gradient / gradient.abs().amax(1, keepdim=True).clamp(min=1e-30)
