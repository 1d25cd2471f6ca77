"""Models solved in a process of their own, which is killed when its time is up or when nobody waits for it any more.

A call into the solver cannot be interrupted everywhere, and some crash; a process can be killed, and its end is a
status like others, with the best bound and the best point that it had told of.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from torch import Tensor

from milp import highs, protocol
from milp.engine import NO_LIMITS, Buffer, Limits, LinearEngine, Outcome, Problem
from milp.highs import Progress, Watch
from milp.model import Model, Solution, Status

Message = tuple[protocol.Header, protocol.Arrays]
Said = tuple[Outcome, float | None]
"""The best so far and the seconds that it took; the worker's outcome and None."""
Inbox = SimpleQueue[Said | None]
_LAST_WORDS = 4000


class ProcessRunner:
    """A ``milp.highs.Runner`` that solves in a worker process.

    State: the worker, started by the first call and kept for the next ones, until ``close`` or the end of a ``with``
    block. One call at a time; as many runners as processes are wanted.
    """

    def __init__(self, *, command: Sequence[str] | None = None) -> None:
        """``command`` replaces the worker's program (tests put another one there)."""
        self._command = list(command or (sys.executable, "-P", "-m", "milp.worker"))
        self._worker: _Worker | None = None

    def __call__(
        self, model: Model, limits: Limits = NO_LIMITS, *, start: Tensor | None = None, watch: Watch | None = None
    ) -> Solution:
        """As ``milp.highs.solve``, and ``limits.seconds`` is kept, counting from here: where the solver does not stop
        by itself its process is killed (LIMIT, or STOPPED where enough was known). FAILED where the process dies. In
        both cases with the best bound and point that it had told of."""
        deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        request = _request(model, limits, start, deadline)
        answer = highs.refused(model)
        if answer is not None:
            return answer
        found, done = self.ask(lambda _: [request], deadline, watch)
        if not done and found.status is Status.LIMIT and limits.met(found.bound, found.value):
            return highs.solution(replace(found, status=Status.STOPPED, reason=""))
        return highs.solution(found)

    def load(self, problem: Problem) -> LinearEngine:
        """Linear programs over the rows of ``problem``, solved in the worker (``Simplex(model, runner.load)``). What is
        asked for between two of them, by whoever else has the runner, costs a basis and nothing more; so does the death
        of the worker, which is FAILED. ``limits.seconds`` is kept as above."""
        return _Remote(self, problem)

    def ask(
        self, requests: Callable[[_Worker], Sequence[Message]], deadline: float, watch: Watch | None = None
    ) -> tuple[Outcome, bool]:
        """The worker's answer and True; where it died or the deadline came, why (FAILED, LIMIT), with the best that it
        told of, and False. ``requests``: what this worker is asked."""
        if self._worker is None or not self._worker.alive():
            self.close()
            self._worker = _Worker(self._command)
        worker, done = self._worker, False
        try:
            found, done = _listen(worker.ask(requests(worker)), deadline, watch)
            if done:
                return found, True
            if time.monotonic() < deadline:
                return replace(found, status=Status.FAILED, reason=worker.epitaph()), False
        finally:
            if not done:  # out of time, dead, or the caller was interrupted
                self.close()
        return replace(found, reason="time limit: the solver's process was killed"), False

    def close(self) -> None:
        """End the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def __enter__(self) -> ProcessRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Worker:
    """A running worker. State: the process, the file that its stderr goes to, the thread that talks with it; whose
    linear program it ``holds``."""

    def __init__(self, command: list[str]) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._thread: threading.Thread | None = None
        self.holds: object = None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    def ask(self, requests: Sequence[Message]) -> Inbox:
        """Hand over requests, the last of which has answers; where these arrive, None at the end of the process."""
        inbox: Inbox = SimpleQueue()
        # A worker that does not read must not hold up its parent either: both directions are the thread's.
        self._thread = threading.Thread(target=_converse, args=(self._process, requests, inbox), daemon=True)
        self._thread.start()
        return inbox

    def kill(self) -> None:
        """End the process and all that it started, and take back what it held."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._thread is not None:
            self._thread.join()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def epitaph(self) -> str:
        """Why a process that has closed its channel ended."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the solver's process closed its channel"
        if code == -signal.SIGKILL:
            return "the solver's process was killed (SIGKILL), most likely for want of memory"
        self._words.seek(0)
        last = self._words.read()[-_LAST_WORDS:].decode(errors="replace").strip().rpartition("\n")[2]
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return f"the solver's process {how}" + (f": {last}" if last else "")


class _Remote:
    """A linear program in a runner's worker. State: its ends and costs as they stand, which a worker that does not hold
    it is given; the changes since the last call."""

    def __init__(self, runner: ProcessRunner, problem: Problem) -> None:
        self._runner, self._rows = runner, len(problem.row_lower)
        now = [_numbers(part) for part in (problem.cost, problem.lower, problem.upper)]
        self._cost, self._lower, self._upper = now
        self._problem = replace(problem, cost=now[0], lower=now[1], upper=now[2])
        self._moved, self._priced = set[int](), set[int]()

    def change(self, columns: Buffer, *, ends: tuple[Buffer, Buffer] | None = None, cost: Buffer | None = None) -> None:
        """As ``Engine.change``."""
        for place, column in enumerate(map(int, columns)):
            if ends is not None:
                self._lower[column], self._upper[column] = float(ends[0][place]), float(ends[1][place])
                self._moved.add(column)
            if cost is not None:
                self._cost[column] = float(cost[place])
                self._priced.add(column)

    def run(self, limits: Limits) -> Outcome:
        """As ``Engine.run``. An answer of the wrong size is one of a broken worker: FAILED."""
        deadline = math.inf if limits.seconds is None else time.monotonic() + limits.seconds
        found, done = self._runner.ask(lambda worker: self._requests(worker, deadline, limits), deadline)
        if not done:
            return Outcome(found.status, reason=found.reason)
        for part, count in ((found.x, len(self._cost)), (found.dual, self._rows)):
            if part is not None and len(part) != 8 * count:
                return Outcome(Status.FAILED, reason="the solver's process answers for another program")
        if found.x is not None and not all(map(math.isfinite, _numbers(found.x))):
            found = replace(found, x=None)
        return found

    def _requests(self, worker: _Worker, deadline: float, limits: Limits) -> list[Message]:
        ahead: list[Message] = []
        if worker.holds is not self:
            arrays = [memoryview(getattr(self._problem, field.name)).tobytes() for field in fields(Problem)[1:]]
            ahead = [({"type": "load", "offset": self._problem.offset}, [*arrays, None])]
            self._moved, self._priced = set(), set()
        moved, priced = sorted(self._moved), sorted(self._priced)
        worker.holds, self._moved, self._priced = self, set(), set()
        numbers: list[array[Any]] = [
            array("i", moved),
            *(array("d", [end[k] for k in moved]) for end in (self._lower, self._upper)),
        ]
        numbers += [array("i", priced), array("d", [self._cost[k] for k in priced])]
        return [*ahead, ({"type": "relax", "stop": _stop(deadline, limits)}, [part.tobytes() for part in numbers])]


def _numbers(part: Buffer) -> array[float]:
    """A copy of float64 numbers."""
    found = array("d")
    found.frombytes(memoryview(part).tobytes())
    return found


def _stop(deadline: float, limits: Limits) -> float | None:
    """A worker should stop a little before the deadline, so that its own answer arrives in time."""
    return None if limits.seconds is None else deadline - min(0.5, 0.03 * max(limits.seconds, 0.0))


def _request(model: Model, limits: Limits, start: Tensor | None, deadline: float) -> Message:
    """What a worker is asked."""
    problem = highs.problem(model)
    first = None if start is None else highs.first(model, start).numpy().tobytes()
    arrays = [getattr(problem, field.name).tobytes() for field in fields(Problem)[1:]]
    stop = _stop(deadline, limits)
    header = {"type": "solve", "offset": problem.offset, "limits": asdict(limits), "stop": stop}
    return header, [*arrays, first]


def _converse(process: subprocess.Popen[bytes], requests: Sequence[Message], inbox: Inbox) -> None:
    """Send requests and pass on what comes back, up to the outcome or the end."""
    assert process.stdin is not None and process.stdout is not None
    try:
        for request in requests:
            protocol.send(process.stdin, *request)
        while (message := protocol.receive(process.stdout)) is not None:
            said = _understood(*message)
            inbox.put(said)
            if said[1] is None:
                return
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the end, or what it wrote in the throes of it
    inbox.put(None)


def _understood(header: protocol.Header, arrays: protocol.Arrays) -> Said:
    value, bound = float(header["value"]), float(header["bound"])
    if header["type"] == "progress":
        (x,) = arrays
        return Outcome(Status.LIMIT, value, bound, x), float(header["seconds"])
    x, dual = arrays
    return Outcome(Status(header["status"]), value, bound, x, dual, str(header["reason"])), None


def _listen(inbox: Inbox, deadline: float, watch: Watch | None) -> tuple[Outcome, bool]:
    """The worker's own outcome and True; the best that it told of and False where it died or the deadline came."""
    best = Outcome(Status.LIMIT)
    while True:
        try:
            said = inbox.get(timeout=None if math.isinf(deadline) else max(deadline - time.monotonic(), 0.0))
        except Empty:
            return best, False
        if said is None:
            return best, False
        told, seconds = said
        if seconds is None:
            return told, True
        best = told if told.x is not None else replace(told, x=best.x)
        if watch is not None:
            watch(Progress(told.bound, told.value, seconds, highs.numbers(told.x)))


def _environment() -> dict[str, str]:
    """The worker's environment: one thread, and our own package on its path where we are not installed."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = dict(os.environ) | dict.fromkeys(names, "1")
    root = Path(__file__).resolve().parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(root), rest] if rest else [str(root)])
    return environment
