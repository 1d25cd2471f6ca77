"""Prove every unsat of a ``verifier bench`` table again from its record, each in a process of its own.

    python -P -m benchmarks.recheck RESULTS.csv INSTANCES RECORD_DIR [--jobs N] [--out FILE.csv]

RESULTS.csv and RECORD_DIR come from ``verifier bench INSTANCES --out RESULTS.csv --record-dir RECORD_DIR``. What is
done is written to a table (default: ``recheck.csv`` in RECORD_DIR) that another call goes on with; a record that has
changed since is looked at again. Exit code 1 where anything failed, a record that is missing included; 2 where the
table, the instances or the folder of records cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from verifier.bench import evidence_file
from verifier.errors import InputError
from verifier.instances import Instance, Row, Table, read_instances

COLUMNS = ("benchmark", "instances", "leaves", "re-proved", "failed", "bytes/leaf", "s/leaf", "recheck s", "run s")
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """A record after it was looked at; ``seconds`` of processor time, ``run`` of the verification (wall clock)."""

    benchmark: str
    onnx: str
    vnnlib: str
    proved: bool
    leaves: int
    reproved: int
    failed: int
    size: int
    seconds: float
    run: float
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the instance."""
        return self.benchmark, self.onnx, self.vnnlib


def one(model: list[str], vnnlib: str, record: str) -> dict[str, object]:
    """Look at one record, in this process."""
    import torch

    import verifier
    from verifier.record.recheck import recheck

    torch.set_num_threads(1)
    networks = dict(entry.split("=", 1) for entry in model)
    found = asdict(recheck(verifier.read(networks, vnnlib), record))
    return found | {"failures": found["failures"][:3]}


def fresh(instance: Instance, row: Row, record: Path) -> Line:
    """Look at one record in a process of its own."""
    nothing = {"proved": False, "leaves": 0, "reproved": 0, "failed": 1, "size": 0, "seconds": 0.0}
    if not record.is_file():
        return Line(*instance.key, **nothing, run=float(row.seconds), reason="there is no record")
    networks = [f"{name}={path}" for name, path in instance.networks]
    command = [sys.executable, "-P", "-m", "benchmarks.recheck", "--one", *networks, str(instance.query), str(record)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return Line(*instance.key, **nothing, run=float(row.seconds), reason=f"exit code {done.returncode}: {last}")
    found = json.loads(done.stdout)
    reason = "; ".join(found.pop("failures"))
    return Line(*instance.key, found.pop("proved"), *found.values(), run=float(row.seconds), reason=reason)


def known(path: Path, records: Path) -> dict[tuple[str, str, str], Line]:
    """What a table says of records that have not changed since."""
    if not path.is_file():
        return {}
    types = {"proved": lambda t: t == "True", "seconds": float, "run": float, "benchmark": str, "onnx": str,
             "vnnlib": str, "reason": str}  # fmt: skip
    with path.open(newline="", encoding="utf-8") as file:
        lines = [Line(**{k: types.get(k, int)(v) for k, v in row.items()}) for row in csv.DictReader(file)]
    written = path.stat().st_mtime
    return {
        line.key: line for line in lines
        if (record := evidence_file(records, line.key, "record")).is_file() and record.stat().st_mtime < written
    }  # fmt: skip


def table(lines: list[Line]) -> Iterator[str]:
    """A line for each benchmark, and one for all."""
    widths = (20, *[max(len(c), 9) for c in COLUMNS[1:]])

    def spell(cells: tuple[object, ...]) -> str:
        return "  ".join(str(c).ljust(w) if k == 0 else str(c).rjust(w)
                         for k, (c, w) in enumerate(zip(cells, widths, strict=True)))  # fmt: skip

    yield spell(COLUMNS)
    names = sorted({line.benchmark for line in lines})
    for name in [*names, "all"]:
        some = [line for line in lines if name in (line.benchmark, "all")]
        leaves = sum(line.leaves for line in some)
        size, seconds = sum(line.size for line in some), sum(line.seconds for line in some)
        yield spell((
            name, len(some), leaves, sum(line.reproved for line in some), sum(not line.proved for line in some),
            f"{size / max(1, leaves):.1f}", f"{seconds / max(1, leaves):.5f}", f"{seconds:.1f}",
            f"{sum(line.run for line in some):.1f}",
        ))  # fmt: skip


def parse() -> argparse.Namespace:
    """The options."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -P -m benchmarks.recheck", description=summary, epilog=rest,
                                     allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.csv", help="the table of ``verifier bench``")
    parser.add_argument("instances", type=Path, metavar="INSTANCES", help="the list or folder that it was made from")
    parser.add_argument("records", type=Path, metavar="RECORD_DIR", help="the folder of its records")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at once (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: recheck.csv in RECORD_DIR")
    return parser.parse_args()


def asked(options: argparse.Namespace) -> tuple[dict[Key, Row], dict[Key, Instance]]:
    """The unsat rows of the table, and their instances. Raises ``InputError``, ``OSError``."""
    for path, there, kind in ((options.results, options.results.is_file(), "file"),
                              (options.records, options.records.is_dir(), "folder")):
        if not there:
            raise InputError(f"{path}: no such {kind}")
    table = Table(options.results, resume=True)
    table.close()
    rows = {row.key: row for row in table.rows if row.result == "unsat"}
    return rows, {i.key: i for i in read_instances([options.instances]) if i.key in rows}


def main() -> int:
    """Look at what is left to look at; print the table; the exit code."""
    if sys.argv[1:2] == ["--one"]:
        *networks, vnnlib, record = sys.argv[2:]
        print(json.dumps(one(networks, vnnlib, record)))
        return 0
    options = parse()
    try:
        rows, instances = asked(options)
    except (InputError, OSError) as error:
        print(f"recheck: {error}", file=sys.stderr)
        return 2
    out = options.out or options.records / "recheck.csv"
    done = known(out, options.records)
    done = {key: line for key, line in done.items() if key in instances and line.proved}
    left = [i for key, i in instances.items() if key not in done]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Line)])
        writer.writeheader()
        writer.writerows(asdict(line) for line in done.values())
        with ThreadPoolExecutor(options.jobs) as pool:
            records = {i.key: evidence_file(options.records, i.key, "record") for i in left}
            for line in pool.map(lambda i: fresh(i, rows[i.key], records[i.key]), left):
                done[line.key] = line
                writer.writerow(asdict(line))
                file.flush()
                if not line.proved:
                    print(f"FAILED {' '.join(line.key)}: {line.reason}", file=sys.stderr, flush=True)
    print("\n".join(table(list(done.values()))))
    missing = rows.keys() - instances.keys()
    for key in sorted(missing):
        print(f"NOT AMONG THE INSTANCES: {' '.join(key)}", file=sys.stderr)
    return 1 if missing or not all(line.proved for line in done.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
