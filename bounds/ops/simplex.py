"""Results that are at least 0 and sum to 1 along an axis: what a walk may do with such a node before its lines.

With ``sum_k y_k = 1`` any mu may be taken from coefficients A along the axis:

    sum_k A_k y_k = sum_k (A_k - mu) y_k + mu.

Lines lose ``sum_k |A_k - mu| gap_k / 2`` against the middle of both, for the gap between the lower and the upper one,
so the mu that loses least is the median of A weighted by the gaps. It is one of the ``A_j``, which is the same as
expressing ``y_j`` by the others; that result then is ``1 - sum_{k != j} y_k`` in a forward run as well.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds.constraints import LinearBlock
from bounds.ops.base import Nonlinear
from bounds.rounding import Rounding


class OnSimplex(Nonlinear):
    """An operator with such results along ``axis`` (negative)."""

    __slots__ = ()
    axis: int

    def recentred(self, rows: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """``(A - mu, mu)`` for coefficients A, with one mu for each place along the axis; gaps (>= 0) broadcast."""
        ordered, order = rows.sort(self.axis)
        mass = gaps.expand_as(rows).gather(self.axis, order).cumsum(self.axis)
        half = mass.narrow(self.axis, rows.shape[self.axis] - 1, 1) / 2
        place = (mass < half).sum(self.axis, keepdim=True).clamp(max=rows.shape[self.axis] - 1)
        mu = ordered.gather(self.axis, place)
        return rows - mu, mu

    def completed(self, values: Tensor, rows: Tensor) -> Tensor:
        """Values of the node where one that has coefficient 0 in the recentred ``rows`` is what the others leave."""
        place = rows.abs().argmin(self.axis, keepdim=True)
        own = values.gather(self.axis, place)
        return values.scatter(self.axis, place, own + (1 - values.sum(self.axis, keepdim=True)))

    def summed(self, block: LinearBlock, like: Tensor) -> LinearBlock:
        """A block of the node with rows ``sum_k y_k = 1`` besides; ``like`` ``[1, *shape]``: its one operand."""
        results = like.numel() + torch.arange(like.numel()).reshape(like.shape).movedim(self.axis, -1).flatten(0, -2)
        count, size = results.shape
        one, none = torch.ones(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        return replace(
            block,
            row=torch.cat([block.row, (block.lower.shape[0] + torch.arange(count)).repeat_interleave(size)]),
            column=torch.cat([block.column, results.flatten()]),
            value=torch.cat([block.value, torch.ones(count * size, dtype=torch.float64)]),
            lower=torch.cat([block.lower, one]),
            upper=torch.cat([block.upper, one]),
            error=torch.cat([block.error, none]),
        )

    def recentring_error(self, rows: Tensor, mu: Tensor, rounding: Rounding) -> Tensor:
        """``[R]``: what rounding of the recentred ``rows`` and of the sum of ``mu`` can do (in float, not outward).

        Each coefficient is off by one unit of roundoff, and a mean of such errors is at most the largest.
        """
        largest, sizes = rows.abs().amax(self.axis, keepdim=True).flatten(1), mu.abs().flatten(1)
        return largest.sum(1) * (2 * rounding.unit) + sizes.sum(1) * rounding.gamma(sizes.shape[1] + 4)
