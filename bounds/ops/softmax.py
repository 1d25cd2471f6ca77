"""Softmax and LogSoftmax: every element of an axis decides each result.

Write ``z_k = x_k - L(x)`` with ``L = log sum exp``, so that softmax is ``exp(z_k)``. For any p on the simplex and any
q, S > 0 and M

    L(x) >= sum_j p_j x_j - sum_j p_j log p_j                        (Gibbs; equality where p = softmax(x)),
    L(x) <= M + log S - 1 + sum_j (q_j x_j + max over v = l_j, u_j of (exp(v - M) / S - q_j v)),

the second because ``log s <= s / S + log S - 1`` and because ``exp(v - M) / S - q v`` is convex. Both read the axis
through one sum, so a walk over K results costs K and not K^2. Softmax adds a line of exp around z, with any slope m:
with the chords of exp as q the lower line is the tangent of ``exp(x_k) / sum of chords``, and the upper one is the
chord of exp at a tangent of ``x_k - L(x)`` (Wei et al., Convex bounds on the softmax function, AISTATS 2023).
Before these lines a walk uses that results sum to 1 (``simplex.py``). ``Exp`` of a ``LogSoftmax`` is the decomposed way
to compare with; it cannot use the sum, which makes it looser, and it is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bounds.constraints import LinearBlock
from bounds.ops import reading
from bounds.ops.arithmetic import Mul, outward
from bounds.ops.base import (
    BuilderLike,
    Freedom,
    Interval,
    Line,
    Nonlinear,
    OnnxName,
    OnnxNode,
    Parameters,
    Relaxation,
    Shape,
)
from bounds.ops.shaping import reshape
from bounds.ops.simplex import OnSimplex
from bounds.rounding import Rounding

_ELEMENTS = 1 << 22
"""Differences of one axis that are held at once."""


class _Normalised(Nonlinear):
    """Lines ``m (x_k + sum_j w_j x_j) + offset`` over the axis, counted from the end; their slopes are ``(m, w)``."""

    __slots__ = ()
    elementwise = False
    axis: int

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return False

    def shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def along(self, slopes: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        steep, weights = slopes
        return steep * (values[0] + (weights * values[0]).sum(self.axis, keepdim=True))

    def across(self, slopes: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        steep, weights = slopes
        scaled = rows * steep
        return (scaled + weights * scaled.sum(self.axis, keepdim=True),)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """Of exp of differences from the greatest, their sum, and a quotient or logarithm.

        A term ``exp(-d) <= 1`` is off by ``d u exp(-d) <= 0.37 u`` for its difference and by the library's units; there
        are n of them, whose sum is at least 1. ``d`` is at most the size of a LogSoftmax.
        """
        low, high = result
        size = torch.maximum(low.abs(), high.abs())
        return machine.function(size) * (4 + 2 * low.shape[self.axis])

    def terms(self, *shapes: Shape) -> int:
        return shapes[0][self.axis] + 8

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        return high > low


@dataclass(frozen=True, slots=True)
class LogSoftmax(_Normalised):
    """``x_k - log sum_j exp(x_j)`` over ``axis`` (negative)."""

    axis: int
    onnx = (OnnxName("LogSoftmax", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_read(cls, node, build),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.log_softmax(operands[0], self.axis)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Each element is increasing in its own operand and decreasing in the others."""
        ((low, high),) = operands
        return _logarithms(low, high, self.axis, rounding)

    def gradients(
        self, rows: Interval, operands: Sequence[Interval], rounding: Rounding | None
    ) -> tuple[Interval, ...]:
        """``G_k - y_k sum_j G_j`` with y the softmax."""
        ((low, high),) = operands
        shares = [y.unsqueeze(1) for y in _exponentials(*_logarithms(low, high, self.axis, rounding), rounding)]
        total = _summed(rows, self.axis, rounding)
        part = Mul().interval([(shares[0], shares[1]), total], rounding)
        return (outward(rows[0] - part[1], rows[1] - part[0], rounding),)

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        ((low, high),) = operands
        one = torch.ones_like(low)
        lines = []
        for weights, offset in (_above(low, high, self.axis, rounding), _below(low, high, self.axis, rounding)):
            lines.append(Line((one, -weights), (-offset).expand_as(low)))
        return Relaxation((lines[0],), (lines[1],))


