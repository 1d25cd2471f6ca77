"""From a query to a verdict: attack, bound, branch; every candidate is replayed, every refutation has error terms.

The stages run in order until one decides. Each is an iterator of steps, so the time limit is looked at between
steps and the best bound so far is always known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bounds.ops.base import Interval
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding, plain_products
from verifier.attacks.beside import Rhythm, near
from verifier.attacks.plan import AttackPlan
from verifier.attacks.search import candidates
from verifier.branch.activation_split import ActivationSplit, SplitState
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Misfit, OpenTask, Problem, S, Search, SearchState, Step, Tally
from verifier.branch.root import real_status, recall, refine, refine_by_splits, screen, watched
from verifier.branch.waiting import Waiting, bounds_of
from verifier.checkpoint import Saved, Saver, identity, of_search
from verifier.errors import InputError
from verifier.query import Query
from verifier.record import inner
from verifier.record.entries import Write
from verifier.record.roots import keeping
from verifier.record.writer import Recorder, about
from verifier.replay import Replayer
from verifier.runtime_error import LEAST_SECONDS, float32_error
from verifier.strategy import Strategy, choose, features
from verifier.verdict import Counterexample, Progress, TimedOut, Unknown, Verdict, Verified, Violated

MOST_REFUSED = 64
"""Replays that may fail at one stage before its candidates are no longer tried: each costs a run of the network."""


CLEAR_MARGIN = 1e-5
"""A counterexample with a smaller margin may be a rounding error of one machine: a better one is looked for ..."""

NARROW_SECONDS = 1.0
"""... for this long."""


class _Decided(Exception):
    """A candidate was replayed: control flow of this module only."""

    def __init__(self, counterexample: Counterexample) -> None:
        super().__init__()
        self.counterexample = counterexample


@dataclass(slots=True)
class _Run:
    """One verification under way: what it works on, its limits, and what is known so far."""

    query: Query
    problem: Problem
    rough: Plan
    exact: Plan
    strategy: Strategy
    replayer: Replayer
    start: float
    deadline: float
    report: Callable[[Progress], None] | None
    write: Write | None
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
    saver: Saver | None = None
    place: Callable[[], dict[str, Tensor]] = dict

    def expired(self) -> bool:
        return time.monotonic() >= self.deadline

    def enter(self, stage: str) -> None:
        self.stage, self.refused = stage, 0
        self.progress(0)

    def progress(self, open_subproblems: int) -> None:
        if self.report is not None:
            seconds = time.monotonic() - self.start
            self.report(Progress(self.stage, self.bound, open_subproblems, self.open_share, seconds, self.upper))

    def replay(self, points: Tensor | None) -> None:
        """Raise ``_Decided`` where onnxruntime confirms one of the points; one with a tiny margin is worked on a little
        longer first."""
        self.settle()
        if points is None or self.refused >= MOST_REFUSED:
            return
        found = self.replayer.replay(points.cpu().numpy())
        if found is None:
            self.refused += 1
        elif found.margin >= CLEAR_MARGIN:
            raise _Decided(found)
        elif self.narrow is None or found.margin > self.narrow.margin:
            self.narrow_until = time.monotonic() + NARROW_SECONDS if self.narrow is None else self.narrow_until
            self.narrow = found

    def settle(self, finished: bool = False) -> None:
        """Raise ``_Decided`` with a counterexample of tiny margin once its time is up, or the attack has finished."""
        if self.narrow is not None and (finished or time.monotonic() >= min(self.narrow_until, self.deadline)):
            raise _Decided(self.narrow)

    def follow(
        self, search: Search[S], state: S, share: float, before: float, until: float = math.inf
    ) -> tuple[S, Step | None]:
        """Search from a state to the end, the deadline, or the time ``until``: the state then, and the last step (None:
        there was none left).

        ``share`` is the part of the input set it works on, ``before`` the open share outside it.
        """
        last: Step | None = None
        rhythm = Rhythm(self.strategy.beside, time.monotonic())
        while not state.finished:
            state, last = search.step(state)
            self.refuted = self.settled + last.refuted
            self.margin = min(self.margin, last.least_margin)
            self.bound, self.open_share = last.lower_bound, before + share * last.open_share
            self.upper = min(self.upper, last.upper_bound)
            self.progress(last.open_subproblems)
            self.replay(last.points)
            rhythm.hear(last.starts)
            if rhythm.due(time.monotonic()):
                self._attack_beside(rhythm)
            if self.saver is not None and time.monotonic() >= self.saver.due:
                self.keep(state)
            if time.monotonic() >= min(until, self.deadline):
                break
        if self.expired() and not state.finished:
            self.keep(state)
        self.settle(finished=True)
        return state, last

    def _attack_beside(self, rhythm: Rhythm) -> None:
        """A few gradient steps from the best points that the search has come by."""
        start, seed = time.monotonic(), self.strategy.attack.seed + rhythm.count
        limit = None if math.isinf(self.deadline) else self.deadline
        for points in near(self.query, rhythm.take(), rhythm.plan, deadline=limit, seed=seed):
            self.replay(points)
        rhythm.note(time.monotonic() - start)

    def keep(self, state: SearchState) -> None:
        """Write a checkpoint, where they are asked for: ``place`` and the state of the search."""
        if self.saver is not None:
            search = {f"search.{name}": values for name, values in state.tensors().items()}
            self.saver.save({**self.place(), **search})


def verify(  # noqa: PLR0913 - the questions that a caller may ask
    query: Query,
    *,
    timeout: float | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Progress], None] | None = None,
    strategy: Strategy | None = None,
    record: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Verdict:
    """Decide a query (see ``verifier.api.verify``); ``strategy`` overrides what ``strategy.choose`` would choose."""
    start = time.monotonic()
    times = start, math.inf if timeout is None else start + timeout
    strategy = choose(features(query), seed) if strategy is None else strategy
    place = choose_device(device)
    saver = None if checkpoint is None else Saver(Path(checkpoint), identity(query, strategy))
    if record is None:
        verdict = _decide(query, times, place, strategy, _Listeners(report, None, saver))
    else:
        with Recorder(record, about(query, strategy)) as recorder:
            verdict = recorder.close(_decide(query, times, place, strategy, _Listeners(report, recorder, saver)))
    notes = (*query.notes, *verdict.notes, *(saver.notes if saver is not None else ()))
    return replace(verdict, seconds=time.monotonic() - start, notes=notes)


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Who hears of a run: its caller, its record, its checkpoint."""

    report: Callable[[Progress], None] | None
    recorder: Recorder | None
    saver: Saver | None


