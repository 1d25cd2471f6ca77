"""Concolic generation: the open requirement that is nearest is met by an input that a program finds, then the next.

Concrete runs say which requirement is nearest and which linear piece of the network to stay on; the symbolic part is
one program (Sun et al., Concolic testing for deep neural networks, ASE 2018). A program speaks of exact arithmetic to a
solver's tolerances, so that what it returns is run: only what the network itself then does counts.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from milp.highs import Limits
from verifier.coverage.programs import Answer, Programs, programs
from verifier.coverage.requirements import Requirements
from verifier.coverage.suite import Budget, Generated, Suite
from verifier.query import Query

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Radii of the boxes around an input, in units of the region's greatest width; the last one holds the region."""

_SLACKS = (1e-4, 1e-3, 1e-2)
"""By how much a requirement is to be met, in units of the proven range: more where less was not enough when run."""


def concolic(
    requirements: Requirements,
    inputs: np.ndarray,
    *,
    query: Query | None = None,
    budget: Budget = Budget(),  # noqa: B008 - a frozen value
) -> Iterator[Generated]:
    """Inputs of the region, one by one, each of which meets requirements that ``inputs`` ``[N, *shape]`` and those
    before it do not, or violates the ``query`` (then it carries the counterexample, as replayed; it may do both).

    For the nearest open requirement a linear program finds the nearest input on the linear piece of the nearest input
    of the set, or on one of the next pieces in its direction; of that one and two that go farther on the piece the one
    is taken that meets most (of equal ones the nearest). Where this finds nothing, mixed-integer programs find the
    nearest input in growing boxes. It ends with the budget, or when every requirement is met, impossible, or tried.

    Raises ``InputError`` for inputs that do not fit, ``UnsupportedError`` for operators without an exact form (it names
    all of them; sigmoids after the last layer that switches do not matter).
    """
    return _steps(Suite(requirements, inputs, query, budget), programs(requirements))


def _steps(suite: Suite, ready: Programs) -> Generator[Generated, None, None]:
    shares = (None, *_SHARES) if suite.budget.nodes else (None,)
    while not suite.done and (target := suite.nearest()) is not None:
        number, seed, level = target
        answer = yield from _one(suite, ready, (number, seed), shares[level])
        if suite.covered[number]:
            continue
        last = shares[level] == shares[-1]
        if last or not (answer.refuted or level == 0):
            suite.failed(number, forever=last and level > 0 and answer.refuted and suite.requirements.alone)
        else:
            suite.postponed(number)


def _one(
    suite: Suite, ready: Programs, target: tuple[int, int], share: float | None
) -> Generator[Generated, None, Answer]:
    """Programs for one requirement beside one input, on its linear piece (``share`` None) or in a box around it."""
    requirements, beside, (number, seed) = suite.requirements, suite.beside(target[1]), target
    answer = Answer(None, False)
    for slack in _SLACKS:
        condition = requirements.condition(number, beside.values, slack)
        if share is None:
            answer = ready.on_piece(condition, beside, Limits(seconds=suite.left))
        else:
            limits = Limits(seconds=suite.left, nodes=suite.budget.nodes)
            answer = ready.near(condition, beside, share, limits, suite.budget.phases)
        if answer.point is None:
            return Answer(None, answer.refuted and slack == _SLACKS[0])
        points = np.stack([requirements.domain.moved(p) for p in (answer.point, *answer.beyond)])
        point = points[suite.news(points).argmax() if len(points) > 1 else 0]
        found = suite.tried(point, "linear program" if share is None else "mixed-integer program", number, seed)
        if found is not None:
            yield found
        if suite.done or suite.covered[number]:
            break
    return answer
