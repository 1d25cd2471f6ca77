"""What a table of results amounts to, per benchmark and in all: as text and as data."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verifier import __version__
from verifier.instances import Row

SCHEMA = "nn-verifier/bench/1"
TOTAL = "total"
_SHORT = 80
_FILE = re.compile(r"^(\w+: )\S*[./\\]\S*: ")
_PARENTHESES = re.compile(r"\s*\([^()]*\)")


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one benchmark. ``reasons`` counts the unknown and failed ones by reason; seconds are of all rows;
    ``peak_mb`` is the greatest of the rows' (0: not known)."""

    benchmark: str
    instances: int
    solved: int
    sat: int
    unsat: int
    timeout: int
    unknown: int
    error: int
    wrong: int
    total_seconds: float
    median_seconds: float
    peak_mb: int
    reasons: tuple[tuple[str, int], ...]


def summarise_rows(rows: Sequence[Row]) -> list[Summary]:
    """One summary a benchmark in order of appearance, then the total where there are several."""
    names = list(dict.fromkeys(row.benchmark for row in rows))
    summaries = [_summary(name, [row for row in rows if row.benchmark == name]) for name in names]
    return summaries if len(summaries) < 2 else [*summaries, _summary(TOTAL, rows)]


def as_text(summaries: Sequence[Summary]) -> str:
    """An aligned table, and below it why there was no verdict."""
    columns = ("benchmark", "instances", "solved", "sat", "unsat", "timeout", "unknown", "error", "wrong", "total s",
               "median s", "peak MB")
    lines = [columns, *(_cells(summary) for summary in summaries)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    for summary in summaries:
        if summary.benchmark != TOTAL or len(summaries) == 1:
            text += [f"{summary.benchmark}: {count} without a verdict: {why}" for why, count in summary.reasons]
    return "\n".join(text)


def as_data(summaries: Sequence[Summary]) -> dict[str, Any]:
    """The same as JSON-ready data."""
    listed = [asdict(summary) | {"reasons": dict(summary.reasons)} for summary in summaries]
    return {"schema": SCHEMA, "verifier": __version__, "benchmarks": listed}


def shorten(reason: str) -> str:
    """A reason fit for counting: one line of limited length, without the name of a file and what is in parentheses."""
    line = _PARENTHESES.sub("", _FILE.sub(r"\1", " ".join(reason.split())))
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def _summary(name: str, rows: Sequence[Row]) -> Summary:
    results = Counter(row.result for row in rows)
    seconds = [float(row.seconds) for row in rows]
    reasons = Counter(shorten(row.reason) or "no reason given" for row in rows if row.result in ("unknown", "error"))
    return Summary(
        benchmark=name,
        instances=len(rows),
        solved=sum(row.solved for row in rows),
        sat=results["sat"],
        unsat=results["unsat"],
        timeout=results["timeout"],
        unknown=results["unknown"],
        error=results["error"],
        wrong=sum(row.wrong for row in rows),
        total_seconds=round(sum(seconds), 2),
        median_seconds=round(statistics.median(seconds), 2),
        peak_mb=max((int(row.peak_mb) for row in rows if row.peak_mb.isdigit()), default=0),
        reasons=tuple(reasons.most_common()),
    )


def _cells(summary: Summary) -> tuple[str, ...]:
    counts = (summary.instances, summary.solved, summary.sat, summary.unsat, summary.timeout, summary.unknown,
              summary.error, summary.wrong)
    seconds = (summary.total_seconds, summary.median_seconds)
    return (summary.benchmark, *map(str, counts), *(f"{value:.1f}" for value in seconds), str(summary.peak_mb or "-"))
