"""When enough has been sampled: a fixed number, or as soon as the answer is clear.

An estimation looks at a ``Tally`` and says how many samples there should be before it looks again. It claims nothing:
the limits that it names do, and those of ``Sequential`` hold however often anyone looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from scipy.stats import beta

from verifier.errors import InputError
from verifier.smoothing.certificates import Claim, ClopperPearson, Limits, Mixture


@dataclass(frozen=True, slots=True)
class Tally:
    """``counts`` by class (of none last) of the samples so far, and the largest ``radius`` that was shown on the way,
    with the ``p`` of that moment."""

    counts: tuple[int, ...]
    radius: float = 0.0
    p: float = 0.0

    @property
    def samples(self) -> int:
        """How many were drawn."""
        return sum(self.counts)


class Estimation(Protocol):
    """How long a claim is sampled, and by which limits."""

    @property
    def most(self) -> int:
        """Samples at most."""

    @property
    def limits(self) -> Limits:
        """Limits that hold when they are asked for."""

    def goal(self, claim: Claim, tally: Tally) -> int:
        """The number of samples at which to look again; no more than there are: enough."""

    def need(self, claim: Claim, tally: Tally) -> float:
        """A guess of how many more samples the next gain takes; inf: no guess."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """``most`` samples and the limits of Clopper and Pearson."""

    most: int = 100_000

    @property
    def limits(self) -> Limits:
        """See ``Estimation``."""
        return ClopperPearson()

    def goal(self, claim: Claim, tally: Tally) -> int:
        """See ``Estimation``."""
        return self.most

    def need(self, claim: Claim, tally: Tally) -> float:
        """See ``Estimation``."""
        return self.most - tally.samples


@dataclass(frozen=True, slots=True)
class Sequential:
    """Samples until the radius is at least the largest of ``radii`` or the next of them is out of reach, ``most`` at
    most; looks after ``first`` samples and then whenever there are a tenth more."""

    radii: Sequence[float]
    most: int = 100_000
    first: int = 100

    def __post_init__(self) -> None:
        if self.first < 1:
            raise InputError(f"first={self.first}: at least one sample is drawn before the first look")

    @property
    def limits(self) -> Limits:
        """See ``Estimation``."""
        return Mixture()

    def goal(self, claim: Claim, tally: Tally) -> int:
        """See ``Estimation``: a mark is out of reach where even ``most`` samples do not show it, with the label's share
        at the upper end (99.9 %) of what was seen. A choice about effort, not a claim."""
        drawn, mark = tally.samples, self._mark(tally)
        if not drawn:
            return min(self.first, self.most)
        if mark is None or drawn >= self.most:
            return drawn
        hits = tally.counts[claim.label]
        share = 1.0 if hits == drawn else float(beta.ppf(0.999, hits + 1, drawn - hits))
        if claim.radius(_projected(claim, tally, self.most, share), self.limits)[0] < mark:
            return drawn
        return min(drawn + max(self.first, drawn // 10), self.most)

    def need(self, claim: Claim, tally: Tally) -> float:
        """See ``Estimation``: until the shares of now would show the next mark, to a factor of 1.5."""
        drawn, mark = tally.samples, self._mark(tally)
        if mark is None or not drawn:
            return 0.0
        share, total = tally.counts[claim.label] / drawn, drawn
        while total < self.most:
            total = min(self.most, total + total // 2 + 1)
            if claim.radius(_projected(claim, tally, total, share), self.limits)[0] >= mark:
                return total - drawn
        return float(self.most - drawn) * 2

    def _mark(self, tally: Tally) -> float | None:
        """The next radius; the smallest is just above 0, where the label leads at all."""
        above = [r for r in (5e-324, *self.radii) if r > tally.radius]
        return min(above, default=None)


def _projected(claim: Claim, tally: Tally, samples: int, share: float) -> tuple[int, ...]:
    """Counts after ``samples``, if the label has ``share`` of the new ones and the others what they had of the rest."""
    left = samples - tally.samples
    hits, others = tally.counts[claim.label], tally.samples - tally.counts[claim.label]
    own = round(left * share)
    counts = [c + int(c * (left - own) / max(1, others)) for c in tally.counts]
    counts[claim.label] = hits + own
    counts[-1] += samples - sum(counts)
    return tuple(counts)
