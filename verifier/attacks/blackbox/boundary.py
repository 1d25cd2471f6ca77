"""Boundary attack: a random walk along the border of another class, towards the example (Brendel et al., ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.attacks.blackbox.decision import Beginning, lengths, wrong
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial

_ASKED_AROUND = 10
"""A step on the sphere alone is asked about once in so many steps: it tells how long such steps may be."""

_CHANGE = 1.5


@dataclass(frozen=True, slots=True)
class Boundary:
    """``steps`` steps from a ``start``: one across the line to the example, ``across`` distances long at first, then
    one ``towards`` it. Both lengths follow how often such steps succeed. It makes Euclidean distances small."""

    name: str = "boundary"
    steps: int = 25_000
    across: float = 0.1
    towards: float = 0.1
    start: Beginning = field(default_factory=Beginning)

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        threat, (x, who) = trial.problem.threat, self.start.points(trial)
        state = _Walk.at(x, who, self.across, self.towards)
        for step in range(self.steps):
            state = kept(state, trial.is_open(state.who))
            if trial.late or not len(state.who):
                return
            centre = threat.centre[state.who]
            around = threat.project(_around(state.x, centre, state.across, trial.draw), state.who)
            asked = step % _ASKED_AROUND == 0
            if asked:
                state = state.told_around(wrong(trial, around, state.who))
            other = threat.project(around + state.towards[:, None] * (centre - around), state.who)
            hit = wrong(trial, other, state.who)
            nearer = lengths(other - centre) < lengths(state.x - centre)
            state = state.told(other, hit & nearer.squeeze(1))


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """Points ``x`` of the examples ``who``; the lengths of both kinds of steps ``[P]``; how many were tried and how
    many succeeded since the lengths last changed (``[P, 2]`` each)."""

    x: Tensor
    who: Tensor
    across: Tensor
    towards: Tensor
    around_tally: Tensor
    towards_tally: Tensor

    @staticmethod
    def at(x: Tensor, who: Tensor, across: float, towards: float) -> _Walk:
        none = x.new_zeros((len(x), 2))
        return _Walk(x, who, none[:, 0] + across, none[:, 0] + towards, none, none)

    def told_around(self, hit: Tensor) -> _Walk:
        """After steps across alone: half of them should succeed, since a border is flat nearby."""
        tally = self.around_tally + torch.stack([torch.ones_like(self.across), hit.to(self.across)], 1)
        full, share = tally[:, 0] >= 10, tally[:, 1] / tally[:, 0]
        factor = torch.where(full, _factor(share, 0.2, 0.5), 1.0)
        return replace(
            self,
            across=(self.across * factor).clamp(max=1.0),
            towards=(self.towards * factor).clamp(max=0.5),
            around_tally=torch.where(full[:, None], 0.0, tally),
        )

    def told(self, other: Tensor, hit: Tensor) -> _Walk:
        """After whole steps, which succeed or not: a fifth of them should."""
        tally = self.towards_tally + torch.stack([torch.ones_like(self.towards), hit.to(self.towards)], 1)
        full, share = tally[:, 0] >= 20, tally[:, 1] / tally[:, 0]
        factor = torch.where(full, _factor(share, 0.1, 0.25), 1.0)
        return replace(
            self,
            x=torch.where(hit[:, None], other, self.x),
            towards=(self.towards * factor).clamp(max=0.5),
            towards_tally=torch.where(full[:, None], 0.0, tally),
        )


def _factor(share: Tensor, few: float, many: float) -> Tensor:
    """Longer steps where many succeed, shorter ones where few do."""
    one = torch.ones_like(share)
    return torch.where(share > many, one * _CHANGE, torch.where(share < few, one / _CHANGE, one))


def _around(x: Tensor, centre: Tensor, across: Tensor, draw: torch.Generator) -> Tensor:
    """Points of the spheres around the centres, ``across`` times their radii to a random side of ``x``."""
    away = x - centre
    length = lengths(away)
    side = torch.randn(x.shape, generator=draw, dtype=x.dtype, device=x.device)
    side = side - (side * away).sum(1, keepdim=True) / length.square() * away
    moved = away + across[:, None] * length / lengths(side) * side
    return centre + moved / lengths(moved) * length
