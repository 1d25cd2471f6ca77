"""A worker process as its parent sees it: start, send, listen, kill.

What workers say arrives in one queue, an ``Event`` each, so one loop can watch many of them, wait with a timeout and
be interrupted. Every worker is the leader of its own process group: Ctrl-C reaches the parent alone, and a kill
reaches whatever the worker has started.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from verifier import limits, protocol

Command = Sequence[str]
_LAST_WORDS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """Something that a worker said; ``message`` None: its channel has closed."""

    worker: WorkerProcess
    message: protocol.Message | None


@dataclass(frozen=True, slots=True)
class Epitaph:
    """How a worker ended: a phrase, and whether a signal did it (a crash, or the system) or its own code."""

    phrase: str
    by_signal: bool


class WorkerProcess:
    """A running worker. ``command`` replaces the worker's program (tests put a fake engine there)."""

    def __init__(
        self,
        events: SimpleQueue[Event],
        *,
        threads: int,
        command: Command | None = None,
        echo: bool = False,
        leader: bool = True,
    ) -> None:
        """Start the process; its events go to ``events``; ``echo`` passes its stderr on to ours. One that is not the
        ``leader`` of a group of its own stays in ours, has exactly ``threads`` threads, and ends with our group."""
        self.born, self.leader = limits.now(), leader
        self.second: int | None = None
        self.process = subprocess.Popen(
            command or worker_command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if echo else subprocess.PIPE,
            env=_environment(threads) if leader else _environment(threads) | limits.exactly(threads),
            start_new_session=leader,
        )
        self._last_words: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
        threading.Thread(target=self._listen, args=(events,), daemon=True).start()
        if not echo:
            threading.Thread(target=self._overhear, daemon=True).start()

    def send(self, message: protocol.Message, attached: bytes = b"") -> None:
        """Hand over a request; where the worker is dead already, its closing event says so."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            protocol.send(self.process.stdin, message, attached)

    def kill(self, *, wait: bool = True) -> None:
        """End the process and all that it started, at once; ``wait`` until the system has taken back its memory."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self.leader:
                    os.killpg(self.process.pid, signal.SIGKILL)
                else:
                    self.process.kill()
        if wait:
            self.process.wait()

    def resident_bytes(self) -> int:
        """Physical memory that the worker holds, with its ``second`` process, in bytes (0: unknown)."""
        pids = [self.process.pid] + ([] if self.second is None else [self.second])
        return sum(limits.resident_bytes(pid) for pid in pids)

    def peak_bytes(self) -> int:
        """The most physical memory that the worker has held, in bytes (0: unknown, or it has ended)."""
        return limits.peak_bytes(self.process.pid)

    def epitaph(self) -> Epitaph:
        """Why a worker that has closed its channel ended."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            return Epitaph("worker closed its channel", by_signal=False)
        if code == -signal.SIGKILL:
            return Epitaph("worker was killed (SIGKILL), most likely for want of memory", by_signal=True)
        if code < 0:
            return Epitaph(f"worker crashed ({signal.Signals(-code).name})", by_signal=True)
        last = self.last_words().strip().rpartition("\n")[2]
        return Epitaph(f"worker ended with exit code {code}" + (f": {last}" if last else ""), by_signal=False)

    def last_words(self) -> str:
        """The last lines that the worker wrote to its stderr."""
        return "".join(self._last_words)

    def _listen(self, events: SimpleQueue[Event]) -> None:
        assert self.process.stdout is not None
        while True:
            try:
                message = protocol.receive(self.process.stdout)
            except (OSError, ValueError):
                message = None
            events.put(Event(self, message))
            if message is None:
                return

    def _overhear(self) -> None:
        assert self.process.stderr is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self.process.stderr:
                self._last_words.append(line.decode(errors="replace"))


def worker_command(module: str = "verifier.worker") -> list[str]:
    """The command that starts a worker. ``-P`` keeps modules of the working directory out."""
    return [sys.executable, "-P", "-m", module, str(os.getpid())]


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: thread counts, and our own package on its path where we are not installed."""
    environment = limits.thread_environment(threads)
    root = Path(__file__).resolve().parents[1]
    if root.name not in ("site-packages", "dist-packages"):
        rest = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(root), rest] if rest else [str(root)])
    return environment
