"""A search that is shared with a second process: the same verdicts, and no half is closed unless its borrower says so
of exactly that half."""

from __future__ import annotations

import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import verifier
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier import pipeline, protocol
from verifier.attacks.plan import BesidePlan
from verifier.borrower import Borrower
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen, watched
from verifier.branch.waiting import Waiting
from verifier.checkpoint import identity
from verifier.lending import Lender, Loans, SharedSearch, SharedState
from verifier.process import Event
from verifier.run import Run
from verifier.strategy import AscentPlan, LendPlan, Strategy, choose, features
from verifier.tasks import read_task

AT_ONCE = LendPlan(after=0.0, least=2)
Ask = Callable[[str], protocol.Message]
Choose = Callable[[verifier.Query], Strategy]
Say = Callable[[protocol.Message], None]
Answer = Callable[[protocol.Message, Say], protocol.Message | None]

pytestmark = pytest.mark.usefixtures("one_thread")


class Inside:
    """A borrower without a process: ``answer`` in this one, over messages as they travel."""

    def __init__(self, events: SimpleQueue[Event], answer: Answer, ended: Counter[str]) -> None:
        self.process = SimpleNamespace(pid=1)
        self.events, self.answer, self.ended = events, answer, ended
        self.put({"type": "ready"})

    def put(self, message: protocol.Message | None) -> None:
        self.events.put(Event(self, json.loads(json.dumps(message))))  # type: ignore[arg-type]

    def send(self, request: protocol.Message, attached: bytes = b"") -> None:
        self.ended["loans"] += 1
        answer = self.answer({**request, "data": attached}, self.put)
        self.ended["closed"] += bool(answer and answer.get("closed"))
        self.put(answer)

    def kill(self) -> None:
        self.ended["killed"] += 1


def inside(task: protocol.Message, answer: Answer, ended: Counter[str]) -> Lender:
    return Lender(task, lambda message: None, lambda events: Inside(events, answer, ended))  # type: ignore[arg-type, return-value]


def truthful(request: protocol.Message, say: Say) -> protocol.Message:
    return Borrower().answer(request, say)


def test_a_shared_search_has_the_verdict_of_one_alone(ask: Ask, strategy_of: Choose) -> None:
    task, ended = ask("0.103"), Counter[str]()
    query = read_task(task)
    alone = pipeline.verify(query, strategy=strategy_of(query))
    shares: list[float] = []
    shared = pipeline.verify(
        query,
        strategy=strategy_of(query),
        lender=inside(task, truthful, ended),
        report=lambda p: shares.append(p.open_share),
    )
    assert isinstance(alone, verifier.Verified) and isinstance(shared, verifier.Verified)
    assert ended["loans"] >= 1 and ended["closed"] == ended["loans"] and ended["killed"] == 1
    assert 0.5 * alone.subproblems < shared.subproblems < 2 * alone.subproblems, "both halves are counted"
    assert 0 < shared.margin < 100 * alone.margin
    assert all(0 <= share <= 1 for share in shares)


def test_one_worker_lends_nothing(ask: Ask, strategy_of: Choose, tmp_path: Path) -> None:
    """Nor does a run that writes a record or a checkpoint."""
    task, ended = ask("0.1"), Counter[str]()
    query = read_task(task)
    one = replace(strategy_of(query), workers=1)
    for strategy, files in (one, {}), (strategy_of(query), {"record": "r"}), (strategy_of(query), {"checkpoint": "c"}):
        paths: Any = {name: tmp_path / file for name, file in files.items()}
        verdict = pipeline.verify(query, strategy=strategy, lender=inside(task, truthful, ended), **paths)
        assert isinstance(verdict, verifier.Verified) and not ended


