"""Points that a search has looked at: what is a candidate among them, and where an attack best begins."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Starts:
    """P >= 1 points ``x`` ``[P, n]`` in the model's dtype, the clause ``[P]`` of the query that each was tried for, and
    its ``value`` ``[P]`` there (float64; true where at most 0, as ``ClauseArrays.margin`` says)."""

    x: Tensor
    clause: Tensor
    value: Tensor

    def fulfilling(self) -> Tensor | None:
        """Those that make their clause true, ``[K, n]``; None where none does."""
        good = self.value <= 0
        return self.x[good] if bool(good.any()) else None

    def least(self, count: int) -> Starts:
        """At most ``count``, those with the least values, in order."""
        chosen = torch.sort(self.value, stable=True).indices[:count]
        return Starts(self.x[chosen], self.clause[chosen], self.value[chosen])

    def cat(self, other: Starts) -> Starts:
        """Both together."""
        return Starts(
            torch.cat([self.x, other.x]),
            torch.cat([self.clause, other.clause]),
            torch.cat([self.value, other.value]),
        )
