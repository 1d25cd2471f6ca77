"""Certified and attacked radii around inputs of a benchmark: the gap between them, and the time.

    python -m benchmarks.radii --instances BENCHMARKS --out table.csv

``BENCHMARKS`` is a folder of the VNN-COMP benchmarks. The inputs are the centres of the boxes of its mnist_fc
properties, taken from its networks in turn, each pair of network and centre once; they range from 0 to 1. Each radius
has a process of its own, its library's loading not counted. Rows that are in the file already are kept; the table is
printed in Markdown at the end.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from verifier import radius, read
from verifier.cases import dtype_of
from verifier.instances import LIST_NAME
from verifier.limits import now
from verifier.network import read_network

FIELDS = ("network", "property", "norm", "label", "other", "status", "lower", "upper", "gap", "seconds", "processor")
RANGE = (0, 1)


def main() -> None:
    """Measure what is not in the file yet, and print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, required=True, metavar="BENCHMARKS")
    parser.add_argument("--benchmark", default="mnist_fc")
    parser.add_argument("--norm", choices=("inf", "2", "1"), default="inf")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "PROPERTY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(Path(options.one[0]), Path(options.one[1]), options.norm, options.timeout)))
        return
    rows = kept(options.out)
    for model, given in itertools.islice(inputs(options.instances / options.benchmark), options.count):
        key = model.name, given.name, options.norm
        if any((row["network"], row["property"], row["norm"]) == key for row in rows):
            continue
        again = [sys.executable, "-m", "benchmarks.radii", *sys.argv[1:], "--one", str(model), str(given)]
        done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(dict(zip(FIELDS[:3], key, strict=True)) | json.loads(done.stdout))
        print(rows[-1], file=sys.stderr, flush=True)
        if options.out is not None:
            write(options.out, rows)
    print(markdown(rows))


def kept(path: Path | None) -> list[dict[str, str]]:
    """The rows of a file, where there is one."""
    if path is None or not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """The table as a file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        table.writerows(rows)


def inputs(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Networks and properties of a benchmark, the networks in turn, no centre of a network twice."""
    with open(folder / LIST_NAME, newline="", encoding="utf-8") as file:
        pairs = [(folder / row[0], folder / row[1]) for row in csv.reader(file) if row]
    of_network = [[pair for pair in pairs if pair[0] == model] for model in dict.fromkeys(m for m, _ in pairs)]
    seen = set()
    for pair in (p for turn in itertools.zip_longest(*of_network) for p in turn if p is not None):
        key = pair[0], centre(*pair).tobytes()
        if key not in seen:
            seen.add(key)
            yield pair


def centre(model: Path, given: Path) -> np.ndarray:
    """The middle of a property's first box, in the model's element type."""
    query = read(model, given)
    middle = query.cases.lower[0].astype(np.float64) / 2 + query.cases.upper[0].astype(np.float64) / 2
    return np.asarray(middle.clip(*RANGE), dtype=dtype_of(query.models[0].inputs[0]))


def measured(model: Path, given: Path, norm: str, timeout: float) -> dict[str, str]:
    """The last bracket, and the seconds on the clock and of the processor that it took."""
    network, point = read_network(model), centre(model, given)
    start, processor = now(), time.process_time()
    *_, bracket = radius(network, point, norm, data_range=RANGE, timeout=timeout)
    values = (
        bracket.label, bracket.other, bracket.status, bracket.lower, bracket.upper,
        (bracket.upper - bracket.lower) / bracket.upper, round(now() - start, 2),
        round(time.process_time() - processor, 2),
    )  # fmt: skip
    return {name: str(value) for name, value in zip(FIELDS[3:], values, strict=True)}


def markdown(rows: list[dict[str, str]]) -> str:
    """The table for a page."""
    lines = ["| network | property | certified | attacked | gap | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        ends = f"{float(row['lower']):.5f} | {float(row['upper']):.5f} | {100 * float(row['gap']):.1f} %"
        lines.append(f"| {row['network']} | {row['property']} | {ends} | {float(row['seconds']):.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
