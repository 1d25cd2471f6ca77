"""From a query to a verdict: attack, bound, branch; every candidate is replayed, every refutation has error terms.

The stages run in order until one decides. Each is an iterator of steps, so the time limit is looked at between
steps and the best bound so far is always known.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bounds.plan import prepare
from bounds.rounding import Rounding, plain_products
from verifier.activation_stage import split_activations
from verifier.attacks.problems import nearest_clauses, of_clauses
from verifier.attacks.trial import Attack
from verifier.attacks.trial import attack as run_attack
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Misfit, Problem
from verifier.branch.root import real_status
from verifier.checkpoint import Saved, Saver, identity, of_search
from verifier.errors import InputError
from verifier.lending import Lender
from verifier.query import Query
from verifier.record.frames import RecordError
from verifier.record.writer import Mark, Recorder, about
from verifier.replay import Replayer
from verifier.run import Decided, Run
from verifier.strategy import Strategy, choose, features
from verifier.verdict import Progress, TimedOut, Unknown, Verdict, Verified, Violated


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
    lender: Lender | None = None,
) -> Verdict:
    """Decide a query (see ``verifier.api.verify``); ``strategy`` overrides what ``strategy.choose`` would choose.
    ``lender`` shares a long search with a second process, which reads the query again by itself."""
    start = time.monotonic()
    times = start, math.inf if timeout is None else start + timeout
    strategy = choose(features(query), seed) if strategy is None else strategy
    place = choose_device(device)
    saver = None if checkpoint is None else Saver(Path(checkpoint), identity(query, strategy))
    saved = saver.load() if saver is not None and len(query.cases.lower) else None
    with contextlib.ExitStack() as stack:
        recorder = None
        if record is not None:
            recorder, saved = _recorder(record, about(query, strategy), saver, saved)
            stack.enter_context(recorder)
        if lender is not None:
            stack.enter_context(lender)
        verdict = _decide(query, times, place, strategy, _Listeners(report, recorder, saver, saved, lender))
        verdict = verdict if recorder is None else recorder.close(verdict)
    notes = (*query.notes, *verdict.notes, *(saver.notes if saver is not None else ()))
    return replace(verdict, seconds=time.monotonic() - start, notes=notes)


@dataclass(frozen=True, slots=True)
class _Listeners:
    """Who hears of a run: its caller, its record, its checkpoint, and what this has ``saved`` of an earlier run; who
    shares its work."""

    report: Callable[[Progress], None] | None = None
    recorder: Recorder | None = None
    saver: Saver | None = None
    saved: Saved | None = None
    lender: Lender | None = None


def _recorder(
    path: str | Path, about: Mapping[str, Any], saver: Saver | None, saved: Saved | None
) -> tuple[Recorder, Saved | None]:
    """The record, and what is left of a checkpoint: nothing, where the record that it was written with is another."""
    if saver is None or saved is None:
        return Recorder(path, about), None
    mark = Mark.restored(saved)
    if mark is None:
        recorder = Recorder(path, about)
        recorder.fail("the run went on from a checkpoint, and what came before is not in it")
        return recorder, saved
    try:
        return Recorder(path, about, mark), saved
    except RecordError as error:
        saver.refuse(str(error))
        return Recorder(path, about), None


def _decide(
    query: Query, times: tuple[float, float], place: torch.device, strategy: Strategy, listeners: _Listeners
) -> Verdict:
    if not len(query.cases.lower):
        return Verified(stage="property")
    saver, recorder = listeners.saver, listeners.recorder
    with torch.no_grad(), plain_products():
        run = prepared(query, times, place, strategy)
        run.report, run.saver, run.lender = listeners.report, saver, listeners.lender
        if recorder is not None:
            run.write, run.marked = recorder.write, recorder.marked
        try:
            verdict = _stages(run, listeners.saved)
        except Decided as decided:
            verdict = Violated(stage=run.stage, counterexample=decided.counterexample)
        except Misfit as error:
            raise InputError(f"a checkpoint that does not fit: {error}: remove the file to start anew") from error
    if saver is not None and not isinstance(verdict, TimedOut):
        saver.remove()
    return verdict


def prepared(query: Query, times: tuple[float, float], place: torch.device, strategy: Strategy) -> Run:
    """A run of a query from a start to a deadline, which nobody hears of yet."""
    exact = prepare(query.graph, torch.float64, place, Rounding.of(torch.float64))
    return Run(
        query,
        Problem.of(query, place),
        prepare(query.graph, torch.float32, place),
        exact,
        strategy,
        Replayer(query, lambda query, point, clause: real_status(query, exact, point, clause)),
        *times,
    )


def _stages(run: Run, saved: Saved | None) -> Verdict:
    if saved is None:
        run.enter("attack")
        run.attack(run.strategy.attack, run.deadline)
        if run.expired():
            return run.undecided("")
    if not len(run.query.cases.form):
        return run.undecided(
            "a clause without literals holds everywhere, but onnxruntime confirmed no point of its box"
        )
    if run.strategy.programs is not None:
        from verifier.exact.stage import settle_programs  # the solver takes its time to load

        return settle_programs(run, run.strategy.programs)
    if run.strategy.split_inputs:
        return _split_inputs(run, saved)
    return split_activations(run, saved)


def _split_inputs(run: Run, saved: Saved | None) -> Verdict:
    run.enter("input split")
    quick = prepare(run.query.graph, torch.float32, run.problem.box.device, Rounding.of(torch.float32))
    search = InputSplit(run.problem, (quick, run.exact), run.strategy.input_split, run.deadline, run.write)
    state = search.start() if saved is None else search.restore(of_search(saved))
    state = run.follow(search, state, 1.0, (math.inf, 0.0))
    if not state.finished:
        return run.undecided("")
    return run.undecided("boxes too small to be bisected stay open") if state.stuck.size else run.verified()


ROUNDS = 8
"""Rounds of an attack by itself, where no time limit ends it."""

MOST_CLAUSES = 256
"""Clauses that attacks of the caller's choice are run on."""


