"""Half of the open subproblems of a long search, lent to a second process on the same machine.

The lender keeps all that it lends. The borrower (``borrower.py``) reads the query again by itself, works on the half,
and says at the end that it is closed, or names a point to replay, or says nothing of use. A half counts as refuted only
after "closed" for exactly that half: the answer repeats a hash over the query, the bounds of the box and every lent
subproblem, which the borrower takes over what it has read and this side over what it keeps. After any other end (a
crash, an error, want of time, another hash) the half is open as before and its lender goes on with it, alone from then
on. The borrower is believed like the search itself: it is the same program.
"""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.branch.activation_split import ActivationSplit, SplitState
from verifier.branch.open_splits import OpenSplits
from verifier.branch.problem import Pending, Step, Tally
from verifier.checkpoint import digest_of
from verifier.process import Event, WorkerProcess, worker_command
from verifier.protocol import Message
from verifier.strategy import LendPlan
from verifier.verdict import Progress

PATIENCE = 0.1
"""Seconds between two looks at the deadline where nothing is left but to wait."""
SILENCE = 60.0
"""Seconds after which a borrower that says nothing is given up."""
Start = Callable[[SimpleQueue[Event]], WorkerProcess]
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Returned:
    """How a loan ended: ``closed`` (all of the half is refuted) with what was counted on the way, or not, where
    ``points`` ``[P, n]`` may be counterexamples."""

    closed: bool = False
    tally: Tally = field(default_factory=Tally)
    points: Tensor | None = None


def second_process(events: SimpleQueue[Event]) -> WorkerProcess:
    """The process of ``borrower.py``, in our process group and with one thread."""
    return WorkerProcess(events, threads=1, command=worker_command("verifier.borrower"), leader=False)


class Lender:
    """The second process of one run, started when it is first wanted and ended with the run.

    ``task`` is what it reads the query from. ``say`` is told its process id (``{"type": "second"}``). ``start`` makes
    the process (tests put another one there).
    """

    def __init__(self, task: Message, say: Callable[[Message], None], start: Start | None = None) -> None:
        self.progress = Progress("start")
        self._task, self._say, self._start_process = task, say, start or second_process
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._process: WorkerProcess | None = None
        self._ready = self._failed = False
        self._threads = torch.get_num_threads()
        self._lent: str | None = None
        self._heard = self._begun = 0.0

    def __enter__(self) -> Lender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def ready(self) -> bool:
        """Whether something may be lent now; the process is started by the first question."""
        if self._process is None and not self._failed:
            self._start()
        return self._ready and self._lent is None and not self._failed

    def lend(self, made_for: Mapping[str, Any], state: Mapping[str, Tensor], seconds: float) -> None:
        """Hand over the state of a search, to be worked on for so many ``seconds`` (inf: no limit)."""
        assert self._process is not None
        arrays = {name: values.numpy(force=True) for name, values in state.items()}
        self._lent = digest_of(made_for, arrays)
        self._heard = self._begun = time.monotonic()
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        left = None if math.isinf(seconds) else seconds
        request = {"type": "borrow", "task": self._task, "seed": made_for["seed"], "seconds": left}
        self._process.send(request, packed.getvalue())

    def hear(self, patience: float) -> Returned | None:
        """How the loan ended, where that was heard of within ``patience`` seconds."""
        while True:
            try:
                event = self._events.get(timeout=patience) if patience else self._events.get_nowait()
            except Empty:
                lost = self._lent is not None and time.monotonic() - self._heard > SILENCE
                return self._give_up("says nothing") if lost else None
            self._heard, patience = time.monotonic(), 0.0
            try:
                ended = self._take_in(event.message)
            except (KeyError, TypeError, ValueError, RuntimeError):
                ended = self._give_up("says what means nothing")
            if ended is not None:
                return ended

    def _take_in(self, message: Message | None) -> Returned | None:
        match message and message.get("type"):
            case "ready":
                self._ready = True
            case "progress" if message:
                self.progress = Progress(**{key: value for key, value in message.items() if key != "type"})
            case "returned" if message and self._lent is not None and message["half"] == self._lent:
                if message["closed"] is not True:
                    points = message["points"]
                    found = torch.tensor(points, dtype=torch.float64) if points else None
                    return replace(self._give_up("leaves its half open"), points=found)
                self._lent = None
                _LOG.info("the lent half is closed after %.1f s", time.monotonic() - self._begun)
                return Returned(True, Tally.restored(torch.tensor(message["tally"], dtype=torch.float64)))
            case "returned":
                return self._give_up("answers for something else than was lent")
            case _ if message:
                return self._give_up(str(message.get("message")))
            case _:
                return self._give_up("has ended")
        return None

    def _start(self) -> None:
        """Start the process; ours keeps to one core from now on."""
        torch.set_num_threads(1)
        try:
            self._process = self._start_process(self._events)
        except OSError as error:
            self._give_up(str(error))
            return
        self._say({"type": "second", "pid": self._process.process.pid})

    def _give_up(self, reason: str) -> Returned:
        """Whatever was lent is open, and nothing will be lent again."""
        _LOG.info("the second process %s", reason)
        self._end()
        return Returned()

    def _end(self) -> None:
        self._failed, self._lent = True, None
        if self._process is not None:
            self._process.kill()
            self._process = None
            self._say({"type": "second", "pid": None})
        torch.set_num_threads(self._threads)


