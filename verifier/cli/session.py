"""A worker for one query, and the loop that waits for its answer."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

from verifier import limits
from verifier.process import Command, Event, WorkerProcess
from verifier.protocol import Message
from verifier.supervise import Answer, Failure, Job


class Session:
    """A worker process with its queue of events. ``command`` replaces the worker's program (tests)."""

    def __init__(self, *, echo: bool = False, command: Command | None = None, start: float | None = None) -> None:
        """Start the worker; the clock has run since ``start`` (default: the start of this process)."""
        self.start = limits.process_start() if start is None else start
        self.asked = False
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.worker = WorkerProcess(self.events, threads=limits.cores(), command=command, echo=echo)

    def job(self, timeout: float | None, memory: float | None) -> Job:
        """The one query of this session, with its limits in seconds and gigabytes."""
        deadline = None if timeout is None else self.start + timeout
        return Job(self.worker, self.start, deadline, memory)

    def wait(self, job: Job, request: Message, watch: Callable[[Job], None]) -> tuple[Answer | Failure, bool]:
        """Send the request and wait for the answer, calling ``watch`` now and then.

        Ctrl-C ends the waiting: the answer is ``unknown`` with what is known so far, and the second value is true.
        """
        try:
            self.asked = True
            self.worker.send(request)
            while True:
                outcome = self._next(job)
                if outcome is not None:
                    return outcome, False
                watch(job)
        except KeyboardInterrupt:
            return job.stopped("unknown", "interrupted"), True
        finally:
            self.close()

    def close(self) -> None:
        """Kill the worker, whatever it is at. The answer need not wait until its memory is given back."""
        self.worker.kill(wait=False)

    def _next(self, job: Job) -> Answer | Failure | None:
        try:
            event = self.events.get(timeout=job.patience())
        except Empty:
            return job.overdue()
        return job.hear(event.message) or job.overdue()
