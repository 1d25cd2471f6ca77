"""The open subproblems of an activation split, in few bytes and within a limit of memory.

A subproblem differs from the root only at its splits: signs and multipliers are kept for these alone, as many columns
as the deepest one has splits. Slopes, one for each position, are most of what is left: they are kept as ``k / 255``,
and where those of all open subproblems would exceed the limit, the ones with the greatest bounds, which are due last,
forget theirs and will start from the root's. Slopes are a warm start only; nothing else is forgotten, nothing dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType

import torch
from torch import Tensor

from bounds.kept import LEVELS
from verifier.branch.frontier import least
from verifier.branch.splits import TENSORS, Splits, made

SPARSE = MappingProxyType({"signs": 0.0, "betas": 0.0, "low": -inf, "high": inf})
"""Fields of ``Splits`` over positions, and the value that they have where there is no split."""
WHOLE = tuple(name for name in TENSORS if name not in SPARSE and name != "slopes")
"""Fields that are small."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """K subproblems with at most D splits each: ``place`` ``[K, D]`` int32 is a position and 1 (0: none), ``sparse``
    the values there (``[K, 0]`` of a field that has no columns), ``slopes`` ``[K, P]`` uint8, or in 16 bits where they
    are parameters of any lines (``[K, 0]``: forgotten), ``whole`` the other fields of ``Splits``."""

    place: Tensor
    sparse: Mapping[str, Tensor]
    slopes: Tensor
    whole: Mapping[str, Tensor]

    @staticmethod
    def of(batch: Splits) -> Packed:
        """The same in few bytes; slopes go to the nearest ``k / 255``."""
        wide = bool(batch.low.shape[1])
        split = (batch.low > -inf) | (batch.high < inf) if wide else batch.signs != 0
        depth = int(split.sum(1).max()) if batch.size and split.shape[1] else 0
        at = split.to(torch.uint8).topk(depth, 1).indices
        there = split.gather(1, at)

        def picked(name: str) -> Tensor:
            values: Tensor = getattr(batch, name)
            return values.gather(1, at).masked_fill(~there, SPARSE[name]) if values.shape[1] else values

        return Packed(
            torch.where(there, at + 1, 0).int(),
            {name: picked(name) for name in SPARSE},
            batch.slopes if wide else (batch.slopes.float() * LEVELS).round().to(torch.uint8),
            {name: getattr(batch, name) for name in WHOLE},
        )

    @property
    def wide(self) -> bool:
        """Whether splits are at points of any operators."""
        return self.slopes.dtype != torch.uint8

    @property
    def size(self) -> int:
        """K."""
        return int(self.place.shape[0])

    @property
    def bound(self) -> Tensor:
        """``[K]``."""
        return self.whole["bound"]

    @property
    def share(self) -> Tensor:
        """``[K]``."""
        return self.whole["share"]

    def unpacked(self, positions: int, plain: Tensor) -> Splits:
        """Written out over U ``positions``; where slopes were forgotten they are ``plain`` ``[1, P]``."""

        def full(name: str) -> Tensor:
            values = self.sparse[name]
            if name in ("low", "high") and not self.wide:
                return values.new_zeros((self.size, 0))
            empty = values.new_full((self.size, positions + 1), SPARSE[name])
            return empty.scatter(1, self.place.long(), values)[:, 1:]

        slopes = plain.expand(self.size, -1)
        if self.slopes.shape[1] == plain.shape[1]:
            slopes = self.slopes if self.wide else (self.slopes.float() / LEVELS).to(plain.dtype)
        values = {"slopes": slopes, **{name: full(name) for name in SPARSE}, **self.whole}
        return made(values.__getitem__)

    def bare(self) -> Packed:
        """Without slopes."""
        return replace(self, slopes=self.slopes[:, :0])

    def take(self, index: Tensor) -> Packed:
        """Those at ``index`` (numbers or a mask)."""
        sparse, whole = ({name: v[index] for name, v in part.items()} for part in (self.sparse, self.whole))
        return Packed(self.place[index], sparse, self.slopes[index], whole)

    @staticmethod
    def cat(parts: Sequence[Packed]) -> Packed:
        """All of them, in order; with slopes where all have them."""
        parts = [p for p in parts if p.size] or parts[:1]
        if len(parts) == 1:
            return parts[0]

        def padded(values: list[Tensor], default: float = 0) -> Tensor:
            depth = max(v.shape[1] for v in values)
            pads = [(0, depth - v.shape[1]) for v in values]
            return torch.cat([torch.nn.functional.pad(v, p, value=default) for v, p in zip(values, pads, strict=True)])

        return Packed(
            padded([p.place for p in parts]),
            {name: padded([p.sparse[name] for p in parts], SPARSE[name]) for name in SPARSE},
            torch.cat([p.slopes for p in parts]),
            {name: torch.cat([p.whole[name] for p in parts]) for name in WHOLE},
        )

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {"place": self.place, "slopes": self.slopes, **self.sparse, **self.whole}

    @staticmethod
    def restored(saved: Callable[[str], Tensor]) -> Packed:
        """From ``tensors``."""
        sparse, whole = ({name: saved(name) for name in names} for names in (SPARSE, WHOLE))
        return Packed(saved("place"), sparse, saved("slopes"), whole)


@dataclass(frozen=True, slots=True, eq=False)
class OpenSplits:
    """Open subproblems: ``warm`` ones have slopes, at most ``most`` of them; ``cold`` ones have forgotten theirs."""

    warm: Packed
    cold: Packed
    positions: int
    most: int

    @staticmethod
    def of(batch: Splits, memory: int) -> OpenSplits:
        """Subproblems that need not remember their slopes; ``memory``: bytes that those of later ones may take."""
        first = Packed.of(batch)
        each = first.slopes.shape[1] * first.slopes.element_size()
        return OpenSplits(first.take(batch.clause[:0]), first.bare(), batch.signs.shape[1], memory // max(1, each))

    @property
    def size(self) -> int:
        """How many there are."""
        return self.warm.size + self.cold.size

    @property
    def bound(self) -> Tensor:
        """Of warm ones, then of cold ones."""
        return torch.cat([self.warm.bound, self.cold.bound])

    @property
    def share(self) -> Tensor:
        """Of warm ones, then of cold ones."""
        return torch.cat([self.warm.share, self.cold.share])

    def push(self, new: Splits) -> OpenSplits:
        """With further ones. Above the limit half of it is made free."""
        warm, cold = Packed.cat([self.warm, Packed.of(new)]), self.cold
        if warm.size > self.most:
            due, late = least(warm.bound, self.most // 2)
            warm, cold = warm.take(due), Packed.cat([cold, warm.take(late).bare()])
        return replace(self, warm=warm, cold=cold)

    def halved(self) -> tuple[OpenSplits, OpenSplits]:
        """Every second one in the order of their bounds is in the second half, all others in the first: both are about
        as hard."""
        second = torch.zeros(self.size, dtype=torch.bool, device=self.warm.place.device)
        second[self.bound.argsort(stable=True)[1::2]] = True
        warm, cold = second[: self.warm.size], second[self.warm.size :]
        first = replace(self, warm=self.warm.take(~warm), cold=self.cold.take(~cold))
        return first, replace(self, warm=self.warm.take(warm), cold=self.cold.take(cold))

    def joined(self, other: OpenSplits) -> OpenSplits:
        """With all of another part of the same search."""
        return replace(self, warm=Packed.cat([self.warm, other.warm]), cold=Packed.cat([self.cold, other.cold]))

    def pop(self, count: int, plain: Tensor) -> tuple[Splits, OpenSplits]:
        """``(the count with the least bounds, the rest)``."""
        chosen, _ = least(self.bound, count)
        warm, cold = chosen[: self.warm.size], chosen[self.warm.size :]
        taken = [part.unpacked(self.positions, plain) for part in (self.warm.take(warm), self.cold.take(cold))]
        rest = replace(self, warm=self.warm.take(~warm), cold=self.cold.take(~cold) if bool(cold.any()) else self.cold)
        return Splits.cat([t for t in taken if t.size] or taken[:1]), rest