@dataclass(frozen=True, slots=True, eq=False)
class Loans:
    """What stands around the loans of one search: ``made_for`` (``checkpoint.identity``), ``place`` (the task at hand
    and the proven bounds of its box), the ``deadline`` on the monotonic clock."""

    lender: Lender
    plan: LendPlan
    made_for: Mapping[str, Any]
    place: Mapping[str, Tensor]
    deadline: float


@dataclass(frozen=True, slots=True, eq=False)
class SharedState:
    """Where a shared search stands: ``own`` is worked on here, ``lent`` elsewhere (None: nothing is)."""

    own: SplitState
    lent: OpenSplits | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing is left that could be bounded again, here or elsewhere."""
        return self.own.finished and self.lent is None

    @property
    def stuck(self) -> Pending:
        """Those with nothing left to split."""
        return self.own.stuck

    def whole(self) -> SplitState:
        """All of it in one."""
        return self.own if self.lent is None else replace(self.own, open=self.own.open.joined(self.lent))

    def tensors(self) -> dict[str, Tensor]:
        """By name, all of it in one."""
        return self.whole().tensors()


class SharedSearch:
    """A search of activation splits that shares its work as ``loans`` say."""

    def __init__(self, search: ActivationSplit, loans: Loans) -> None:
        self.search, self.loans = search, loans
        self.due = time.monotonic() + loans.plan.after

    def start(self) -> SharedState:
        """From the root."""
        return SharedState(self.search.start())

    def restore(self, saved: Mapping[str, Tensor]) -> SharedState:
        """From ``tensors``."""
        return SharedState(self.search.restore(saved))

    def step(self, state: SharedState) -> tuple[SharedState, Step]:
        """A step on what is kept (a short wait, where that is done), what is heard of the rest, perhaps a loan."""
        own, last = state.own, Step.of(state.own.open, state.own.stuck, state.own.tally, None)
        if not own.finished:
            own, last = self.search.step(own)
        waiting = own.finished and state.lent is not None
        ended = self.loans.lender.hear(PATIENCE if waiting else 0.0)
        after = SharedState(own, state.lent) if ended is None else settled(SharedState(own, state.lent), ended)
        after = self._lent(after)
        found = None if ended is None else ended.points
        points = last.points if found is None else found.to(self.search.problem.inner_lower.dtype)
        return after, self._said(after, replace(last, points=points))

    def _lent(self, state: SharedState) -> SharedState:
        """After a loan, where it is time for one."""
        loans = self.loans
        # Which elements are split at points depends on the last bits of bounds, which another process computes anew.
        alike = self.search.bounding.points is None
        large = alike and state.lent is None and state.own.open.size >= max(2, loans.plan.least)
        if not large or time.monotonic() < self.due or not loans.lender.ready():
            return state
        mine, half = state.own.open.halved()
        lent = SplitState(half, state.own.stuck.take(state.own.stuck.share > math.inf), Tally(), begun=True)
        search = {f"search.{name}": values for name, values in lent.tensors().items()}
        _LOG.info("%d of %d open subproblems are lent", half.size, half.size + mine.size)
        loans.lender.lend(loans.made_for, {**loans.place, **search}, loans.deadline - time.monotonic())
        loans.lender.progress = Progress("lent", float(half.bound.amin()), half.size, float(half.share.sum()))
        return SharedState(replace(state.own, open=mine), half)

    def _said(self, state: SharedState, last: Step) -> Step:
        """The last step, with what is lent."""
        own = Step.of(state.own.open, state.own.stuck, state.own.tally, None)
        own = replace(own, points=last.points, starts=last.starts)
        if state.lent is None:
            return own
        there = self.loans.lender.progress
        return replace(
            own,
            lower_bound=min(own.lower_bound, there.lower_bound),
            open_subproblems=own.open_subproblems + there.open_subproblems,
            open_share=own.open_share + there.open_share,
            upper_bound=min(own.upper_bound, there.upper_bound),
        )


def settled(state: SharedState, ended: Returned) -> SharedState:
    """After the end of a loan: its half is gone where it is closed, and open here where it is not."""
    if not ended.closed or state.lent is None:
        return SharedState(state.whole())
    mine, theirs = state.own.tally, ended.tally
    tally = Tally(
        mine.refuted + theirs.refuted,
        min(mine.least_margin, theirs.least_margin),
        min(mine.upper_bound, theirs.upper_bound),
    )
    return SharedState(replace(state.own, tally=tally))
