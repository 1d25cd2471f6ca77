"""Max and Min: nonlinear in two operands.

With ``D = u_x - l_y``, ``E = u_y - l_x`` (both positive where neither operand wins for certain) and any weights
``w, s`` in [0, 1]:

    w x + (1 - w) y  <=  max(x, y)  <=  s x + (1 - s) y + max((1 - s) D, s E).

The left side is a mean; on the right ``max(x, y) - s x - (1 - s) y`` is ``(1 - s)(x - y)`` or ``s (y - x)``. The
least offset has ``s = D / (D + E)``, which is ``y + relu(x - y)`` with ReLU's upper line. A maximum with a constant
is a ReLU or a Clip, ``max(x, c) = c + relu(x - c)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Own, block
from bounds.ops import reading
from bounds.ops.arithmetic import Add, Neg, Sub, same_rank
from bounds.ops.base import (
    BuilderLike,
    Freedom,
    Interval,
    Line,
    Nonlinear,
    OnnxName,
    OnnxNode,
    Op,
    Parameters,
    Relaxation,
    Shape,
    broadcast,
)
from bounds.ops.indexing import expand
from bounds.ops.lines import numbered
from bounds.ops.pieces import bound
from bounds.ops.piecewise import Clip
from bounds.ops.relu import Relu
from bounds.rounding import Rounding, difference_above


class _Extremum(Nonlinear):
    """Two variable operands of the same shape."""

    __slots__ = ()

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return not any(variable)

    def shape(self, *shapes: Shape) -> Shape:
        same_rank(*shapes)
        return broadcast(*shapes)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        (a, b), (c, d) = operands
        return self.forward(a, c), self.forward(b, d)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """A selection."""
        return None

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        """Whether neither operand wins for certain; ``others``: the second operand's ends, if known."""
        if not others:
            return high > low
        return (high > others[0]) & (others[1] > low)

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """The first operand's weights, 0 to 1, on both sides; no choice where one operand wins for certain."""
        lines = self.relaxation(operands, None)
        below, above = lines.lower[0].slopes[0], lines.upper[0].slopes[0]
        (a, b), (c, d) = operands
        settled = (b <= c) | (d <= a)

        def free(start: Tensor) -> Freedom:
            return Freedom(start, torch.where(settled, start, 0.0), torch.where(settled, start, 1.0))

        return free(below), free(above)

    def _block(self, operands: Sequence[Interval], sign: float) -> LinearBlock:
        """``r = max(x, y)`` (``sign`` 1; -1: the mirrored rows of the minimum), with x in [a, b], y in [c, d]. Where
        one wins for certain an alias, else a phase p that says whether x wins: ``r >= x``, ``r >= y``, and
        ``r <= min(b p, x - a (1 - p)) + min(d (1 - p), y - c p)``, where each sum of two is a row (Anderson et al.,
        Strong mixed-integer programming formulations for trained neural networks, 2020)."""
        shape = broadcast(*(tuple(low.shape) for low, _ in operands))
        x, y = numbered(operands, shape)
        ends = [end.expand(shape).flatten() * sign for pair in operands for end in pair]
        a, b, c, d = ends if sign > 0 else (ends[1], ends[0], ends[3], ends[2])
        same = torch.where(b <= c, y, torch.where(d <= a, x, -1))
        open_ = (same < 0).nonzero().flatten()
        own = Own(sum(low.numel() for low, _ in operands) + same.shape[0])
        r, p = own.first - same.shape[0] + open_, own.phases(open_.shape[0])
        x, y, a, b, c, d = (v[open_] for v in (x, y, a, b, c, d))
        far, near = difference_above(d, a), difference_above(b, c)
        rows = [
            bound([(r, 1.0), (x, -1.0)], torch.zeros_like(a), sign),
            bound([(r, 1.0), (y, -1.0)], torch.zeros_like(a), sign),
            bound([(r, 1.0), (x, -1.0), (p, sign * far)], sign * far, -sign),
            bound([(r, 1.0), (y, -1.0), (p, -sign * near)], torch.zeros_like(a), -sign),
            bound([(r, 1.0), (p, -sign * difference_above(b, d))], sign * d, -sign),
            bound([(r, 1.0), (x, -1.0), (y, -1.0), (p, -sign * difference_above(a, c))], -sign * a, -sign),
        ]
        return block(rows, same, own.joined())


