"""Intervals of first-layer neurons over what a subproblem's own splits leave of the box.

A split of a neuron that is affine in the inputs is a half-space of them. Over the box and a dozen such half-spaces the
other neurons reach much less far than over the box: many are stable, and the lines of the rest are closer. (Measured
on a network of 30 inputs and 128 neurons: of subproblems at depth 20 whose bound is -1.5 all were refuted, with bounds
of 1 to 2.4.) For each of them, from both sides,

    z_e  >=  z_e - sum_k beta_k s_k z_k  >=  min over the box of (A_e + sum_k beta_k A_k) x + c_e + sum_k beta_k c_k

with the half-spaces ``s_k z_k >= 0``, any ``beta >= 0``, and lines ``A_k x + c_k <= -s_k z_k``: the dual of a linear
program, which a few steps of ascent solve nearly. Found in float32; what counts is one evaluation in float64 with error
terms. Multipliers are not kept: any are sound, so whoever wants the bounds again ascends again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.backward import backward
from bounds.climb import Pace, Slope, climb
from bounds.layouts import Owner, Selection, flat
from bounds.ops.base import Interval
from bounds.plan import Plan
from bounds.rounding import Rounding, cast_outward
from verifier.branch.positions import Positions
from verifier.branch.splits import Splits

PACE = Pace(rate=0.3, decay=0.95)
"""How the multipliers climb."""
ELEMENTS = 1 << 22
"""Numbers that the rows and multipliers of the subproblems bounded at once may be."""


@dataclass(frozen=True, slots=True, eq=False)
class HalfSpaces:
    """E positions (``columns`` ``[E]`` of U) that are affine in the f inputs that vary, over one box.

    ``rows`` ``[2 E, f]`` and ``constant`` ``[2 E]`` (float64): lines that are proven to lie below each z on the box,
    then below each -z. ``lower, upper`` ``[f]``: the box. ``root``: intervals ``[U]`` of all positions. ``steps``: of
    the ascent.
    """

    columns: Tensor
    rows: Tensor
    constant: Tensor
    lower: Tensor
    upper: Tensor
    root: Interval
    steps: int

    @staticmethod
    def of(exact: Plan, positions: Positions, steps: int) -> HalfSpaces | None:
        """Of a root (proven bounds of one box); None where no position is affine in the inputs, or ``steps`` is 0."""
        state, places = positions.root, [p for p in positions.places if p.before in exact.direct]
        if not steps or not places or positions.points or state.ball is not None:
            return None
        low, high = flat(state.box.lower)[0], flat(state.box.upper)[0]
        rows, constants = list[Tensor](), list[Tensor]()
        for sign in (1.0, -1.0):
            for place in places:
                one = torch.full(place.elements.shape, sign, dtype=exact.dtype, device=exact.device)
                units = Selection(place.elements, one, exact.graph.nodes[place.before].shape)
                lines = backward(exact, state, place.before, units, Owner.shared(len(one)))
                rows.append(flat(lines.rows))
                constants.append(_rounding(exact).down(lines.bias - lines.error))
        every, constant, free = torch.cat(rows), torch.cat(constants), high > low
        fixed, at = every[:, ~free], low[~free]
        size = constant.abs() + fixed.abs() @ at.abs()
        constant = constant + fixed @ at - _rounding(exact).affine(fixed.shape[1] + 1, size)
        columns = torch.cat([torch.arange(p.columns.start, p.columns.stop, device=exact.device) for p in places])
        ends = ({p.before: end for p in positions.places for end in [state.bounds[p.before][k]]} for k in (0, 1))
        below, above = (positions.gather(end, low.unsqueeze(0))[0] for end in ends)
        return HalfSpaces(columns, every[:, free], constant, low[free], high[free], (below, above), steps)

    def known(self, batch: Splits) -> Splits:
        """The same subproblems with proven intervals of all positions, from their own splits."""
        if not batch.size:
            return replace(batch, known=self._at_root(batch.signs))
        depth = int((batch.signs[:, self.columns] != 0).sum(1).max())
        each = self.rows.shape[0] * (self.rows.shape[1] + 8 * depth)
        parts = [self._known(signs) for signs in batch.signs.split(max(1, ELEMENTS // max(1, each)))]
        return replace(batch, known=(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))

    def _at_root(self, signs: Tensor) -> Interval:
        """Float32 ``[K, U]``: intervals over the whole box, clamped at the splits."""
        low, high = (end.expand(signs.shape) for end in cast_outward(*self.root, torch.float32))
        return torch.where(signs > 0, low.clamp(min=0), low), torch.where(signs < 0, high.clamp(max=0), high)

    def _known(self, signs: Tensor) -> Interval:
        low, high = self._at_root(signs)
        lines, there = self._opposite(signs[:, self.columns])
        if not lines.shape[1]:
            return low, high
        below = self._decided(lines, self._climbed(lines, there))
        one, two = below.chunk(2, 1)
        one, two = cast_outward(one, -two, torch.float32)
        low[:, self.columns] = torch.maximum(low[:, self.columns], one)
        high[:, self.columns] = torch.minimum(high[:, self.columns], two)
        return low, high

    def _opposite(self, signs: Tensor) -> tuple[Tensor, Tensor]:
        """The line below ``-s_k z_k`` of each split, ``[K, S]`` of the 2 E, and where there is one."""
        split, count = signs != 0, signs.shape[1]
        depth = int(split.sum(1).max())
        at = split.to(torch.uint8).topk(depth, 1).indices
        return torch.where(signs.gather(1, at) > 0, at + count, at), split.gather(1, at)

    def _climbed(self, lines: Tensor, there: Tensor) -> Tensor:
        """Multipliers ``[K, 2 E, S]`` of the half-spaces for each row, found without error terms."""
        middle, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
        scaled, centre = (self.rows * radius).float(), (self.constant + self.rows @ middle).float()
        problem = _Rows(scaled, centre, scaled[lines], centre[lines])
        size = scaled.abs().sum(1)
        scale = size.reshape(1, -1, 1) / size[lines].unsqueeze(1).clamp(min=1e-30)
        scale = torch.where(there.unsqueeze(1), scale, 0.0).reshape(-1, lines.shape[1])
        found = climb(problem, torch.zeros_like(scale), scale, replace(PACE, steps=self.steps), None).point
        return torch.nan_to_num(found, nan=0.0, posinf=0.0).reshape(lines.shape[0], -1, lines.shape[1])

    def _decided(self, lines: Tensor, betas: Tensor) -> Tensor:
        """``[K, 2 E]`` float64: the bounds with these multipliers, in exact arithmetic."""
        rounding = Rounding.of(torch.float64)
        weights, others, constants = betas.double().clamp(min=0), self.rows[lines], self.constant[lines].unsqueeze(2)
        rows = self.rows + weights @ others
        value = rows.clamp(min=0) @ self.lower + rows.clamp(max=0) @ self.upper
        value = value + self.constant + (weights @ constants).squeeze(2)
        reach = torch.maximum(self.lower.abs(), self.upper.abs())
        size = (self.rows.abs() + weights @ others.abs()) @ reach
        size = size + self.constant.abs() + (weights @ constants.abs()).squeeze(2)
        terms = lines.shape[1] + rows.shape[2] + 8
        lost = rounding.affine(2 * terms, size) + 8 * terms * rounding.tiny * (1 + reach.sum())
        return torch.nan_to_num(rounding.down(value - lost), nan=-torch.inf)


@dataclass(slots=True)
class _Rows(Slope):
    """The bounds as functions of the multipliers ``[K 2 E, S]``, over the box ``[-1, 1]``: ``rows`` ``[2 E, f]`` and
    ``constant`` ``[2 E]``, with half-spaces ``others`` ``[K, S, f]`` and ``levels`` ``[K, S]``."""

    rows: Tensor
    constant: Tensor
    others: Tensor
    levels: Tensor
    sides: Tensor = field(init=False)

    def value(self, point: Tensor) -> Tensor:
        weights = point.reshape(self.others.shape[0], -1, point.shape[1])
        rows = torch.baddbmm(self.rows.unsqueeze(0), weights, self.others)
        self.sides = rows.sign()
        found = self.constant + (weights @ self.levels.unsqueeze(2)).squeeze(2) - rows.abs().sum(2)
        return found.flatten()

    def gradient(self) -> Tensor:
        found = torch.baddbmm(self.levels.unsqueeze(1), self.sides, self.others.mT, alpha=-1)
        return found.reshape(-1, self.levels.shape[1])

    def project(self, point: Tensor) -> None:
        point.clamp_(min=0)

    def take(self, index: Tensor) -> _Rows:
        """Rows stay together: none ever leaves."""
        return self


def _rounding(plan: Plan) -> Rounding:
    assert plan.rounding is not None
    return plan.rounding
