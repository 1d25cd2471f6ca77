"""An input split proved again from its record, round by round from the whole boxes down.

Of the record only this is believed: which boxes were bounded together, by which passes, and where they were cut. Every
bound is computed here, those that children inherit too. A box is done when each of its clauses is refuted; where it is
said to be open, each clause that is not refuted must live on in a box that contains all that the recomputed lines leave
of it. (The search leaves ``CLIP_MARGIN`` more, so that the last bits of another machine do not matter.) Bisections
share their cut by construction, and at the end no box may wait.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from verifier.branch.box_bounds import BoundedBoxes, BoxBounds
from verifier.branch.frontier import Store, Subproblems, most_inherited, unbounded
from verifier.record.boxes import ALL_PASSES, Round
from verifier.record.frames import Frame, RecordError
from verifier.record.report import Checks
from verifier.strategy import MOST_BATCH

ROUND_ELEMENTS = 1 << 26
"""Elements of all nodes of the boxes of one round (some GB), where these are more than any search bounds at once."""


class Waiting:
    """Boxes by their number until their turn comes; those that will have ``forgotten`` (numbers) what they inherit do
    so at once. What is inherited may take ``memory`` bytes."""

    def __init__(self, bounds: BoxBounds, forgotten: Tensor, memory: int) -> None:
        self.shapes, self.dtype = bounds.inherited, bounds.plans[0].dtype
        self.most = most_inherited(self.shapes, self.dtype, memory)
        self.forgotten = forgotten
        first = bounds.start()
        self.warm = Store(unbounded(first.take(first.task[:0]), self.shapes, self.dtype))
        self.cold = Store(first.bare())
        self.slot = first.task.new_full((0,), -1)
        self.known = 0
        self._number(self.cold.put(first.bare()) * 2 + 1)

    @property
    def size(self) -> int:
        """How many there are."""
        return self.warm.size + self.cold.size

    def put(self, new: Subproblems) -> None:
        """Add children, numbered from ``known`` on. Raises ``RecordError`` above the limit of memory."""
        number = torch.arange(self.known, self.known + new.size)
        new = replace(new, number=number)
        cold = torch.isin(number, self.forgotten)
        slot = torch.empty_like(number)
        slot[cold] = self.cold.put(new.take(cold).bare()) * 2 + 1
        slot[~cold] = self.warm.put(new.take(~cold)) * 2
        if self.shapes and self.warm.size > self.most:
            raise RecordError(f"bounds of {self.warm.size} boxes are to be kept, and {self.most} fit into the memory")
        self._number(slot)

    def take(self, wanted: Round) -> Subproblems:
        """Remove some, in the order asked for. Raises ``RecordError`` where one does not wait."""
        slot = self.slot[wanted.number]
        if bool((slot < 0).any()):
            raise RecordError(f"box {int(wanted.number[slot < 0][0])} is bounded, and does not wait")
        self.slot[wanted.number] = -1
        cold = slot % 2 == 1
        if self.shapes and not torch.equal(cold, wanted.fresh):
            raise RecordError("a box has forgotten what it inherits in one entry, and not in another")
        bare = self.cold.take(slot[cold] // 2)
        parts = [self.warm.take(slot[~cold] // 2), unbounded(bare, self.shapes, self.dtype)]
        order = torch.cat([(~cold).nonzero().flatten(), cold.nonzero().flatten()])
        return Subproblems.cat(parts).take(order.argsort())

    def _number(self, slot: Tensor) -> None:
        if self.known + slot.shape[0] > self.slot.shape[0]:
            more = max(slot.shape[0], self.slot.shape[0], 1024)
            self.slot = torch.cat([self.slot, self.slot.new_full((more,), -1)])
        self.slot[self.known : self.known + slot.shape[0]] = slot
        self.known += slot.shape[0]


class BoxWalk:
    """The walk as a value: feed it the entries in order, then look at what still waits."""

    def __init__(self, bounds: BoxBounds, checks: Checks, forgotten: Tensor, memory: int) -> None:
        self.bounds, self.checks = bounds, checks
        self.waiting = Waiting(bounds, forgotten, memory)
        self.most = max(MOST_BATCH, ROUND_ELEMENTS // max(1, bounds.plans[0].elements))

    def step(self, entry: Frame) -> None:
        """One round. Raises ``RecordError`` where the entry cannot be one."""
        wanted = Round.of(entry, self.waiting.known)
        if wanted.number.shape[0] > self.most:
            raise RecordError(f"{wanted.number.shape[0]} boxes are bounded at once, more than {self.most}")
        batch = self.waiting.take(wanted)
        index = wanted.open.nonzero().flatten()
        before = batch.take(index)
        kept, after = wanted.cut(before)
        claim = _Claim(wanted.open, index, kept, before, after)
        claim.check()
        bounded = self.bounds.bound(batch, wanted.passes)
        bad = claim.unproved(bounded).nonzero().flatten()
        if bad.shape[0]:  # another machine may round otherwise: once more with all passes
            bounded = self.bounds.bound(batch, wanted.passes.index_fill(0, bad, ALL_PASSES))
            bad = claim.unproved(bounded).nonzero().flatten()
        self.checks.add(int((~wanted.open).sum()) + int((~kept).sum()), bad.shape[0])
        for k in bad.tolist():
            self.checks.fail(_reason(int(batch.number[k]), bool(wanted.open[k]), bounded, k))
        places = index[kept]
        known = {i: (bounded.watched[i][0][places], bounded.watched[i][1][places]) for i in self.bounds.inherited}
        self.waiting.put(wanted.children(replace(after, inherited=known)))


class _Claim:
    """What an entry says of a batch, to be compared with bounds."""

    def __init__(self, open_: Tensor, index: Tensor, kept: Tensor, before: Subproblems, after: Subproblems) -> None:
        self.open, self.index, self.before, self.after, self.kept = open_, index, before, after, kept
        self.alive = torch.zeros_like(before.alive)
        self.alive[kept] = after.alive
        self.lower, self.upper = torch.full_like(before.lower, torch.inf), torch.full_like(before.upper, -torch.inf)
        self.lower[kept], self.upper[kept] = after.lower, after.upper

    def check(self) -> None:
        """Raise ``RecordError`` where a box grows, or a clause comes back."""
        parent = self.before.take(self.kept)
        if bool((self.alive & ~self.before.alive).any()):
            raise RecordError("a clause that was refuted is open again")
        inside = (self.after.lower >= parent.lower) & (self.after.upper <= parent.upper)
        if not bool((inside & (self.after.lower <= self.after.upper)).all()):
            raise RecordError("a box that was cut is not a part of what it was cut from")

    def unproved(self, bounded: BoundedBoxes) -> Tensor:
        """``[N]``: boxes of which the bounds do not show what is said."""
        refuted = (bounded.margins > 0) & ~bounded.crossed.unsqueeze(1)
        bad = ~refuted.all(1) & ~self.open
        needed = self.before.alive & ~refuted[self.index]
        box, clause = needed.nonzero(as_tuple=True)
        if box.shape[0]:
            low, high = bounded.cut((self.index[box], clause), (self.before.lower[box], self.before.upper[box]), 0.0)
            inside = ((self.lower[box] <= low) & (high <= self.upper[box])).all(1) & self.alive[box, clause]
            bad[self.index[box[~(inside | (low > high).any(1))]]] = True
        return bad


def _reason(number: int, open_: bool, bounded: BoundedBoxes, k: int) -> str:
    margin = float(bounded.margins[k].amin())
    if bool(bounded.crossed[k]):
        return f"box {number}: its bounds contradict each other"
    if open_:
        return f"box {number}: what is left of it is not covered by its parts (margin {margin:.3g})"
    return f"box {number}: not refuted, its bound is {margin:.3g}"
