"""One query on one worker, seen from the parent: from what the worker says to one answer.

``verify`` and ``bench`` share it. The parent decides when time or memory is up; whatever ends a query, the best bound
so far is in the answer. A worker that a signal ends (a crash, want of memory) leaves ``unknown`` with the reason; one
that ends by itself is our fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from verifier import limits
from verifier.process import WorkerProcess
from verifier.protocol import Message
from verifier.report.result import number, record
from verifier.verdict import Progress


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict as data: ``record`` is the core of a JSON result (``verifier.report.result``), ``witness`` the text of
    the counterexample in the property's own version (empty where there is none)."""

    record: Message
    witness: str = ""

    @property
    def word(self) -> str:
        """``sat``, ``unsat``, ``unknown`` or ``timeout``."""
        return str(self.record["result"])


@dataclass(frozen=True, slots=True)
class Failure:
    """No verdict: the input is wrong (``kind`` "input"), not supported ("unsupported"), or we are ("internal")."""

    kind: str
    exit_code: int
    message: str
    traceback: str = ""


@dataclass(slots=True)
class Job:
    """A query that a worker is at: ``started`` and ``deadline`` (None: no limit) on the monotonic clock. ``stages``:
    the seconds after which each was first heard of; ``explanation``: of the choices, where it was asked for."""

    worker: WorkerProcess
    started: float
    deadline: float | None
    memory: float | None = None
    progress: Progress = field(default_factory=lambda: Progress(stage="start"))
    explanation: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    def request(self, task: Message, **options: object) -> Message:
        """The message that puts the worker to work."""
        soft = None if self.deadline is None else limits.soft_deadline(self.started, self.deadline)
        return {"type": "verify", "task": task, "deadline": soft, **options}

    def hear(self, message: Message | None) -> Answer | Failure | None:
        """Take in what the worker said; the answer, once there is one."""
        if message is None:
            end = self.worker.epitaph()
            if end.by_signal:
                return self.stopped("unknown", end.phrase)
            return Failure("internal", 4, end.phrase, self.worker.last_words())
        match message["type"]:
            case "verdict":
                return Answer(message["record"], message["witness"])
            case "failure":
                return Failure(**{key: message[key] for key in ("kind", "exit_code", "message", "traceback")})
            case "progress":
                self.progress = Progress(**{key: value for key, value in message.items() if key != "type"})
                self.stages.setdefault(self.progress.stage, limits.now() - self.started)
            case "explanation":
                self.explanation = message["lines"]
            case "second":
                self.worker.second = message["pid"]
        return None

    def overdue(self) -> Answer | None:
        """The answer where time or memory is up (the caller kills the worker), else None."""
        if self.deadline is not None and limits.now() >= self.deadline:
            return self.stopped("timeout", "time limit")
        if self.memory is not None and self.worker.resident_bytes() > self.memory * limits.GIGABYTE:
            return self.stopped("unknown", f"memory limit of {self.memory:g} GB")
        return None

    def patience(self) -> float:
        """Seconds that may be waited before ``overdue`` is to be asked again."""
        tick = 0.5 if self.memory is None else 0.1
        return tick if self.deadline is None else min(tick, max(self.deadline - limits.now(), 0.0))

    def stopped(self, word: str, reason: str) -> Answer:
        """The answer of a query that did not come to its end: the best bound so far, and why."""
        progress = self.progress
        return Answer(
            record(
                word,
                stage=progress.stage,
                seconds=limits.now() - self.started,
                reason=reason,
                lower_bound=number(progress.lower_bound),
                upper_bound=number(progress.upper_bound),
                open_share=progress.open_share,
                subproblems=progress.open_subproblems,
            )
        )
