"""A growing set of inputs: what it covers, and which open requirement is nearest to being met by one of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from verifier.coverage.programs import Beside
from verifier.coverage.requirements import Report, Requirements
from verifier.coverage.running import Values
from verifier.errors import InputError
from verifier.query import Query
from verifier.replay import Replayer
from verifier.verdict import Counterexample

Method = Literal["linear program", "mixed-integer program", "gradient", "random"]

_CLOSER = 0.9
"""A requirement that could not be met is tried again from an input that is nearer by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Generated:
    """A new input ``[*shape]`` of the region, in the network's element type, and how it came about.

    ``met``: numbers of the requirements that the set did not meet before, and meets with it, as the network computes
    them. ``requirement``: the one that it was made for (None: for none), met or not; ``method``; ``seed``: the number
    of the input that it was made beside (those given first, then those generated, in order), None for none, at the
    ``distance`` in the maximum norm. ``counterexample``: it violates the query that was given, as replayed.
    ``report``: what the set covers with it.
    """

    input: np.ndarray
    met: tuple[int, ...]
    requirement: int | None
    method: Method
    seed: int | None
    distance: float
    counterexample: Counterexample | None
    report: Report


@dataclass(frozen=True, slots=True)
class Budget:
    """When a generator ends: after ``inputs`` new inputs, or about ``timeout`` seconds of wall time (None: no limit).
    Without ``timeout`` what it does is the same in every run.

    ``nodes``: of branch and bound for one mixed-integer program (0: linear programs only), which has at most ``phases``
    neurons that can switch; ``samples``: random points that ``concolic`` looks at for each new input (0: what programs
    return only); ``tries``: inputs from which one requirement is tried; ``steps``: of descent for one try.
    """

    inputs: int | None = 100
    timeout: float | None = None
    nodes: int = 50
    phases: int = 40
    samples: int = 100
    tries: int = 3
    steps: int = 100

    def __post_init__(self) -> None:
        given = (self.inputs, self.timeout, self.nodes, self.phases, self.samples, self.tries - 1, self.steps - 1)
        if any(g is not None and not g >= 0 for g in given):
            raise InputError(f"{self}: tries and steps are at least 1, the others at least 0")


