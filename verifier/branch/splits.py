"""Open subproblems of an activation split: a struct of tensors over one box's unstable neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """K subproblems of one box over U positions (unstable ReLU inputs at the root, or elements before any operators).

    ``clause`` ``[K]``: row of the root's objective; ``signs`` ``[K, U]`` int8; ``slopes`` ``[K, P]`` and ``betas``
    ``[K, U]`` in 16 bits: a warm start (any values are sound); ``weights`` ``[K, L]``; ``bound, share`` ``[K]``;
    ``next`` ``[K]``: the position to split.

    Where every split is one at 0, ``signs`` say all and P = U. Else these stay 0, and ``low, high`` ``[K, U]`` float32
    (else ``[K, 0]``) are the points at which elements are split from below and above, infinite where they are not;
    ``point`` ``[K]`` is that of the next split, ``slopes`` are P parameters of lines, and ``betas`` have either sign
    (``bounds.dual.Dual``).
    """

    clause: Tensor
    signs: Tensor
    slopes: Tensor
    betas: Tensor
    weights: Tensor
    bound: Tensor
    share: Tensor
    next: Tensor
    low: Tensor
    high: Tensor
    point: Tensor

    @property
    def size(self) -> int:
        """K."""
        return int(self.clause.shape[0])

    def take(self, index: Tensor | slice) -> Splits:
        """Those at ``index`` (numbers, a mask or a slice)."""
        return Splits(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def cat(parts: Sequence[Splits]) -> Splits:
        """All of them, in order."""
        if len(parts) == 1:
            return parts[0]
        return Splits(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Splits)))


def children(batch: Splits) -> Splits:
    """Both sides of each parent's next position; both contain the point itself."""
    at, sides = batch.next.unsqueeze(1), []
    if batch.low.shape[1]:
        point = batch.point.unsqueeze(1)
        above = batch.low.scatter(1, at, torch.maximum(batch.low.gather(1, at), point))
        below = batch.high.scatter(1, at, torch.minimum(batch.high.gather(1, at), point))
        share = batch.share / 2
        return Splits.cat([replace(batch, low=above, share=share), replace(batch, high=below, share=share)])
    for side in (1, -1):
        signs = batch.signs.scatter(1, at, torch.full_like(at, side, dtype=torch.int8))
        sides.append(replace(batch, signs=signs, share=batch.share / 2))
    return Splits.cat(sides)
