"""Projected gradient descent and its relatives: a loss, a rule for the direction, starts, steps, restarts.

Steps are measured in sizes of the threat model, so one value suits boxes of different widths and balls of all norms.
``fgsm``, ``pgd``, ``mi_fgsm`` and ``adam_pgd`` are the usual combinations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from verifier.attacks.losses import CrossEntropy, Loss, Margin, TargetedMargin
from verifier.attacks.trial import Trial

Memory = tuple[Tensor, ...]


class Rule(Protocol):
    """From gradients to directions; ``memory`` is tensors with one row a point, () before the first step."""

    def direction(self, gradient: Tensor, memory: Memory, step: int) -> tuple[Tensor, Memory]:
        """What takes the gradient's place ``[P, d]`` in step ``step`` (from 0), and the next memory."""


@dataclass(frozen=True, slots=True)
class Plain:
    """The gradient itself."""

    def direction(self, gradient: Tensor, memory: Memory, step: int) -> tuple[Tensor, Memory]:
        """See ``Rule``."""
        return gradient, ()


@dataclass(frozen=True, slots=True)
class Momentum:
    """The sum of gradients of L1 norm 1, older ones with weights ``decay``, ``decay`` squared, ... (Dong et al., CVPR
    2018, algorithm 1)."""

    decay: float = 1.0

    def direction(self, gradient: Tensor, memory: Memory, step: int) -> tuple[Tensor, Memory]:
        """See ``Rule``."""
        unit = gradient / gradient.norm(p=1, dim=1, keepdim=True).clamp(min=1e-30)
        total = unit + self.decay * memory[0] if memory else unit
        return total, (total,)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam's direction (Kingma and Ba, ICLR 2015), of which a box's step takes the sign. Where elements have steps of
    their own, ``step`` says how many each has behind it."""

    first: float = 0.9
    second: float = 0.99

    def direction(self, gradient: Tensor, memory: Memory, step: int | Tensor) -> tuple[Tensor, Memory]:
        """See ``Rule``."""
        zero = torch.zeros_like(gradient)
        mean, square = memory if memory else (zero, zero)
        mean = torch.lerp(gradient, mean, self.first)
        square = torch.lerp(gradient.square(), square, self.second)
        unit = mean / (1 - self.first ** (step + 1))
        spread = (square / (1 - self.second ** (step + 1))).sqrt()
        return unit / spread.clamp(min=1e-30), (mean, square)


class Start(Protocol):
    """Where the rows of a restart begin."""

    def points(self, trial: Trial, who: Tensor) -> Tensor:
        """One point ``[P, d]`` for each row, in its set."""


@dataclass(frozen=True, slots=True)
class Centre:
    """At the examples themselves."""

    def points(self, trial: Trial, who: Tensor) -> Tensor:
        """See ``Start``."""
        return trial.problem.threat.centre[who]


@dataclass(frozen=True, slots=True)
class Uniform:
    """At random points."""

    def points(self, trial: Trial, who: Tensor) -> Tensor:
        """See ``Start``."""
        return trial.problem.threat.random(who, trial.draw)


@dataclass(frozen=True, slots=True)
class Diverse:
    """Output-diversified: from random points ``steps`` steps along a random direction of the outputs (Tashiro et al.,
    NeurIPS 2020, equation 3)."""

    steps: int = 2
    rate: float = 0.5

    def points(self, trial: Trial, who: Tensor) -> Tensor:
        """See ``Start``."""
        threat = trial.problem.threat
        x = threat.random(who, trial.draw)
        one = trial.outputs(x[:1], who[:1])  # says how many there are
        u = torch.rand((len(who), one.shape[1]), generator=trial.draw, dtype=one.dtype, device=one.device)
        way, rows = _Along(2 * u - 1), torch.arange(len(who), device=who.device)
        for _ in range(self.steps):
            if trial.late:
                break
            _, _, gradient = trial.descend(x, who, way, rows)
            x = threat.project(x + self.rate * threat.step(gradient, who), who)
        return x


@dataclass(frozen=True, slots=True, eq=False)
class _Along:
    """A linear function of the outputs, another for each row; its targets are the rows' numbers."""

    direction: Tensor

    @property
    def targeted(self) -> bool:
        return True

    def value(self, goal: object, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        return (outputs * self.direction[target]).sum(1)


@dataclass(frozen=True, slots=True)
class Pgd:
    """Projected gradient descent (Madry et al., ICLR 2018): ``steps`` steps of ``rate`` sizes of the threat model,
    ``decay`` times shorter each, along ``rule``, on ``loss``, from ``start``, ``restarts`` times; a targeted loss aims
    at each of the ``targets`` most likely other classes in turn."""

    name: str = "pgd"
    loss: Loss = field(default_factory=Margin)
    rule: Rule = field(default_factory=Plain)
    start: Start = field(default_factory=Uniform)
    steps: int = 40
    rate: float = 0.1
    decay: float = 1.0
    restarts: int = 1
    targets: int = 9

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        for who, target in descents(trial, self.loss, self.restarts, self.targets):
            self._descend(trial, who, target)

    def _descend(self, trial: Trial, who: Tensor, target: Tensor | None) -> None:
        threat = trial.problem.threat
        x = self.start.points(trial, who)
        memory: Memory = ()
        for step in range(self.steps):
            keep = trial.is_open(who)
            if trial.late or not bool(keep.any()):
                return
            if not bool(keep.all()):
                x, who, memory = x[keep], who[keep], tuple(m[keep] for m in memory)
                target = None if target is None else target[keep]
            _, _, gradient = trial.descend(x, who, self.loss, target)
            direction, memory = self.rule.direction(gradient, memory, step)
            x = threat.project(x + self.rate * self.decay**step * threat.step(direction, who), who)
        keep = trial.is_open(who)
        if bool(keep.any()) and not trial.late:
            trial.evaluate(x[keep], who[keep])


def descents(trial: Trial, loss: Loss, restarts: int, targets: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """For each of ``restarts`` descents, and for a targeted loss each of the ``targets`` likeliest other classes (or as
    many as there are), the examples that are then open and the class that each aims at; none when the trial is over."""
    for _ in range(restarts):
        for rank in range(targets if loss.targeted else 1):
            if trial.over:
                return
            who = trial.open()
            classes = trial.others(who) if loss.targeted else None
            if classes is not None and rank >= classes.shape[1]:
                break
            yield who, None if classes is None else classes[:, rank]


def fgsm() -> Pgd:
    """The fast gradient sign method (Goodfellow et al., ICLR 2015): one step from the example to an end of the set. Two
    of its sizes are enough for examples at an end of the data range, as dark pixels are."""
    return Pgd("fgsm", CrossEntropy(), start=Centre(), steps=1, rate=2.0)


def pgd(steps: int = 40, restarts: int = 1) -> Pgd:
    """Projected descent on cross-entropy (Madry et al.), with steps that shrink to a twentieth: with steps of one
    length it found no more on any network of ``benchmarks/attack_peers.py``."""
    return Pgd("pgd", CrossEntropy(), steps=steps, rate=0.5, decay=0.05 ** (1 / steps), restarts=restarts)


def pgd_margin(steps: int = 40, restarts: int = 1) -> Pgd:
    """``pgd`` on the margin: for properties too."""
    return Pgd("pgd-margin", Margin(), steps=steps, rate=0.5, decay=0.05 ** (1 / steps), restarts=restarts)


def mi_fgsm(steps: int = 10) -> Pgd:
    """Momentum iterative FGSM (Dong et al., CVPR 2018)."""
    return Pgd("mi-fgsm", CrossEntropy(), Momentum(), Centre(), steps, 1 / steps)


def adam_pgd(steps: int = 100, restarts: int = 1) -> Pgd:
    """Sign-of-Adam steps on the margin from output-diversified starts."""
    return Pgd("adam-pgd", Margin(), Adam(), Diverse(), steps, 0.25, 0.97, restarts)


def multi_targeted(steps: int = 40, targets: int = 9) -> Pgd:
    """Descent on the margin over each of the most likely other classes (Gowal et al., 2019)."""
    return Pgd("multi-targeted", TargetedMargin(), steps=steps, rate=0.25, decay=0.95, targets=targets)
