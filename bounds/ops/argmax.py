"""ArgMax and ArgMin: the place of an extreme element, a function with jumps of a whole axis.

Element j can be the greatest somewhere in a box when it can beat every other one, and which can beat which is best told
from bounds of the *differences* ``x_k - x_j``, in which what two elements have in common cancels. So the operator reads
those differences (``Leading``); only where they are too many it reads the elements themselves (``Greatest``). The set
of places that can be the greatest is exact for operands that take any value in their intervals; ties count for the
first place, or for the last one. Lines are constant: the first and the last place of that set.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Own, Row, block
from bounds.ops import reading
from bounds.ops.arithmetic import Neg, Sub
from bounds.ops.base import (
    BuilderLike,
    Interval,
    Line,
    NoDerivativeError,
    Nonlinear,
    OnnxName,
    OnnxNode,
    Parameters,
    Relaxation,
    Rewritten,
    Shape,
)
from bounds.ops.comparison import exact
from bounds.ops.indexing import Gather
from bounds.ops.pieces import bound
from bounds.ops.shaping import Transpose, reshape
from bounds.rounding import Rounding, difference_above

_DIFFERENCES = 1 << 16
"""More differences than this are not formed."""


class Place(Nonlinear):
    """A place along the last axis of the operand, counted from 0; ``last``: of several greatest elements the last."""

    __slots__ = ()
    elementwise = False

    @abstractmethod
    def possible(self, low: Tensor, high: Tensor) -> Tensor:
        """bool ``[*, size]``: which places can be the result on ``[low, high]``; exactly one on a point."""

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        place = self.possible(x, x).to(torch.uint8).argmax(-1).to(x.dtype)
        return torch.where(torch.isnan(x).any(-1), torch.nan, place)

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return False

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0][:-1]

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """The first and the last possible place, exact."""
        ((low, high),) = operands
        found = self.possible(low, high)
        # Nothing is said of what a runtime's NaN may lead to, nor of ends that contradict each other.
        silent = ((low == -torch.inf) & (high == torch.inf)).any(-1, keepdim=True) | ~found.any(-1, keepdim=True)
        found = (found | silent).to(torch.uint8)
        first, last = found.argmax(-1), found.shape[-1] - 1 - found.flip(-1).argmax(-1)
        return first.to(low.dtype), last.to(low.dtype)

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """Constants; their slopes, zeros, are shaped like the operand."""
        least, most = self.interval(operands, rounding)
        flat = (torch.zeros_like(operands[0][0]),)
        return Relaxation((Line(flat, least),), (Line(flat, most),))

    def along(self, slopes: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        return (slopes[0] * values[0]).sum(-1)

    def across(self, slopes: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        return (slopes[0] * rows.unsqueeze(-1),)

    def terms(self, *shapes: Shape) -> int:
        return shapes[0][-1]

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """A selection."""
        return None

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        """Raises ``NoDerivativeError``."""
        raise NoDerivativeError("the place of an extreme element has jumps, where no derivative is bounded")

    def gradients(
        self, rows: Interval, operands: Sequence[Interval], rounding: Rounding | None
    ) -> tuple[Interval, ...]:
        """Raises ``NoDerivativeError``."""
        return self.derivatives(operands, rounding)

    def _choice(self, operand: Interval, own: Own) -> tuple[Tensor, Tensor, Tensor, list[Row]]:
        """Of the F unsettled results: their numbers ``[F]``, a phase for each place ``[F, size]`` that is 0 where the
        place is not possible, which ones are possible, and rows that choose one place as the result."""
        low, high = operand
        unsettled = self.unsettled(low, high).flatten().nonzero().flatten()
        possible = self.possible(low, high).flatten(0, -2)[unsettled]
        phase = own.columns(torch.zeros(possible.shape, dtype=low.dtype), possible.to(low.dtype), integer=True)
        y = low.numel() + unsettled
        rows = [
            Row([(c, 1.0) for c in phase.T], 1.0, 1.0),
            Row([(y, 1.0), *[(c, -float(k)) for k, c in enumerate(phase.T)]], 0.0, 0.0),
        ]
        return unsettled, phase, possible, rows

    def unsettled(self, low: Tensor, high: Tensor) -> Tensor:
        """bool ``[*, 1]``: where the place is not known yet."""
        least, most = self.interval([(low, high)], None)
        return (least < most).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class Greatest(Place):
    """The place of the greatest element, from the elements themselves."""

    last: bool

    def possible(self, low: Tensor, high: Tensor) -> Tensor:
        """Where the upper end reaches the lower ends of all others, exceeds those that win a tie."""
        least = torch.full_like(low[..., :1], -torch.inf)
        before = torch.cat([least, low[..., :-1].cummax(-1).values], -1)
        behind = torch.cat([least, low[..., 1:].flip(-1).cummax(-1).values], -1).flip(-1)
        strong, weak = (behind, before) if self.last else (before, behind)
        # Both said with what cannot be, so that a NaN rules nothing out.
        return ~(high < weak) & (~(high <= strong) | (strong == -torch.inf))

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """``x_k <= t`` for a column t of its own, and ``x_j >= t - (max u - l_j)(1 - p_j)`` for the phase of each
        place; of equal elements any may be chosen."""
        low, high = (end.reshape(-1, end.shape[-1]) for end in operands[0])
        count, size = low.shape
        own = Own(low.numel() + count)
        unsettled, phase, possible, rows = self._choice(operands[0], own)
        low, high = low[unsettled], high[unsettled]
        top = own.columns(low.amax(1), high.amax(1))[:, None].expand_as(phase)
        x = unsettled[:, None] * size + torch.arange(size)
        far = difference_above(high.amax(1, keepdim=True).expand_as(low), low)[possible]
        rows.append(Row(((top.flatten(), 1.0), (x.flatten(), -1.0)), lower=0.0))
        rows.append(Row(((x[possible], 1.0), (top[possible], -1.0), (phase[possible], -far)), lower=-far))
        return block(rows, torch.full((count,), -1), own.joined())

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        """Elements that can be the greatest, and those that one which can has not passed yet."""
        return self.unsettled(low, high) & (high >= low.amax(-1, keepdim=True)) & (high > low)


@dataclass(frozen=True, slots=True)
class Leading(Place):
    """The place of the greatest of ``size`` elements, from the differences ``x_k - x_j`` of all pairs ``j < k`` in
    lexicographic order."""

    size: int
    last: bool

    def possible(self, low: Tensor, high: Tensor) -> Tensor:
        """Where every difference leaves room for winning."""
        if self.last:
            later, earlier = ~(high < 0), ~(low >= 0)
        else:
            later, earlier = ~(high <= 0), ~(low > 0)
        wins = torch.cat([earlier, later], -1)
        return wins[..., self._contests(low.device)].all(-1)

    def _contests(self, device: torch.device) -> Tensor:
        """``[size, size - 1]``: for each element where its chances stand, first those of the earlier of each pair."""
        count = self.size * (self.size - 1) // 2
        found: list[list[int]] = [[] for _ in range(self.size)]
        for place, (j, k) in enumerate(pairs(self.size)):
            found[j].append(place)
            found[k].append(count + place)
        return torch.tensor(found, dtype=torch.int64, device=device)

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        """``x_k - x_j <= u (1 - p_j)`` and ``>= l (1 - p_k)`` for the phase of each place; of equal elements any may be
        chosen."""
        low, high = (end.reshape(-1, end.shape[-1]) for end in operands[0])
        own = Own(low.numel() + low.shape[0])
        unsettled, phase, possible, rows = self._choice(operands[0], own)
        columns = unsettled[:, None] * low.shape[1] + torch.arange(low.shape[1])
        one, two = (torch.tensor(side) for side in zip(*pairs(self.size), strict=True))
        for place, end, sign in ((one, high[unsettled].clamp(min=0), -1.0), (two, low[unsettled].clamp(max=0), 1.0)):
            there = possible[:, place] & (end != 0)
            far, chosen = end[there], phase[:, place][there]
            rows.append(bound([(columns[there], 1.0), (chosen, far)], far, sign))
        return block(rows, torch.full((low.shape[0],), -1), own.joined())

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        """Differences whose sign is open between two elements that can both be the greatest."""
        chances = self.possible(low, high)
        one, two = (torch.tensor(side, device=low.device) for side in zip(*pairs(self.size), strict=True))
        rivals = chances[..., one] | chances[..., two]
        return self.unsettled(low, high) & rivals & (low <= 0) & (high >= 0) & (high > low)


def pairs(size: int) -> list[tuple[int, int]]:
    """All ``(j, k)`` with ``j < k < size``, in lexicographic order."""
    return [(j, k) for j in range(size) for k in range(j + 1, size)]


class ArgMax(Rewritten):
    """The place of the greatest element along ``axis``."""

    __slots__ = ()
    onnx = (OnnxName("ArgMax", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_read(node, build, smallest=False),)


class ArgMin(Rewritten):
    """The place of the greatest element of ``-x``."""

    __slots__ = ()
    onnx = (OnnxName("ArgMin", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_read(node, build, smallest=True),)


def _read(node: OnnxNode, build: BuilderLike, smallest: bool) -> int:
    x, last = reading.operand(node, 0), bool(reading.flag(node, "select_last_index"))
    shape = build.shape(x)
    axis = reading.axis_of(node, reading.flag(node, "axis"), len(shape))
    size, keep = shape[axis], bool(reading.flag(node, "keepdims", 1))
    target = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1 :])
    if not size:
        raise reading.invalid(node, f"axis {axis} of shape {shape} has no elements")
    value = exact(node, build, 0)
    if value is not None:
        value = value.movedim(axis, -1)
        chosen = value.flip(-1) if last else value
        place = chosen.argmin(-1) if smallest else chosen.argmax(-1)
        return build.constant((size - 1 - place if last else place).reshape(target), name=node.name)
    if axis != len(shape) - 1:
        x = build.add(Transpose((*(a for a in range(len(shape)) if a != axis), axis)), x)
    x = build.add(Neg(), x) if smallest else x
    return reshape(build, _place(build, x, last), target, node.name)


def _place(build: BuilderLike, x: int, last: bool) -> int:
    """The place of the greatest element along the last axis."""
    *front, size = build.shape(x)
    if size == 1:
        return build.constant(torch.zeros(tuple(front), dtype=torch.int64))
    if reading.product(tuple(front)) * size * (size - 1) // 2 > _DIFFERENCES:
        return build.add(Greatest(last), x)
    one, two = (
        build.add(Gather(len(front)), x, build.constant(reading.indices(side)))
        for side in zip(*pairs(size), strict=True)
    )
    return build.add(Leading(size, last), build.add(Sub(), two, one))