def _decide(
    query: Query, times: tuple[float, float], place: torch.device, strategy: Strategy, listeners: _Listeners
) -> Verdict:
    if not len(query.cases.lower):
        return Verified(stage="property")
    saver = listeners.saver
    saved, recorder = None if saver is None else saver.load(), listeners.recorder
    if saved is not None and recorder is not None:
        recorder.fail("the run went on from a checkpoint, and what came before is not in it")
    with torch.no_grad(), plain_products():
        exact = prepare(query.graph, torch.float64, place, Rounding.of(torch.float64))
        run = _Run(
            query,
            Problem.of(query, place),
            prepare(query.graph, torch.float32, place),
            exact,
            strategy,
            Replayer(query, lambda query, point, clause: real_status(query, exact, point, clause)),
            *times,
            listeners.report,
            None if recorder is None else recorder.write,
            saver=saver,
        )
        try:
            verdict = _stages(run, saved)
        except _Decided as decided:
            verdict = Violated(stage=run.stage, counterexample=decided.counterexample)
        except Misfit as error:
            raise InputError(f"a checkpoint that does not fit: {error}: remove the file to start anew") from error
    if saver is not None and not isinstance(verdict, TimedOut):
        saver.remove()
    return verdict


def _stages(run: _Run, saved: Saved | None) -> Verdict:
    if saved is None:
        run.enter("attack")
        _attack(run, run.strategy.attack, run.deadline)
        if run.expired():
            return _open(run, "")
    if not len(run.query.cases.form):
        return _open(run, "a clause without literals holds everywhere, but onnxruntime confirmed no point of its box")
    if run.strategy.split_inputs:
        return _split_inputs(run, saved)
    return _split_activations(run, saved)


def _attack(run: _Run, plan: AttackPlan, deadline: float, clauses: np.ndarray | None = None) -> None:
    """Search for counterexamples (of some clauses) until the plan is done or the time comes."""
    limit = None if math.isinf(deadline) else deadline
    place = run.problem.box.device
    with torch.enable_grad():
        for points in candidates(run.query, plan, deadline=limit, device=place, indices=clauses):
            with torch.no_grad():
                run.replay(points)
            if time.monotonic() >= deadline or run.refused >= MOST_REFUSED:
                break
    run.settle(finished=True)


def _split_inputs(run: _Run, saved: Saved | None) -> Verdict:
    run.enter("input split")
    quick = prepare(run.query.graph, torch.float32, run.problem.box.device, Rounding.of(torch.float32))
    search = InputSplit(run.problem, (quick, run.exact), run.strategy.input_split, run.deadline, run.write)
    state = search.start() if saved is None else search.restore(of_search(saved))
    _, last = run.follow(search, state, 1.0, 0.0)
    if last is None or last.open_subproblems == 0:
        return _verified(run)
    stuck = "boxes too small to be bisected stay open" if last.open_subproblems == last.stuck else ""
    return _open(run, stuck)


def _split_activations(run: _Run, saved: Saved | None) -> Verdict:
    """Bound all boxes at once; those that stay open one by one, with better bounds and splits."""
    waiting = _screened(run) if saved is None else Waiting.restored(saved, run.exact.device)
    while waiting is not None and waiting.at < len(waiting.tasks):
        last = _split_task(run, waiting, saved)
        if run.expired() and (last is None or last.open_subproblems):
            return _open(run, "")
        tally = Tally(run.refuted, run.margin, run.upper)
        waiting, saved = waiting.next(0 if last is None else last.stuck, tally), None
    if waiting is None:
        return _open(run, "")
    stuck = waiting.stuck
    return _open(run, f"{stuck} subproblems stay open with nothing left to split") if stuck else _verified(run)


