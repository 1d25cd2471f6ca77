"""Lists of instances (the competition's instances.csv) and tables of results.

A list has no header; its columns are network, property, timeout and perhaps the expected result. Paths are relative to
the list's folder. A network is a path or, for queries over several networks, a Python list of pairs
``[("f", "onnx/a.onnx"), ("g", "onnx/b.onnx")]``. A table of results has a header and one line a row, whatever the
reasons contain, so that a table whose last line was cut off can be continued.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from verifier.errors import InputError
from verifier.paths import plain_or_gzip

LIST_NAME = "instances.csv"
EXPECTED = ("sat", "unsat", "unknown", "")
_COMMENT = re.compile(rb";[^\n]*")
_VERSION = re.compile(rb"\s*\(\s*vnnlib-version\s+<?\s*([0-9]+)")
_VERSION_FOLDER = re.compile(r"[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Instance:
    """One row of a list: ``onnx`` and ``vnnlib`` as they are written there, ``networks`` (declared name, empty for
    the only one, and file) and ``query`` as paths that can be opened, the ``timeout`` in seconds."""

    benchmark: str
    onnx: str
    vnnlib: str
    networks: tuple[tuple[str, Path], ...]
    query: Path
    timeout: float
    expected: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the instance in a table of results."""
        return self.benchmark, self.onnx, self.vnnlib


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table of results. ``result`` is sat, unsat, unknown, timeout or error; ``peak_mb`` the most memory
    that the worker has held by then, in megabytes (empty: not known)."""

    benchmark: str
    onnx: str
    vnnlib: str
    result: str
    seconds: str
    expected: str
    reason: str
    stage: str
    peak_mb: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """The instance's key."""
        return self.benchmark, self.onnx, self.vnnlib

    @property
    def solved(self) -> bool:
        """Whether there is a verdict and it is not known to be wrong."""
        return self.result in ("sat", "unsat") and not self.wrong

    @property
    def wrong(self) -> bool:
        """Whether the verdict is the opposite of the expected one."""
        return (self.result, self.expected) in (("sat", "unsat"), ("unsat", "sat"))


HEADER = tuple(field.name for field in fields(Row))


def read_instances(sources: Sequence[Path]) -> list[Instance]:
    """All instances of lists and of folders: a folder is a benchmark or holds benchmarks. Raises ``InputError``."""
    instances = []
    for source in sources:
        for path in _lists(source):
            instances += _read_list(path)
    if not instances:
        raise InputError(f"{', '.join(map(str, sources))}: no instances in there")
    return instances


def parse_networks(text: str) -> tuple[tuple[str, str], ...]:
    """The (name, path) pairs of a network field; a plain path has the empty name. Raises ``ValueError``."""
    if not text.startswith("["):
        return (("", text),)
    try:
        pairs = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text[:60]!r} is neither a path nor a list of (name, path) pairs") from error
    if not isinstance(pairs, list) or not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(f"{text[:60]!r} is not a list of (name, path) pairs")
    return tuple((name, path) for name, path in pairs)


def declares_version_two(path: Path) -> bool:
    """Whether a property file starts with a version of VNN-LIB from 2 on; False where it cannot be read."""
    try:
        with plain_or_gzip(path).open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            with gzip.open(raw) if head == b"\x1f\x8b" else raw as plain:
                start = plain.read(65536)
    except (OSError, EOFError, zlib.error):
        return False
    match = _VERSION.match(_COMMENT.sub(b"", start))
    return match is not None and int(match[1]) >= 2


class Table:
    """A table of results on disk: rows are appended and flushed one by one."""

    def __init__(self, path: Path, *, resume: bool, overwrite: bool = False) -> None:
        """Open the file; ``resume`` keeps the rows that it has (``self.rows``). Raises ``InputError``."""
        self.path = path
        self.rows: list[Row] = []
        if path.exists() and resume:
            self.rows = _read_table(path)
        elif path.exists() and path.stat().st_size and not overwrite:
            raise InputError(f"{path} exists: continue it with --resume, replace it with --overwrite, or name another")
        else:
            path.write_text(_line(HEADER), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", newline="")

    def append(self, row: Row) -> None:
        """Write one row, at once."""
        self.rows.append(row)
        self._file.write(_line([" ".join(str(value).split()) for value in astuple(row)]))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)


def _lists(source: Path) -> list[Path]:
    """The lists that a path names: itself, the folder's own, or those of its subfolders (two levels down)."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: no such file or folder")
    if (source / LIST_NAME).is_file():
        return [source / LIST_NAME]
    found = sorted([*source.glob(f"*/{LIST_NAME}"), *source.glob(f"*/*/{LIST_NAME}")])
    if not found:
        raise InputError(f"{source}: no {LIST_NAME} in it or in its subfolders")
    return found


def _read_list(path: Path) -> list[Instance]:
    instances = []
    folder = path.absolute().parent
    home = folder.parent.name + "/" + folder.name if _VERSION_FOLDER.fullmatch(folder.name) else folder.name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file; expected a list of instances or a folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a list of instances: {error}") from error
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        for columns in reader:
            if any(column.strip() for column in columns):
                instances.append(_instance([column.strip() for column in columns], folder, home))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from error
    return instances


def _instance(columns: list[str], folder: Path, home: str) -> Instance:
    if not 3 <= len(columns) <= 4:
        raise ValueError(f"expected network,property,timeout[,expected], found {len(columns)} column(s)")
    onnx, vnnlib, limit = columns[:3]
    expected = columns[3].lower() if len(columns) == 4 else ""
    try:
        timeout = float(limit)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout < float("inf"):
        raise ValueError(f"{limit!r} is not a timeout in seconds (a list has no header)")
    if expected not in EXPECTED:
        raise ValueError(f"{expected!r} is not an expected result (sat, unsat, unknown)")
    networks = tuple((name, plain_or_gzip(folder / file)) for name, file in parse_networks(onnx))
    benchmark = _common_folder(onnx, vnnlib) or home
    return Instance(benchmark, onnx, vnnlib, networks, plain_or_gzip(folder / vnnlib), timeout, expected)


def _common_folder(onnx: str, vnnlib: str) -> str:
    """In a list over several benchmarks both paths start with the benchmark's folder; "" where they do not."""
    parts = Path(vnnlib).parts
    usable = len(parts) > 1 and parts[0] == Path(onnx).parts[0]
    return parts[0] if usable and parts[0] not in (Path(vnnlib).anchor, "..", ".") else ""


def _line(values: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _read_table(path: Path) -> list[Row]:
    """The complete rows; what follows the last end of line is cut off the file."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = list(csv.reader(io.StringIO(whole.decode("utf-8", errors="replace"), newline="")))
    header = _line(HEADER)
    if not lines and header.encode().startswith(data):
        path.write_text(header, encoding="utf-8")
        return []
    if not lines or tuple(lines[0]) != HEADER:
        raise InputError(f"{path}: not a table of results (its first line should be {','.join(HEADER)})")
    bad = [number for number, line in enumerate(lines[1:], 2) if len(line) != len(HEADER)]
    if bad:
        raise InputError(f"{path}, line {bad[0]}: expected {len(HEADER)} columns")
    if len(whole) != len(data):
        path.write_bytes(whole)
    return [Row(*line) for line in lines[1:]]
