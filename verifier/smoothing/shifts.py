"""What a shift of the noise can do to probabilities: how far one may go before another class is the most probable.

``least(p, r)`` is a lower bound of the probability, after a shift of length r, of any set that had the probability p
before. A set can gain no more than its complement can lose: from q it reaches ``1 - least(1 - q, r)`` at most. All
radii follow from this alone, whatever the base classifier is. There are two ways to it:

``Ladder``: densities that shrink by no more than some rate. With phi(p) the most that a set of probability p gains per
unit of the shift (its densest directional derivative, Yang et al., ICML 2020, section 4), ``up(p)``, the integral of
1 / phi from 1/2 to p, falls by at most r. (The normal quantile is that of Gaussian noise.)

``Overlap``: uniform densities. No probability changes by more than the part of the support that a shift leaves, the
total variation (level sets; exact for the shapes here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from verifier.smoothing.roots import last_up

_DOWN = 1 - 1e-9
"""What radii are multiplied with: the special functions behind them are exact to about 1e-12 of their values."""


class Shift(Protocol):
    """The effect of shifts in one norm."""

    def radius(self, p: float, q: float) -> float:
        """No shift by less than this, rounded down, takes the lead from a class of probability p at least over one of q
        at most; 0 where p does not exceed q."""

    def least(self, p: float, r: float) -> float:
        """Lower bound of the probability after a shift of length ``r``."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """``tail(t)``: how far from 1/2 the probability t <= 1/2 is in the unit ``length`` of shifts; it grows as t falls.
    Above 1/2 the same is meant of 1 - t."""

    length: float
    tail: Callable[[float], float]

    def radius(self, p: float, q: float) -> float:
        """``(up(p) - up(q)) / 2``: both probabilities move, towards each other. See ``Shift``."""
        if p <= q:
            return 0.0
        return max(0.0, self.length * (self._up(p) - self._up(q)) / 2 * _DOWN)

    def least(self, p: float, r: float) -> float:
        """See ``Shift``."""
        if p <= 0:
            return 0.0
        goal = self._up(p) - r / self.length * (1 + 1e-9)
        return last_up(lambda s: goal - self._up(s), 0.0, p)

    def _up(self, p: float) -> float:
        # A probability that is only known to be 1 or 0 to rounding climbs no higher than the last number before it.
        if p >= 0.5:
            return self.tail(max(1 - p, 2.0**-53))
        return -self.tail(max(p, 1e-300))


@dataclass(frozen=True, slots=True)
class Overlap:
    """``reach(loss)``: the longest shift under which at least ``1 - loss`` of the support stays, for loss <= 1/2."""

    reach: Callable[[float], float]

    def radius(self, p: float, q: float) -> float:
        """What is lost by one and gained by the other is half the lead each. See ``Shift``."""
        return self.reach(min(p - q, 1.0) / 2) * _DOWN if p > q else 0.0

    def least(self, p: float, r: float) -> float:
        """See ``Shift``; 0 where more than half of the support is left behind."""
        if self.reach(0.5) * _DOWN < r:
            return 0.0
        kept = last_up(lambda s: self.reach(1 - s) * _DOWN - r, 0.5, 1.0)
        return max(0.0, p - (1 - kept))


@dataclass(frozen=True, slots=True)
class Scaled:
    """Shifts measured with another rod: one of length r is at most one of ``r / factor`` of ``shift``."""

    shift: Shift
    factor: float

    def radius(self, p: float, q: float) -> float:
        """See ``Shift``."""
        return self.shift.radius(p, q) * self.factor * _DOWN

    def least(self, p: float, r: float) -> float:
        """See ``Shift``."""
        return self.shift.least(p, r / self.factor * (1 + 1e-9))


@dataclass(frozen=True, slots=True)
class Larger:
    """The better of several statements about the same shifts; of none nothing follows."""

    shifts: tuple[Shift, ...]

    def radius(self, p: float, q: float) -> float:
        """See ``Shift``."""
        return max((shift.radius(p, q) for shift in self.shifts), default=0.0)

    def least(self, p: float, r: float) -> float:
        """See ``Shift``."""
        return max((shift.least(p, r) for shift in self.shifts), default=0.0)


@dataclass(frozen=True, slots=True)
class Near:
    """For samples of a distribution within a total variation of ``distance`` of the one that ``shift`` is about:
    probabilities under one are those under the other up to it."""

    shift: Shift
    distance: float

    def radius(self, p: float, q: float) -> float:
        """See ``Shift``."""
        return self.shift.radius(p - self.distance, q + self.distance)

    def least(self, p: float, r: float) -> float:
        """See ``Shift``."""
        return self.shift.least(p - self.distance, r)


def among_first(shift: Shift, p: float, others: Sequence[float], k: int) -> float:
    """A class of probability ``p`` at least stays among the k most probable ones under shifts by less than this, with
    the others' upper limits given (at least k of them; they may add up to more than ``1 - p``).

    To leave, k others have to overtake it, and so any t of these have together at least t times its probability. For
    the t smallest of the k largest limits, of sum s, that needs ``1 - least(1 - s, r) >= t least(p, r)`` (Jia et al.,
    ICLR 2020, theorem 1, there for Gaussian noise). The largest r that some t excludes, by bisection. 0 where nothing
    is certified. For k = 1 it is ``shift.radius``.
    """
    rest = max(0.0, 1 - p) * (1 + 1e-15)
    first = sorted(others, reverse=True)[:k]
    sums = [min(sum(first[k - t :]) * (1 + 1e-12), rest) for t in range(1, k + 1)]
    if k == 1:
        return shift.radius(p, sums[0])

    def lead(r: float) -> float:
        own = shift.least(p, r)
        return max(t * own - (1 - shift.least(1 - s, r)) for t, s in enumerate(sums, start=1))

    if lead(0.0) <= 0:
        return 0.0
    high = max(shift.radius(max(p, 0.75), 0.25), 1e-9)
    while lead(high) > 0 and high < 1e18:
        high *= 2
    return last_up(lead, 0.0, high) * _DOWN
