"""A proven pair of limits of the share of a box that violates, beside which an estimate can stand.

The box is paved (set inversion: Jaulin and Walter, Automatica 29, 1993): parts that bounds prove free of violations, or
violating everywhere, are closed and count with their exact volume, the others are halved. All ends are binary numbers,
so volumes are exact fractions, and shares are rounded outward.

Parts are bounded by ``Crown`` alone, both ends of all rows at once, and not by ``anytime/bounding.py``, which works for
one end of one row: the limits come as near with either at equal numbers of boxes, within 6 %, and that takes one to
three times the time. What matters is which parts are cut, and where (docs/results.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from bounds import Box, Crown, DomainError, Graph, compute_bounds, prepare
from bounds.compute import Prepared
from bounds.layouts import flat
from verifier import limits
from verifier.anytime.boxes import halved
from verifier.errors import InputError
from verifier.ranges import rounded
from verifier.statistics.estimate import check_count
from verifier.statistics.violations import Violations, violations

BATCH = 256

LEAST_HOPE = 0.05
"""Parts whose middle lies near the threshold may be farther from being closed than all others; they count as if they
were not farther than this."""

WIDTH = 0.1
"""Of two inputs along which the scores change as much the wider one is cut, to this weight."""


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
    timeout: float | None = None,
) -> VolumeBounds:
    """Proven limits of the share of ``box`` (one, of N = 1) that violates, after at most ``boxes`` bounded boxes.

    A violation, with ``label``: another class scores at least as much; with ``rows`` ``[R, *output shape]``: some
    ``rows[r] . output <= threshold``. That share is the probability which ``monte_carlo`` and ``splitting`` estimate.
    ``timeout`` (seconds) ends it earlier, between two batches. Raises ``InputError``.
    """
    check_count("boxes", boxes, 1)
    asked = violations(graph, label, rows, threshold)
    if not isinstance(box, Box):
        raise InputError(f"the region is a {type(box).__name__}: a Box is needed; region.box() is that around a ball")
    start = box.to(torch.float64)
    if start.size != 1 or bool(start.empty().any()) or not bool(torch.isfinite(start.upper - start.lower).all()):
        raise InputError(f"a box of shape {tuple(box.lower.shape)}: one box, neither empty nor infinite, is needed")
    until = limits.deadline(timeout)
    try:
        paving = _Paving(asked, prepare(graph, torch.float64), start)
        state = paving.start()
        while state.open.count and state.boxes < boxes and limits.now() < until:
            state = paving.step(state, min(BATCH, boxes - state.boxes))
    except DomainError as error:
        raise InputError(str(error)) from error
    except ValueError as error:
        raise InputError(f"the box cannot be bounded: {error}") from error
    return paving.terminate(state)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """N boxes ``lower <= x <= upper`` ``[N, n]``, about which ``share`` ``[N]`` of the whole each is, and how much of
    that is to be hoped for from bounding it, ``rank`` ``[N]``."""

    lower: Tensor
    upper: Tensor
    share: Tensor
    rank: Tensor

    @property
    def count(self) -> int:
        """N."""
        return self.rank.shape[0]

    def take(self, index: Tensor) -> _Parts:
        """Those at ``index``, numbers or a mask."""
        return _Parts(self.lower[index], self.upper[index], self.share[index], self.rank[index])

    def volume(self) -> Fraction:
        """The exact sum of the products of those widths that are not 0 (1 where none is)."""
        ends = zip(self.lower.tolist(), self.upper.tolist(), strict=True)
        return sum((_volume(lower, upper) for lower, upper in ends), start=Fraction(0))

    @staticmethod
    def cat(parts: list[_Parts]) -> _Parts:
        """All of them."""
        names = ("lower", "upper", "share", "rank")
        return _Parts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """The ``open`` parts, the volumes that are closed, how many ``boxes`` were bounded, and how many of those that are
    not closed cannot be cut (``stuck``)."""

    open: _Parts
    free: Fraction = Fraction(0)
    violating: Fraction = Fraction(0)
    boxes: int = 0
    stuck: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Paving:
    """What is asked of which box."""

    asked: Violations
    prepared: Prepared
    box: Box

    def start(self) -> _State:
        """The whole box."""
        one = torch.ones(1, dtype=torch.float64)
        return _State(_Parts(self.box.lower.flatten(1), self.box.upper.flatten(1), one, one))

    def step(self, state: _State, size: int) -> _State:
        """Bound the open parts of the highest rank, and halve those of which nothing is proven."""
        order = state.open.rank.argsort(descending=True, stable=True)
        parts, rest = state.open.take(order[:size]), state.open.take(order[size:])
        shape, outputs = self.box.lower.shape[1:], self.asked.graph.nodes[self.asked.graph.outputs[0]].shape
        region = Box(parts.lower.reshape(-1, *shape), parts.upper.reshape(-1, *shape))
        found = compute_bounds(self.prepared, region, Crown(), rows=self.asked.rows.reshape(-1, *outputs))
        free = (found.lower > self.asked.threshold).all(1)
        violating = (found.upper <= self.asked.threshold).any(1)
        left = ~(free | violating)
        halves, stuck = self._halves(parts.take(left), found.lower[left], found.upper[left])
        return _State(
            _Parts.cat([rest, halves]),
            state.free + parts.take(free).volume(),
            state.violating + parts.take(violating & ~free).volume(),
            state.boxes + parts.count,
            state.stuck + stuck,
        )

    def _halves(self, parts: _Parts, lower: Tensor, upper: Tensor) -> tuple[_Parts, int]:
        """The halves of parts whose rows lie in ``lower`` to ``upper`` ``[N, R]``, and how many cannot be cut.

        A part is cut where its least row at the middle changes most. It ranks by its share of the volume times how near
        it is to being closed: of the distance from the value at the middle to the bound, the part that has the
        threshold beyond it.
        """
        values, slopes = self._middles(parts)
        widths = parts.upper - parts.lower
        changes = torch.nan_to_num(slopes.abs() * widths, posinf=torch.finfo(torch.float64).max)
        relative = torch.nan_to_num(widths / (self.box.upper - self.box.lower).flatten())  # 0 / 0: it does not vary
        score = _of_most(changes) + WIDTH * _of_most(relative)
        middle = parts.lower / 2 + parts.upper / 2
        score = torch.where((parts.lower < middle) & (middle < parts.upper), score, -1.0)
        left, right, smaller = halved(parts.lower, parts.upper, score.argmax(1))
        above = values - self.asked.threshold
        safe = torch.where(lower > self.asked.threshold, 1.0, above / (values - lower)).amin(1)
        broken = (-above / (upper - values)).amax(1)
        hope = torch.nan_to_num(torch.maximum(safe, broken)).clamp(LEAST_HOPE, 1.0)
        share = parts.share / 2
        both = (_Parts(parts.lower, left, share, share * hope), _Parts(right, parts.upper, share, share * hope))
        return _Parts.cat([half.take(smaller) for half in both]), int((~smaller).sum())

    def _middles(self, parts: _Parts) -> tuple[Tensor, Tensor]:
        """Rows ``[N, R]`` at the middles of parts, and the gradient ``[N, n]`` of the least of them. Nothing that is
        proven rests on these."""
        points = (parts.lower / 2 + parts.upper / 2).reshape(-1, *self.box.lower.shape[1:]).requires_grad_(True)
        with torch.enable_grad():
            values = flat(self.asked.graph.evaluate(points)[0]) @ self.asked.rows.T
            least = values.amin(1).sum()
            if not least.requires_grad:  # what is read off by ArgMax, say
                return values, torch.zeros_like(parts.lower)
            slopes = torch.autograd.grad(least, points, materialize_grads=True)[0]
        return values.detach(), slopes.flatten(1)

    def terminate(self, state: _State) -> VolumeBounds:
        """What is proven so far."""
        volume = self.start().open.volume()
        lower, upper = rounded(state.violating / volume, -1), rounded(1 - state.free / volume, 1)
        count = state.open.count + state.stuck
        return VolumeBounds(lower, upper, state.violating, state.free, volume, state.boxes, count)


def _of_most(values: Tensor) -> Tensor:
    """Rows ``[N, n]`` divided by their greatest elements (0 where those are)."""
    return values / values.amax(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _volume(lower: list[float], upper: list[float]) -> Fraction:
    widths = (Fraction(high) - Fraction(low) for low, high in zip(lower, upper, strict=True) if high > low)
    return math.prod(widths, start=Fraction(1))
