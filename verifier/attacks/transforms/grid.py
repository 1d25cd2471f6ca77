"""Attacks for few parameters: all points of a grid, and the worst of random points (Engstrom et al., ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.threats import Boxes
from verifier.attacks.trial import Trial
from verifier.errors import InputError

_MOST = 10**6
_TOGETHER = 256
"""Points of all examples in one evaluation, where an example may have several."""


@dataclass(frozen=True, slots=True)
class Grid:
    """``points`` values of each parameter, both ends included (1: the middle), in all combinations, those next to the
    examples' own parameters first; the margin's least is kept."""

    points: int = 11
    name: str = "grid"

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` for a threat model that is no box, and more than 10^6 combinations."""
        threat = trial.problem.threat
        if not isinstance(threat, Boxes):
            raise InputError("a grid needs a box of parameters: this threat model is a ball")
        shares = self._shares(threat)
        done = 0
        while done < len(shares) and not trial.over:
            who = trial.open()
            each = shares[done : done + _together(trial, who)]
            done += len(each)
            rows, share = who.repeat(len(each)), each.repeat_interleave(len(who), 0)
            trial.evaluate(_between(threat, share, rows), rows)

    def _shares(self, threat: Boxes) -> Tensor:
        """``[K, d]``: where in the box the points are, 0 to 1; parameters that cannot vary have one value."""
        width = (threat.upper - threat.lower).double()
        varies = (width > 0).any(0).tolist()
        if self.points < 1 or self.points ** sum(varies) > _MOST:
            raise InputError(
                f"a grid of {self.points} values for each of {sum(varies)} parameters: 1 to {_MOST} points are allowed"
            )
        middle = width.new_full((1,), 0.5)
        axis = torch.linspace(0, 1, self.points).to(width) if self.points > 1 else middle
        shares = torch.cartesian_prod(*[axis if v else middle for v in varies]).reshape(-1, len(varies))
        centre = ((threat.centre - threat.lower).double() / width.clamp(min=1e-300)).mean(0)
        return shares[(shares - centre).square().sum(1).argsort(stable=True)]


@dataclass(frozen=True, slots=True)
class WorstOf:
    """``points`` random points of any threat model."""

    points: int = 10
    name: str = "worst-of-k"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        done = 0
        while done < self.points and not trial.over:
            who = trial.open()
            rows = who.repeat(min(self.points - done, _together(trial, who)))
            done += len(rows) // len(who)
            trial.evaluate(trial.problem.threat.random(rows, trial.draw), rows)


def _together(trial: Trial, who: Tensor) -> int:
    """How many points each open example may have in one evaluation: one where they are many, as budgets allow."""
    count = max(1, _TOGETHER // len(who))
    return count if trial.budget is None else min(count, trial.budget - int(trial.evaluations[who].max()))


def _between(box: Boxes, share: Tensor, who: Tensor) -> Tensor:
    """The points at these shares of the boxes; the ends themselves at 0 and 1."""
    lower, upper = box.lower[who].double(), box.upper[who].double()
    return box.project((lower * (1 - share) + upper * share).to(box.lower.dtype), who)
