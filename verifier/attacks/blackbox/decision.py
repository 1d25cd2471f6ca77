"""What attacks by labels alone have in common: whether a point has another label, and where to start.

They look for the nearest counterexample, so a trial that should keep it needs a ``distance``; their threat model is the
whole data range as a rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.trial import Trial


def wrong(trial: Trial, x: Tensor, who: Tensor) -> Tensor:
    """``[P]`` bool: counterexamples; all that these attacks ask. False where no budget is left."""
    return trial.evaluate(x, who) <= 0


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """The first counterexample of each example: a ``known`` one ``[N, d]``, or the first of at most ``tries`` points
    that are random, halfway to them, or other examples of the problem, in turn."""

    known: Tensor | None = None
    tries: int = 100

    def points(self, trial: Trial) -> tuple[Tensor, Tensor]:
        """Counterexamples ``[K, d]`` and whose they are ``[K]``: only of examples that have one."""
        threat, who = trial.problem.threat, trial.open()
        begun: list[tuple[Tensor, Tensor]] = []
        for turn in range(self.tries if self.known is None else 1):
            if trial.late or not len(who):
                break
            x = self._guess(trial, who, turn)
            hit = wrong(trial, x, who)
            begun.append((x[hit], who[hit]))
            who = who[~hit]
            who = who[torch.isin(who, trial.open())]
        if not begun:
            return threat.centre[:0], trial.open()[:0]
        x, who = (torch.cat(column) for column in zip(*begun, strict=True))
        keep = trial.is_open(who)
        return x[keep], who[keep]

    def _guess(self, trial: Trial, who: Tensor, turn: int) -> Tensor:
        threat = trial.problem.threat
        if self.known is not None:
            return threat.project(self.known[who], who)
        if turn % 3 == 2:
            count = trial.problem.size
            other = torch.randint(count, (len(who),), generator=trial.draw, device=who.device)
            return threat.project(threat.centre[other], who)
        x = threat.random(who, trial.draw)
        return x if turn % 3 == 0 else threat.project(threat.centre[who] / 2 + x / 2, who)


def lengths(away: Tensor) -> Tensor:
    """``[P, 1]``: Euclidean norms of rows, at least a tiny number."""
    return away.norm(dim=1, keepdim=True).clamp(min=1e-30)
