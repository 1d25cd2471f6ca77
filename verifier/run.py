"""One verification under way: what it works on, its limits, what is known so far, and what every stage does.

A stage hands points to ``replay`` and follows its search from step to step; a counterexample that onnxruntime confirms
ends the run from wherever it is found, by raising ``Decided``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bounds.plan import Plan
from verifier.attacks.beside import Rhythm, near
from verifier.attacks.plan import AttackPlan
from verifier.attacks.search import candidates
from verifier.branch.problem import Problem, S, Search, SearchState
from verifier.checkpoint import Saver
from verifier.lending import Lender
from verifier.query import Query
from verifier.record.entries import Write
from verifier.replay import Replayer
from verifier.runtime_error import LEAST_SECONDS, float32_error
from verifier.strategy import Strategy
from verifier.verdict import Counterexample, Progress, TimedOut, Unknown, Verdict, Verified

MOST_REFUSED = 64
"""Replays that may fail at one stage before its candidates are no longer tried: each costs a run of the network."""

CLEAR_MARGIN = 1e-5
"""A counterexample with a smaller margin may be a rounding error of one machine: a better one is looked for ..."""

NARROW_SECONDS = 1.0
"""... for this long."""


class Decided(Exception):
    """A candidate was replayed: control flow of a run only."""

    def __init__(self, counterexample: Counterexample) -> None:
        super().__init__()
        self.counterexample = counterexample


@dataclass(slots=True)
class Run:
    """``rough, exact``: plans for search and for proof. ``start, deadline`` on the monotonic clock.

    ``margin`` is the least of a refutation; ``bound`` and ``upper``: of what is open, as computed.
    ``settled`` subproblems were refuted before the search at hand began. ``place``: what a checkpoint says of what
    stands around that search, ``marked``: how far the record had come. ``lender``: of half of a long search."""

    query: Query
    problem: Problem
    rough: Plan
    exact: Plan
    strategy: Strategy
    replayer: Replayer
    start: float
    deadline: float
    report: Callable[[Progress], None] | None = None
    write: Write | None = None
    saver: Saver | None = None
    lender: Lender | None = None
    place: Callable[[], dict[str, Tensor]] = dict
    marked: Callable[[], dict[str, Tensor]] = dict
    stage: str = "load"
    settled: int = 0
    refuted: int = 0
    margin: float = math.inf
    bound: float = -math.inf
    upper: float = math.inf
    open_share: float = 1.0
    refused: int = 0
    narrow: Counterexample | None = None
    narrow_until: float = math.inf

    def expired(self) -> bool:
        """Whether the deadline is over."""
        return time.monotonic() >= self.deadline

    def share(self, of: float) -> float:
        """When a share of the time left is over."""
        now = time.monotonic()
        return now + of * (self.deadline - now)

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        self.stage, self.refused = stage, 0
        self.progress(0)

    def progress(self, open_subproblems: int) -> None:
        """Say how far the run is, where somebody wants to know."""
        if self.report is not None:
            seconds = time.monotonic() - self.start
            self.report(Progress(self.stage, self.bound, open_subproblems, self.open_share, seconds, self.upper))

    def replay(self, points: Tensor | None) -> None:
        """Raise ``Decided`` where onnxruntime confirms one of the points; one with a tiny margin is worked on a little
        longer first."""
        self.settle()
        if points is None or self.refused >= MOST_REFUSED:
            return
        found = self.replayer.replay(points.cpu().numpy())
        if found is None:
            self.refused += 1
        elif found.margin >= CLEAR_MARGIN:
            raise Decided(found)
        elif self.narrow is None or found.margin > self.narrow.margin:
            self.narrow_until = time.monotonic() + NARROW_SECONDS if self.narrow is None else self.narrow_until
            self.narrow = found

    def settle(self, finished: bool = False) -> None:
        """Raise ``Decided`` with a counterexample of tiny margin once its time is up, or the attack has finished."""
        if self.narrow is not None and (finished or time.monotonic() >= min(self.narrow_until, self.deadline)):
            raise Decided(self.narrow)

    def attack(self, plan: AttackPlan, until: float, clauses: np.ndarray | None = None) -> None:
        """Search for counterexamples (of some clauses) until the plan is done or the time ``until`` comes."""
        limit, place = None if math.isinf(until) else until, self.problem.box.device
        with torch.enable_grad():
            for points in candidates(self.query, plan, deadline=limit, device=place, indices=clauses):
                with torch.no_grad():
                    self.replay(points)
                if time.monotonic() >= until or self.refused >= MOST_REFUSED:
                    break
        self.settle(finished=True)

    def follow(
        self, search: Search[S], state: S, share: float, outside: tuple[float, float], until: float = math.inf
    ) -> S:
        """Search from a state to the end, the deadline, or the time ``until``: the state then.

        ``share`` is the part of the input set it works on, ``outside`` the least bound and the share of what is open
        outside it.
        """
        rhythm = Rhythm(self.strategy.beside, time.monotonic())
        while not state.finished:
            state, last = search.step(state)
            self.refuted = self.settled + last.refuted
            self.margin = min(self.margin, last.least_margin)
            self.bound = min(outside[0], last.lower_bound)
            self.open_share = outside[1] + share * last.open_share
            self.upper = min(self.upper, last.upper_bound)
            self.progress(last.open_subproblems)
            self.replay(last.points)
            rhythm.hear(last.starts)
            if rhythm.due(time.monotonic()):
                self._attack_beside(rhythm)
            if self.saver is not None and time.monotonic() >= self.saver.due:
                self._save(state)
            if time.monotonic() >= min(until, self.deadline):
                break
        if self.expired() and not state.finished:
            self._save(state)
        self.settle(finished=True)
        return state

    def _attack_beside(self, rhythm: Rhythm) -> None:
        """A few gradient steps from the best points that the search has come by."""
        start, seed = time.monotonic(), self.strategy.attack.seed + rhythm.count
        limit = None if math.isinf(self.deadline) else self.deadline
        for points in near(self.query, rhythm.take(), rhythm.plan, deadline=limit, seed=seed):
            self.replay(points)
        rhythm.note(time.monotonic() - start)

    def _save(self, state: SearchState) -> None:
        """Write a checkpoint, where they are asked for: ``place``, the state of the search, and ``marked``."""
        if self.saver is not None:
            search = {f"search.{name}": values for name, values in state.tensors().items()}
            self.saver.save({**self.place(), **search, **self.marked()})

    def verified(self) -> Verdict:
        """Nothing is open."""
        ready = self.deadline - time.monotonic() >= LEAST_SECONDS
        error = float32_error(self.query, self.exact.device) if ready else math.inf
        return Verified(stage=self.stage, margin=self.margin, subproblems=self.refuted, float32_error=error)

    def undecided(self, reason: str, *, late: bool = False) -> Verdict:
        """Something is open: for a reason, or (none, or the deadline is over) for want of time. ``late``: the reason
        stands though the deadline is over."""
        known = reason and (late or not self.expired())
        word = Unknown(stage=self.stage, reason=reason) if known else TimedOut(stage=self.stage)
        return replace(word, best_bound=self.bound, upper_bound=self.upper, open_share=self.open_share)
