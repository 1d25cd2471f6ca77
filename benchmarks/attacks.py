"""How many counterexamples the attack finds by itself, and how soon.

    python -m benchmarks.attacks RESULTS.csv BENCHMARKS --timeout 60

``RESULTS.csv`` is a table of ``verifier bench`` or any other with the columns benchmark, onnx, vnnlib and result: its
rows with the result ``sat`` are asked again, by ``verifier.attack`` alone, one after the other in one thread. A time is
that of the search, reading the files and the replay by onnxruntime included, loading the libraries not. Rows that were
not found in time are listed.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import verifier
from verifier import limits

WITHIN = (1.0, 10.0, 60.0)
"""Seconds of the table's columns."""


def main() -> None:
    """Measure, and print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.csv")
    parser.add_argument("instances", type=Path, metavar="BENCHMARKS")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each instance")
    parser.add_argument("--only", default="", help="benchmarks whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seconds, missed = defaultdict[str, list[float]](list), list[str]()
    for name, model, given in violated(options.results, options.only):
        start, folder = limits.now(), options.instances / name
        verdict = verifier.attack(folder / model, folder / given, timeout=options.timeout)
        found = verdict.word == "sat"
        seconds[name].append(limits.now() - start if found else float("inf"))
        if not found:
            missed.append(f"{name} {model} {given}: {verdict}")
    print("\n".join(table(seconds)))
    print("\n".join(["", "not found:", *missed] if missed else ["", "all were found"]))


def violated(path: Path, only: str) -> Iterator[tuple[str, str, str]]:
    """Benchmark, model and property of the rows whose result is sat."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["result"] == "sat" and only in row["benchmark"]:
                yield row["benchmark"], row["onnx"], row["vnnlib"]


def table(seconds: dict[str, list[float]]) -> Iterator[str]:
    """A line for each benchmark, and their sum."""
    yield "| benchmark | sat | " + " | ".join(f"within {limit:g} s" for limit in WITHIN) + " | slowest |"
    yield "| --- |" + " ---: |" * (len(WITHIN) + 2)
    for name, times in (*seconds.items(), ("all", [t for some in seconds.values() for t in some])):
        yield line(name, times)


def line(name: str, times: Sequence[float]) -> str:
    """One line of the table."""
    counts = [str(sum(t <= limit for t in times)) for limit in WITHIN]
    slowest = max((t for t in times if t < float("inf")), default=float("nan"))
    return f"| {name} | {len(times)} | " + " | ".join(counts) + f" | {slowest:.2f} s |"


if __name__ == "__main__":
    main()
