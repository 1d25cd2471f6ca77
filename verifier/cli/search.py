"""A search on the command line: its progress is shown, and it ends at its end, at the time limit, or with Ctrl-C.

However it ends, what is known by then is printed. The search itself looks at the clock between steps; where a step is
long, an alarm interrupts it like Ctrl-C does.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from verifier import limits
from verifier.cli.display import Display, choose_mode

if TYPE_CHECKING:
    from milp.highs import Runner

Ending = Literal["done", "limit", "interrupted"]
Progress = TypeVar("Progress")
Heard = TypeVar("Heard", covariant=True)
Result = TypeVar("Result")


class Search(Protocol[Heard]):
    """What ``RangeSearch`` and ``RadiusSearch`` have in common."""

    def run(
        self,
        deadline: float | None = None,
        *,
        report: Callable[[Heard], None] | None = None,
        runner: Runner | None = ...,
    ) -> None:
        """Work until the end or the deadline (of ``limits.now``); an exception leaves the search as it stands."""


class OutOfTime(BaseException):
    """The alarm rang. No handler of errors may take it for one."""


def follow(
    search: Search[Progress], start: float, timeout: float | None, quiet: bool, describe: Callable[[Progress], str]
) -> Ending:
    """Run a search and show, in the words of ``describe``, how far it is; how it ended. The clock has run since
    ``start``; the solver works in a process of its own, which can be killed."""
    from milp.process import ProcessRunner

    hard = None if timeout is None else start + timeout
    soft = None if hard is None else limits.soft_deadline(start, hard)
    with Display(choose_mode(quiet)) as display:
        try:
            with ProcessRunner() as runner, alarm(hard):
                search.run(soft, report=lambda p: display.show(_line(start, describe(p))), runner=runner)
        except KeyboardInterrupt:
            return "interrupted"
        except OutOfTime:
            return "limit"
    return "done" if soft is None or limits.now() < soft else "limit"


def in_time(start: float, timeout: float | None, work: Callable[[], Result]) -> Result | None:
    """What comes before a search, on the same clock; None where the time is up before it is done. Libraries should be
    loaded before: one of them takes the whole process down where it is interrupted while it is loaded."""
    try:
        with alarm(None if timeout is None else start + timeout):
            return work()
    except (OutOfTime, ImportError) as error:
        # A library that is interrupted while it is loaded says that it cannot be.
        if timeout is None or (isinstance(error, ImportError) and limits.now() < start + timeout):
            raise
        return None


def too_short(timeout: float, loaded: float, unknown: str) -> str:
    """That the time was up before the model was read, ``loaded`` seconds of which the program needed to start."""
    return (
        f"--timeout {timeout:g}: the time was up before the model was read, so that nothing is known of {unknown}; "
        f"{loaded:.1f} s went by before reading began: give more"
    )


def not_written(path: Path) -> str:
    """That a file was not written for want of anything to write, and what stands there."""
    return f"{path}: not written, since nothing was found; " + (
        "what is there is older" if path.exists() else "no file is there"
    )


def _line(start: float, text: str) -> str:
    return f"{limits.now() - start:.0f} s, {text}"


@contextmanager
def alarm(moment: float | None) -> Iterator[None]:
    """Raise ``OutOfTime`` inside the block at a moment of ``limits.now`` (where the system has alarms; in the main
    thread)."""
    if moment is None or sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(moment - limits.now(), 1e-3))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
