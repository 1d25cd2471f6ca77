"""A proven pair of limits of the share of a box that violates, beside which an estimate can stand.

The box is cut breadth first: whatever bounds prove free of violations, or violating everywhere, is counted with its
exact volume, the rest is halved, the largest first. All ends are binary numbers, so volumes are exact fractions, and
shares are rounded outward.
"""

from __future__ import annotations

import heapq
import math
import time
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import torch
from torch import Tensor

from bounds import Box, Crown, DomainError, Graph, compute_bounds, prepare
from bounds.compute import Prepared
from verifier.errors import InputError
from verifier.ranges import rounded
from verifier.statistics.estimate import check_count
from verifier.statistics.violations import Violations, violations

BATCH = 256


@dataclass(frozen=True, slots=True)
class VolumeBounds:
    """Proven: ``lower <= share <= upper``, the share of the box's volume whose points are violations, in real
    arithmetic over the stored weights. Inputs that do not vary do not count as a dimension.

    ``violating`` and ``free`` are the exact volumes of the parts that are proven to violate everywhere and nowhere, of
    ``volume``; ``boxes`` were bounded, and ``open`` are left.
    """

    lower: float
    upper: float
    violating: Fraction
    free: Fraction
    volume: Fraction
    boxes: int
    open: int


def violation_volume(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    box: Box,
    *,
    label: int | None = None,
    rows: Tensor | None = None,
    threshold: float = 0.0,
    boxes: int = 10_000,
    seconds: float | None = None,
) -> VolumeBounds:
    """Proven limits of the share of ``box`` (one, of N = 1) that violates, after at most ``boxes`` bounded boxes.

    A violation, with ``label``: another class scores at least as much; with ``rows`` ``[R, *output shape]``: some
    ``rows[r] . output <= threshold``. That share is the probability which ``monte_carlo`` and ``splitting`` estimate.
    ``seconds`` ends it earlier, between two batches. Raises ``InputError``.
    """
    check_count("boxes", boxes, 1)
    asked = violations(graph, label, rows, threshold)
    if not isinstance(box, Box):
        raise InputError(f"the region is a {type(box).__name__}: a Box is needed; region.box() is that around a ball")
    start = box.to(torch.float64)
    if start.size != 1 or bool(start.empty().any()) or not bool(torch.isfinite(start.upper - start.lower).all()):
        raise InputError(f"a box of shape {tuple(box.lower.shape)}: one box, neither empty nor infinite, is needed")
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    work = _Refinement(asked, start)
    try:
        while work.open and work.boxes < boxes and time.monotonic() < deadline:
            work.step(min(BATCH, boxes - work.boxes))
    except DomainError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError(f"the box cannot be bounded: {error}") from error
    return work.found()


class _Refinement:
    """Open boxes by volume, largest first, and what is proven of the others."""

    def __init__(self, asked: Violations, box: Box) -> None:
        self.prepared: Prepared = prepare(asked.graph, torch.float64)
        shape = asked.graph.nodes[asked.graph.outputs[0]].shape
        self.rows = asked.rows.reshape(-1, *shape)
        self.threshold = asked.threshold
        self.width = (box.upper - box.lower).flatten()
        self.volume = _volume(box)
        self.free = self.violating = Fraction(0)
        self.boxes, self.stuck, self.order = 0, 0, count()
        self.open: list[tuple[float, int, Box]] = []
        self.push(box)

    def push(self, box: Box) -> None:
        """An open box."""
        heapq.heappush(self.open, (-float(_volume(box) / self.volume), next(self.order), box))

    def step(self, size: int) -> None:
        """Bound the largest open boxes, and halve those of which nothing is proven."""
        taken = [heapq.heappop(self.open)[2] for _ in range(min(size, len(self.open)))]
        batch = Box(torch.cat([b.lower for b in taken]), torch.cat([b.upper for b in taken]))
        self.boxes += len(taken)
        found = compute_bounds(self.prepared, batch, Crown(), rows=self.rows)
        safe = (found.lower > self.threshold).all(1).tolist()
        broken = (found.upper <= self.threshold).any(1).tolist()
        for box, is_safe, is_broken in zip(taken, safe, broken, strict=True):
            if is_safe:
                self.free += _volume(box)
            elif is_broken:
                self.violating += _volume(box)
            else:
                self._halve(box)

    def _halve(self, box: Box) -> None:
        """Across the input that is widest in comparison with the whole box; a box that cannot be cut stays open."""
        lower, upper = box.lower.flatten(), box.upper.flatten()
        middle = lower + (upper - lower) / 2
        share = torch.where((middle > lower) & (middle < upper), (upper - lower) / self.width, -1.0)
        place = int(share.argmax())
        if float(share[place]) < 0:
            self.stuck += 1  # neither free nor violating, and not looked at again
            return
        ends = lower.clone(), upper.clone()
        ends[0][place] = ends[1][place] = middle[place]
        self.push(Box(box.lower, ends[1].reshape(box.lower.shape)))
        self.push(Box(ends[0].reshape(box.lower.shape), box.upper))

    def found(self) -> VolumeBounds:
        """What is proven so far."""
        lower, upper = self.violating / self.volume, 1 - self.free / self.volume
        ends = (rounded(lower, -1), rounded(upper, 1))
        return VolumeBounds(*ends, self.violating, self.free, self.volume, self.boxes, len(self.open) + self.stuck)


def _volume(box: Box) -> Fraction:
    """The exact product of the widths that are not 0 (1 where none is)."""
    widths = (
        Fraction(high) - Fraction(low)
        for low, high in zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True)
        if high > low
    )
    return math.prod(widths, start=Fraction(1))
