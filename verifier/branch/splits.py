"""Open subproblems of an activation split: a struct of tensors over one box's unstable neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from bounds.ops.base import Interval


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

    ``known``: proven intervals ``[K, U]`` float32 of all positions, where they are at hand (``half_spaces.py``).
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
    known: Interval | None = None

    @property
    def size(self) -> int:
        """K."""
        return int(self.clause.shape[0])

    def take(self, index: Tensor | slice) -> Splits:
        """Those at ``index`` (numbers, a mask or a slice)."""
        known = None if self.known is None else (self.known[0][index], self.known[1][index])
        return made(lambda name: getattr(self, name)[index], known)

    @staticmethod
    def cat(parts: Sequence[Splits]) -> Splits:
        """All of them, in order."""
        if len(parts) == 1:
            return parts[0]
        known = joined([p.known for p in parts])
        return made(lambda name: torch.cat([getattr(p, name) for p in parts]), known)


TENSORS = tuple(f.name for f in fields(Splits) if f.name != "known")
"""What says all of a subproblem: intervals are found again from its splits."""


def made(tensor: Callable[[str], Tensor], known: Interval | None = None) -> Splits:
    """Subproblems from their ``TENSORS`` by name."""
    values: dict[str, Any] = {name: tensor(name) for name in TENSORS}
    return Splits(**values, known=known)


def unsplit(
    weights: Tensor, bound: Tensor, share: float, plain: Tensor, positions: int, at_points: bool = False
) -> Splits:
    """Of each of C clauses (``weights`` ``[C, L]``, ``bound`` ``[C]``) the whole box, with the parameters ``plain``
    ``[1, P]``."""
    count, device = weights.shape[0], weights.device
    far = torch.full((count, positions if at_points else 0), torch.inf, device=device)
    return Splits(
        torch.arange(count, device=device),
        torch.zeros((1, positions), dtype=torch.int8, device=device).expand(count, positions),
        plain.expand(count, plain.shape[1]),
        torch.zeros((count, positions), dtype=torch.float16, device=device),
        weights,
        bound,
        torch.full_like(bound, share),
        torch.zeros(count, dtype=torch.int64, device=device),
        -far,
        far,
        torch.zeros(count, device=device),
    )


def joined(parts: Sequence[Interval | None]) -> Interval | None:
    """One after the other, where all are at hand."""
    there = [p for p in parts if p is not None]
    if len(there) < len(parts):
        return None
    return torch.cat([low for low, _ in there]), torch.cat([high for _, high in there])


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
        sides.append(replace(batch, signs=signs, share=batch.share / 2, known=_clamped(batch.known, at, side)))
    return Splits.cat(sides)


def _clamped(known: Interval | None, at: Tensor, side: int) -> Interval | None:
    """A parent's intervals on one side of a split at 0."""
    if known is None:
        return None
    low, high = known
    if side > 0:
        return low.scatter(1, at, low.gather(1, at).clamp(min=0)), high
    return low, high.scatter(1, at, high.gather(1, at).clamp(max=0))
