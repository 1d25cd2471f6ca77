"""Results of a comparison: the table on disk, who was right, and what it amounts to."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks import check_witness

EXACT, NEAR, REFUTED, NONE, UNTRIED = "exact", "near", "refuted", "none", "not replayed"
TOLERANCE = Fraction(1, 10_000)
"""A counterexample is near where every relation holds up to this much: others print few digits."""


@dataclass(frozen=True, slots=True)
class Row:
    """One program on one instance. ``result``: sat, unsat, timeout, unknown, error, or refused (it was not asked).
    ``witness``: what onnxruntime says of a counterexample. ``limit`` in seconds."""

    benchmark: str
    onnx: str
    vnnlib: str
    tool: str
    result: str
    seconds: str
    expected: str
    witness: str
    limit: str
    cores: str
    device: str
    reason: str

    @property
    def instance(self) -> tuple[str, str, str]:
        """What identifies the instance."""
        return self.benchmark, self.onnx, self.vnnlib


HEADER = tuple(field.name for field in fields(Row))


def replay(model: Path, query: Path, values: dict[str, str]) -> str:
    """What onnxruntime and exact fractions say of a counterexample."""
    if not values:
        return NONE
    try:
        named, dtype = check_witness.outputs(check_witness.content(model), values)
        text = check_witness.content(query).decode()
        if not check_witness.failures(text, named, dtype)[0]:
            return EXACT
        return REFUTED if check_witness.failures(text, named, dtype, TOLERANCE)[0] else NEAR
    except Exception:  # noqa: BLE001 - other programs' counterexamples can have any form
        return UNTRIED


class Table:
    """The table on disk: a line as soon as there is a row; ``rows`` has those of an earlier run."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Start the table, or continue it. Raises ``FileExistsError`` and ``ValueError`` (not such a table)."""
        self.path = path
        self.rows: list[Row] = []
        if path.exists() and not resume:
            raise FileExistsError(f"{path} exists: continue it with --resume, or name another")
        whole = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = whole[: whole.rfind("\n") + 1]  # a line that was cut off is run again
        lines = list(csv.reader(whole.splitlines()))
        if lines and (tuple(lines[0]) != HEADER or any(len(line) != len(HEADER) for line in lines)):
            raise ValueError(f"{path}: not a table of this program")
        self.rows = [Row(*line) for line in lines[1:]]
        path.write_text(whole, encoding="utf-8")
        if not lines:
            self._write(HEADER)

    def append(self, row: Row) -> None:
        """Write a row, at once."""
        self.rows.append(row)
        self._write([" ".join(value.split()) for value in astuple(row)])

    def _write(self, values: Iterable[str]) -> None:
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(values)


def truth(rows: Sequence[Row]) -> str:
    """What is known of an instance from all its rows: a counterexample that holds exactly outdoes a label."""
    if any(row.result == "sat" and row.witness == EXACT for row in rows):
        return "sat"
    return next((row.expected for row in rows if row.expected in ("sat", "unsat")), "")


def judge(row: Row, known: str) -> str:
    """Of a verdict: ``wrong``, ``unconfirmed`` (a counterexample that fails, and no other sign of sat) or ``solved``;
    of anything else its result."""
    if row.result not in ("sat", "unsat"):
        return row.result
    if known and row.result != known:
        return "wrong"
    if row.result == "sat" and row.witness == REFUTED and known != "sat":
        return "unconfirmed"
    return "solved"


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each benchmark and, where there are several, in all: the figures of each program that took part."""
    groups = {name: [row for row in rows if row.benchmark == name] for name in dict.fromkeys(r.benchmark for r in rows)}
    if len(groups) > 1:
        groups["total"] = list(rows)
    tools = dict.fromkeys(row.tool for row in rows)
    figures = [_figures(name, group, tool) for name, group in groups.items() for tool in tools]
    return [figure for figure in figures if figure["asked"]]


def _figures(name: str, rows: Sequence[Row], tool: str) -> dict[str, Any]:
    instances: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        instances.setdefault(row.instance, []).append(row)
    known = {instance: truth(group) for instance, group in instances.items()}
    asked = [row for row in rows if row.tool == tool and row.result != "refused"]
    verdicts = [judge(row, known[row.instance]) for row in asked]
    takers = {row.tool for row in rows if row.result != "refused"}
    common = [
        group for instance, group in instances.items()
        if {row.tool for row in group if judge(row, known[instance]) == "solved"} == takers
    ]
    solved = [row for row, verdict in zip(asked, verdicts, strict=True) if verdict == "solved"]
    scores = [float(r.seconds) if v == "solved" else 2 * float(r.limit) for r, v in zip(asked, verdicts, strict=True)]
    return {
        "benchmark": name,
        "tool": tool,
        "asked": len(asked),
        "solved": len(solved),
        "sat": sum(row.result == "sat" for row in solved),
        "unsat": sum(row.result == "unsat" for row in solved),
        "wrong": verdicts.count("wrong"),
        "unconfirmed": verdicts.count("unconfirmed"),
        "timeout": verdicts.count("timeout"),
        "no verdict": verdicts.count("unknown") + verdicts.count("error"),
        "PAR-2": statistics.mean(scores) if scores else 0.0,
        "total s": sum(float(row.seconds) for row in asked),
        "median s": statistics.median(float(row.seconds) for row in solved) if solved else 0.0,
        "all solved": len(common),
        "s on those": sum(float(row.seconds) for group in common for row in group if row.tool == tool),
    }


def disagreements(rows: Sequence[Row]) -> list[str]:
    """A line for each instance with verdicts that exclude each other, or that its label excludes."""
    instances: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        instances.setdefault(row.instance, []).append(row)
    lines = []
    for instance, group in instances.items():
        said = [row for row in group if row.result in ("sat", "unsat")]
        labels = {row.expected for row in group} & {"sat", "unsat"}
        if len({row.result for row in said} | (labels if said else set())) > 1:
            witness = {"sat": " (witness {})", "unsat": ""}
            verdicts = ", ".join(f"{r.tool} {r.result}{witness[r.result].format(r.witness)}" for r in said)
            lines.append(f"{' '.join(instance)}: {verdicts}" + "".join(f", labelled {label}" for label in labels))
    return lines


def remarks(rows: Sequence[Row]) -> list[str]:
    """What programs were not asked, and errors and unknown answers by reason."""
    counts = Counter(
        (row.tool, row.benchmark, row.result, row.reason or "no reason given")
        for row in rows if row.result in ("refused", "error", "unknown")
    )
    return [f"{tool}, {name}: {n} {result}: {why}" for (tool, name, result, why), n in sorted(counts.items())]


def as_text(figures: Sequence[dict[str, Any]]) -> str:
    """An aligned table."""
    lines = [list(figures[0])] if figures else []
    lines += [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in figures]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join([*map(str.ljust, line[:2], widths), *cells[2:]]) for line, cells in
                     zip(lines, padded, strict=True))
