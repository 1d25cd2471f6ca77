"""Carlini and Wagner's attacks in the norms 2 and inf: distance and margin weighed against each other.

Carlini and Wagner, Towards evaluating the robustness of neural networks, S&P 2017, sections V and VI: Adam minimises
``penalty(x - example) + c * max(margin, 0)`` over variables without bounds. The penalty is the squared distance, or, in
the norm inf, what the changes have beyond a limit that shrinks. c begins where a linear model of the margin puts the
least change on the boundary, which suits models of any scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifier.attacks.gradient import Adam, Memory
from verifier.attacks.losses import Margin
from verifier.attacks.nearby.measure import Norm, check_norm, dual
from verifier.attacks.nearby.rows import affordable
from verifier.attacks.nearby.variables import Tanh
from verifier.attacks.rows import kept
from verifier.attacks.trial import Trial

ADAM = Adam(0.9, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class Weighed:
    """P minimisations: ``start`` ``[P, d]``, the weights ``c``, how far Adam goes at first (``rate``: a share of the
    ranges), the limit ``beyond`` of the norm inf, what is ``free``; after it the nearest hit and its distance (inf:
    none), and the margin's slope there."""

    who: Tensor
    start: Tensor
    c: Tensor
    rate: Tensor
    beyond: Tensor
    free: Tensor
    hit: Tensor
    distance: Tensor
    slope: Tensor


def first_rows(trial: Trial, norm: Norm) -> Weighed:
    """Of each open example one, at the example."""
    threat, who = trial.problem.threat, trial.open()
    x = threat.centre[who]
    _, margin, slope = trial.descend(x, who, Margin())
    low, high = threat.ends(who)
    steep = slope.square().sum(1)
    weight = 2.0 if norm == "2" else 0.6  # the norm inf's penalty is 0 up to the limit: less margin outweighs it
    c = torch.where(steep > 0, weight * margin.clamp(min=0) / steep.clamp(min=1e-30), 1.0)
    change = margin.clamp(min=0) / dual(slope, "inf").clamp(min=1e-12)  # of each element, where all move alike
    width = torch.where((high - low).isfinite(), high - low, 1.0).amax(1).clamp(min=1e-30)
    rate = (change / width / 2).clamp(1e-4, 0.05)
    limit = dual(slope, norm) if norm != "2" else steep.sqrt()
    beyond = margin.clamp(min=0) / limit.clamp(min=1e-12)
    far = torch.full_like(margin, math.inf)
    return Weighed(who, x, c.clamp(1e-20, 1e20), rate, beyond, low < high, x, far, slope)


def minimise(trial: Trial, rows: Weighed, steps: int, norm: Norm) -> Weighed:
    """``steps`` steps of Adam; rows that their budgets no longer pay for stay as they are."""
    threat = trial.problem.threat
    centre, (low, high) = threat.centre[rows.who], threat.ends(rows.who)
    space = replace(Tanh.of(centre, low, high), free=rows.free)
    w = space.variables(rows.start)
    memory: Memory = ()
    found = replace(rows, distance=torch.full_like(rows.distance, math.inf))
    pull = _pull(norm, rows.beyond)
    for step in range(steps):
        able = affordable(trial, rows.who)
        if trial.late or not bool(able.all()):
            return found
        x = threat.project(space.points(w), rows.who)
        _, margin, slope = trial.descend(x, rows.who, Margin())
        found = _noted(found, x, margin, slope, (x - centre).norm(p=float(norm), dim=1))
        gradient = space.chained(w, pull(x - centre) + torch.where(margin > 0, rows.c, 0.0)[:, None] * slope)
        way, memory = ADAM.direction(gradient, memory, step)
        share = 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
        w = w - (4 * share * rows.rate)[:, None] * way
    return found


def _noted(found: Weighed, x: Tensor, margin: Tensor, slope: Tensor, distance: Tensor) -> Weighed:
    better = (margin <= 0) & (distance < found.distance)
    wide = better[:, None]
    return replace(
        found,
        hit=torch.where(wide, x, found.hit),
        distance=torch.where(better, distance, found.distance),
        slope=torch.where(wide, slope, found.slope),
    )


def _pull(norm: Norm, limit: Tensor) -> Callable[[Tensor], Tensor]:
    """The penalty's gradient by the change."""
    if norm == "2":
        return lambda change: 2 * change
    return lambda change: change.sign() * (change.abs() > limit[:, None])