@dataclass(frozen=True, slots=True)
class Softmax(OnSimplex, _Normalised):
    """``exp(x_k) / sum_j exp(x_j)`` over ``axis`` (negative)."""

    axis: int
    onnx = (OnnxName("Softmax", 1),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (_read(cls, node, build),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.softmax(operands[0], self.axis)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """As for ``LogSoftmax``, within [0, 1]."""
        ((low, high),) = operands
        return _exponentials(*_logarithms(low, high, self.axis, rounding), rounding)

    def gradients(
        self, rows: Interval, operands: Sequence[Interval], rounding: Rounding | None
    ) -> tuple[Interval, ...]:
        """``y_k (G_k - sum_j y_j G_j)``; the sum is a mean of the G_j."""
        low, high = (y.unsqueeze(1) for y in self.interval(operands, rounding))
        mean = _summed(Mul().interval([(low, high), rows], rounding), self.axis, rounding)
        least, most = rows[0].amin(self.axis, keepdim=True), rows[1].amax(self.axis, keepdim=True)
        mean = torch.maximum(mean[0], least), torch.minimum(mean[1], most)
        apart = outward(rows[0] - mean[1], rows[1] - mean[0], rounding)
        return (Mul().interval([(low, high), apart], rounding),)

    def envelope(self, operands: Sequence[Interval], error: float) -> LinearBlock:
        """Its lines, and that results sum to 1."""
        return self.summed(Nonlinear.envelope(self, operands, error), operands[0][0])

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """One line a side; ``chosen`` replaces the slopes m of exp, from the least to the greatest result."""
        ((low, high),) = operands
        ends, m, steep = self._slopes(low, high, rounding, chosen)
        (q, above), (p, below) = _above(low, high, self.axis, rounding), _below(low, high, self.axis, rounding)
        # exp z >= m z + m - m log m, and <= the line of slope m through the higher end.
        entropy, values = torch.xlogy(m, m), [end.exp() for end in ends]
        lower = m - entropy - m * above
        upper = torch.maximum(values[0] - steep * ends[0], values[1] - steep * ends[1]) - steep * below
        if rounding is not None:
            lower = lower - rounding.affine(16, 2 * (m * (1 + above.abs()) + entropy.abs()))
            size = values[1] + steep * (ends[0].abs() + below.abs())
            upper = upper + rounding.affine(16, 2 * size)
        # An operand without bounds leaves the constants 0 and 1.
        known = (torch.isfinite(low) & torch.isfinite(high)).all(self.axis, keepdim=True)
        return Relaxation(
            (Line((_or(known, m), _or(known, -q)), _or(known, lower)),),
            (Line((_or(known, steep), _or(known, -p)), _or(known, upper, 1.0)),),
        )

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """The slopes m, among the values that the result takes."""
        ((low, high),) = operands
        ends, m, steep = self._slopes(low, high, None, (None, None))
        least, greatest = (end.exp() for end in ends)
        return Freedom(m, least, greatest), Freedom(steep, least, greatest)

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """``Z - log m`` for the value Z of the line of z; above ``Z - z`` for the end z that decides."""
        ((low, high),) = operands
        ends, m, steep = self._slopes(low, high, None, chosen)
        (x,) = values
        first, second = None, None
        if chosen[0] is not None:
            weights, offset = _above(low, high, self.axis, None)
            line = x - (weights * x).sum(self.axis, keepdim=True) - offset
            first = line - m.clamp(min=torch.finfo(m.dtype).tiny).log()
        if chosen[1] is not None:
            weights, offset = _below(low, high, self.axis, None)
            gaps = [end.exp() - steep * end for end in ends]
            end = torch.where(gaps[0] > gaps[1], ends[0], ends[1])
            second = x - (weights * x).sum(self.axis, keepdim=True) - offset - end
        return first, second

    def _slopes(
        self, low: Tensor, high: Tensor, rounding: Rounding | None, chosen: Parameters
    ) -> tuple[Interval, Tensor, Tensor]:
        """The range of z and the slopes of exp below and above: a tangent at the middle of the box, and the chord."""
        ends = _logarithms(low, high, self.axis, rounding)
        least, greatest = ends[0].exp(), ends[1].exp()
        below, above = chosen
        if below is None:
            weights, offset = _above(low, high, self.axis, None)
            middle = low / 2 + high / 2
            below = (middle - (weights * middle).sum(self.axis, keepdim=True) - offset).exp()
        if above is None:
            width = ends[1] - ends[0]
            above = torch.where(width > 0, (greatest - least) / torch.where(width > 0, width, 1.0), least)
        return ends, torch.minimum(torch.maximum(below, least), greatest), above.clamp(0, 1)


def _or(known: Tensor, value: Tensor, other: float = 0.0) -> Tensor:
    return torch.where(known, value, other)


def _above(low: Tensor, high: Tensor, axis: int, rounding: Rounding | None) -> Interval:
    """Weights and offset with ``L(x) <= sum weights x + offset`` on the box: the chords of exp, see above."""
    shift = high.amax(axis, keepdim=True)
    first, last = (low - shift).exp(), (high - shift).exp()
    width = high - low
    total = (first / 2 + last / 2).sum(axis, keepdim=True)
    weights = torch.where(width > 0, (last - first) / torch.where(width > 0, width, 1.0), first) / total
    ends = [value / total - weights * end for value, end in ((first, low), (last, high))]
    offset = shift + total.log() - 1 + torch.maximum(*ends).sum(axis, keepdim=True)
    if rounding is not None:
        # exp(v - M) is off by the rounding of v - M too: a factor of size |v| + |M| at most.
        span = shift.abs() + torch.maximum(low.abs(), high.abs())
        size = (last / total * (1 + span) + weights * torch.maximum(low.abs(), high.abs())).sum(axis, keepdim=True)
        size = size + shift.abs() + total.log().abs() + 1
        offset = offset + rounding.affine(low.shape[axis] + 32, 2 * size)
    return weights, offset


def _below(low: Tensor, high: Tensor, axis: int, rounding: Rounding | None) -> Interval:
    """Weights and offset with ``L(x) >= sum weights x + offset`` everywhere: Gibbs' inequality at the middle."""
    weights = torch.softmax(low / 2 + high / 2, axis)
    logs = torch.xlogy(weights, weights)
    offset = -logs.sum(axis, keepdim=True)
    if rounding is not None:
        # Computed weights sum to one nearly: dividing them by their sum moves both terms by that much.
        count = low.shape[axis] + 32
        largest = torch.maximum(low.abs(), high.abs())
        size = (weights * largest + logs.abs()).sum(axis, keepdim=True) + 1
        excess = (weights.sum(axis, keepdim=True) - 1).abs() + 2 * rounding.gamma(count)
        offset = offset - 2 * excess * size - rounding.affine(count, size)
    return weights, offset


def _logarithms(low: Tensor, high: Tensor, axis: int, rounding: Rounding | None) -> Interval:
    """The range of ``x_k - L(x)``: ``-log(1 + sum over j != k of exp(x_j - x_k))`` at two corners of the box."""
    return _corner(low, high, axis, rounding, 1.0), _corner(high, low, axis, rounding, -1.0)


def _corner(own: Tensor, others: Tensor, axis: int, rounding: Rounding | None, sign: float) -> Tensor:
    """``-log(1 + sum exp(others_j - own_k))``, j != k, moved down (sign 1) or up (-1) by what rounding can do."""
    own, others = own.movedim(axis, -1), others.movedim(axis, -1)
    count = own.shape[-1]
    step = max(1, _ELEMENTS // max(1, others.numel()))
    parts = []
    for first in range(0, count, step):
        mine = own[..., first : first + step]
        differences = others.unsqueeze(-2) - mine.unsqueeze(-1)
        same = (
            torch.arange(count, device=own.device)
            == torch.arange(first, first + mine.shape[-1]).to(own.device)[:, None]
        )
        total = torch.logsumexp(differences.masked_fill(same, -torch.inf), -1)
        value = -functional.softplus(total, threshold=60.0)
        if rounding is not None:
            size = mine.abs() + others.abs().amax(-1, keepdim=True) + 1
            # The sum's relative error is an absolute one of its logarithm, and that of -log(1 + s) at s / (1 + s).
            slack = rounding.affine(2 * count + 32, size) * 2 * total.sigmoid() + value.abs() * (16 * rounding.unit)
            value = value - sign * (slack + rounding.tiny)
        parts.append(value)
    return torch.cat(parts, -1).clamp(max=0).movedim(-1, axis)


def _summed(terms: Interval, axis: int, rounding: Rounding | None) -> Interval:
    """The sum of intervals along an axis, kept."""
    low, high = (end.sum(axis, keepdim=True) for end in terms)
    if rounding is None:
        return low, high
    size = torch.maximum(terms[0].abs(), terms[1].abs()).sum(axis, keepdim=True)
    slack = rounding.affine(terms[0].shape[axis], size)
    return outward(low - slack, high + slack, rounding)


def _exponentials(low: Tensor, high: Tensor, rounding: Rounding | None) -> Interval:
    """exp of a range of numbers up to 0."""
    if rounding is None:
        return low.exp(), high.exp()
    slack = 16 * rounding.unit
    least, greatest = low.exp() * (1 - slack) - rounding.tiny, high.exp() * (1 + slack) + rounding.tiny
    return torch.nan_to_num(least.clamp(min=0), nan=0.0), torch.nan_to_num(greatest.clamp(max=1), nan=1.0)


def _read(op: type[LogSoftmax] | type[Softmax], node: OnnxNode, build: BuilderLike) -> int:
    """Along one axis; before operator set 13 along all axes from ``axis`` on together."""
    x = reading.operand(node, 0)
    shape = build.shape(x)
    rank = len(shape)
    if not rank:
        raise reading.invalid(node, "a scalar has no axis")
    axis = reading.axis_of(node, reading.flag(node, "axis", -1 if node.opset >= 13 else 1), rank)
    if node.opset >= 13 or axis == rank - 1:
        return build.add(op(axis - rank), x, name=node.name)
    flat = reshape(build, x, (*shape[:axis], reading.product(shape[axis:])))
    return reshape(build, build.add(op(-1), flat), shape, node.name)