@dataclass(frozen=True, slots=True)
class Max(_Extremum):
    """``max(x, y)`` elementwise."""

    onnx = (OnnxName("Max", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """A tree over the variable operands; the constant ones are joined first."""
        variable, fixed = _operands(node, build)
        if fixed is None:
            return (tree(build, cls(), variable),)
        return (max_with_constant(build, tree(build, cls(), variable), fixed) if variable else fixed,)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.maximum(operands[0], operands[1])

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """Lines with a slope for each operand; ``chosen`` replaces the weights ``w`` and ``s`` of the first one."""
        return _above(operands[0], operands[1], rounding, chosen)

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        return self._block(operands, 1.0)

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        return _shares(operands[0], operands[1])

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """``x - y`` below; above also the derivative of the offset, ``-D`` or ``E``."""
        (a, b), (c, d) = operands
        _, s = chosen
        difference = values[0] - values[1]
        return difference, None if s is None else difference + _tilt(b - c, d - a, s)


@dataclass(frozen=True, slots=True)
class Min(_Extremum):
    """``min(x, y) = -max(-x, -y)`` elementwise."""

    onnx = (OnnxName("Min", 6),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        """A tree over the variable operands; ``min(x, c) = -max(-x, -c)``."""
        variable, fixed = _operands(node, build, largest=False)
        if fixed is None:
            return (tree(build, cls(), variable),)
        if not variable:
            return (fixed,)
        x = tree(build, cls(), variable)
        limit = build.value(fixed)
        if limit is not None and (number := _uniform(build, fixed, limit)) is not None:
            return (build.add(Clip(None, number), expand(build, x, _common(build, x, fixed)), name=node.name),)
        mirrored = max_with_constant(build, build.add(Neg(), x), build.add(Neg(), fixed))
        return (build.add(Neg(), mirrored, name=node.name),)

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.minimum(operands[0], operands[1])

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """The mirrored lines of ``max(-x, -y)``."""
        (a, b), (c, d) = operands
        above = _above((-b, -a), (-d, -c), rounding, (chosen[1], chosen[0]))
        return Relaxation(
            tuple(Line(line.slopes, -line.offset) for line in above.upper),
            tuple(Line(line.slopes, -line.offset) for line in above.lower),
        )

    def exact(self, operands: Sequence[Interval]) -> LinearBlock:
        return self._block(operands, -1.0)

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        return _shares(operands[1], operands[0])

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """Mirrored: the offset ``-max((1 - w) D, w E)`` is below."""
        (a, b), (c, d) = operands
        w, _ = chosen
        difference = values[0] - values[1]
        return None if w is None else difference - _tilt(d - a, b - c, w), difference


def _shares(x: Interval, y: Interval) -> tuple[Interval, Interval]:
    """Derivatives of ``max(x, y)``: 1 by the one that wins for certain, 0 by the other; any mean where neither does."""
    sure, possible = (x[0] > y[1]).to(x[0]), (x[1] >= y[0]).to(x[0])
    return (sure, possible), (1 - possible, 1 - sure)


def _tilt(d: Tensor, e: Tensor, weight: Tensor) -> Tensor:
    """Derivative by the weight of ``max((1 - s) D, s E)``; 0 where one operand wins for certain."""
    return torch.where((d <= 0) | (e <= 0), 0.0, torch.where((1 - weight) * d > weight * e, -d, e))


def _above(x: Interval, y: Interval, rounding: Rounding | None, chosen: Parameters) -> Relaxation:
    """Lines around ``max(x, y)``: second ones are the other operand below, the constant above."""
    d, e = torch.relu(x[1] - y[0]), torch.relu(y[1] - x[0])
    stable = (d <= 0) | (e <= 0)
    total = d + e
    best = torch.where(total > 0, d / torch.where(total > 0, total, 1.0), 0.5).clamp(0, 1)
    s = best if chosen[1] is None else torch.where(stable, best, chosen[1].clamp(0, 1))
    offset = torch.maximum((1 - s) * d, s * e)
    w = torch.where(x[0] + x[1] >= y[0] + y[1], 1.0, 0.0).to(total)
    w = torch.where(stable, best, w if chosen[0] is None else chosen[0].clamp(0, 1))
    slack = torch.zeros_like(total)
    if rounding is not None:
        # Two weights that are rounded separately do not quite add up to 1.
        sizes = torch.maximum(x[0].abs(), x[1].abs()) + torch.maximum(y[0].abs(), y[1].abs())
        slack = torch.where(stable & (s != 0.5), 0.0, sizes * (4 * rounding.unit) + rounding.tiny)
        offset = torch.where(stable & (s != 0.5), 0.0, rounding.up(offset) + slack)
    zero = torch.zeros_like(total)
    highest = torch.maximum(x[1], y[1]).expand_as(total)
    lower = (Line((w, 1 - w), -slack), Line((1 - w, w), -slack))
    sure = torch.where(stable, w, 1 - w)
    return Relaxation(
        (lower[0], Line((sure, 1 - sure), -slack)),
        (Line((s, 1 - s), offset), Line((zero, zero), highest)),
    )


def tree(build: BuilderLike, op: Op, operands: Sequence[int]) -> int:
    """A balanced tree of a two-operand operator over the operands, brought to one shape."""
    level = list(operands)
    while len(level) > 1:
        pairs = [level[k : k + 2] for k in range(0, len(level), 2)]
        level = []
        for pair in pairs:
            if len(pair) == 2:
                shape = _common(build, *pair)
                pair = [build.add(op, *(expand(build, i, shape) for i in pair))]
            level.append(pair[0])
    return level[0]


def max_with_constant(build: BuilderLike, x: int, fixed: int) -> int:
    """``max(x, c)`` for a constant node: ReLU for 0, Clip for one number, else ``c + relu(x - c)``."""
    value = build.value(fixed)
    assert value is not None
    shape = _common(build, x, fixed)
    number = _uniform(build, fixed, value)
    if number is not None:
        x = expand(build, x, shape)
        return build.add(Relu() if number == 0 else Clip(number, None), x)
    x, fixed = expand(build, x, shape), expand(build, fixed, shape)
    return build.add(Add(), build.add(Relu(), build.add(Sub(), x, fixed)), fixed)


def _operands(node: OnnxNode, build: BuilderLike, largest: bool = True) -> tuple[list[int], int | None]:
    """The variable operands, and the extremum of the constant ones."""
    operands = [reading.operand(node, k) for k in range(len(node.inputs))]
    if not operands:
        raise reading.invalid(node, "it has no operands")
    fixed = [i for i in operands if build.value(i) is not None]
    joined = tree(build, Max() if largest else Min(), fixed) if fixed else None
    return [i for i in operands if build.value(i) is None], joined


def _uniform(build: BuilderLike, fixed: int, value: Tensor) -> float | None:
    """The one exact number that a constant holds everywhere, or None."""
    if value.numel() == 0 or build.error(fixed) is not None or bool((value != value.flatten()[0]).any()):
        return None
    return float(value.flatten()[0].item())


def _common(build: BuilderLike, *operands: int) -> Shape:
    return broadcast(*(build.shape(i) for i in operands))