@dataclass(frozen=True, slots=True)
class CarliniWagner:
    """Norm 2: ``searches`` minimisations of ``steps`` steps from the example; c grows tenfold until one succeeds, and
    is halved in after. Norm inf: twice as many, each goes on from the nearest hit, below a limit ``shrink`` times its
    distance; where none is found there, c grows, twice, and then the limit."""

    norm: Norm = "2"
    searches: int = 9
    steps: int = 100
    shrink: float = 0.9

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "cw"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        check_norm(self.norm, ("inf", "2"), self.name)
        rows = first_rows(trial, self.norm)
        none = torch.zeros_like(rows.c)
        state = _Search(none, torch.full_like(none, math.inf), none, rows.start)
        for _ in range(self.searches if self.norm == "2" else 2 * self.searches):
            keep = affordable(trial, rows.who)
            rows, state = kept(rows, keep), kept(state, keep)
            if trial.late or not len(rows.who):
                return
            found = minimise(trial, rows, self.steps, self.norm)
            rows, state = (self._weighed if self.norm == "2" else self._limited)(found, state)

    def _weighed(self, rows: Weighed, state: _Search) -> tuple[Weighed, _Search]:
        """The next c (norm 2)."""
        hit = rows.distance.isfinite()
        low, high = torch.where(hit, state.low, rows.c), torch.where(hit, rows.c, state.high)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * low).clamp(max=1e20)
        return replace(rows, c=c), replace(state, low=low, high=high)

    def _limited(self, rows: Weighed, state: _Search) -> tuple[Weighed, _Search]:
        """The next limit and c (norm inf): ``low`` is a limit that was given up, ``high`` the least distance."""
        hit = rows.distance < state.high
        best = torch.where(hit[:, None], rows.hit, state.best)
        high = torch.where(hit, rows.distance, state.high)
        failed = torch.where(hit, 0.0, state.failed + 1)
        given_up = (failed >= 3) & high.isfinite()
        low = torch.where(given_up, torch.maximum(state.low, rows.beyond), state.low)
        low = torch.where(low < high, low, 0.0)
        failed = torch.where(given_up, 0.0, failed)
        late = high.isfinite()
        c = torch.where(hit | given_up, rows.c, torch.where(late, 1.5, 4.0) * rows.c).clamp(max=1e20)
        rate = torch.where(late, 0.75 * rows.rate, rows.rate)  # ever less is left to go
        limit = torch.where(late, torch.maximum(self.shrink * high, (low + high) / 2), rows.beyond)
        return replace(rows, c=c, rate=rate, beyond=limit, start=best), _Search(low, high, failed, best)


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """Between what the next c or limit lies, how often the norm inf's search ``failed`` there, and its best point."""

    low: Tensor
    high: Tensor
    failed: Tensor
    best: Tensor


@dataclass(frozen=True, slots=True)
class CarliniWagnerSparse:
    """Norm 0 (section VI.B): minimise the norm 2, keep in the example the elements whose change matters least at what
    was found (slope times change), and again with the others; first a ``share`` of the changed ones at once, fewer
    where no counterexample is left, in the end one."""

    share: float = 0.4
    rounds: int = 20
    steps: int = 60
    rate: float = 0.05

    @property
    def name(self) -> str:
        """See ``Attack``."""
        return "cw"

    def run(self, trial: Trial) -> None:
        """See ``Attack``."""
        rows = first_rows(trial, "2")
        # Fewer elements have to go further, each up to its whole range.
        rows = replace(rows, c=10 * rows.c, rate=rows.rate.clamp(min=self.rate))
        state = _Fixing(rows.free, torch.zeros_like(rows.start), torch.full_like(rows.c, self.share))
        for _ in range(self.rounds):
            keep = affordable(trial, rows.who) & rows.free.any(1)
            rows, state = kept(rows, keep), kept(state, keep)
            if trial.late or not len(rows.who):
                return
            rows, state = self._next(trial, minimise(trial, rows, self.steps, "2"), state)

    def _next(self, trial: Trial, rows: Weighed, state: _Fixing) -> tuple[Weighed, _Fixing]:
        """Which elements are free next."""
        change = rows.hit - trial.problem.threat.centre[rows.who]
        hit = rows.distance.isfinite()
        wide = hit[:, None]
        worth = torch.where(wide, (rows.slope * change).abs() * (rows.free & (change != 0)), state.worth)
        free = torch.where(wide, rows.free & (change != 0), state.free)
        count, known = free.sum(1), worth.any(1)
        drop = (state.share * count).long().clamp(min=1)
        share = torch.where(hit, state.share, torch.where(known & (drop > 1), state.share / 2, state.share))
        stuck = ~hit & known & (drop == 1)  # the last trial left out one alone
        drop = (share * count).long().clamp(min=1)
        order = torch.where(free, worth, math.inf).argsort(1).argsort(1)
        fewer = free & (order >= drop[:, None])
        fewer = torch.where(known[:, None], fewer, free) & ~stuck[:, None]
        c = torch.where(hit | known, rows.c, 10 * rows.c).clamp(max=1e20)
        return replace(rows, start=rows.hit, free=fewer, c=c), _Fixing(free, worth, share)


@dataclass(frozen=True, slots=True, eq=False)
class _Fixing:
    """The elements that the last counterexample changed (at first all), what each is worth to it, and the share of them
    to leave out."""

    free: Tensor
    worth: Tensor
    share: Tensor
