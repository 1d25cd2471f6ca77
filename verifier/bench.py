"""Many instances on a few killable workers.

Workers are kept between queries, so that loading the libraries is paid once; an instance's clock then starts when it
is handed to a worker that is ready. ``cold`` starts a process for each instance instead and counts its start. A
worker that was killed, crashed or grew too big is replaced. No worker ever sees what result is expected.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from verifier import limits
from verifier.errors import InternalError
from verifier.instances import Instance, Row
from verifier.process import Command, Event, WorkerProcess
from verifier.protocol import Message
from verifier.supervise import Answer, Failure, Job

_START_LIMIT = 300.0
_START_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the instances are run: ``timeout`` in seconds is an upper limit to each instance's own, ``jobs`` workers at
    once, ``memory`` a worker's limit in gigabytes, ``restart_above`` the gigabytes from which an idle worker is
    replaced. ``records``: the folder for records. ``command`` replaces the worker's program (tests)."""

    timeout: float | None = None
    jobs: int = 1
    cold: bool = False
    seed: int = 0
    device: str = "auto"
    max_bytes: int | None = None
    memory: float | None = None
    restart_above: float = 4.0
    verbose: bool = False
    records: Path | None = None
    command: Command | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A finished instance, with the text of its counterexample if it has one."""

    row: Row
    witness: str = ""


@dataclass(slots=True, eq=False)
class _Lane:
    """A worker and what it is at."""

    worker: WorkerProcess
    ready: bool = False
    instance: Instance | None = None
    job: Job | None = None


class Pool:
    """Workers and the instances that wait for them."""

    def __init__(self, instances: Sequence[Instance], plan: Plan) -> None:
        """Nothing starts before ``run``."""
        self.plan = plan
        self.waiting = collections.deque(instances)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._lanes: list[_Lane] = []
        self._false_starts = 0

    def run(self, watch: Callable[[], None] = lambda: None) -> Iterator[Done]:
        """Finished instances as they come; ``watch`` is called now and then. Closing the iterator kills the workers."""
        try:
            while self.waiting or self._busy():
                self._hire()
                done = self._step()
                if done is not None:
                    yield done
                watch()
        finally:
            for lane in self._lanes:
                lane.worker.kill()

    def _busy(self) -> list[_Lane]:
        return [lane for lane in self._lanes if lane.instance is not None]

    def _hire(self) -> None:
        """Start workers while instances wait for them, and hand instances to those that are free."""
        idle = [lane for lane in self._lanes if lane.instance is None]
        while len(self._lanes) < self.plan.jobs and len(self.waiting) > len(idle):
            threads = max(1, limits.cores() // self.plan.jobs)
            worker = WorkerProcess(self._events, threads=threads, command=self.plan.command, echo=self.plan.verbose)
            lane = _Lane(worker, ready=self.plan.cold)
            self._lanes.append(lane)
            idle.append(lane)
        for lane in idle:
            if lane.ready and self.waiting:
                self._assign(lane, self.waiting.popleft())

    def _assign(self, lane: _Lane, instance: Instance) -> None:
        plan = self.plan
        started = lane.worker.born if plan.cold else limits.now()
        limit = instance.timeout if plan.timeout is None else min(instance.timeout, plan.timeout)
        lane.instance, lane.job = instance, Job(lane.worker, started, started + limit, plan.memory)
        options = {"seed": plan.seed, "device": plan.device, "evidence": False, "verbose": plan.verbose}
        if plan.records is not None:
            record = evidence_file(plan.records, instance.key, "record").absolute()
            record.parent.mkdir(parents=True, exist_ok=True)
            options["record"] = str(record)
        lane.worker.send(lane.job.request(task(instance, plan.max_bytes), **options))

    def _step(self) -> Done | None:
        """Wait for one event, or for a limit to be reached."""
        jobs = [lane.job for lane in self._lanes if lane.job is not None]
        try:
            event = self._events.get(timeout=min((job.patience() for job in jobs), default=0.5))
        except Empty:
            return self._enforce()
        for lane in self._lanes:
            if lane.worker is event.worker:
                return self._hear(lane, event.message)
        return None

    def _hear(self, lane: _Lane, message: Message | None) -> Done | None:
        if message is not None and message["type"] == "ready":
            lane.ready, self._false_starts = True, 0
            return None
        if lane.job is None:
            if message is None:
                self._mourn(lane)
            return None
        outcome = lane.job.hear(message)
        if outcome is None:
            return self._enforce()
        return self._finish(lane, outcome, keep=message is not None and not self.plan.cold)

    def _enforce(self) -> Done | None:
        """End the first query whose time or memory is up."""
        for lane in self._lanes:
            outcome = lane.job.overdue() if lane.job is not None else None
            if outcome is not None:
                return self._finish(lane, outcome, keep=False)
            if not lane.ready and limits.now() - lane.worker.born > _START_LIMIT:
                raise InternalError(f"a worker was not ready after {_START_LIMIT:.0f} s: {lane.worker.last_words()}")
        return None

    def _finish(self, lane: _Lane, outcome: Answer | Failure, *, keep: bool) -> Done:
        assert lane.instance is not None and lane.job is not None
        done = _done(lane.instance, outcome, limits.now() - lane.job.started, lane.worker.peak_bytes())
        lane.instance = lane.job = None
        if not keep or lane.worker.resident_bytes() > self.plan.restart_above * limits.GIGABYTE:
            self._dismiss(lane)
        return done

    def _mourn(self, lane: _Lane) -> None:
        """A worker died without a query: once or twice is bad luck, more is our fault."""
        self._false_starts += 1
        if self._false_starts >= _START_ATTEMPTS:
            raise InternalError(f"workers do not start: {lane.worker.epitaph().phrase}")
        self._dismiss(lane)

    def _dismiss(self, lane: _Lane) -> None:
        lane.worker.kill()
        self._lanes.remove(lane)


def task(instance: Instance, max_bytes: int | None) -> Message:
    """What a worker is told about an instance: files and limits, not the expected result."""
    return {
        "kind": "property",
        "property": str(instance.query),
        "networks": {name: str(path) for name, path in instance.networks},
        "max_bytes": max_bytes,
        "assignments": None,
    }


def evidence_file(folder: Path, key: tuple[str, str, str], ending: str) -> Path:
    """Where an instance's counterexample or record is written: ``FOLDER/BENCHMARK/NETWORK_PROPERTY.ENDING``."""
    benchmark, *files = key
    names = (Path(written.strip("[]()\"' ")).name for written in files)
    stem = "_".join(Path(name.removesuffix(".gz")).stem for name in names)
    return folder / benchmark / f"{stem}.{ending}"


def _done(instance: Instance, outcome: Answer | Failure, seconds: float, peak: int) -> Done:
    if isinstance(outcome, Answer):
        result, reason = outcome.word, outcome.record.get("reason", "")
        stage, witness = outcome.record["stage"], outcome.witness
    elif outcome.kind == "unsupported":
        result, reason, stage, witness = "unknown", f"unsupported: {outcome.message}", "load", ""
    else:
        result, reason, stage, witness = "error", f"{outcome.kind}: {outcome.message}", "load", ""
    benchmark, onnx, vnnlib = instance.key
    most = str(round(peak / 1e6)) if peak else ""
    row = Row(benchmark, onnx, vnnlib, result, f"{seconds:.2f}", instance.expected, reason, stage, most)
    return Done(row, witness)
