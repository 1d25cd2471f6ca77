"""Descent along gradients that are estimated from scores: SPSA, NES, ZOO.

Each estimate asks at pairs of points x + v and x - v that are projected into the threat model first; what counts is
their actual difference, so the estimate is one of the margin inside the set, at its surface one-sided. Spreads and
rates are shares of the threat model's size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.attacks.blackbox.windows import signs
from verifier.attacks.gradient import Adam, Centre, Memory, Momentum, Rule, Start
from verifier.attacks.losses import finite
from verifier.attacks.threats import Balls, Boxes, Threat
from verifier.attacks.trial import Trial
from verifier.errors import InputError

Directions = Callable[[tuple[int, ...], Tensor, torch.Generator], Tensor]
"""Random directions of a shape, elements of mean square 1, in the type of a tensor."""

AT_ONCE = 2**24
"""Elements of points that an attack holds at once."""


def gaussian(shape: tuple[int, ...], like: Tensor, draw: torch.Generator) -> Tensor:
    """Normal directions."""
    return torch.randn(shape, generator=draw, dtype=like.dtype, device=like.device)


@dataclass(frozen=True, slots=True)
class Estimated:
    """Descent with ``steps`` estimates of ``pairs`` pairs each along ``directions`` at a ``spread``, and steps of
    ``rate``, ``decay`` times shorter each, along ``rule``, from ``start``. The point itself is asked too, once a step.
    """

    name: str
    directions: Directions
    rule: Rule
    pairs: int = 64
    spread: float = 0.1
    rate: float = 0.25
    decay: float = 0.97
    steps: int = 1000
    start: Start = field(default_factory=Centre)

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` for balls of the norm 0."""
        threat = trial.problem.threat
        who = trial.open()
        x, memory = self.start.points(trial, who), tuple[Tensor, ...]()
        unit = spreads(threat)
        for step in range(self.steps):
            keep = trial.is_open(who)
            x, who, memory = x[keep], who[keep], tuple(m[keep] for m in memory)
            if trial.late or not len(who):
                return
            trial.evaluate(x, who)
            gradient = self._gradient(trial, x, who, self.spread * unit[who])
            direction, memory = self.rule.direction(gradient, memory, step)
            x = threat.project(x + self.rate * self.decay**step * threat.step(direction, who), who)

    def _gradient(self, trial: Trial, x: Tensor, who: Tensor, spread: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        many = max(1, AT_ONCE // (2 * x.numel()))
        for first in range(0, self.pairs, many):
            count = min(many, self.pairs - first)
            away = self.directions((count, *x.shape), x, trial.draw) * spread
            total += differences(trial, x, who, away).sum(0)
        return total / self.pairs


def spsa(pairs: int = 64) -> Estimated:
    """Simultaneous perturbation: random signs, Adam (Uesato et al., ICML 2018)."""
    return Estimated("spsa", signs, Adam(), pairs)


def nes(pairs: int = 25) -> Estimated:
    """Natural evolution strategies: antithetic normal directions, steps along the sign with momentum (Ilyas et al.,
    ICML 2018: 50 samples an estimate)."""
    return Estimated("nes", gaussian, Momentum(0.95), pairs, rate=0.1, decay=0.99)


@dataclass(frozen=True, slots=True)
class Zoo:
    """Zeroth-order optimisation: finite differences of ``coordinates`` random coordinates a step, each with an Adam of
    its own (Chen et al., AISec 2017, algorithm 2), on the margin inside the threat model."""

    name: str = "zoo"
    coordinates: int = 32
    spread: float = 0.05
    rate: float = 0.5
    steps: int = 10_000
    rule: Adam = field(default_factory=lambda: Adam(0.9, 0.999))

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` for balls of the norm 0."""
        threat = trial.problem.threat
        unit = spreads(threat)
        who = trial.open()
        x = threat.centre[who]
        mean, square, age = (torch.zeros_like(x) for _ in range(3))
        count = min(self.coordinates, x.shape[1])
        for _ in range(self.steps):
            keep = trial.is_open(who)
            x, who, mean, square, age = (a[keep] for a in (x, who, mean, square, age))
            if trial.late or not len(who):
                return
            trial.evaluate(x, who)
            order = torch.rand(x.shape, generator=trial.draw, device=x.device)
            order = (order - age).masked_fill(unit[who] == 0, -torch.inf)  # those first that were tried least
            place = order.topk(count, dim=1).indices
            slope = self._slopes(trial, x, who, place, self.spread * unit[who])
            memory: Memory = (mean.gather(1, place), square.gather(1, place))
            direction, memory = self.rule.direction(slope, memory, age.gather(1, place))
            mean, square = mean.scatter(1, place, memory[0]), square.scatter(1, place, memory[1])
            age = age.scatter_add(1, place, torch.ones_like(slope))
            change = torch.zeros_like(x).scatter(1, place, direction) * unit[who]
            x = threat.project(x - self.rate * change, who)

    def _slopes(self, trial: Trial, x: Tensor, who: Tensor, place: Tensor, spread: Tensor) -> Tensor:
        """``[P, B]``: the margin's slopes along the coordinates ``place``."""
        slopes = []
        many = max(1, AT_ONCE // (2 * x.numel()))
        for places in place.T.split(many):
            away = torch.zeros((len(places), *x.shape), dtype=x.dtype, device=x.device)
            away = away.scatter(2, places[:, :, None], spread.gather(1, places.T).T[:, :, None])
            found = differences(trial, x, who, away, per=1)
            slopes.append(found.gather(2, places[:, :, None]).squeeze(2))
        return torch.cat(slopes).T


def differences(trial: Trial, x: Tensor, who: Tensor, away: Tensor, per: int | None = None) -> Tensor:
    """``[S, P, d]``: for each of S directions ``away`` the margin's difference between x + away and x - away, both
    projected, over their distance squared, times their difference, times ``per`` (None: d, which makes the mean over
    random directions the gradient). 0 where the points are the same or a margin is not finite."""
    threat = trial.problem.threat
    count, rows, size = away.shape
    owners = who.repeat(2 * count)
    both = torch.stack([x + away, x - away], 1).reshape(2 * count * rows, size)
    both = threat.project(both, owners)
    points = both.reshape(count, 2, rows, size)
    gap = points[:, 0] - points[:, 1]
    square = gap.square().sum(2)
    apart = (square > 0)[:, None].expand(-1, 2, -1)
    margin = square.new_full((count, 2, rows), torch.inf)
    margin[apart] = trial.evaluate(points[apart], owners.reshape(count, 2, rows)[apart])
    slope = finite((margin[:, 0] - margin[:, 1]) / square)
    return slope[:, :, None] * gap * (size if per is None else per)


def spreads(threat: Threat) -> Tensor:
    """``[N, d]``: how far a coordinate goes when all go as far as the set reaches: half of a box's width, a radius of
    the norm 2 over the root of d, one of the norm 1 over a twentieth of d. Raises ``InputError`` for others."""
    if isinstance(threat, Boxes):
        return threat.upper / 2 - threat.lower / 2
    size = threat.centre.shape[1]
    if isinstance(threat, Balls) and threat.norm in ("2", "1"):
        share = size**0.5 if threat.norm == "2" else max(1, size // 20)
        return torch.full_like(threat.centre, float(threat.radius) / share)
    raise InputError("attacks with estimated gradients: boxes and the norms 2 and 1 only; see SparseRs for the norm 0")
