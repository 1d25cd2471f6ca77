"""Progress on stderr: a live line on a terminal, else a line every 30 seconds, or nothing."""

from __future__ import annotations

import math
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from verifier import limits
from verifier.verdict import Progress

if TYPE_CHECKING:
    from rich.status import Status

INTERVAL = 30.0
Mode = Literal["quiet", "lines", "live"]


def choose_mode(quiet: bool) -> Mode:
    """Quiet where asked, live on a terminal, else lines."""
    if quiet:
        return "quiet"
    return "live" if sys.stderr.isatty() else "lines"


class Display:
    """Shows the latest text in the way that ``mode`` says. A context manager: a live line is wiped at the end."""

    def __init__(self, mode: Mode) -> None:
        """Nothing is shown before the first ``show``."""
        self._mode = mode
        self._status: Status | None = None
        self._next_line = limits.now() + INTERVAL

    def show(self, text: str) -> None:
        """Replace the live line, or print a line where the last one is old enough."""
        if self._mode == "live":
            self._live(text)
        elif self._mode == "lines" and limits.now() >= self._next_line:
            self._next_line = limits.now() + INTERVAL
            print(text, file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line that stays; a live line moves below it."""
        if self._status is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._status.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _live(self, text: str) -> None:
        from rich.text import Text

        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(Text(text))
            self._status.start()
        else:
            self._status.update(Text(text))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()


def describe(progress: Progress, seconds: float) -> str:
    """One line on how far a verification is."""
    parts = [f"{seconds:.0f} s", progress.stage]
    if math.isfinite(progress.lower_bound):
        parts.append(f"bound {progress.lower_bound:.4g}")
    if math.isfinite(progress.upper_bound):
        parts.append(f"at most {progress.upper_bound:.4g}")
    if progress.open_subproblems:
        parts.append(f"{progress.open_subproblems} open subproblems")
    if progress.open_share < 1:
        parts.append(f"{100 * progress.open_share:.3g}% open")
    return ", ".join(parts)
