"""Counterexamples that are known, brought nearer: on the segment to the example, or element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.losses import Margin
from verifier.attacks.nearby.measure import Norm
from verifier.attacks.nearby.rows import affordable
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial


@dataclass(frozen=True, slots=True)
class Bisect:
    """Halve the segment between each example and its nearest counterexample, ``steps`` times."""

    norm: Norm = "2"
    steps: int = 10

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "bisect"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        threat, who = trial.problem.threat, _known(trial)
        state = _Segment(who, trial.best[who], torch.zeros_like(trial.margin[who]), torch.ones_like(trial.margin[who]))
        for _ in range(self.steps):
            state = kept(state, affordable(trial, state.who))
            if trial.late or not len(state.who):
                return
            centre, share = threat.centre[state.who], (state.low + state.high) / 2
            x = threat.project(centre + share[:, None] * (state.far - centre), state.who)
            hit = trial.evaluate(x, state.who) <= 0
            low, high = torch.where(hit, state.low, share), torch.where(hit, share, state.high)
            state = _Segment(state.who, state.far, low, high)


@dataclass(frozen=True, slots=True)
class Restore:
    """Give elements their values in the example back while the point stays a counterexample: those first that matter
    least to the margin (slope times change), many at once as long as that goes well. Before, the changed ones go on to
    the ends of their range where the point then is one too: the norm 0 does not mind, and fewer may do. At most
    ``steps`` tries."""

    steps: int = 200

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "restore"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        threat, who = trial.problem.threat, _known(trial)
        who = who[affordable(trial, who, 2)]
        if trial.late or not len(who):
            return
        centre, x, (low, high) = threat.centre[who], trial.best[who], threat.ends(who)
        _, _, slope = trial.descend(x, who, Margin())
        end = torch.where(x > centre, high, low)
        far = threat.project(torch.where((x != centre) & end.isfinite(), end, x), who)
        _, margin, there = trial.descend(far, who, Margin())
        wide = (margin <= 0)[:, None]
        x, slope = torch.where(wide, far, x), torch.where(wide, there, slope)
        change = x - centre
        worth = torch.where(change != 0, (slope * change).abs(), torch.inf)
        count = (change != 0).sum(1)
        state = _Turns(who, x, worth.argsort(1), count, torch.zeros_like(count), (count // 2).clamp(min=1))
        for _ in range(self.steps):
            state = kept(state, affordable(trial, state.who) & (state.next < state.count))
            if trial.late or not len(state.who):
                return
            state = self._try(trial, state)

    def _try(self, trial: Trial, state: _Turns) -> _Turns:
        place = torch.arange(state.x.shape[1], device=state.x.device)
        size = torch.minimum(state.size, state.count - state.next)
        given = (place >= state.next[:, None]) & (place < (state.next + size)[:, None])
        back = torch.zeros_like(given).scatter(1, state.order, given)
        x = torch.where(back, trial.problem.threat.centre[state.who], state.x)
        hit = trial.evaluate(x, state.who) <= 0
        passed = torch.where(hit, size, (size == 1).to(size.dtype))
        size = torch.where(hit, size, (size // 2).clamp(min=1))
        x = torch.where(hit[:, None], x, state.x)
        return _Turns(state.who, x, state.order, state.count, state.next + passed, size)


@dataclass(frozen=True, slots=True, eq=False)
class _Segment:
    """Counterexamples ``far``, and the shares of the way to them between which the boundary lies."""

    who: Tensor
    far: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Turns:
    """Counterexamples; their ``count`` changed elements stand first in ``order``, and the ``next`` ``size`` of them
    are to be given back."""

    who: Tensor
    x: Tensor
    order: Tensor
    count: Tensor
    next: Tensor
    size: Tensor


def _known(trial: Trial) -> Tensor:
    """The open examples that have a counterexample."""
    who = trial.open()
    return who[trial.margin[who] <= 0]
