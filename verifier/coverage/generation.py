"""Concolic generation: concrete runs meet what is cheap, programs what is left, and of all the best joins the set.

For each new input a pool of candidates grows by random points and by what programs return: first one program that all
open requirements share, then one for the nearest requirement at a time, as long as these last brought more than the
best of the pool does (Sun et al., Concolic testing for deep neural networks, ASE 2018, take those alone). A program
speaks of exact arithmetic to a solver's tolerances, so that what it returns is run: only what the network itself then
does counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from milp.highs import Limits
from verifier.coverage.pool import Origin, Pool
from verifier.coverage.programs import Answer, Beside, Programs, programs
from verifier.coverage.requirements import Requirements
from verifier.coverage.shared import Shared, mixture
from verifier.coverage.suite import Budget, Generated, Suite
from verifier.query import Query

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Radii of the boxes around an input, in units of the region's greatest width; the last one holds the region."""

_SLACKS = (1e-4, 1e-3, 1e-2)
"""By how much a requirement is to be met, in units of the proven range: more where less was not enough when run."""

_AIMED = 4
"""Requirements that have programs of their own for one new input."""

_ONWARD = (1.5, 2.0, 3.0, 5.0, 9.0, 17.0, 33.0)
"""Points on the way from the input through a program's answer, in units of that way."""


def concolic(
    requirements: Requirements,
    inputs: np.ndarray,
    *,
    query: Query | None = None,
    budget: Budget = Budget(),  # noqa: B008 - a frozen value
    seed: int = 0,
) -> Iterator[Generated]:
    """Inputs of the region, one by one, each of which meets requirements that ``inputs`` ``[N, *shape]`` and those
    before it do not, or violates the ``query`` (then it carries the counterexample, as replayed; it may do both).

    Each is the one of some candidates that meets most: ``budget.samples`` random points; the answer of a linear program
    that all open requirements share; and for the nearest open requirements the nearest input on the linear piece of the
    nearest input of the set, or on one of the next pieces in its direction, with points that go farther. With a query,
    the first candidate that violates it comes first. Where nothing is found, mixed-integer programs find the nearest
    input in growing boxes. It ends with the budget, or when every requirement is met, impossible, or tried.

    The ``inputs`` themselves are not asked whether they violate the query. Raises ``InputError`` for inputs that do not
    fit, ``UnsupportedError`` for operators without an exact form (it names all of them; sigmoids after the last layer
    of neurons do not matter).
    """
    suite = Suite(requirements, inputs, query, budget)
    return _Search(suite, programs(requirements), np.random.default_rng(seed)).steps()


class _Search:
    """State: the pool of candidates, and how many requirements programs for one of them last met (``_worth``)."""

    def __init__(self, suite: Suite, ready: Programs, generator: np.random.Generator) -> None:
        self._suite, self._ready, self._generator = suite, ready, generator
        self._pool, self._shared, self._worth = Pool(suite), Shared(suite, ready), math.inf
        self._shares = (None, *_SHARES) if suite.budget.nodes else (None,)

    def steps(self) -> Iterator[Generated]:
        suite, pool = self._suite, self._pool
        while not suite.done:
            self._drawn()
            self._aimed()
            while pool.empty and not suite.done and (target := self._target()) is not None:
                self._worth = self._one(target)
            if pool.empty:
                return
            yield pool.take()

    def _drawn(self) -> None:
        """Candidates at random, and by the program that all open requirements share."""
        suite = self._suite
        if suite.budget.samples:
            self._pool.add(mixture(suite, self._generator, suite.budget.samples), Origin("random"))
        beside = suite.beside(int(self._generator.integers(suite.count)))
        self._pool.add(self._shared.points(beside.values), Origin("linear program"))

    def _aimed(self) -> None:
        """Programs for single requirements, as long as they may bring more than the pool has."""
        brought = list[int]()
        while len(brought) < _AIMED and not self._suite.done and self._pool.best < self._worth:
            target = self._suite.nearest()
            if target is None or target[2] > 0:
                break
            brought.append(self._one(target))
        if brought:
            self._worth = max(brought)

    def _target(self) -> tuple[int, int, int] | None:
        """The next requirement for programs; those that were put aside come again when there is no other."""
        target = self._suite.nearest()
        return self._suite.nearest() if target is None and self._suite.taken_up() else target

    def _one(self, target: tuple[int, int, int]) -> int:
        """Candidates by programs for one requirement, and how many requirements the best of them meets."""
        suite, (number, seed, level) = self._suite, target
        share, beside, best = self._shares[level], suite.beside(seed), 0
        for slack in _SLACKS:
            answer = self._answer(target, beside, slack)
            if answer.point is None:
                break
            origin = Origin("linear program" if share is None else "mixed-integer program", number, seed)
            points = [suite.requirements.domain.moved(p) for p in _along(answer, beside)]
            best = self._pool.add(points, origin)
            if best or suite.done:
                break
        if best:
            suite.put_aside(number)
        else:
            self._unmet(target, answer.refuted and slack == _SLACKS[0])
        return best

    def _answer(self, target: tuple[int, int, int], beside: Beside, slack: float) -> Answer:
        suite, share = self._suite, self._shares[target[2]]
        condition = suite.requirements.condition(target[0], beside.values, slack)
        if share is None:
            return self._ready.on_piece(condition, beside, Limits(seconds=suite.left))
        limits = Limits(seconds=suite.left, nodes=suite.budget.nodes)
        return self._ready.near(condition, beside, share, limits, suite.budget.phases)

    def _unmet(self, target: tuple[int, int, int], refuted: bool) -> None:
        """Leave a requirement, or take it up later in a larger box."""
        suite, (number, _, level) = self._suite, target
        last = level == len(self._shares) - 1
        if last or not (refuted or level == 0):
            suite.failed(number, forever=last and level > 0 and refuted and suite.requirements.alone)
        else:
            suite.postponed(number)


def _along(answer: Answer, beside: Beside) -> list[np.ndarray]:
    """The answer of a program, points that go farther on its piece, and points beyond."""
    assert answer.point is not None
    start = beside.point.astype(np.float64)
    return [answer.point, *answer.beyond, *(start + k * (answer.point - start) for k in _ONWARD)]
