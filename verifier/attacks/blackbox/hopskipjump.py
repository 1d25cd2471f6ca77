"""HopSkipJump: along the border of another class by its normal, estimated from labels (Chen et al., S&P 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from verifier.attacks.blackbox.decision import Beginning, lengths, wrong
from verifier.attacks.blackbox.estimate import AT_ONCE
from verifier.attacks.trial import Trial

_HALVINGS = 50
"""Of a binary search or of a step's length, at most."""


@dataclass(frozen=True, slots=True)
class HopSkipJump:
    """``rounds`` of: a binary search for the border, an estimate of its normal from ``first`` times the square root of
    the round's number labels, and a step along it (algorithm 2). Distances are of the ``norm`` "2" or "inf"."""

    name: str = "hopskipjump"
    norm: Literal["2", "inf"] = "2"
    rounds: int = 64
    first: int = 100
    most: int = 10_000
    start: Beginning = field(default_factory=Beginning)

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        threat, (x, who) = trial.problem.threat, self.start.points(trial)
        size = max(2, threat.centre.shape[1])
        end = size**-1.5 if self.norm == "2" else float(size) ** -2
        x, who = self._border(trial, x, who, end)
        for turn in range(1, self.rounds + 1):
            if trial.late or not len(who):
                return
            length = self._length(x - threat.centre[who])
            reach = length * (size**0.5 if self.norm == "2" else size) * end if turn > 1 else length / 10
            normal = self._normal(trial, x, who, reach, min(self.most, int(self.first * turn**0.5)))
            keep = trial.is_open(who)
            x, who, normal, length = x[keep], who[keep], normal[keep], length[keep]
            x, who = self._step(trial, x, who, normal, length / turn**0.5)
            x, who = self._border(trial, x, who, end)

    def _length(self, away: Tensor) -> Tensor:
        """``[P, 1]``."""
        return away.abs().amax(1, keepdim=True) if self.norm == "inf" else lengths(away)

    def _border(self, trial: Trial, x: Tensor, who: Tensor, end: float) -> tuple[Tensor, Tensor]:
        """Counterexamples nearest to the examples on the way there (norm inf: cut to smaller and smaller boxes), found
        by halving until the share of the way is known to ``end``."""
        threat = trial.problem.threat
        low, high = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
        best = x
        for _ in range(_HALVINGS):
            open_rows = trial.is_open(who)
            wide = ((high - low).squeeze(1) > end) & open_rows
            if trial.late or not bool(wide.any()):
                break
            rows = torch.nonzero(wide).squeeze(1)
            middle, owner = (low[rows] + high[rows]) / 2, who[rows]
            centre = threat.centre[owner]
            away = x[rows] - centre
            if self.norm == "inf":
                limit = middle * away.abs().amax(1, keepdim=True)
                away = torch.minimum(torch.maximum(away, -limit), limit)
            else:
                away = middle * away
            other = threat.project(centre + away, owner)
            hit = wrong(trial, other, owner)[:, None]
            best = best.index_copy(0, rows, torch.where(hit, other, best[rows]))
            high = high.index_copy(0, rows, torch.where(hit, middle, high[rows]))
            low = low.index_copy(0, rows, torch.where(hit, low[rows], middle))
        keep = trial.is_open(who)
        return best[keep], who[keep]

    def _normal(self, trial: Trial, x: Tensor, who: Tensor, reach: Tensor, count: int) -> Tensor:
        """``[P, d]``: a direction into the other class, of the Euclidean norm 1 (norm inf: signs); section III.C."""
        threat, device = trial.problem.threat, x.device
        plain, signed, total = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x[:, :1])
        many = max(1, AT_ONCE // max(1, x.numel()))
        for first in range(0, count, many):
            part = min(many, count - first)
            if self.norm == "2":
                away = torch.randn((part, *x.shape), generator=trial.draw, dtype=x.dtype, device=device)
            else:
                away = 2 * torch.rand((part, *x.shape), generator=trial.draw, dtype=x.dtype, device=device) - 1
            away = away / away.norm(dim=2, keepdim=True).clamp(min=1e-30) * reach
            owner = who.repeat(part)
            points = threat.project((x + away).reshape(-1, x.shape[1]), owner)
            side = torch.where(wrong(trial, points, owner), 1.0, -1.0).to(x).reshape(part, len(x), 1)
            moved = (points.reshape(part, *x.shape) - x) / reach
            plain, signed, total = plain + moved.sum(0), signed + (side * moved).sum(0), total + side.sum(0)
        mean = total / count
        one_sided = mean.abs() == 1
        normal = torch.where(one_sided, mean * plain, signed - mean * plain)
        return normal.sign() if self.norm == "inf" else normal / lengths(normal)

    def _step(self, trial: Trial, x: Tensor, who: Tensor, normal: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Along the normal, by half as much again and again until the point is a counterexample."""
        threat, moved = trial.problem.threat, x
        rows = torch.arange(len(x), device=x.device)
        for _ in range(_HALVINGS):
            rows = rows[trial.is_open(who[rows])]
            if trial.late or not len(rows):
                break
            other = threat.project(x[rows] + rate[rows] * normal[rows], who[rows])
            hit = wrong(trial, other, who[rows])
            moved = moved.index_copy(0, rows[hit], other[hit])
            rows = rows[~hit]
            rate = rate / 2
        keep = trial.is_open(who)
        return moved[keep], who[keep]
