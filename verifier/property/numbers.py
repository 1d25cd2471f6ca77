"""Exact numbers in bulk: decimals as they are written, sorted once, rounded to floating point with known direction.

A property may hold millions of decimals. Each distinct one is kept once (``Decimal`` where it was written as such:
construction, comparison and hashing are exact and quick; ``Fraction`` where arithmetic made it). Sorting them gives
every number a rank, and from then on exact comparisons are comparisons of integers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
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

    __slots__ = ("_values",)

    def __init__(self, ascending: Iterable[Exact]) -> None:
        self._values: tuple[Exact, ...] = ascending._values if isinstance(ascending, Numbers) else tuple(ascending)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Fraction: ...
    @overload
    def __getitem__(self, index: slice) -> Numbers: ...
    def __getitem__(self, index: int | slice) -> Fraction | Numbers:
        if isinstance(index, slice):
            return Numbers(self._values[index])
        return Fraction(self._values[index])

    def nearest(self) -> np.ndarray:
        """``[C]`` float64: each number rounded to nearest (infinite beyond the range)."""
        return np.array([_nearest(v) for v in self._values], dtype=np.float64) + 0.0

    def enclose(self, dtype: type[np.floating] = np.float64) -> tuple[np.ndarray, np.ndarray]:
        """``[C]`` twice: the largest number of ``dtype`` at most, and the smallest at least, each exact number."""
        near = self.nearest()
        excess = np.array([_compare(f, v) for f, v in zip(near.tolist(), self._values, strict=True)], dtype=np.int8)
        with np.errstate(over="ignore"):
            cast = near.astype(dtype)
        # Where the cast moved the double, the exact number lies on the same side of it as the double does.
        wide = cast.astype(np.float64)
        above = np.where(wide == near, excess > 0, wide > near)
        below = np.where(wide == near, excess < 0, wide < near)
        with np.errstate(over="ignore", under="ignore"):
            down = np.where(above, np.nextafter(cast, dtype(-np.inf)), cast)
            up = np.where(below, np.nextafter(cast, dtype(np.inf)), cast)
        return down + dtype(0), up + dtype(0)


def rank(values: Sequence[Exact]) -> tuple[Numbers, np.ndarray]:
    """Sort exactly and drop duplicates: the distinct numbers, and for each given value its rank (int32)."""
    near = np.array([_nearest(v) for v in values], dtype=np.float64)
    order = np.argsort(near, kind="stable")
    _order_ties(order, near, values)
    ascending: list[Exact] = []
    ranks = np.empty(len(values), dtype=np.int32)
    previous = np.nan
    for place, value in zip(order.tolist(), near[order].tolist(), strict=True):
        if value != previous or ascending[-1] != values[place]:
            ascending.append(values[place])
        previous = value
        ranks[place] = len(ascending) - 1
    return Numbers(ascending), ranks


def _order_ties(order: np.ndarray, near: np.ndarray, values: Sequence[Exact]) -> None:
    """Rounding to nearest is monotone, so only numbers with the same double still need exact comparisons."""
    same = np.flatnonzero(np.diff(near[order]) == 0) if len(order) > 1 else np.empty(0, dtype=np.int64)
    if not same.size:
        return
    breaks = np.flatnonzero(np.diff(same) != 1)
    starts = same[np.concatenate([[0], breaks + 1])]
    stops = same[np.concatenate([breaks, [same.size - 1]])] + 2
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        order[start:stop] = sorted(order[start:stop].tolist(), key=lambda i: Fraction(values[i]))


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


def _nearest(value: Exact) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def _compare(near: float, value: Exact) -> int:
    return (value < near) - (value > near)
