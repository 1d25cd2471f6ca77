"""Numbers and tables as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal

_DIGITS = 9


def outward(value: float, rounding: str) -> str:
    """A number in 9 significant digits, rounded to one side, so that the text is a bound too."""
    if not math.isfinite(value):
        return str(value)
    return f"{Context(prec=_DIGITS, rounding=rounding).create_decimal(Decimal(value)).normalize():g}"


def aligned(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The lines of a table: cells aligned to the right."""
    rows = list(rows)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
