"""Subproblems of one box bounded together over its condensed network: no column for a neuron that cannot be on.

Every subproblem is a part of the root's box, so what is dead there is dead everywhere, and the matrices between the
neurons that are left (``bounds/condensed.py``) are shared by all. Row by row only the lines of the unstable ReLUs
differ (exact where they are split), and the half-spaces enter by their multipliers. The numbers are those of
``bounds.ascent.ascend`` up to the order of summation; nothing here carries error terms.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.climb import Slope
from bounds.condensed import Condensed
from bounds.layouts import flat
from bounds.links import Rays, Stage
from bounds.ops.base import Interval
from bounds.ops.relu import Relu
from bounds.plan import Plan
from verifier.branch.positions import Place, Positions


@dataclass(frozen=True, slots=True, eq=False)
class CondensedRoot:
    """The condensed network of a root box: its stages from the last to the first, each with its place (None: nothing
    there is unstable), and the clauses' rows as functions of what is left."""

    network: Condensed
    order: tuple[tuple[Stage, Place | None], ...]
    target: Rays

    @staticmethod
    def of(plan: Plan, positions: Positions, goal: int, rows: Tensor, rhs: Tensor) -> CondensedRoot | None:
        """For clauses ``rows . output - rhs``, ``rows`` ``[C, *output shape]``; None where something but single ReLUs
        is relaxed."""
        if not Condensed.fits(plan) or not all(isinstance(plan.graph.nodes[n].op, Relu) for n in plan.relaxed):
            return None
        none = torch.zeros((1, positions.count), dtype=torch.int8, device=plan.device)
        network = Condensed(plan, positions.state(plan, none))
        target = network.rays(goal, rows.to(plan.dtype))
        places = {relu: place for place in positions.places for relu in place.relus}
        if len(places) > len(positions.places):
            return None
        order, waiting = list[tuple[Stage, Place | None]](), set(target.parts) - {plan.input}
        while waiting:
            stage = network.stage(max(waiting))
            waiting.update(*(link.sources for link in stage.sources))
            waiting -= {stage.node, plan.input}
            place = places.get(stage.node)
            elements = stage.index[:0] if place is None else place.elements
            if stage.fixed is not None or not torch.equal(stage.index[: stage.choices], elements):
                return None
            order.append((stage, place))
        return CondensedRoot(network, tuple(order), Rays(target.parts, target.bias - rhs.to(plan.dtype)))

    def rows(self, clause: Tensor, signs: Tensor, known: Interval | None = None) -> SplitRows:
        """The rows of some subproblems: their ``clause`` ``[K]`` and ``signs`` ``[K, U]``, with the lines of the
        intervals ``known`` ``[K, U]``, or else of the root's."""
        dtype = self.network.plan.dtype
        side = settled(signs, known)
        free, least, greatest = (side == 0).to(dtype), (side > 0).to(dtype), (side >= 0).to(dtype)
        upper, offset = least.clone(), torch.zeros_like(least)
        if known is not None:
            low, high = (end.to(dtype) for end in known)
            slope = torch.where(side == 0, high / (high - low), 0.0)
            upper, offset = upper + slope, -low * slope
        for stage, place in self.order:
            if place is not None and known is None:
                line = stage.lines[1]
                upper[:, place.columns].addcmul_(free[:, place.columns], line.slopes[0])
                offset[:, place.columns] = free[:, place.columns] * line.offset
        target = Rays({n: a[clause] for n, a in self.target.parts.items()}, self.target.bias[clause])
        return SplitRows(self, target, signs.to(dtype), (least, greatest), upper, offset)


def settled(signs: Tensor, known: Interval | None) -> Tensor:
    """``[K, U]``: the side of 0 on which each position lies, by a split or by its interval; 0 where on either."""
    if known is None:
        return signs
    low, high = known
    return torch.where(signs != 0, signs, (low >= 0).to(signs.dtype) - ((high <= 0) & (low < 0)).to(signs.dtype))


