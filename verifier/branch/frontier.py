"""The open subproblems: a struct of tensors, taken best bound first, within a limit of memory.

What a subproblem inherits takes most of its memory (kilobytes, against a hundred bytes of its box). Where all of them
together would exceed the limit, those with the greatest bounds, which are due last, forget what they inherited: they
are bounded from their box alone when their turn comes. Nothing is ever dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bounds.ops.base import Interval

Shapes = Mapping[int, tuple[int, ...]]
"""Of the nodes whose bounds subproblems inherit."""


@dataclass(frozen=True, slots=True, eq=False)
class Subproblems:
    """K boxes over the free inputs. ``lower, upper`` ``[K, f]`` float64; ``task`` ``[K]``; ``alive`` ``[K, C]`` the
    clauses not yet refuted on a parent; ``bound`` ``[K]`` the parent's least margin; ``share`` ``[K]`` of the input
    set; ``number`` ``[K]``: in the order in which they came about; ``inherited`` bounds of watched nodes that hold on
    the parent (empty where they would cost too much memory).
    """

    lower: Tensor
    upper: Tensor
    task: Tensor
    alive: Tensor
    bound: Tensor
    share: Tensor
    number: Tensor
    inherited: Mapping[int, Interval]

    @property
    def size(self) -> int:
        """K."""
        return int(self.task.shape[0])

    def take(self, index: Tensor) -> Subproblems:
        """The subproblems at ``index`` (numbers or a mask)."""
        return Subproblems(
            self.lower[index],
            self.upper[index],
            self.task[index],
            self.alive[index],
            self.bound[index],
            self.share[index],
            self.number[index],
            {node: (low[index], high[index]) for node, (low, high) in self.inherited.items()},
        )

    def write(self, at: Tensor, new: Subproblems) -> None:
        """Overwrite those at ``at`` in place."""
        for old, values in zip(self._tensors(), new._tensors(), strict=True):
            old[at] = values

    def _tensors(self) -> list[Tensor]:
        own = [self.lower, self.upper, self.task, self.alive, self.bound, self.share, self.number]
        return own + [end for node in sorted(self.inherited) for end in self.inherited[node]]

    @staticmethod
    def cat(parts: list[Subproblems]) -> Subproblems:
        """All of them, in order; the parts must inherit the same nodes."""
        parts = [p for p in parts if p.size] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        return Subproblems(
            torch.cat([p.lower for p in parts]),
            torch.cat([p.upper for p in parts]),
            torch.cat([p.task for p in parts]),
            torch.cat([p.alive for p in parts]),
            torch.cat([p.bound for p in parts]),
            torch.cat([p.share for p in parts]),
            torch.cat([p.number for p in parts]),
            {
                node: (
                    torch.cat([p.inherited[node][0] for p in parts]),
                    torch.cat([p.inherited[node][1] for p in parts]),
                )
                for node in parts[0].inherited
            },
        )

    def bare(self) -> Subproblems:
        """The same without what they inherit."""
        return replace(self, inherited={})

    def tensors(self) -> dict[str, Tensor]:
        """By name, without what they inherit."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "inherited"}


class Store:
    """Subproblems in the slots of tensors that grow; a free slot has the bound +inf and the share 0."""

    def __init__(self, like: Subproblems) -> None:
        self.slots = like.take(like.task[:0])
        self.free = like.task[:0]
        self.size = 0

    def put(self, new: Subproblems) -> Tensor:
        """Add subproblems that inherit the same nodes; the slots that they are put into."""
        missing = new.size - self.free.shape[0]
        if missing > 0:
            self._grow(max(missing, self.slots.size))
        at, self.free = self.free[: new.size], self.free[new.size :]
        self.slots.write(at, new)
        self.size += new.size
        return at

    def take(self, at: Tensor) -> Subproblems:
        """Remove those in some slots."""
        found = self.slots.take(at)
        self.slots.bound[at], self.slots.share[at] = torch.inf, 0.0
        self.free = torch.cat([self.free, at])
        self.size -= at.shape[0]
        return found

    def used(self) -> Tensor:
        """The slots that are not free, in order."""
        taken = torch.ones_like(self.slots.task, dtype=torch.bool)
        taken[self.free] = False
        return taken.nonzero().flatten()

    def last(self, count: int) -> Subproblems:
        """Remove the ``count`` with the greatest bounds."""
        used = self.used()
        return self.take(used[torch.topk(self.slots.bound[used], count, sorted=False).indices])

    def _grow(self, count: int) -> None:
        old = self.slots

        def empty(values: Tensor) -> Tensor:
            return values.new_empty((count, *values.shape[1:]))

        blank = Subproblems(
            empty(old.lower),
            empty(old.upper),
            empty(old.task),
            empty(old.alive),
            old.bound.new_full((count,), torch.inf),
            old.share.new_zeros(count),
            empty(old.number),
            {node: (empty(low), empty(high)) for node, (low, high) in old.inherited.items()},
        )
        self.free = torch.cat([self.free, torch.arange(old.size, old.size + count, device=self.free.device)])
        self.slots = Subproblems.cat([old, blank])