def test_a_counterexample_is_found_wherever_it_is(
    ask: Ask, strategy_of: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The point is named by the borrower, and replayed by the lender."""
    task, ended = ask("0.2"), Counter[str]()
    query = read_task(task)
    found = verifier.verify(query)
    assert isinstance(found, verifier.Violated)
    point = np.concatenate(found.counterexample.inputs)

    def told(request: protocol.Message, say: Say) -> protocol.Message:
        whole = Borrower().answer({**request, "seconds": 0.0}, say)
        return whole | {"closed": False, "points": [point.tolist()]}

    monkeypatch.setattr(Run, "attack", lambda *_: None)
    monkeypatch.setattr(ActivationSplit, "_points", lambda *_: None)
    verdict = pipeline.verify(query, timeout=60, strategy=strategy_of(query), lender=inside(task, told, ended))
    assert isinstance(verdict, verifier.Violated) and ended["loans"] == 1
    assert np.array_equal(np.concatenate(verdict.counterexample.inputs), point)


def crashed(request: protocol.Message, say: Say) -> None:
    return None


def in_trouble(request: protocol.Message, say: Say) -> protocol.Message:
    return {"type": "failure", "kind": "internal", "exit_code": 4, "message": "trouble", "traceback": ""}


def out_of_time(request: protocol.Message, say: Say) -> protocol.Message:
    return Borrower().answer({**request, "seconds": 0.0}, say)


def vague(request: protocol.Message, say: Say) -> protocol.Message:
    return {"type": "returned", "closed": True}


def of_something_else(request: protocol.Message, say: Say) -> protocol.Message:
    return {"type": "returned", "half": "0" * 64, "closed": True, "points": None, "tally": [1.0, 0.1, 1.0]}


def boastful(request: protocol.Message, say: Say) -> protocol.Message:
    """Closed in a word that is no truth value."""
    whole = Borrower().answer({**request, "seconds": 0.0}, say)
    return whole | {"closed": "yes"}


def given_another_half(request: protocol.Message, say: Say) -> protocol.Message:
    """A seeded fault: what was lent is lost on the way, and the rest (nothing) is closed truthfully."""
    return Borrower().answer(emptied(request), say)


def emptied(request: protocol.Message) -> protocol.Message:
    with np.load(io.BytesIO(request["data"])) as file:
        arrays = dict(file)
    packed = io.BytesIO()
    parts = ("search.open.", "search.late.")
    np.savez(packed, **{n: v[:0] if n.startswith(parts) else v for n, v in arrays.items()})  # type: ignore[arg-type]
    return {**request, "data": packed.getvalue()}


BAD = [crashed, in_trouble, out_of_time, vague, of_something_else, boastful, given_another_half]


@pytest.mark.parametrize("answer", BAD)
def test_a_half_that_is_not_proven_closed_is_worked_off_here(ask: Ask, strategy_of: Choose, answer: Answer) -> None:
    task, ended = ask("0.103"), Counter[str]()
    query = read_task(task)
    alone = pipeline.verify(query, strategy=strategy_of(query))
    verdict = pipeline.verify(query, strategy=strategy_of(query), lender=inside(task, answer, ended))
    assert isinstance(alone, verifier.Verified) and isinstance(verdict, verifier.Verified)
    assert ended["loans"] == 1 and ended["killed"] == 1, "nothing is lent again"
    assert verdict.subproblems >= 0.5 * alone.subproblems


# --- searches alone ------------------------------------------------------------------------------


def quiet(query: verifier.Query) -> Run:
    """A run of a query whose points nobody replays."""
    exact = prepare(query.graph, torch.float64, rounding=Rounding.of(torch.float64))
    plans = prepare(query.graph, torch.float32), exact
    options = AscentPlan(root_steps=8, steps=4, last_steps=20, batch=4, candidates=0)
    strategy = replace(choose(features(query)), activation_split=options, beside=BesidePlan(share=0.0), lend=AT_ONCE)
    strategy = replace(strategy, split_inputs=False)
    nobody: Any = SimpleNamespace(replay=lambda points: None)
    return Run(query, Problem.of(query), *plans, strategy, nobody, 0.0, math.inf)


def searches(run: Run, lender: Lender, seconds: float) -> Iterator[tuple[SharedSearch, SharedState]]:
    """A shared search for each task that bounds leave open."""
    plans, plan = (run.rough, run.exact), run.strategy.activation_split
    for task in [found for _, part in screen(run.problem, run.exact) for found in part.open]:
        refined = refine(run.problem, plans, task, 0, math.inf)
        place = Waiting((refined,), interrupted=True).tensors(watched(run.exact, refined))
        made_for = identity(run.query, run.strategy)
        loans = Loans(lender, run.strategy.lend, made_for, place, time.monotonic() + seconds)
        search = SharedSearch(ActivationSplit(run.problem, plans, refined, plan), loans)
        yield search, search.start()


def shared_engine(answer: Callable[[Run], Answer], ended: Counter[str], rounds: int) -> Callable[..., bool]:
    """Whether a query is refuted within some rounds, with a second process for half of the work."""

    def engine(query: verifier.Query, budget: object) -> bool:
        run = quiet(query)
        for search, state in searches(run, inside({}, answer(run), ended), 0.2):
            for _ in range(rounds):
                if state.finished:
                    break
                state, _ = search.step(state)
            if not state.finished or state.stuck.size:
                return False
        return True

    return engine


def of_run(run: Run) -> Answer:
    known = Borrower()
    known.run = run
    return known.answer


def test_a_planted_counterexample_stays_open(planted: ModuleType) -> None:
    ended = Counter[str]()
    counts = planted.gate(shared_engine(of_run, ended, 6), 1, 10, twins=10, dense=True)
    assert counts["planted, open"] == 10 and ended["loans"] >= 2, (counts, ended)


def test_a_planted_counterexample_is_not_lost_with_its_half(planted: ModuleType) -> None:
    """What was lent is lost on the way, and the rest (nothing) is closed truthfully."""

    def robbed(run: Run) -> Answer:
        return lambda request, say: of_run(run)(emptied(request), say)

    ended = Counter[str]()
    counts = planted.gate(shared_engine(robbed, ended, 12), 1, 6, twins=60)
    assert counts["planted, open"] == 6 and ended["closed"] >= 1, (counts, ended)


def test_both_halves_are_all_of_it(planted: ModuleType) -> None:
    """Every subproblem is in one of them, with its bound and splits; the least bounds are shared out."""
    looked = 0
    for one in planted.instances(3, 5):
        with torch.no_grad():
            run = quiet(one.query)
            lender = inside({}, crashed, Counter())
            for shared, begun in searches(run, lender, math.inf):
                state = begun.own
                for _ in range(4):
                    state = state if state.finished else shared.search.step(state)[0]
                whole, (mine, lent) = state.open, state.open.halved()
                looked += whole.size > 3
                assert mine.size + lent.size == whole.size and mine.size - lent.size in (0, 1)
                rows = [rows_of(part) for part in (whole, mine, lent, mine.joined(lent))]
                assert rows[0] == rows[1] + rows[2] == rows[3]
                if lent.size:
                    assert mine.bound.amin() == whole.bound.amin()
                    assert lent.bound.amin() == whole.bound.sort().values[1]
    assert looked


def rows_of(part: Any) -> Counter[tuple[Any, ...]]:
    found = Counter[tuple[Any, ...]]()
    for packed in (part.warm, part.cold):
        pairs = zip(packed.place.tolist(), packed.sparse["signs"].tolist(), strict=True)
        signs = [tuple(sorted((p, s) for p, s in zip(*pair, strict=True) if p)) for pair in pairs]
        found.update(zip(packed.bound.tolist(), packed.whole["clause"].tolist(), signs, strict=True))
    return found
