"""The ascent itself: many small concave-like problems at once, one row each, in place and without a tape.

A ``Slope`` is R functions of P numbers each, with a gradient of its own; ``climb`` moves the numbers of all rows by
Adam (Kingma and Ba, 2015) with a decaying rate, scaled to the range of each number, and projects them back. The
functions need not be concave, so every row keeps the best value it has seen. A row leaves the batch as soon as it has
reached its goal (or another row has made it needless), or when it no longer gains.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Slope(ABC):
    """R functions, to be made as large as possible; those of the rows that are left change with ``take``."""

    __slots__ = ()

    @abstractmethod
    def value(self, point: Tensor) -> Tensor:
        """``[R]``: the functions at ``point`` ``[R, P]``."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """``[R, P]``: the gradient at the point of the last ``value``."""

    @abstractmethod
    def project(self, point: Tensor) -> None:
        """Bring a point back to where the functions are meant, in place."""

    @abstractmethod
    def take(self, index: Tensor) -> Slope:
        """The functions of some rows."""


WORTH = 0.75
"""The rows that are done leave when at most this share of all is left: taking rows out copies all that is held."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How ``climb`` steps: at most ``steps`` steps of ``rate`` (a share of each number's range), multiplied by
    ``decay`` after each.

    From step ``patience`` on, a row leaves when it gained less than ``least`` (a share of the size of its gain so far)
    in the last ``patience`` steps; 0: never. No step begins after the time ``until`` (``time.monotonic()``).
    """

    steps: int = 20
    rate: float = 0.1
    decay: float = 0.97
    patience: int = 0
    least: float = 0.0
    until: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Summit:
    """The best value ``[R]`` of each row and where it was found, ``[R, P]``."""

    value: Tensor
    point: Tensor


@dataclass(slots=True)
class _Party:
    """The rows that are still climbing: which ones, where, with what momentum."""

    slope: Slope
    rows: Tensor
    point: Tensor
    mean: Tensor
    square: Tensor
    scale: Tensor

    def take(self, index: Tensor) -> None:
        self.slope, self.rows = self.slope.take(index), self.rows[index]
        self.point, self.mean, self.square = self.point[index], self.mean[index], self.square[index]
        if self.scale.shape[0] > 1:
            self.scale = self.scale[index]


def climb(slope: Slope, start: Tensor, scale: Tensor, pace: Pace, goal: float | None, pairs: bool = False) -> Summit:
    """The best of at most ``pace.steps`` steps from ``start`` ``[R, P]`` (which is left as it is).

    ``scale`` ``[1 or R, P]``: the range of each number. A row above ``goal`` stops; with ``pairs`` row r and row
    r + R/2 stop together. The result is never below the value at ``start``.
    """
    count = start.shape[0]
    best, place = slope.value(start), start.clone()
    party = _Party(
        slope,
        torch.arange(count, device=start.device),
        start.clone(),
        torch.zeros_like(start),
        torch.zeros_like(start),
        scale,
    )
    first, rate = best.clone(), pace.rate
    before = best.clone()
    for step in range(1, pace.steps + 1):
        if time.monotonic() > pace.until:
            break
        done = _done(best, party.rows, goal, pairs)
        if pace.patience and step > pace.patience and step % pace.patience == 1:
            gained = best[party.rows] - before[party.rows]
            done |= gained <= (best - first)[party.rows] * pace.least
            before = best.clone()
        left = (~done).nonzero().flatten()
        if not left.shape[0]:
            break
        gradient = party.slope.gradient()
        if left.shape[0] <= WORTH * party.rows.shape[0]:
            party.take(left)
            gradient = gradient[left]
        _adam(party, gradient, rate, step)
        rate *= pace.decay
        found = party.slope.value(party.point)
        better = (found > best[party.rows]).nonzero().flatten()
        if better.shape[0]:
            rows = party.rows[better]
            best[rows] = found[better]
            place[rows] = party.point[better]
    return Summit(best, place)


def _done(best: Tensor, rows: Tensor, goal: float | None, pairs: bool) -> Tensor:
    if goal is None:
        return torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
    reached = best > goal
    if pairs:
        one, two = reached.chunk(2)
        reached = (one | two).repeat(2)
    return reached[rows]


def _adam(party: _Party, gradient: Tensor, rate: float, step: int) -> None:
    """One step upward in place, and the projection."""
    first, second = 1 - 0.9**step, 1 - 0.999**step
    party.mean.lerp_(gradient, 0.1)
    party.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    size = party.square.sqrt().add_(1e-8 * second**0.5)
    party.point.addcmul_(party.scale, party.mean.div(size), value=rate * second**0.5 / first)
    party.slope.project(party.point)
