"""One round of an input split as an entry, and back.

A round bounds N boxes; O of them stay open, P of these have clauses left once they are cut, and each of the P is
bisected over and over, 2, 4, ... parts in all. Children are numbered in the order in which they come about, so that no
number of a child or a parent is written down.

    number [N]   passes [N]   fresh, open: bits [N]   kept: bits [O]   alive: bits [P, C]
    moved: bits [P, 2 f], ends float64: the ends of the cut boxes that differ from those before, lower ones first
    dimension, middle float64: of P + 2 P + 4 P + ... bisections

``passes``: which passes of bounds each box went through, as bits; ``fresh``: it inherits no bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.branch.box_bounds import halves
from verifier.branch.frontier import Subproblems
from verifier.record.frames import Frame, RecordError
from verifier.record.packing import bits, narrow, unpacked, whole

KIND = "boxes"
ALL_PASSES = 255


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """What became of N bounded boxes: which stay ``open`` ``[N]``, those of them that are left once cut (``parents``,
    at ``index`` ``[P]`` of the batch), and the boxes after each level of bisections."""

    open: Tensor
    index: Tensor
    parents: Subproblems
    levels: Sequence[Subproblems]


def arrays_of(batch: Subproblems, passes: Tensor, opened: Opened) -> dict[str, Tensor]:
    """The entry of a round."""
    parents, before = opened.parents, batch.take(opened.index)
    kept = torch.zeros_like(opened.open)
    kept[opened.index] = True
    ends, old = torch.cat([parents.lower, parents.upper], 1), torch.cat([before.lower, before.upper], 1)
    moved = ends != old
    dimensions, middles = [parents.task[:0]], [parents.lower.new_zeros(0)]
    for halved, of in zip(opened.levels, (parents, *opened.levels), strict=False):
        first = halved.upper[: of.size]
        dimension = (first != of.upper).int().argmax(1)
        dimensions.append(dimension)
        middles.append(first.gather(1, dimension.unsqueeze(1)).squeeze(1))
    return {
        "number": narrow(batch.number),
        "passes": passes.to(torch.uint8),
        "fresh": bits(fresh(batch)),
        "open": bits(opened.open),
        "kept": bits(kept[opened.open]),
        "alive": bits(parents.alive),
        "moved": bits(moved),
        "ends": ends[moved],
        "dimension": narrow(torch.cat(dimensions)),
        "middle": torch.cat(middles),
    }


def fresh(batch: Subproblems) -> Tensor:
    """``[N]``: boxes that inherit nothing."""
    found = torch.ones_like(batch.task, dtype=torch.bool)
    for low, high in batch.inherited.values():
        found &= (torch.isneginf(low) & torch.isposinf(high)).flatten(1).all(1)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """An entry as it was read: numbers ``[N]`` of boxes, how they were bounded, which are said to be open."""

    number: Tensor
    passes: Tensor
    fresh: Tensor
    open: Tensor
    entry: Frame

    @staticmethod
    def of(entry: Frame, known: int) -> Round:
        """Of boxes that were numbered up to ``known``. Raises ``RecordError``."""
        count = entry.array("number").numel()
        number = whole(entry.array("number"), count, known)
        if torch.unique(number).shape[0] < count:
            raise RecordError("a box twice in one round")
        passes = whole(entry.array("passes"), count, ALL_PASSES + 1)
        forgot, left = (unpacked(entry.array(name), count) for name in ("fresh", "open"))
        return Round(number, passes, forgot, left, entry)

    def cut(self, before: Subproblems) -> tuple[Tensor, Subproblems]:
        """Of the open boxes as they were: which are ``kept`` ``[O]``, and these with the ends and clauses that they
        are said to have. Raises ``RecordError``."""
        kept = unpacked(self.entry.array("kept"), before.size)
        left = before.take(kept)
        size, free = left.lower.shape
        alive = unpacked(self.entry.array("alive"), *left.alive.shape)
        moved = unpacked(self.entry.array("moved"), size, 2 * free)
        ends, new = torch.cat([left.lower, left.upper], 1), _floats(self.entry.array("ends"))
        if new.shape[0] != int(moved.sum()):
            raise RecordError(f"{new.shape[0]} ends for {int(moved.sum())} that moved")
        ends[moved] = new
        low, high = ends[:, :free].contiguous(), ends[:, free:].contiguous()
        parts = (low, high, left.task, alive, left.bound, left.share, left.number, left.inherited)
        return kept, Subproblems(*parts)

    def children(self, parents: Subproblems) -> Subproblems:
        """The parts of ``parents`` after all bisections. Raises ``RecordError`` where one of them does not cut its
        box in two."""
        middle = _floats(self.entry.array("middle"))
        free = parents.lower.shape[1]
        dimension = whole(self.entry.array("dimension"), middle.shape[0], max(free, 1))
        place = 0
        while place < middle.shape[0] and parents.size:
            at = dimension[place : place + parents.size].unsqueeze(1)
            cut = middle[place : place + parents.size].unsqueeze(1)
            if at.shape[0] < parents.size:
                raise RecordError(f"{at.shape[0]} bisections of {parents.size} boxes")
            low, high = parents.lower.gather(1, at), parents.upper.gather(1, at)
            if not bool(((low < cut) & (cut < high)).all()):
                raise RecordError("a bisection outside of its box")
            place += parents.size
            parents = halves(parents, at, cut)
        if place < middle.shape[0]:
            raise RecordError("bisections of no box")
        return parents


def _floats(values: Tensor) -> Tensor:
    if values.dtype != torch.float64 or values.ndim != 1 or not bool(torch.isfinite(values).all()):
        raise RecordError("ends and middles are finite numbers in float64")
    return values
