"""Candidates for the next input: points that have been run, of which the one joins the set that meets most.

What a candidate meets changes as the set grows, so that one that was not taken is looked at again: programs and samples
are paid for once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.coverage.running import Values
from verifier.coverage.suite import Generated, Method, Suite

_KEPT = 128


@dataclass(frozen=True, slots=True)
class Origin:
    """How a candidate came about: see ``Generated``."""

    method: Method
    requirement: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A ``point`` ``[*shape]`` of the region, its neurons' ``values``, how many requirements it would meet (``news``),
    and whether it violates the query."""

    point: np.ndarray
    values: Values
    origin: Origin
    news: int
    violates: bool


class Pool:
    """State: the candidates, the best first."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self._candidates: list[Candidate] = []

    def add(self, points: Sequence[np.ndarray] | np.ndarray, origin: Origin) -> int:
        """Run points; those that meet or violate something are kept. How many requirements the best of them meets."""
        if not len(points):
            return 0
        values = self.suite.requirements.subject.values(np.stack(list(points)))
        new = []
        for k, point in enumerate(points):
            own = {node: found[k : k + 1] for node, found in values.items()}
            new.append(Candidate(point, own, origin, self.suite.news(own), self.suite.first_violation(point)))
        self._candidates += [c for c in new if c.news or c.violates]
        self._sort()
        return max(c.news for c in new)

    @property
    def best(self) -> int:
        """How many requirements the best candidate meets (0: there is none)."""
        return self._candidates[0].news if self._candidates else 0

    @property
    def empty(self) -> bool:
        """Whether there is no candidate."""
        return not self._candidates

    def take(self) -> Generated:
        """Let the best candidate join the set: one that violates the query while no input of the set does, else the one
        that meets most, of equal ones the first."""
        first = self._candidates.pop(0)
        origin = first.origin
        found = self.suite.tried(first.point, origin.method, origin.requirement, origin.seed)
        assert found is not None
        again = (
            Candidate(c.point, c.values, c.origin, self.suite.news(c.values), c.violates and not self.suite.violated)
            for c in self._candidates
        )
        self._candidates = [c for c in again if c.news or c.violates]
        self._sort()
        return found

    def _sort(self) -> None:
        self._candidates.sort(key=lambda c: (not c.violates, -c.news))
        del self._candidates[_KEPT:]
