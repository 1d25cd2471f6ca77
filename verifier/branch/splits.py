"""Open subproblems of an activation split: a struct of tensors over one box's unstable neurons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """K subproblems of one box over U positions (unstable ReLU inputs at the root).

    ``clause`` ``[K]``: row of the root's objective; ``signs`` ``[K, U]`` int8; ``slopes`` ``[K, U]`` in 8 bits and
    ``betas`` ``[K, U]`` in 16: a warm start (any values are sound); ``weights`` ``[K, L]``; ``bound, share`` ``[K]``;
    ``next`` ``[K]``: the position to split.
    """

    clause: Tensor
    signs: Tensor
    slopes: Tensor
    betas: Tensor
    weights: Tensor
    bound: Tensor
    share: Tensor
    next: Tensor

    @property
    def size(self) -> int:
        """K."""
        return int(self.clause.shape[0])

    def take(self, index: Tensor) -> Splits:
        """Those at ``index`` (numbers or a mask)."""
        return Splits(*(getattr(self, name)[index] for name in self.__slots__))

    @staticmethod
    def cat(parts: list[Splits]) -> Splits:
        """All of them, in order."""
        return (
            parts[0]
            if len(parts) == 1
            else Splits(*(torch.cat([getattr(p, name) for p in parts]) for name in Splits.__slots__))
        )


def pop(frontier: Splits, count: int) -> tuple[Splits, Splits]:
    """``(the count with the least bounds, the rest)``."""
    if frontier.size <= count:
        return frontier, frontier.take(frontier.clause[:0])
    chosen = torch.topk(frontier.bound, count, largest=False, sorted=False).indices
    rest = torch.ones(frontier.size, dtype=torch.bool, device=frontier.clause.device)
    rest[chosen] = False
    return frontier.take(chosen), frontier.take(rest)


def children(batch: Splits) -> Splits:
    """Both sides of each parent's next position."""
    at = batch.next.unsqueeze(1)
    sides = []
    for side in (1, -1):
        signs = batch.signs.scatter(1, at, torch.full_like(at, side, dtype=torch.int8))
        sides.append(replace(batch, signs=signs, share=batch.share / 2))
    return Splits.cat(sides)