class Frontier:
    """Open subproblems; ``first`` have inherited nothing yet, ``shapes`` are those of the nodes whose bounds later ones
    inherit, ``memory`` the bytes that these may take."""

    def __init__(self, first: Subproblems, shapes: Shapes, dtype: torch.dtype, memory: int) -> None:
        self.shapes, self.dtype = shapes, dtype
        self.most = most_inherited(shapes, dtype, memory)
        self.warm = Store(unbounded(first.take(first.task[:0]), shapes, dtype))
        self.cold = Store(first.bare())
        self.cold.put(first.bare())

    @property
    def size(self) -> int:
        """How many there are."""
        return self.warm.size + self.cold.size

    @property
    def bound(self) -> Tensor:
        """The bounds of all slots: +inf where one is free."""
        return torch.cat([self.warm.slots.bound, self.cold.slots.bound])

    @property
    def share(self) -> Tensor:
        """The shares of all slots: 0 where one is free."""
        return torch.cat([self.warm.slots.share, self.cold.slots.share])

    def bare(self) -> Subproblems:
        """All of them, which stay where they are, without what they inherit."""
        return Subproblems.cat([store.slots.bare().take(store.used()) for store in (self.warm, self.cold)])

    def push(self, new: Subproblems) -> None:
        """Add subproblems; above the limit, those with the greatest bounds forget what they inherited."""
        over = self.warm.size + new.size - self.most
        if over > 0 and self.warm.size:
            gone = self.warm.last(min(self.warm.size, max(over, self.most // 2)))
            self.cold.put(gone.bare())
        (self.warm if new.size <= self.most else self.cold).put(new if new.size <= self.most else new.bare())

    def pop(self, count: int) -> Subproblems:
        """Remove the ``count`` with the least bounds; what they do not inherit is unbounded."""
        chosen = torch.topk(self.bound, min(count, self.size), largest=False, sorted=False).indices
        within = chosen < self.warm.slots.size
        warm, cold = chosen[within], chosen[~within] - self.warm.slots.size
        parts = [self.warm.take(warm)] if warm.shape[0] else []
        if cold.shape[0] or not parts:
            parts.append(unbounded(self.cold.take(cold), self.shapes, self.dtype))
        return Subproblems.cat(parts)


def unbounded(bare: Subproblems, shapes: Shapes, dtype: torch.dtype) -> Subproblems:
    """The same, which inherit bounds that say nothing of nodes with these shapes."""

    def low(shape: tuple[int, ...]) -> Tensor:
        return torch.full((bare.size, *shape), -torch.inf, dtype=dtype, device=bare.task.device)

    return replace(bare, inherited={i: (low(shape), -low(shape)) for i, shape in shapes.items()})


def most_inherited(shapes: Shapes, dtype: torch.dtype, memory: int) -> int:
    """How many subproblems can have bounds of nodes with these shapes within ``memory`` bytes."""
    return memory // max(1, sum(2 * dtype.itemsize * math.prod(s) for s in shapes.values()))


def least(bound: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Masks ``[K]`` of the ``count`` least bounds (all, where there are fewer) and of the others."""
    chosen = torch.ones_like(bound, dtype=torch.bool)
    if bound.shape[0] > count:
        chosen[:] = False
        chosen[torch.topk(bound, count, largest=False, sorted=False).indices] = True
    return chosen, ~chosen
