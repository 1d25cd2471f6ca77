"""Points of a range as smooth functions of unbounded variables (Carlini and Wagner, S&P 2017, section V.B)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_INSIDE = 1 - 1e-3
"""Variables begin this share of the way to an end at most: at the ends themselves nothing would move them."""


@dataclass(frozen=True, slots=True, eq=False)
class Tanh:
    """``x = middle + half * tanh(w)`` where both ends are finite, else ``x = w``; elements that are not ``free`` keep
    their value in the example. All ``[P, d]``."""

    centre: Tensor
    low: Tensor
    high: Tensor
    free: Tensor

    @staticmethod
    def of(centre: Tensor, low: Tensor, high: Tensor) -> Tanh:
        """All elements free."""
        return Tanh(centre, low, high, low < high)

    @property
    def _bounded(self) -> Tensor:
        return self.low.isfinite() & self.high.isfinite()

    @property
    def _half(self) -> Tensor:
        return torch.where(self._bounded, (self.high / 2 - self.low / 2).clamp(min=1e-30), 1.0)

    @property
    def _middle(self) -> Tensor:
        return torch.where(self._bounded, self.high / 2 + self.low / 2, 0.0)

    def variables(self, x: Tensor) -> Tensor:
        """The variables of points, of those near an end a little inside."""
        at = (x - self._middle) / self._half
        return torch.where(self._bounded, at.clamp(-_INSIDE, _INSIDE).atanh(), x)

    def points(self, w: Tensor) -> Tensor:
        """The points, within the ends."""
        x = torch.where(self._bounded, self._middle + self._half * w.tanh(), w)
        x = torch.minimum(torch.maximum(x, self.low), self.high)
        return torch.where(self.free, x, self.centre)

    def chained(self, w: Tensor, gradient: Tensor) -> Tensor:
        """A gradient by points as one by variables."""
        slope = torch.where(self._bounded, self._half * (1 - w.tanh().square()), 1.0)
        return torch.where(self.free, slope * gradient, 0.0)
