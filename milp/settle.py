"""One model from both sides: a solver's search for good points, then a proof of every leaf that begins with the best.

The solver's search is quick and proves nothing; its points are worth trying, and where it says that the minimum lies
tells whether a proof is in reach. The own search (``exact.py``) solves linear programs and trusts none of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from milp.exact import Answer, Goal, Outcome, Search, SearchState
from milp.highs import InProcess, Limits, Progress, Runner
from milp.model import Model, Solution, Status
from milp.simplex import Simplex

SOLVER_SHARE = 0.5
"""Of the time limit, what the solver's own search may take; the rest is for the proof."""

INTERVAL = 0.1
"""Seconds between two reports."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the work on a model is: the proven ``bound`` of its minimum, the least ``value`` of a candidate (inf:
    none), what the solver has ``claimed`` of the bound (-inf: nothing), subproblems ``open``, ``seconds`` so far.

    ``point``: the candidate, where the work found it (None: it did not): columns ``[C]`` from ``settle``, an input
    ``[1, *input shape]`` from ``minimum`` and ``distortion``.
    """

    bound: float
    value: float
    claimed: float
    open: int
    seconds: float
    point: Tensor | None = None


Watch = Callable[[Standing], None]


def with_points(watch: Watch | None, point: Callable[[Tensor], Tensor | None]) -> Watch | None:
    """A watch that hears ``point(x)`` where the work on a model says ``x``."""
    if watch is None:
        return None

    def hear(standing: Standing) -> None:
        watch(standing if standing.point is None else replace(standing, point=point(standing.point)))

    return hear


@dataclass(frozen=True, slots=True, eq=False)
class Effort:
    """What the work on a model may take: ``seconds`` (None: no limit), of which the ``runner`` that solves it first
    takes half at most (None: it is left out). ``watch`` hears about ten times a second how far it is."""

    seconds: float | None = None
    runner: Runner | None = field(default_factory=InProcess)
    watch: Watch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """``answer``: what is proven; ``claimed``: the solver's lower bound, to its tolerances (-inf: none), and how its
    run ended (``claim``; None: it was not asked)."""

    answer: Answer
    claimed: float
    claim: Solution | None

    @property
    def failed(self) -> str:
        """Why the solver's run failed ("": it did not)."""
        return self.claim.reason if self.claim is not None and self.claim.status is Status.FAILED else ""


def settle(
    model: Model,
    goal: Goal,
    effort: Effort = Effort(),
    *,
    known: float = -math.inf,
    best: float = math.inf,
    first: Tensor | None = None,
) -> Settled:
    """Reach ``goal`` on a model whose minimum is proven to be at least ``known``.

    ``best``: the value of a candidate that is there already (the answer's ``x`` is None where no better one is found);
    ``first`` ``[C]``: a point to begin with (``milp.highs.filled``). The answer's ``bound`` is at least ``known``.
    """
    seconds, watch = effort.seconds, effort.watch
    start = time.monotonic()
    until = math.inf if seconds is None else start + seconds
    work, claim = Search(model, Simplex(model), goal, until=until), None
    state = replace(work.start(), value=best)
    if first is not None:
        state = _with_point(state, goal, Solution(Status.LIMIT, float(model.cost @ first), -math.inf, first))
    if effort.runner is not None:
        limit = None if seconds is None else seconds * SOLVER_SHARE
        ear = None if watch is None else _Ear(watch, goal, known, state.value, state.x)
        claim = effort.runner(model, _limits(goal, limit), start=first, watch=ear)
        state = _with_point(state, goal, claim)
    claimed = -math.inf if claim is None or claim.status is Status.FAILED else claim.bound
    spoke = time.monotonic()
    while not (work.finished(state) or goal.closes(known, state.value)):
        if time.monotonic() >= until:
            break
        state = work.step(state)
        if watch is not None and time.monotonic() - spoke >= INTERVAL:
            spoke = time.monotonic()
            count = len(state.open) + (state.next is not None) + len(state.stuck)
            watch(Standing(max(state.bound, known), state.value, claimed, count, spoke - start, state.x))
    answer = work.terminate(state)
    outcome = Outcome.PROVEN if goal.closes(known, state.value) else answer.outcome
    return Settled(replace(answer, outcome=outcome, bound=max(answer.bound, known)), claimed, claim)


def _limits(goal: Goal, seconds: float | None) -> Limits:
    """Enough is known where the solver's bound exceeds the threshold, or a point does not."""
    return Limits(seconds, bound=goal.threshold, value=goal.threshold)


@dataclass(slots=True)
class _Ear:
    """Passes the solver's words on, its points with the values that they really have. State: the best of them."""

    watch: Watch
    goal: Goal
    known: float
    value: float
    x: Tensor | None

    def __call__(self, progress: Progress) -> None:
        if progress.x is not None:
            value = progress.value if self.goal.evaluate is None else self.goal.evaluate(progress.x)
            if value < self.value:
                self.value, self.x = value, progress.x
        self.watch(Standing(self.known, self.value, progress.bound, 1, progress.seconds, self.x))


def _with_point(state: SearchState, goal: Goal, found: Solution) -> SearchState:
    """The start of a proof that knows the solver's point, at the value that it really has."""
    if found.x is None:
        return state
    value = found.value if goal.evaluate is None else goal.evaluate(found.x)
    return replace(state, value=value, x=found.x) if value < state.value else state
