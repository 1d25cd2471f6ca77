"""From the and/or tree to disjunctive normal form: clauses as lists of ranges of literals.

Conjunctions inside conjunctions and disjunctions inside disjunctions are flattened. What the outermost conjunction
demands of every point (the box, mostly) is kept apart as the *common* literals; its disjunctions are multiplied out
one chunk of clauses at a time, after their number was counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import UnsupportedError
from verifier.property.document import AND, END, OR, Document

MAX_CLAUSES = 2_000_000
_MAX_LITERALS = 400_000_000
_MAX_RANGES = 40_000_000
_MANY = 10**30

Ranges = tuple[int, ...]
"""``(start, stop, start, stop, ...)``."""


@dataclass(frozen=True, slots=True, eq=False)
class Clauses:
    """``common``: literals of every clause, as ranges. A clause is one element of each of ``factors``, together;
    ``count`` of them (1 where there is no factor)."""

    common: Ranges
    factors: tuple[list[Ranges], ...]
    count: int

    def chunks(self, size: int = 32_768) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The clauses in order, without the common literals, ``size`` at a time: pointers ``[k + 1]`` and literals."""
        products = itertools.product(*self.factors)
        for _ in range(0, self.count, size):
            yield _literals([tuple(itertools.chain.from_iterable(p)) for p in itertools.islice(products, size)])


@dataclass(slots=True)
class _Level:
    """A conjunction (ranges that hold outright, and nested disjunctions) or a disjunction (its clauses so far)."""

    kind: int
    ranges: list[int] = field(default_factory=list)
    factors: list[list[Ranges]] = field(default_factory=list)
    clauses: list[Ranges] = field(default_factory=list)

    def take(self, start: int, stop: int) -> None:
        """Literals that stand directly in this level."""
        if self.kind == OR:
            self.clauses.extend((i, i + 1) for i in range(start, stop))
        elif start < stop:
            self.ranges += (start, stop)


@dataclass(slots=True)
class _Count:
    """How many clauses a level has, and the literals and ranges in all of them together."""

    kind: int
    clauses: int
    literals: int = 0
    ranges: int = 0

    def take(self, literals: int) -> None:
        """Literals that stand directly in this level."""
        if literals and self.kind == OR:
            self.join(_Count(AND, literals, literals, literals))
        elif literals:
            self.join(_Count(AND, 1, literals, 1))

    def join(self, inner: _Count) -> None:
        """A finished level inside this one: sums in a disjunction, products in a conjunction."""
        if self.kind == OR:
            self.clauses = min(self.clauses + inner.clauses, _MANY)
            self.literals = min(self.literals + inner.literals, _MANY)
            self.ranges = min(self.ranges + inner.ranges, _MANY)
            return
        self.literals = min(self.literals * inner.clauses + inner.literals * self.clauses, _MANY)
        self.ranges = min(self.ranges * inner.clauses + inner.ranges * self.clauses, _MANY)
        self.clauses = min(self.clauses * inner.clauses, _MANY)


def expand(document: Document, max_clauses: int = MAX_CLAUSES) -> Clauses:
    """Count the clauses and prepare their expansion.

    Raises ``UnsupportedError`` with the count where there are more than ``max_clauses``, or too many literals in them
    to hold.
    """
    count = _count(document)
    if count.clauses > max_clauses or count.literals > _MAX_LITERALS or count.ranges > _MAX_RANGES:
        raise UnsupportedError(
            f"{document.name}: multiplied out, the property has {_number(count.clauses)} clauses with "
            f"{_number(count.literals)} literals; the limits are {max_clauses} and {_MAX_LITERALS}"
        )
    top = _build(document)
    return Clauses(tuple(top.ranges), tuple(top.factors), count.clauses)


def _count(document: Document) -> _Count:
    """Clauses and literals, without the literals that stand in the outermost conjunction."""
    top = _Count(AND, 1)
    levels = [top]
    position = 0
    for kind, mark in zip(document.brackets.tolist(), document.marks.tolist(), strict=True):
        if levels[-1] is not top:
            levels[-1].take(mark - position)
        position = mark
        if kind == END:
            inner = levels.pop()
            if inner is not levels[-1]:
                levels[-1].join(inner)
        else:
            levels.append(levels[-1] if levels[-1].kind == kind else _Count(kind, int(kind == AND)))
    return top


def _build(document: Document) -> _Level:
    """The outermost conjunction; every product further inside is multiplied out. A bracket of the same kind as the
    one around it adds nothing and shares its level."""
    levels = [_Level(AND)]
    position = 0
    for kind, mark in zip(document.brackets.tolist(), document.marks.tolist(), strict=True):
        levels[-1].take(position, mark)
        position = mark
        if kind != END:
            levels.append(levels[-1] if levels[-1].kind == kind else _Level(kind))
            continue
        inner, outer = levels.pop(), levels[-1]
        if inner is outer:
            continue
        if outer.kind == AND:
            outer.factors.append(inner.clauses)
        else:
            own = tuple(inner.ranges)
            outer.clauses += [own + tuple(itertools.chain.from_iterable(p)) for p in itertools.product(*inner.factors)]
    levels[0].take(position, len(document.head))
    return levels[0]


def _literals(clauses: list[Ranges]) -> tuple[np.ndarray, np.ndarray]:
    """Ranges to one long array of literals with pointers."""
    pieces = np.array([len(c) // 2 for c in clauses], dtype=np.int64)
    bounds = np.fromiter(itertools.chain.from_iterable(clauses), dtype=np.int64, count=2 * int(pieces.sum()))
    starts, lengths = bounds[::2], bounds[1::2] - bounds[::2]
    ends = np.cumsum(lengths)
    literals = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    pointers = np.concatenate([[0], ends])[np.concatenate([[0], np.cumsum(pieces)])]
    return pointers, literals


def _number(count: int) -> str:
    return f"more than 10^{len(str(_MANY)) - 1}" if count >= _MANY else str(count)
