"""Exact numbers in bulk: decimals as they are written, sorted once, rounded to floating point with known direction.

A property may hold millions of decimals. Each distinct one is kept once (``Decimal`` where it was written as such:
construction, comparison and hashing are exact and quick; ``Fraction`` where arithmetic made it). Sorting them gives
every number a rank, and from then on exact comparisons are comparisons of integers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import overload

import numpy as np

from verifier.errors import InputError

Exact = Decimal | Fraction

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,4})?\Z", re.ASCII)
_MAX_DIGITS = 4000


def parse_number(text: str) -> Decimal | None:
    """The exact value of a decimal literal, None where ``text`` is not one.

    Exponents have at most four digits and a literal at most 4,000 characters, so that no number is unboundedly large.
    """
    if len(text) > _MAX_DIGITS or _NUMBER.match(text) is None:
        return None
    return Decimal(text)


class Numbers(Sequence[Fraction]):
    """Distinct exact numbers in ascending order; an index is a rank."""

    __slots__ = ("_near", "_values")
    _near: np.ndarray

    def __init__(self, ascending: Iterable[Exact], near: np.ndarray | None = None) -> None:
        self._values: tuple[Exact, ...] = ascending._values if isinstance(ascending, Numbers) else tuple(ascending)
        if near is None:
            near = ascending._near if isinstance(ascending, Numbers) else _nearest(self._values)
        self._near = near

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> Numbers: ...
    def __getitem__(self, index: int | slice) -> Fraction | Numbers:
        if isinstance(index, slice):
            return Numbers(self._values[index], self._near[index])
        return Fraction(self._values[index])

    def rounded(self) -> Rounded:
        """Each number rounded to nearest, and on which side of it the double fell."""
        sides = (_side(f, v) for f, v in zip(self._near.tolist(), self._values, strict=True))
        return Rounded(self._near, np.fromiter(sides, dtype=np.int8, count=len(self._values)))


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """``near`` ``[C]`` float64: nearest to exact numbers (infinite beyond the range); ``side`` ``[C]``: the sign of
    ``near - exact``."""

    near: np.ndarray
    side: np.ndarray

    def enclose(self, dtype: type[np.floating]) -> tuple[np.ndarray, np.ndarray]:
        """``[C]`` twice: the largest number of ``dtype`` at most, and the smallest at least, each exact number."""
        with np.errstate(over="ignore", under="ignore"):
            cast = self.near.astype(dtype)
            # Where the cast moved the double, the exact number lies on the same side of it as the double does.
            wide = cast.astype(np.float64)
            above = np.where(wide == self.near, self.side > 0, wide > self.near)
            below = np.where(wide == self.near, self.side < 0, wide < self.near)
            down = np.where(above, np.nextafter(cast, dtype(-np.inf)), cast)
            up = np.where(below, np.nextafter(cast, dtype(np.inf)), cast)
        # Adding zero turns -0.0 into 0.0.
        return down + dtype(0), up + dtype(0)


def rank(values: Sequence[Exact]) -> tuple[Numbers, np.ndarray]:
    """Sort exactly and drop duplicates: the distinct numbers, and for each given value its rank (int32)."""
    near = _nearest(values)
    order = np.argsort(near, kind="stable")
    # Rounding to nearest is monotone, so only numbers with the same double still need exact comparisons.
    fresh = np.ones(len(order), dtype=bool)
    fresh[1:] = near[order[1:]] != near[order[:-1]]
    starts = np.flatnonzero(fresh)
    lengths = np.diff(starts, append=len(order))
    for start, length in zip(starts[lengths > 1].tolist(), lengths[lengths > 1].tolist(), strict=True):
        tied = sorted(order[start : start + length].tolist(), key=lambda i: Fraction(values[i]))
        order[start : start + length] = tied
        fresh[start + 1 : start + length] = [values[a] != values[b] for a, b in itertools.pairwise(tied)]
    ranks = np.empty(len(values), dtype=np.int32)
    ranks[order] = np.cumsum(fresh) - 1
    chosen = order[fresh]
    return Numbers((values[i] for i in chosen.tolist()), near[chosen]), ranks


def exact(value: object, what: str) -> Fraction:
    """A number that a user gave, exactly: int, float, Decimal, Fraction, or text such as ``8/255`` or ``1e-3``.

    A float means the binary number it is. Raises ``InputError`` for anything else, NaN and infinity included.
    """
    try:
        if isinstance(value, str):
            return _from_text(value)
        if isinstance(value, int | float | Decimal | Fraction | np.floating | np.integer):
            return Fraction(value.item() if isinstance(value, np.generic) else value)
    except (ValueError, OverflowError, ZeroDivisionError):
        pass
    raise InputError(f"{what}: {value!r} is not a finite number; write it like 0.03, 1e-3 or 8/255")


def _from_text(text: str) -> Fraction:
    numerator, bar, denominator = text.strip().partition("/")
    top, bottom = parse_number(numerator.strip()), parse_number(denominator.strip() if bar else "1")
    if top is None or bottom is None:
        raise ValueError(text)
    return Fraction(top) / Fraction(bottom)


def _nearest(values: Sequence[Exact]) -> np.ndarray:
    # A fraction beyond the range raises where a decimal becomes infinite.
    try:
        near = np.fromiter(map(float, values), dtype=np.float64, count=len(values))
    except OverflowError:
        near = np.array([_nearest_of(v) for v in values], dtype=np.float64)
    return near + 0.0


def _nearest_of(value: Exact) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _side(near: float, value: Exact) -> int:
    same = Decimal(near) if isinstance(value, Decimal) else near
    return (value < same) - (value > same)
