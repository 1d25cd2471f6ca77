"""Points that meet many requirements at once: one program whose objective is shared by all that are open.

Every open requirement pulls at its neuron with the weight ``1 / (limit - value)``, so that each has contributed 1 where
it is met. Over the whole region the network's linear relaxation is maximised, which looks beyond linear pieces and is
solved again from its last basis; what it returns is run, and from there the same is done exactly on the linear piece
that was reached, and on the next one.
"""

from __future__ import annotations

import numpy as np

from milp.highs import Limits
from verifier.coverage.pieces import Piece
from verifier.coverage.programs import Programs
from verifier.coverage.running import Values
from verifier.coverage.suite import Suite

_CLIMBED = 2
"""Linear pieces that are climbed after the relaxation."""

_MOST = 1024
"""Neurons of a network beyond which the relaxation is left out: with 3,172 (convolutions) it took over a minute."""

_BEYOND = 1.01
"""A step over the end of a piece, in lengths of the step."""


class Shared:
    """State: the relaxation of the region, made when first asked for."""

    def __init__(self, suite: Suite, ready: Programs) -> None:
        self.suite, self.ready = suite, ready
        self._relaxation: Piece | None = None

    def points(self, values: Values) -> list[np.ndarray]:
        """Points of the region that were climbed to, where requirements pull as they do at an input with these
        ``values`` ``[1, size]``; none where they share no objective, or the network is large."""
        requirements, limits = self.suite.requirements, Limits(seconds=self.suite.left)
        if requirements.subject.total > _MOST:
            return []
        weights, found = requirements.pulls(values, self.suite.open), list[np.ndarray]()
        if not weights:
            return found
        if self._relaxation is None:
            self._relaxation = self.ready.whole(None)
        piece, last = self._relaxation, None
        for step in range(1 + _CLIMBED):
            x = None if piece is None else piece.farthest(weights, limits)
            if x is None:
                break
            onward = x if last is None else last + _BEYOND * (x - last)
            last = requirements.domain.moved(onward)
            found.append(last)
            if step < _CLIMBED:
                here = requirements.subject.values(last[None])
                piece, weights = self.ready.whole(here), requirements.pulls(here, self.suite.open)
                last = last.astype(np.float64)
        return found


def mixture(suite: Suite, generator: np.random.Generator, count: int) -> np.ndarray:
    """``[count, *shape]``: random points, every second one uniform over the region, the others on the way from an input
    of the set to a random corner, most of them near to the input."""
    domain = suite.requirements.domain
    low, high = domain.lower.astype(np.float64), domain.upper.astype(np.float64)
    points = low + generator.random((count, *low.shape)) * (high - low)
    moved = points[1::2]
    corners = np.where(generator.random(moved.shape) < 0.5, low, high)
    shares = np.logspace(-2, 0, 101)
    for k in range(len(moved)):
        start = suite.beside(int(generator.integers(suite.count))).point.astype(np.float64)
        moved[k] = start + shares[generator.integers(101)] * (corners[k] - start)
    return domain.moved(points)
