"""A program as a whole process: its wall time, and its end, with all that it has started, when the time is up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_TEXT = 1 << 24


@dataclass(frozen=True, slots=True)
class Finished:
    """How it went: wall seconds from start to end, the exit code, both streams, and whether the time was up."""

    seconds: float
    code: int
    output: str
    errors: str
    late: bool


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit: float) -> Finished:
    """Run a command in ``folder`` (its streams become files there) for at most ``limit`` seconds."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    late = threading.Event()
    with out.open("wb") as output, err.open("wb") as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
            start_new_session=True,
        )

        def end() -> None:
            late.set()
            kill(process.pid)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            # The process is left unreaped until the others are dead: nobody else can get its number meanwhile.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            seconds = time.monotonic() - start
        finally:
            timer.cancel()
            timer.join()
            kill(process.pid)
            code = process.wait()
    return Finished(seconds, code, _text(out), _text(err), late.is_set())


def kill(leader: int) -> None:
    """End a process that leads its own group, the group, and descendants that have left it (where /proc tells)."""
    others = descendants(leader)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for pid in others:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Processes that stem from ``root`` by an unbroken line of parents."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may itself hold spaces and parentheses.
            parent = int(entry.read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MOST_TEXT).decode(errors="replace")
