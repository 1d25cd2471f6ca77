"""What a refiner says after every step: a function's minimum and maximum over a region, each between two ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Status = Literal["exact", "open", "limit"]


@dataclass(frozen=True, slots=True, eq=False)
class Enclosure:
    """Proven of a function f over a region, in real arithmetic over the stored weights:

        lower <= min f <= least,        greatest <= max f <= upper.

    ``least_at, greatest_at`` ``[*input shape]``: inputs of the region where f is at most ``least``, at least
    ``greatest``. A side that was not asked for has ends at infinity (and None). Of one refinement, every enclosure lies
    within those before it.

    ``status``: "exact", both gaps are at most what was asked for; "open", on the way, or nothing more can be done;
    "limit", the time or the memory was used up. ``boxes`` were bounded, ``points`` evaluated, ``programs`` (linear
    ones) solved so far, ``open`` boxes are left, after ``seconds``.
    """

    lower: float
    least: float
    greatest: float
    upper: float
    least_at: Tensor | None
    greatest_at: Tensor | None
    status: Status
    boxes: int
    points: int
    programs: int
    open: int
    seconds: float

    @property
    def gap(self) -> float:
        """The larger of ``least - lower`` and ``upper - greatest``, of the sides that were asked for."""
        sides = (self.least, self.lower), (self.upper, self.greatest)
        known = [a - b for a, b in sides if math.isfinite(a) or math.isfinite(b)]  # the others were not asked for
        return max(known, default=math.inf)

    @property
    def excess(self) -> float:
        """How much wider ``[lower, upper]`` is than ``[least, greatest]``, as a share of the latter (inf: it is empty,
        or one side was not asked for)."""
        inner = self.greatest - self.least
        outer = self.upper - self.lower
        return (outer - inner) / inner if inner > 0 and math.isfinite(outer) else math.inf
