"""What re-proving a record amounts to."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_FAILURES = 20
"""Failures that are described; the others are counted."""


@dataclass(slots=True)
class Checks:
    """Counts while a record is read: ``leaves``, those ``proved`` again, and why others are not."""

    leaves: int = 0
    proved: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, leaves: int, failed: int = 0) -> None:
        """Leaves, of which some failed."""
        self.leaves, self.proved = self.leaves + leaves, self.proved + leaves - failed

    def fail(self, reason: str) -> None:
        """One thing that is not so."""
        self.failed += 1
        if len(self.failures) < MOST_FAILURES:
            self.failures.append(reason)


@dataclass(frozen=True, slots=True)
class Report:
    """Of one record: whether all of it was ``proved`` again, how many ``leaves`` were, how many things ``failed`` and
    (of the first ones) why, the ``size`` of the file in bytes, and the processor ``seconds`` that it took."""

    proved: bool
    leaves: int
    reproved: int
    failed: int
    failures: tuple[str, ...]
    size: int
    seconds: float
