"""The nested Lipschitz search of DeepGO, as a baseline: one-dimensional searches inside one another.

Ruan, Huang and Kwiatkowska, Reachability analysis of deep neural networks with provable guarantees (IJCAI 2018),
section 4. Of a function that changes by at most ``K |y - y'|``, known at sorted points ``y_k`` to be at least ``w_k``,

    f >= z_k = (w_{k-1} + w_k) / 2 - K (y_k - y_{k-1}) / 2        between y_{k-1} and y_k,

and the next point is where the two lines meet. Several inputs are searched one inside the other: what an inner search
returns for a point of the outer one is an interval, whose lower end counts as w and whose upper end as attained. The
function itself is a black box; its constants are given (here certified ones take the place of numbers set by hand).
The cost grows with a power of the number of inputs that are searched, and does not depend on the network.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verifier.errors import InputError

Evaluate = Callable[[tuple[float, ...]], tuple[float, float]]
"""Of a point of the searched inputs, two ends of the function's value there."""

INNER = 0.5
"""The gap of an inner search, as a share of that of the search around it."""


@dataclass(frozen=True, slots=True)
class Searched:
    """``lower <= min f <= upper``, ``upper`` attained at ``point``; ``evaluations`` of f were made."""

    lower: float
    upper: float
    point: tuple[float, ...]
    evaluations: int


def nested_minimum(
    evaluate: Evaluate,
    ends: Sequence[tuple[float, float]],
    constants: Sequence[float],
    gap: float,
    most: int = 1_000_000,
) -> Searched:
    """The minimum of a function of k inputs between ``ends``, of which input i changes it by at most ``constants[i]`` a
    unit, to within ``gap`` or by ``most`` evaluations (then ``upper - lower`` is larger).

    Guarantees ``lower <= f(x)`` for every x where ``evaluate`` keeps to its word, up to rounding of the last bits of
    sums of three numbers, which is charged. Raises ``InputError`` for constants that are no numbers of at least 0 and
    for ends that are none.
    """
    if len(ends) != len(constants) or not ends:
        raise InputError(f"{len(ends)} intervals and {len(constants)} constants: one each, at least one")
    if not all(-math.inf < low <= high < math.inf for low, high in ends):
        raise InputError("an interval has no two finite ends, the lower one first")
    if not all(math.isfinite(k) and k >= 0 for k in constants):
        raise InputError("a Lipschitz constant is not finite: the function has a jump, or the region is too large")
    budget = _Budget(most)
    return _search(evaluate, list(ends), list(constants), gap, (), budget)


@dataclass(slots=True)
class _Budget:
    """State: the evaluations that are left, and those made."""

    left: int
    made: int = 0

    def take(self) -> None:
        self.left, self.made = self.left - 1, self.made + 1


def _search(
    evaluate: Evaluate,
    ends: list[tuple[float, float]],
    constants: list[float],
    gap: float,
    outer: tuple[float, ...],
    budget: _Budget,
) -> Searched:
    """The search over the first of ``ends``, at the point ``outer`` of those around it."""

    def at(y: float) -> Searched:
        if len(ends) > 1:
            return _search(evaluate, ends[1:], constants[1:], gap * INNER, (*outer, y), budget)
        budget.take()
        low, high = evaluate((*outer, y))
        return Searched(low, high, (*outer, y), 1)

    (low, high), slope = ends[0], constants[0]
    points = [low] if low == high else [low, high]
    found = [at(y) for y in points]
    best = min(found, key=lambda f: f.upper)
    parts = sorted((_least(points, found, k, slope), points[k]) for k in range(1, len(points)))
    while True:
        lower = parts[0][0] if parts else found[0].lower
        if best.upper - lower <= gap or budget.left <= 0 or not parts:
            return Searched(min(lower, best.upper), best.upper, best.point, budget.made)
        k = points.index(parts.pop(0)[1])
        left, right = points[k - 1], points[k]
        drop = 0.0 if slope == 0 else (found[k].lower - found[k - 1].lower) / (2 * slope)
        middle = (left + right) / 2 - drop
        if not left < middle < right:
            middle = (left + right) / 2
            if not left < middle < right:  # two neighbouring numbers: nothing lies between them
                return Searched(lower, best.upper, best.point, budget.made)
        points.insert(k, middle)
        found.insert(k, at(middle))
        best = min(best, found[k], key=lambda f: f.upper)
        for j in (k, k + 1):
            bisect.insort(parts, (_least(points, found, j, slope), points[j]))


def _least(points: list[float], found: list[Searched], k: int, slope: float) -> float:
    """``z_k``, rounded down."""
    one, two, width = found[k - 1].lower, found[k].lower, points[k] - points[k - 1]
    size = abs(one) + abs(two) + slope * width
    return min((one + two) / 2 - slope * width / 2 - size * 2**-50 - 5e-324, one, two)
