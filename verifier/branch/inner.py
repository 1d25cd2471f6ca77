"""Bounds of inner neurons by splits of the ReLUs before them.

However long a search over a box splits, every subproblem is bounded with the root's intervals: what they lose is lost
in all of them. Here each unstable neuron is a small search of its own, over the signs of the ReLUs before it: both of
its rows are bounded from below, the leaves with the least bounds are split, and the least bound over the leaves holds
on the whole box. Nodes are visited in order, so later ones gain from earlier ones twice: by tighter lines, and by
fewer neurons left to split. All rows of a node share their batches.

What counts of a leaf is, as everywhere, one walk with all error terms and the multipliers found.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.ascent import sign_decides
from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.ops.relu import Relu
from bounds.plan import Plan
from bounds.propagate import Tighten
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.positions import Positions
from verifier.branch.scores import chosen
from verifier.branch.splits import Splits, children, unsplit
from verifier.record import leaves
from verifier.record.inner import Keep
from verifier.strategy import InnerPlan


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """R rows of a node: their bounding problems (each a clause of its own), the lines' own lower slopes ``[1, U]`` and
    the lower bounds ``[R]`` known before."""

    bounding: Bounding
    plain: Tensor
    known: Tensor
    options: InnerPlan

    @staticmethod
    def of(plans: tuple[Plan, Plan], state: State, asked: tuple[int, Selection], options: InnerPlan) -> _Rows | None:
        """For unit rows of a node; None where nothing before it can be split, or not over a condensed network."""
        node, units = asked
        positions = Positions.of(plans[1], state)
        if not positions.count:
            return None
        rows = units.dense().to(plans[1].dtype).unsqueeze(1)
        bounding = Bounding.of(plans, positions, rows, rows.new_zeros(rows.shape[:2]), node)
        low, high = (flat(end)[0, units.index] for end in state.bounds[node])
        known = torch.where(units.sign > 0, low, -high)
        return None if bounding.condensed is None else _Rows(bounding, bounding.own_slopes(), known, options)

    def first(self) -> Splits:
        """The rows over the whole box."""
        ones = self.known.new_ones((self.known.shape[0], 1))
        return unsplit(ones, self.known, 1.0, self.plain, self.plain.shape[1])

    def bounded(self, batch: Splits, steps: int) -> Splits:
        """With better bounds (nothing proven), the multipliers that give them, and the next splits (-1: none left, and
        a longer ascent)."""
        parts = []
        for k in range(0, batch.size, self.options.batch):
            part = self._ascended(batch.take(slice(k, k + self.options.batch)), steps)
            open_, following = part.bound <= 0, torch.full_like(part.clause, -1)
            following[open_] = chosen(self.bounding, part.take(open_), self.plain, self.options.candidates)
            part, last = replace(part, next=following), open_ & (following < 0)
            if bool(last.any()):
                part = Splits.cat([part.take(~last), self._ascended(part.take(last), self.options.last_steps)])
            parts.append(part)
        return Splits.cat(parts)

    def _ascended(self, batch: Splits, steps: int) -> Splits:
        found = self.bounding.ascended(batch, steps)
        return replace(
            batch,
            slopes=found.slopes.clamp(0, 1).to(torch.float16),
            betas=found.betas.clamp(0, 6e4).to(torch.float16),
            bound=torch.maximum(batch.bound, found.bound.double()),
        )

    def least(self, batch: Splits, bound: Tensor) -> Tensor:
        """``[R]``: the least of the leaves' bounds ``[K]``."""
        start = torch.full_like(self.known, torch.inf)
        return start.scatter_reduce(0, batch.clause, bound, "amin")

    def covering(self, until: float) -> Splits:
        """Leaves that cover the box for every row, after some rounds; rows stop in pairs (row r and row r + R/2), when
        one of the two is positive."""
        parts = self.bounded(self.first(), self.options.first_steps)
        for _ in range(self.options.rounds):
            if time.monotonic() > until:
                break
            settled = _either(self.least(parts, parts.bound) > 0)
            split = ~settled[parts.clause] & (parts.bound <= 0) & (parts.next >= 0)
            rows = int((~settled).sum())
            split &= _rank(parts) < max(1, self.options.batch // max(1, 2 * rows))
            if not bool(split.any()):
                break
            halves = self.bounded(children(parts.take(split)), self.options.steps)
            parts = Splits.cat([parts.take(~split), halves])
        return parts

    def proven(self, found: Splits) -> tuple[Tensor, dict[str, Tensor]]:
        """``[R]``: lower bounds that hold in exact arithmetic, -inf where nothing would be gained; and the leaves that
        prove them, with the multipliers in the bits that a record has."""
        least = self.least(found, found.bound)
        wanted = (least > self.known) & ((least > 0) | ~_either(least > 0))
        some, exact = found.take(wanted[found.clause]), self.bounding.exact
        at = Bounded(some.bound, some.slopes, some.betas, some.weights, {}, some.bound, {})
        bound = torch.full_like(some.bound, -torch.inf)
        for part in torch.arange(some.size, device=bound.device).split(self.options.batch):
            if part.shape[0]:  # rounded in parts: numbers in float64 for all leaves at once would be many
                batch = some.take(part)
                bound[part] = self.bounding.decided(batch, leaves.rounded(exact, batch, at.take(part)))
        return torch.where(wanted, self.least(some, bound), -torch.inf), leaves.arrays_of(exact, some, at)


def _either(found: Tensor) -> Tensor:
    """Whether a row or its mate ..."""
    one, two = found.chunk(2)
    return (one | two).repeat(2)


def _rank(leaves: Splits) -> Tensor:
    """``[K]``: how many leaves of the same row have less (or an equal bound, and come earlier)."""
    order = torch.argsort(leaves.bound, stable=True)
    order = order[torch.argsort(leaves.clause[order], stable=True)]
    row = leaves.clause[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.shape[0], device=order.device) - torch.searchsorted(row, row)
    return rank


def splits_apply(plan: Plan) -> bool:
    """Whether inner neurons can be bounded by splits: every relaxed operator is a ReLU, and more than one layer is."""
    return len(plan.watched) > 1 and all(isinstance(plan.graph.nodes[n].op, Relu) for n in plan.relaxed)


def splitting(rough: Plan, options: InnerPlan, until: float = math.inf, keep: Keep | None = None) -> Tighten:
    """A ``Tighten`` that bounds elements whose sign is all that matters by splits, over one box and where every relaxed
    operator is a ReLU; of others, and of those whose turn comes after ``until`` (``time.monotonic()``), nothing is said
    (-inf). ``rough``: the plan of the search, without error terms. ``keep`` is told of all leaves that count."""

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        if state.box.size != 1 or state.ball is not None or not units.mirrored or not sign_decides(rough, node):
            return result
        count, rest = units.count(), sum(n >= node for n in plan.watched)
        end = time.monotonic() + (until - time.monotonic()) / rest
        for elements in torch.arange(count, device=plan.device).split(max(1, options.batch // 2)):
            if time.monotonic() > end:
                break
            rows = _Rows.of((rough, plan), state, (node, units.take(elements)), options)
            if rows is None:
                break
            result[torch.cat([elements, elements + count])], entry = rows.proven(rows.covering(end))
            if keep is not None and entry["clause"].shape[0]:
                keep(node, units.index[elements], rows.bounding.positions, entry)
        return result

    return tighten
