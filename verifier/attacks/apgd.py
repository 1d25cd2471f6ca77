"""Auto-PGD: projected descent with momentum that halves its step by itself and goes back to its best point.

Croce and Hein, Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks, ICML
2020, algorithm 1. Each row has a step of its own. At checkpoints that come ever closer a row whose loss seldom fell, or
whose step and best loss are those of the checkpoint before, halves its step and returns to its best point.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifier.attacks.gradient import Centre, Start, Uniform, descents
from verifier.attacks.losses import CrossEntropy, Loss, Margin, TargetedDlr, TargetedMargin
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial

_MOMENTUM = 0.75
_SELDOM = 0.75
"""A step is halved where the loss fell in fewer than this share of the steps since the last checkpoint."""


@dataclass(frozen=True, slots=True)
class Apgd:
    """Auto-PGD with ``steps`` gradients from ``start``, ``restarts`` times; a targeted loss aims at each of the
    ``targets`` most likely other classes in turn. The first step is ``rate`` sizes of the threat model long."""

    name: str = "apgd"
    loss: Loss = field(default_factory=Margin)
    start: Start = field(default_factory=Uniform)
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    rate: float = 2.0

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        for who, target in descents(trial, self.loss, self.restarts, self.targets):
            self._descend(trial, who, target)

    def _descend(self, trial: Trial, who: Tensor, target: Tensor | None) -> None:
        state = _Rows.at(self.start.points(trial, who), who, target, self.rate)
        points, last = checkpoints(self.steps), 0
        for step in range(self.steps):
            state = kept(state, trial.is_open(state.who))
            if trial.late or not len(state.who):
                return
            loss, _, gradient = trial.descend(state.x, state.who, self.loss, state.target)
            state = state.noted(loss, gradient)
            if step in points:
                state, last = state.checked(step - last), step
            state = state.moved(trial, step)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """P points ``x`` and those before them, their examples and targets; the best loss with its point and gradient; the
    ``gradient`` at ``x``; how often the loss ``fell`` since the last checkpoint; ``rate`` ``[P]``; and at the last
    checkpoint the rate's halving and the best loss."""

    x: Tensor
    before: Tensor
    who: Tensor
    target: Tensor | None
    loss: Tensor
    gradient: Tensor
    best: Tensor
    best_x: Tensor
    best_gradient: Tensor
    fell: Tensor
    rate: Tensor
    halved: Tensor
    then: Tensor

    @staticmethod
    def at(x: Tensor, who: Tensor, target: Tensor | None, rate: float) -> _Rows:
        zero, infinite = torch.zeros_like(x), x.new_full((len(x),), torch.inf)
        none = torch.zeros_like(infinite)
        yes = none == 0
        return _Rows(x, x, who, target, infinite, zero, infinite, x, zero, none, none + rate, yes, infinite)

    def noted(self, loss: Tensor, gradient: Tensor) -> _Rows:
        """With the loss and the gradient at ``x``."""
        better = loss < self.best
        wide = better[:, None]
        return replace(
            self,
            loss=loss,
            gradient=gradient,
            fell=self.fell + (loss < self.loss),
            best=torch.where(better, loss, self.best),
            best_x=torch.where(wide, self.x, self.best_x),
            best_gradient=torch.where(wide, gradient, self.best_gradient),
        )

    def checked(self, since: int) -> _Rows:
        """At a checkpoint ``since`` steps after the last one."""
        stuck = (self.fell < _SELDOM * since) | (~self.halved & (self.then == self.best))
        wide = stuck[:, None]
        return replace(
            self,
            rate=torch.where(stuck, self.rate / 2, self.rate),
            x=torch.where(wide, self.best_x, self.x),
            before=torch.where(wide, self.best_x, self.before),
            gradient=torch.where(wide, self.best_gradient, self.gradient),
            fell=torch.zeros_like(self.fell),
            halved=stuck,
            then=self.best,
        )

    def moved(self, trial: Trial, step: int) -> _Rows:
        """One step with momentum; the first goes straight."""
        threat = trial.problem.threat
        z = threat.project(self.x + self.rate[:, None] * threat.step(self.gradient, self.who), self.who)
        weight = _MOMENTUM if step else 1.0
        x = self.x + weight * (z - self.x) + (1 - weight) * (self.x - self.before)
        return replace(self, x=threat.project(x, self.who), before=self.x)


def checkpoints(steps: int) -> frozenset[int]:
    """The steps at which Auto-PGD looks back: after 22 % of all, then at distances that shrink by 3 % to 6 %."""
    found, share, gap = set(), 0.22, 0.22
    while share < 1:
        found.add(int(share * steps + 0.999999))
        gap = max(gap - 0.03, 0.06)
        share += gap
    return frozenset(found)


def apgd_ce(steps: int = 100, restarts: int = 1) -> Apgd:
    """Auto-PGD on cross-entropy."""
    return Apgd("apgd-ce", CrossEntropy(), Uniform(), steps, restarts)


def apgd_targeted(steps: int = 100, targets: int = 9) -> Apgd:
    """Auto-PGD on the targeted difference-of-logits ratio, one target after the other."""
    return Apgd("apgd-t", TargetedDlr(), Uniform(), steps, 1, targets)


def apgd_multi_targeted(steps: int = 20, targets: int = 5) -> Apgd:
    """Auto-PGD on the margins over the most likely other classes, few steps each: of all ways to spend 100 gradients
    the one that broke most on the networks of ``benchmarks/attack_peers.py``."""
    return Apgd("apgd-mt", TargetedMargin(), Uniform(), steps, 1, targets)


def apgd_margin(steps: int = 100) -> Apgd:
    """Auto-PGD on the margin, from the example."""
    return Apgd("apgd-margin", Margin(), Centre(), steps)
