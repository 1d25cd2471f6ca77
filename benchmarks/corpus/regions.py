"""The truth about tiny piecewise-linear networks, by enumeration in exact fractions.

Over a box of one or two inputs such a network is linear on finitely many convex pieces. ``pieces`` cuts the box along
every neuron's kinks, layer by layer, and keeps each piece as its corners together with the affine forms of the outputs
on it. Whether a clause (a conjunction of linear literals) can be met on a piece is then decided by cutting the piece
with each literal in turn: it can be met where a corner is left. No floating-point number takes part.

This is the oracle of ``make_corpus.py``; it shares no code with the verifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

Point = tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """``sum_i slope[i] x_i + offset`` over the inputs."""

    slope: tuple[Fraction, ...]
    offset: Fraction

    def at(self, point: Point) -> Fraction:
        """Value at a point."""
        return sum((s * x for s, x in zip(self.slope, point, strict=True)), self.offset)

    def plus(self, other: Form, factor: Fraction = Fraction(1)) -> Form:
        """``self + factor * other``."""
        slope = tuple(a + factor * b for a, b in zip(self.slope, other.slope, strict=True))
        return Form(slope, self.offset + factor * other.offset)

    def times(self, factor: Fraction) -> Form:
        """``factor * self``."""
        return Form(tuple(factor * a for a in self.slope), factor * self.offset)


@dataclass(frozen=True, slots=True)
class Piece:
    """A convex polygon (or segment, or point) by its corners in order, and affine forms on it."""

    corners: tuple[Point, ...]
    forms: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Kinked:
    """A function of one variable: ``slope x + offset`` below each kink in turn, and beyond the last one."""

    kinks: tuple[Fraction, ...]
    lines: tuple[tuple[Fraction, Fraction], ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """``W v + b``: rows of weights and biases, exact."""

    weight: tuple[tuple[Fraction, ...], ...]
    bias: tuple[Fraction, ...]


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of each group of neurons (a maximum pooling)."""

    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Residual:
    """The neurons from before ``layers``, added to what comes out of them."""

    layers: tuple[Layer, ...]


Layer = Linear | Kinked | Largest | Residual


def box_piece(lower: Point, upper: Point) -> Piece | None:
    """The box as a piece with the inputs themselves as forms; None where it is empty."""
    if any(a > b for a, b in zip(lower, upper, strict=True)):
        return None
    size = len(lower)
    corners = [tuple(c) for c in product(*((a, b) for a, b in zip(lower, upper, strict=True)))]
    if size == 2:
        corners = [corners[0], corners[1], corners[3], corners[2]]
    assert size in (1, 2)
    unit = tuple(Form(tuple(Fraction(int(i == k)) for i in range(size)), Fraction(0)) for k in range(size))
    return Piece(distinct(corners), unit)


def distinct(corners: Sequence[Point]) -> tuple[Point, ...]:
    """The corners without repetitions, in order."""
    return tuple(dict.fromkeys(corners))


def cut(piece: Piece, form: Form) -> Piece | None:
    """The part of a piece where ``form >= 0``; None where nothing is left (Sutherland and Hodgman, 1974)."""
    kept: list[Point] = []
    values = [form.at(c) for c in piece.corners]
    count = len(values)
    for i, (corner, value) in enumerate(zip(piece.corners, values, strict=True)):
        after, following = piece.corners[(i + 1) % count], values[(i + 1) % count]
        if value >= 0:
            kept.append(corner)
        if value * following < 0:
            share = value / (value - following)
            kept.append(tuple(a + share * (b - a) for a, b in zip(corner, after, strict=True)))
    return Piece(distinct(kept), piece.forms) if kept else None


def pieces(layers: Sequence[Layer], start: Piece) -> Iterator[Piece]:
    """The pieces of a network on a piece, each with the forms of the outputs."""
    if not layers:
        yield start
        return
    for piece in through(layers[0], start):
        yield from pieces(layers[1:], piece)


def through(layer: Layer, piece: Piece) -> Iterator[Piece]:
    """The pieces behind one layer."""
    match layer:
        case Linear():
            yield Piece(piece.corners, tuple(
                combination(row, piece.forms, bias) for row, bias in zip(layer.weight, layer.bias, strict=True)
            ))
        case Kinked():
            yield from neuron_by_neuron(piece, len(piece.forms), lambda p, i: bend(layer, p, i))
        case Largest():
            for split in neuron_by_neuron(piece, len(layer.groups), lambda p, i: largest(layer.groups[i], p)):
                yield Piece(split.corners, split.forms[len(piece.forms):])
        case Residual():
            count = len(piece.forms)
            for inner in carried(layer.layers, piece):
                before, behind = inner.forms[:count], inner.forms[count:]
                yield Piece(inner.corners, tuple(a.plus(b) for a, b in zip(before, behind, strict=True)))


def combination(row: Sequence[Fraction], forms: Sequence[Form], bias: Fraction) -> Form:
    """``sum_i row[i] forms[i] + bias``."""
    total = forms[0].times(Fraction(0))
    for weight, form in zip(row, forms, strict=True):
        total = total.plus(form, weight)
    return Form(total.slope, total.offset + bias)


def carried(layers: Sequence[Layer], piece: Piece) -> Iterator[Piece]:
    """Pieces of ``layers``, with the forms that entered kept in front of those that come out."""
    for inner in pieces(layers, piece):
        yield Piece(inner.corners, piece.forms + inner.forms)


def neuron_by_neuron(piece: Piece, count: int, step: Callable[[Piece, int], Iterator[Piece]]) -> Iterator[Piece]:
    """Apply ``step`` for each neuron in turn to every piece that the neurons before have made."""
    current = [piece]
    for i in range(count):
        current = [found for p in current for found in step(p, i)]
    yield from current


def bend(layer: Kinked, piece: Piece, i: int) -> Iterator[Piece]:
    """Cut a piece at the kinks of neuron i and put the right line on each part."""
    form = piece.forms[i]
    ends = [None, *layer.kinks, None]
    for (slope, offset), low, high in zip(layer.lines, ends[:-1], ends[1:], strict=True):
        part: Piece | None = piece
        if low is not None:
            part = cut(piece, Form(form.slope, form.offset - low))
        if part is not None and high is not None:
            part = cut(part, Form(form.times(Fraction(-1)).slope, high - form.offset))
        if part is not None:
            bent = form.times(slope)
            forms = list(part.forms)
            forms[i] = Form(bent.slope, bent.offset + offset)
            yield Piece(part.corners, tuple(forms))


def largest(group: Sequence[int], piece: Piece) -> Iterator[Piece]:
    """Cut a piece into the parts where each neuron of the group is the largest, and append that neuron's form."""
    for i in group:
        part: Piece | None = piece
        for k in group:
            if k != i and part is not None:
                part = cut(part, piece.forms[i].plus(piece.forms[k], Fraction(-1)))
        if part is not None:
            yield Piece(part.corners, (*part.forms, piece.forms[i]))


def met(piece: Piece, literals: Sequence[tuple[Form, bool]]) -> Point | None:
    """A point of the piece where every literal ``form >= 0`` (``> 0`` where True stands beside it) holds, else None.

    Non-negative affine forms that are positive at some corner are positive at the mean of the corners, so the mean
    decides the strict literals as well.
    """
    left: Piece | None = piece
    for form, _ in literals:
        if left is not None:
            left = cut(left, form)
    if left is None:
        return None
    count = len(left.corners)
    mean = tuple(sum(c, Fraction(0)) / count for c in zip(*left.corners, strict=True))
    return mean if all(form.at(mean) > 0 for form, strict in literals if strict) else None