def attack(
    query: Query,
    *,
    attacks: Sequence[Attack] | None = None,
    timeout: float | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Progress], None] | None = None,
) -> Violated | Unknown:
    """Search for a counterexample and for nothing else (see ``verifier.api.attack``)."""
    start = time.monotonic()
    times = start, math.inf if timeout is None else start + timeout
    strategy = choose(features(query), seed)
    plan = replace(strategy.attack, rounds=ROUNDS if timeout is None else sys.maxsize)
    verdict: Violated | Unknown = Unknown(stage="property", reason="no input satisfies the property")
    if len(query.cases.lower):
        with torch.no_grad(), plain_products():
            run = prepared(query, times, choose_device(device), strategy)
            run.report = report
            run.enter("attack")
            try:
                if attacks is None:
                    run.attack(plan, run.deadline)
                else:
                    _attack_with(run, attacks, seed)
                verdict = Unknown(stage=run.stage, reason="no counterexample was found, which proves nothing")
            except Decided as decided:
                verdict = Violated(stage=run.stage, counterexample=decided.counterexample)
    return replace(verdict, seconds=time.monotonic() - start, notes=(*query.notes, *verdict.notes))


def _attack_with(run: Run, attacks: Sequence[Attack], seed: int) -> None:
    """One attack after the other, on the clauses that are nearest to being true."""
    device = run.problem.box.device
    problem = of_clauses(run.query, nearest_clauses(run.query, MOST_CLAUSES, device), device)
    for number, method in enumerate(attacks):
        found = run_attack(problem, method, seed=seed + number, until=run.deadline)
        order = found.margin.argsort()
        run.replay(found.points[order][found.found[order]] if bool(found.found.any()) else None)
    run.settle(finished=True)


def choose_device(name: str) -> torch.device:
    """The torch device that a user's word means; raises ``InputError`` where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r} does not exist here: {torch.cuda.device_count()} CUDA devices are visible")
    return device
