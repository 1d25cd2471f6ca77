"""Numbers and tables as text, and answers as text or as data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

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


def answered(lines: Iterable[str], record: Mapping[str, Any], target: Path | None) -> None:
    """Print an answer's lines; with ``--json FILE`` (``target``) write its record there too, with ``-`` print that in
    place of the lines."""
    text = "\n".join(lines)
    if target is not None:
        data = json.dumps(record, indent=1, allow_nan=False)
        if str(target) == "-":
            text = data
        else:
            target.write_text(data + "\n", encoding="utf-8")
    print(text, flush=True)
