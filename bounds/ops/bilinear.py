"""Products of two values that both depend on the input: elementwise, and matrices.

With ``x = c + dx, |dx| <= r`` and ``y = d + dy, |dy| <= s`` and any ``t`` in [-1, 1]

    x y >= (d + t s) x + (c + t r) y - c d - t (c s + d r) - r s
    x y <= (d + t s) x + (c - t r) y - c d - t (c s - d r) + r s,

since ``dx dy - t (s dx + r dy)`` is least at a corner, where it is ``-r s`` or ``(1 - 2 |t|) r s``. These are the
convex mixes of McCormick's two planes on each side (Math. Programming 10, 1976): ``t = -1, 1`` are the planes, and
``t = 0`` has the same slopes below and above, so nothing is lost where coefficients of both signs meet. For a sum
of products, as in ``X Y``, one ``t`` for each element of the result keeps all of it a matrix product:
``X (d + t s) = X d + t (X s)``; no term is ever held by itself.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    Rewritten,
    Shape,
    broadcast,
)
from bounds.ops.indexing import expand
from bounds.ops.lines import lines_block
from bounds.ops.powers import Power
from bounds.ops.shaping import align
from bounds.rounding import Rounding

_ELEMENTS = 1 << 22
"""Terms of a matrix product whose ranges are held at once (``MatrixProduct.interval``)."""


class Bilinear(Nonlinear):
    """``f(x, y)``, linear in each of two variable operands; its lines have one parameter ``t`` a side, see above."""

    __slots__ = ()

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return not any(variable)

    def roundoff(self, operands: Sequence[Interval], result: Interval, machine: Rounding) -> Tensor | None:
        """A sum of products, in any order."""
        sizes = [torch.maximum(low.abs(), high.abs()) for low, high in operands]
        return machine.computed(self.count(*(tuple(s.shape[1:]) for s in sizes)), self.forward(*sizes))

    @abstractmethod
    def count(self, *shapes: Shape) -> int:
        """How many products are summed into one element, forward or transposed."""

    @abstractmethod
    def slopes(self, middles: tuple[Tensor, Tensor], tilts: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, ...]:
        """The slopes of the line ``f(x, d) + f(c, y) + t (f(x, s) + f(r, y))`` for ``(c, d)``, ``(r, s)``."""

    def freedom(self, operands: Sequence[Interval]) -> tuple[Freedom | None, Freedom | None]:
        """``t`` from -1 to 1 on both sides; one value where the product is one of a constant."""
        (a, b), (c, d) = operands
        one = (self.forward(b - a, d - c) > 0).to(a.dtype)
        left, right = (anchor.to(a.dtype) for anchor in self._anchors(operands))
        below, above = ((side * one) for side in (left + right, right - left))
        return Freedom(below, -one, one), Freedom(above, -one, one)

    def relaxation(
        self,
        operands: Sequence[Interval],
        rounding: Rounding | None,
        chosen: Parameters = (None, None),
    ) -> Relaxation:
        """One line a side; ``chosen`` replaces the parameters ``t``."""
        below, above = self._initial(operands) if None in chosen else (None, None)
        below = below if chosen[0] is None else self._line(operands, rounding, 1.0, chosen[0])
        above = above if chosen[1] is None else self._line(operands, rounding, -1.0, chosen[1])
        assert below is not None and above is not None
        if rounding is not None:
            (x, r), (y, s) = (_ball(o, rounding) for o in operands)
            shapes = tuple(x.shape[1:]), tuple(y.shape[1:])
            slack = rounding.affine(4 * self.count(*shapes) + 16, 4 * self.forward(x.abs() + r, y.abs() + s))
            below, above = Line(below.slopes, below.offset - slack), Line(above.slopes, above.offset + slack)
        return Relaxation((below,), (above,))

    def envelope(self, operands: Sequence[Interval], error: float) -> LinearBlock:
        """McCormick's planes, two a side: the hull of one product."""
        one, rounding = torch.ones_like(self.forward(operands[0][0], operands[1][0])), Rounding.of(torch.float64)
        sides = [self.relaxation(operands, rounding, (t, t)) for t in (-one, one)]
        lower, upper = (sum(lines, ()) for lines in zip(*((s.lower, s.upper) for s in sides), strict=True))
        return lines_block(self, Relaxation(lower, upper), operands)

    def _line(self, operands: Sequence[Interval], rounding: Rounding | None, sign: float, t: Tensor) -> Line:
        """The lower (``sign`` 1) or upper (-1) line for any ``t``; its offset is not moved outward yet."""
        (x, r), (y, s) = (_ball(o, rounding) for o in operands)
        f, t = self.forward, t.clamp(-1, 1)
        offset = -f(x, y) - sign * f(r, s) - t * (f(x, s) + sign * f(r, y))
        return Line(self.slopes((x, y), (sign * r, s), t), offset)

    def _initial(self, operands: Sequence[Interval]) -> tuple[Line, Line]:
        """The lines of the middle; where an operand keeps its sign, the planes that meet at its end next to zero.

        Between factors of one sign both planes are exact there, and where such factors add up to something fixed (a
        softmax) that is where most of them lie.
        """
        (a, b), (c, d) = operands
        left, right = self._anchors(operands)
        f, x, y = self.forward, a / 2 + b / 2, c / 2 + d / 2
        if not bool(left.any() or right.any()):
            (_, r), (_, s) = (_ball(o, None) for o in operands)
            slopes = self.plain(x, y, f(x, y))
            return Line(slopes, -f(x, y) - f(r, s)), Line(slopes, f(r, s) - f(x, y))
        lines = []
        for sign in (1, -1):
            # The corner (x*, y*) whose plane f(x, y*) + f(x*, y) - f(x*, y*) is taken; 0: the middle.
            at_x, at_y = left + sign * right, sign * left + right
            first = torch.where(at_x > 0, b, torch.where(at_x < 0, a, x))
            second = torch.where(at_y > 0, d, torch.where(at_y < 0, c, y))
            rest = f(torch.maximum(b - first, first - a), torch.maximum(d - second, second - c))
            middle = (left == 0) & (right == 0)
            offset = -f(first, second) - sign * torch.where(middle, rest, 0.0)
            lines.append(Line(self.plain(first, second, offset), offset))
        return lines[0], lines[1]

    def _anchors(self, operands: Sequence[Interval]) -> tuple[Tensor, Tensor]:
        """-1, 1 where the first (else the second) operand keeps its sign and touches its lower, upper end; else 0."""
        found = []
        for low, high in operands:
            above, below = low >= 0, high <= 0
            if not self.elementwise:
                axes = list(range(1, low.ndim))
                above, below = above.all(dim=axes, keepdim=True), below.all(dim=axes, keepdim=True)
            found.append(below.to(low.dtype) - (above & ~below).to(low.dtype))
        return found[0], torch.where(found[0] != 0, 0.0, found[1])

    @abstractmethod
    def plain(self, x: Tensor, y: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The slopes of the plane ``f(x', y) + f(x, y')`` at ``(x, y)``; ``like`` has the node's shape."""

    def ascent(self, operands: Sequence[Interval], chosen: Parameters, values: Sequence[Tensor]) -> Parameters:
        """``f(x - c, s) + f(r, y - d)`` below, ``f(x - c, s) - f(r, y - d)`` above."""
        (c, r), (d, s) = (_ball(o, None) for o in operands)
        one, two = self.forward(values[0] - c, s), self.forward(r, values[1] - d)
        return None if chosen[0] is None else one + two, None if chosen[1] is None else one - two

    def loose(self, low: Tensor, high: Tensor, *others: Tensor) -> Tensor:
        return high > low


@dataclass(frozen=True, slots=True)
class Product(Bilinear):
    """``x y`` elementwise, for operands of the same shape."""

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * operands[1]

    def shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != shapes[1]:
            raise ValueError(f"operands of shapes {shapes} differ: expand the smaller one first")
        return shapes[0]

    def count(self, *shapes: Shape) -> int:
        return 1

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        return Mul().interval(operands, rounding)

    def slopes(self, middles: tuple[Tensor, Tensor], tilts: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, ...]:
        return middles[1] + t * tilts[1], middles[0] + t * tilts[0]

    def plain(self, x: Tensor, y: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        return y.expand_as(like), x.expand_as(like)

    def derivatives(self, operands: Sequence[Interval], rounding: Rounding | None) -> tuple[Interval, ...]:
        return operands[1], operands[0]


@dataclass(frozen=True, slots=True)
class MatrixProduct(Bilinear):
    """``X Y`` over the last two axes; leading axes are equal.

    Its lines' slopes are ``(d, c)`` or ``(d, c, s, r, t)``, shaped like the operands (``t`` like the node).
    """

    elementwise = False

    def forward(self, *operands: Tensor) -> Tensor:
        return torch.matmul(operands[0], operands[1])

    def shape(self, *shapes: Shape) -> Shape:
        one, two = shapes
        if one[-1] != two[-2] or one[:-2] != two[:-2]:
            raise ValueError(f"cannot multiply matrices of shapes {one} and {two}")
        return (*one[:-1], two[-1])

    def count(self, *shapes: Shape) -> int:
        return max(*shapes[0][-2:], shapes[1][-1])

    def terms(self, *shapes: Shape) -> int:
        return 2 * self.count(*shapes) + 8

    def slopes(self, middles: tuple[Tensor, Tensor], tilts: tuple[Tensor, Tensor], t: Tensor) -> tuple[Tensor, ...]:
        return middles[1], middles[0], tilts[1], tilts[0], t

    def plain(self, x: Tensor, y: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        return y, x

    def along(self, slopes: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        x, y = values
        total = torch.matmul(x, slopes[0]) + torch.matmul(slopes[1], y)
        if len(slopes) == 2:
            return total
        return total + slopes[4] * (torch.matmul(x, slopes[2]) + torch.matmul(slopes[3], y))

    def across(self, slopes: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        found = _pulled(slopes[0], slopes[1], rows)
        if len(slopes) == 2:
            return found
        tilted = _pulled(slopes[2], slopes[3], slopes[4] * rows)
        return found[0] + tilted[0], found[1] + tilted[1]

    def gradients(
        self, rows: Interval, operands: Sequence[Interval], rounding: Rounding | None
    ) -> tuple[Interval, ...]:
        """``G Y'`` and ``X' G``."""
        x, y = (tuple(end.unsqueeze(1).transpose(-1, -2) for end in operand) for operand in operands)
        return _enclosed(rows, (y[0], y[1]), rounding), _enclosed((x[0], x[1]), rows, rounding)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Sums of the exact ranges of all terms, a few inner places at a time."""
        (a, b), (c, d) = operands
        inner, size = a.shape[-1], torch.matmul(a[:1], c[:1]).numel() * max(a.shape[0], c.shape[0])
        step = max(1, _ELEMENTS // max(1, size))
        low = high = torch.zeros((), dtype=a.dtype, device=a.device)
        for first in range(0, inner, step):
            part = slice(first, first + step)
            x = [v[..., part].unsqueeze(-1) for v in (a, b)]
            y = [v[..., part, :].unsqueeze(-3) for v in (c, d)]
            below, above = Mul().interval([(x[0], x[1]), (y[0], y[1])], None)
            low, high = low + below.sum(-2), high + above.sum(-2)
        if rounding is not None:
            sizes = [torch.maximum(v.abs(), w.abs()) for v, w in operands]
            slack = rounding.affine(inner + 2, self.forward(*sizes))
            low, high = low - slack, high + slack
        return outward(low, high, rounding)


def _ball(interval: Interval, rounding: Rounding | None) -> Interval:
    """Middle and radius of an interval; the radius is not too small."""
    low, high = interval
    middle = low / 2 + high / 2
    radius = torch.maximum(high - middle, middle - low)
    return middle, radius if rounding is None else rounding.up(radius)


def _enclosed(one: Interval, two: Interval, rounding: Rounding | None) -> Interval:
    """The product of two matrices of intervals, as middle and radius (Rump, BIT 39, 1999)."""
    (a, r), (b, s) = _ball(one, rounding), _ball(two, rounding)
    middle, size = torch.matmul(a, b), torch.matmul(a.abs() + r, b.abs() + s)
    radius = torch.matmul(r, b.abs() + s) + torch.matmul(a.abs(), s)
    if rounding is not None:
        radius = rounding.up(radius + rounding.affine(2 * a.shape[-1] + 2, 2 * size))
    return outward(middle - radius, middle + radius, rounding)


def _pulled(y: Tensor, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Transposes of ``X -> X y`` and ``Y -> x Y``."""
    return torch.matmul(rows, y.transpose(-1, -2)), torch.matmul(x.transpose(-1, -2), rows)


def multiply(build: BuilderLike, left: int, right: int, name: str = "") -> int:
    """``left * right`` elementwise (they broadcast): affine where one is a constant, a square where they are one."""
    if left == right:
        return build.add(Power(2), left, name=name)
    left, right = align(build, left, right)
    if build.value(left) is not None or build.value(right) is not None:
        return build.add(Mul(), left, right, name=name)
    shape = broadcast(build.shape(left), build.shape(right))
    return build.add(Product(), expand(build, left, shape), expand(build, right, shape), name=name)


def multiply_matrices(build: BuilderLike, left: int, right: int, name: str = "") -> int:
    """``left right`` for two variable matrices or stacks of them, whose leading axes broadcast."""
    left, right = align(build, left, right)
    one, two = build.shape(left), build.shape(right)
    front = broadcast(one[:-2], two[:-2])
    left, right = expand(build, left, (*front, *one[-2:])), expand(build, right, (*front, *two[-2:]))
    return build.add(MatrixProduct(), left, right, name=name)


class Multiplication(Rewritten):
    """``Mul``: by a constant affine, of two variable operands a ``Product``."""

    __slots__ = ()
    onnx = (OnnxName("Mul", 7),)

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        return (multiply(build, reading.operand(node, 0), reading.operand(node, 1), node.name),)