def _screened(run: _Run) -> Waiting | None:
    """The tasks that bounds alone leave open; None where the time is up."""
    run.enter("root bounds")
    problem = run.problem
    open_tasks: list[OpenTask] = []
    for done, part in screen(problem, run.exact, run.deadline):
        run.refuted += part.refuted
        run.margin = min(run.margin, part.least_margin)
        open_tasks += part.open
        run.open_share = (len(open_tasks) + problem.tasks - done) / problem.tasks
        run.bound = min((p.bound for p in [part] if p.open), default=run.bound)
        run.progress(len(open_tasks))
        if run.expired():
            return None
    return Waiting(tuple(open_tasks), Tally(run.refuted, run.margin))


def _split_task(run: _Run, waiting: Waiting, saved: Saved | None) -> Step | None:
    """Branch on one box; a search that lasts is interrupted once, for a longer attack on what is open and
    for better bounds of inner neurons."""
    run.enter("activation split")
    run.settled, run.margin, run.upper = waiting.tally.refuted, waiting.tally.least_margin, waiting.tally.upper_bound
    plan, plans, total = run.strategy.activation_split, (run.rough, run.exact), run.problem.tasks
    if saved is None:
        now = time.monotonic()
        until = now + plan.intermediate_share * (run.deadline - now)
        keep = keeping(run.write, waiting.task.task)
        refined = refine(run.problem, plans, waiting.task, plan.intermediate_steps, until, keep)
        search = ActivationSplit(run.problem, plans, refined, plan, run.write)
        state = search.start()
    else:
        refined = recall(run.problem, run.exact, waiting.task, bounds_of(saved, run.exact.device))
        search = ActivationSplit(run.problem, plans, refined, plan)
        state = search.restore(of_search(saved))
    known = watched(run.exact, refined)
    run.place = lambda: waiting.tensors(known)
    share, before = 1 / total, (len(waiting.tasks) - waiting.at - 1) / total
    if saved is not None and waiting.attacked:  # and so was interrupted before
        return run.follow(search, state, share, before)[1]
    state, last = run.follow(search, state, share, before, time.monotonic() + run.strategy.attack_after)
    if last is None or not last.open_subproblems or run.expired():
        return last
    if not waiting.at:  # one attack on all open tasks is enough
        _attack_longer(run, waiting.tasks)
    search, state, known = _better(run, search, state, refined)
    run.place = lambda: replace(waiting, attacked=True).tensors(known)
    run.enter("activation split")
    return run.follow(search, state, share, before)[1] or last


def _better(
    run: _Run, search: ActivationSplit, state: SplitState, refined: OpenTask
) -> tuple[ActivationSplit, SplitState, dict[int, Interval]]:
    """A search with better bounds of inner neurons, from its start (what is open was bounded with worse lines); the
    same search where there are none."""
    run.enter("inner bounds")
    plan, plans, now = run.strategy.activation_split, (run.rough, run.exact), time.monotonic()
    until, keep = now + plan.inner_share * (run.deadline - now), inner.keeping(run.write, refined.task)
    better = refine_by_splits(run.problem, plans, refined, plan.inner, until, keep)
    if better is not refined:
        run.refuted = run.settled
        search = ActivationSplit(run.problem, plans, better, plan, run.write)
        state = search.start()
    return search, state, watched(run.exact, better)


def _attack_longer(run: _Run, tasks: Sequence[OpenTask]) -> None:
    """A second attack, on the clauses that bounds left open, for a share of the time left."""
    now, strategy = time.monotonic(), run.strategy
    until = now + min(strategy.attack_seconds, strategy.attack_share * (run.deadline - now))
    clauses = [run.problem.clauses[t.task][t.alive] for t in tasks]
    if clauses:
        run.enter("longer attack")
        plan = replace(strategy.attack, rounds=strategy.attack_rounds, seed=strategy.attack.seed + 1)
        _attack(run, plan, until, torch.cat(clauses).cpu().numpy())


def _verified(run: _Run) -> Verdict:
    ready = run.deadline - time.monotonic() >= LEAST_SECONDS
    error = float32_error(run.query, run.exact.device) if ready else math.inf
    return Verified(stage=run.stage, margin=run.margin, subproblems=run.refuted, float32_error=error)


def _open(run: _Run, reason: str) -> Verdict:
    word = Unknown(stage=run.stage, reason=reason) if reason and not run.expired() else TimedOut(stage=run.stage)
    return replace(word, best_bound=run.bound, upper_bound=run.upper, open_share=run.open_share)


def choose_device(name: str) -> torch.device:
    """The torch device that a user's word means; raises ``InputError`` where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} does not exist here: {torch.cuda.device_count()} CUDA devices are visible")
    return device