@dataclass(slots=True)
class SplitRows(Slope):
    """Lower bounds of K subproblems as functions of the lower slopes (``[K, U]``) and the multipliers of the splits
    (``[K, U]``), side by side. ``slopes``: least and greatest lower slopes; ``upper, offset``: the upper lines.

    After a walk ``rows[:, u]`` is the coefficient at the ReLU of position u and ``corner`` the minimising input.
    """

    root: CondensedRoot
    target: Rays
    signs: Tensor
    slopes: Interval
    upper: Tensor
    offset: Tensor
    point: Tensor = field(init=False)
    rows: Tensor = field(init=False)
    corner: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.point = self.rows = self.corner = self.signs

    def scale(self) -> Tensor:
        """``[K, 2 U]``: how far a step of size 1 goes for each number."""
        least, greatest = self.slopes
        return torch.cat([greatest - least, self.signs.abs()], 1)

    def value(self, point: Tensor) -> Tensor:
        """One backward walk."""
        self.point, self.rows = point, torch.zeros_like(self.signs)
        rows, bias = dict(self.target.parts), self.target.bias
        for stage, place in self.root.order:
            piece = rows.pop(stage.node)
            if place is not None:
                bias, piece = self._over(place, stage.choices, piece, bias)
            (link,) = stage.sources
            found = link.down(piece)
            bias = bias + found.bias
            for source, part in found.parts.items():
                rows[source] = rows[source] + part if source in rows else part
        low, high = self.root.network.ends()
        last = rows.get(self.root.network.plan.input)
        if last is None:
            self.corner = low.expand(bias.shape[0], -1)
            return bias
        self.corner = torch.where(last > 0, low, high)
        return bias + torch.linalg.vecdot(last, self.corner)

    def _over(self, place: Place, choices: int, rows: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        columns, count = place.columns, self.signs.shape[1]
        free = rows[:, :choices]
        self.rows[:, columns] = free
        positive = free.clamp(min=0)
        negative = free - positive
        bias = bias + torch.linalg.vecdot(negative, self.offset[:, columns])
        piece = rows.clone()
        mine = torch.mul(positive, self.point[:, columns], out=piece[:, :choices])
        mine.addcmul_(negative, self.upper[:, columns])
        beta = self.point[:, count + columns.start : count + columns.stop]
        mine.addcmul_(beta, self.signs[:, columns], value=-1)
        return bias, piece

    def gradient(self) -> Tensor:
        """``A+ z`` by a slope and ``-sign z`` by a multiplier, z the values at the minimising corner."""
        outputs = {self.root.network.plan.input: self.corner}
        count, result = self.signs.shape[1], torch.zeros_like(self.point)
        for stage, place in reversed(self.root.order):
            (link,) = stage.sources
            values = link.up(outputs)
            if place is None:
                outputs[stage.node] = values
                continue
            columns, before = place.columns, values[:, : stage.choices]
            rows = self.rows[:, columns]
            torch.mul(rows.clamp(min=0), before, out=result[:, columns])
            torch.mul(self.signs[:, columns], before, out=result[:, count + columns.start : count + columns.stop])
            after = values.clone()
            below = self.point[:, columns] * before
            after[:, : stage.choices] = torch.where(
                rows > 0, below, torch.addcmul(self.offset[:, columns], self.upper[:, columns], before)
            )
            outputs[stage.node] = after
        result[:, count:].neg_()
        return result

    def project(self, point: Tensor) -> None:
        """Slopes to where they are sound and useful, multipliers to where they are not negative."""
        slopes, betas = point.tensor_split(2, 1)
        torch.clamp(slopes, *self.slopes, out=slopes)
        betas.clamp_(min=0)

    def take(self, index: Tensor) -> SplitRows:
        """Some of the rows."""
        target = Rays({n: a[index] for n, a in self.target.parts.items()}, self.target.bias[index])
        low, high = self.slopes
        return replace(
            self,
            target=target,
            signs=self.signs[index],
            slopes=(low[index], high[index]),
            upper=self.upper[index],
            offset=self.offset[index],
        )

    def corners(self) -> Tensor:
        """``[K, *input shape]``: the minimising inputs, those that do not vary included."""
        network = self.root.network
        low = network.state.box.lower
        if network.varying is None:
            return self.corner.reshape(-1, *low.shape[1:])
        full = flat(low).repeat(self.corner.shape[0], 1)
        full[:, network.varying] = self.corner
        return full.reshape(-1, *low.shape[1:])
