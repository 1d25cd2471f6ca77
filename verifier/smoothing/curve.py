"""Certified accuracy over a data set: a log in the field's form, and the curve that it gives."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from pathlib import Path
from typing import Any

from verifier.errors import InputError

HEAD = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
ABSTAIN = -1


@dataclass(frozen=True, slots=True)
class Line:
    """One input of a log: number, class, certified class (-1: it abstained), radius, whether they agree, seconds."""

    number: int
    label: int
    predict: int
    radius: float
    seconds: float

    @property
    def correct(self) -> bool:
        """Whether the certified class is the right one."""
        return self.predict == self.label

    @property
    def text(self) -> str:
        """As the log has it; the radius is rounded down."""
        floor = float(Context(prec=9, rounding=ROUND_FLOOR).create_decimal(Decimal(repr(self.radius))))
        radius = Decimal(repr(floor))  # as it is when it has been read: a log that goes on stays as it was
        return f"{self.number}\t{self.label}\t{self.predict}\t{radius:f}\t{int(self.correct)}\t{self.seconds:.3f}"


class Log:
    """A file of lines that grows as inputs are certified. What was asked stands in ``FILE.json`` beside it, so that a
    run goes on only where the same was asked. A last line that was cut off is written again."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Open a log, a new one or one to go on with. Raises ``InputError`` for a log of something else."""
        self.path, self._asked = path, json.dumps(asked, indent=1, sort_keys=True) + "\n"
        self.lines: dict[int, Line] = {}
        beside = path.with_name(path.name + ".json")
        if path.exists():
            _same(path, beside, self._asked)
            self.lines = {line.number: line for line in read_log(path)}
        text = "\n".join([HEAD, *(line.text for line in self.lines.values())])
        # First what was asked, and each file whole or not at all: what ends the process now may cost no line.
        _replaced(beside, self._asked)
        _replaced(path, text + "\n")

    def add(self, line: Line) -> None:
        """Write a line, at once."""
        self.lines[line.number] = line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line.text + "\n")


def _same(path: Path, beside: Path, asked: str) -> None:
    """Raise ``InputError``, with what differs, unless the log was made by the same question."""
    why = f"{beside.name} is not there"
    if beside.is_file():
        then = beside.read_text(encoding="utf-8")
        if then == asked:
            return
        try:
            old, new = json.loads(then), json.loads(asked)
            differs = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
            why = "it differs in " + ", ".join("the files" if name == "sha256" else name for name in differs)
        except (ValueError, TypeError):
            why = f"{beside.name} cannot be read"
    raise InputError(f"{path}: is a log of something else, or none ({why}); name another file or remove it")


def _replaced(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def read_log(path: Path) -> list[Line]:
    """The lines of a log. Raises ``InputError``; a last line that was cut off is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a log of certified inputs: {error}") from error
    rows = text.split("\n")
    if rows[0] != HEAD:
        raise InputError(f"{path}: not a log of certified inputs: it should begin with {HEAD.split()}")
    found = []
    for number, row in enumerate(rows[1:-1], start=2):
        cells = row.split("\t")
        try:
            line = Line(int(cells[0]), int(cells[1]), int(cells[2]), float(cells[3]), _seconds(cells[5]))
            if not 0 <= line.radius < math.inf:
                raise ValueError("a radius is a number from 0")
            found.append(line)
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}:{number}: not a line of a log: {row!r}") from error
    return found


def certified_accuracy(lines: Sequence[Line], radii: Iterable[float]) -> list[float]:
    """The share of the lines that are certified to be right at each of the radii."""
    return [sum(line.correct and line.radius >= r for line in lines) / max(1, len(lines)) for r in radii]


def _seconds(cell: str) -> float:
    """A number of seconds, or the h:mm:ss.f of older logs."""
    total = 0.0
    for part in cell.split(":"):
        total = 60 * total + float(part)
    return total