class Suite:
    """State: the inputs so far, what they cover, and the nearest input of each open requirement."""

    def __init__(self, requirements: Requirements, inputs: np.ndarray, query: Query | None, budget: Budget) -> None:
        """Begin with ``inputs`` ``[N, *shape]``, N >= 1. Raises ``InputError`` as ``Requirements.checked`` does."""
        given = requirements.checked(inputs)
        if not len(given):
            raise InputError("a set of at least one input is needed to begin with")
        if query is not None and query.cases.lower.shape[1] != given[0].size:
            raise InputError(
                f"the query has {query.cases.lower.shape[1]} inputs, the network under test {given[0].size}"
            )
        self.requirements, self.budget = requirements, budget
        self._replayer = None if query is None else Replayer(query)
        self._end = None if budget.timeout is None else time.monotonic() + budget.timeout
        self._inputs, self._start = list(given), len(given)
        self._values: Values = requirements.subject.values(given)
        self.covered = requirements.met(self._values)
        self._gap = torch.full((requirements.total,), torch.inf, dtype=torch.float64)
        self._seed = torch.zeros(requirements.total, dtype=torch.int64)
        self._barred = torch.full_like(self._gap, torch.inf)
        self._level = torch.zeros_like(self._seed)
        self._tries = torch.full((requirements.total,), budget.tries)
        self._tries[torch.from_numpy(requirements.impossible | self.covered)] = 0
        self._aside = torch.zeros_like(self._seed, dtype=torch.bool)
        self.violated = False
        for number in range(len(given)):
            self._look(number)

    @property
    def left(self) -> float | None:
        """Seconds left (None: no limit)."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return len(self._inputs)

    @property
    def open(self) -> np.ndarray:
        """``[R]`` bool: neither met nor proven impossible."""
        return np.asarray(~self.covered & ~self.requirements.impossible)

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or all is met that can be."""
        spent = self.budget.inputs is not None and len(self._inputs) - self._start >= self.budget.inputs
        return spent or self.left == 0.0 or not bool(self.open.any())

    def nearest(self) -> tuple[int, int, int] | None:
        """The open requirement that is nearest to being met, of those on which least was spent; the number of the input
        that is nearest to it; and its level: how often it was ``postponed`` beside that input. None where all have been
        tried."""
        waiting = (self._tries > 0) & torch.isfinite(self._gap) & ~self._aside
        if not bool(waiting.any()):
            return None
        level = int(self._level[waiting].amin())
        number = int(torch.where(waiting & (self._level == level), self._gap, torch.inf).argmin())
        return number, int(self._seed[number]), level

    def put_aside(self, number: int) -> None:
        """Leave a requirement until ``taken_up``: there is a candidate that meets it."""
        self._aside[number] = True

    def taken_up(self) -> bool:
        """Take up what was put aside; whether anything was."""
        found = bool(self._aside.any())
        self._aside[:] = False
        return found

    def postponed(self, number: int) -> None:
        """Take a requirement up again after all others of its level."""
        self._level[number] += 1

    def failed(self, number: int, forever: bool = False) -> None:
        """Leave a requirement until an input comes nearer (``forever``: for good)."""
        self._tries[number] = 0 if forever else self._tries[number] - 1
        self._barred[number], self._gap[number] = self._gap[number], torch.inf
        self._level[number] = 0

    def beside(self, seed: int) -> Beside:
        """An input and its values."""
        return Beside(seed, self._inputs[seed], {k: v[seed : seed + 1] for k, v in self._values.items()})

    def tried(
        self, point: np.ndarray, method: Method, requirement: int | None, seed: int | None, always: bool = False
    ) -> Generated | None:
        """Run the network at a point of the region; where that meets something new or violates the query (or
        ``always``), the point joins the set."""
        found = self._replayed(point)
        values = self.requirements.subject.values(point[None])
        joined = {k: torch.cat([v, values[k]]) for k, v in self._values.items()}
        new = self.requirements.met(joined, len(self._inputs)) & ~self.covered
        if not (always or new.any() or found is not None):
            return None
        self.covered, self._values = self.covered | new, joined
        self.violated = self.violated or found is not None
        self._inputs.append(point)
        self._tries[torch.from_numpy(new)] = 0
        self._look(len(self._inputs) - 1)
        distance = 0.0 if seed is None else float(np.abs(point.astype(np.float64) - self._inputs[seed]).max())
        met = tuple(int(k) for k in np.flatnonzero(new))
        report = self.requirements.counted(self.covered)
        return Generated(point, met, requirement, method, seed, distance, found, report)

    def news(self, values: Values) -> int:
        """How many open requirements a point with these ``values`` ``[1, size]`` would meet."""
        joined = {n: torch.cat([v, values[n]]) for n, v in self._values.items()}
        return int((self.requirements.met(joined, len(self._inputs)) & ~self.covered).sum())

    def first_violation(self, point: np.ndarray) -> bool:
        """Whether a point violates the query while no input of the set was found to (those given are not asked)."""
        return not self.violated and self._replayed(point) is not None

    def _replayed(self, point: np.ndarray) -> Counterexample | None:
        return None if self._replayer is None else self._replayer.replay(point.astype(np.float64).reshape(-1))

    def _look(self, number: int) -> None:
        """Let requirements know of an input that may be nearer."""
        gaps = self.requirements.gaps({k: v[number : number + 1] for k, v in self._values.items()})
        nearer = (gaps < self._gap) & (gaps < _CLOSER * self._barred)
        self._gap = torch.where(nearer, gaps, self._gap)
        self._level = torch.where(nearer & (self._seed != number), 0, self._level)
        self._seed = torch.where(nearer, number, self._seed)
