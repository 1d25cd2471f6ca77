"""Interval, CROWN and alpha bounds side by side with auto_LiRPA: same networks, boxes, threads and dtype, in one run.

    python benchmarks/bounds.py --instances BENCHMARKS --out table.csv

``BENCHMARKS`` is a folder of the VNN-COMP benchmarks (mnist_fc, oval21, cifar10_resnet, sri_resnet_a, dist_shift, vit).
For each network the margins of its first property are bounded from below, for its box alone and for 64 boxes of that
size around it. Every tool runs in a process of its own; their calls alternate, and the table holds medians. A call
of the row ``alpha, equal time`` has as many steps as fit into the time that auto_LiRPA needs for its 20. Peak memory
is what a call needs on top of what the process holds; sums and proven margins are those of the property's own box.

Rows that are in the file already are kept (``--fresh`` measures all anew); the table is printed in Markdown at the
end. Where auto_LiRPA cannot be imported its columns say so.
"""

from __future__ import annotations

import argparse
import csv
import json
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this file is called like the package

from benchmarks.bounding import tools  # noqa: E402
from benchmarks.bounding.case import NETWORKS  # noqa: E402

METHODS = ("interval", "crown", "alpha")
MOST_STEPS = 2560


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV file; ``note`` says why figures are missing."""

    network: str
    batch: int
    method: str
    tool: str
    steps: int = 0
    seconds: float | None = None
    peak: float | None = None
    sum: float | None = None
    proven: int | None = None
    calls: int = 0
    note: str = ""

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What a row is about."""
        return self.network, self.batch, self.method, self.tool


class Worker:
    """A tool on a network in a child process; killed and reported where a call takes longer than its limit."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.setup = setup
        self.process: subprocess.Popen[str] | None = None

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "benchmarks.bounding.worker"]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
            self._send(self.setup)
        self._send(request)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], limit + 20)
        line = self.process.stdout.readline() if ready else ""
        if line:
            return dict(json.loads(line))
        code = self.process.poll()
        self.close()
        return {"error": f"over {limit:g} s" if not ready else f"the process died ({code}): out of memory?"}

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process is not None and self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def measure(workers: dict[str, Worker], names: list[str], request: dict[str, Any], args: Any) -> dict[str, Row]:
    """Medians of each tool; their calls alternate. The first call of each warms up, and is kept if it is slow."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    notes: dict[str, str] = {}
    spent = 0.0
    for turn in range(args.repeat + 1):
        for name in names:
            if name in notes or (turn and spent > args.budget):
                continue
            answer = workers[name].ask(args.limit, **{"steps": 20, "clock": args.clock, **request})
            if "error" in answer:
                notes[name] = answer["error"]
                continue
            if turn == 1 and answer["seconds"] < args.slow:
                answers[name].clear()
            answers[name].append(answer)
            spent += answer["seconds"]
    return {name: _row(name, request, answers[name], notes.get(name, "")) for name in names}


def _row(tool: str, request: dict[str, Any], answers: list[dict[str, Any]], note: str) -> Row:
    what = {"network": "", "batch": request["batch"], "method": request["method"], "tool": tool, "note": note}
    if request["method"] == "alpha":
        what["steps"] = request.get("steps", 20)
    if not answers or note:
        return Row(**what)
    seconds = statistics.median(a["seconds"] for a in answers)
    last = answers[-1]
    peak = max(a["peak"] for a in answers)
    return Row(**what, seconds=seconds, peak=peak, sum=last["sum"], proven=last["proven"], calls=len(answers))


def equal_time(worker: Worker, batch: int, theirs: Row, args: Any) -> Row | None:
    """Our ascent with as many steps as fit into their time (doubling)."""
    if theirs.seconds is None:
        return None
    best: Row | None = None
    steps = 20
    while steps <= MOST_STEPS:
        request = {"batch": batch, "method": "alpha", "steps": steps}
        row = measure({"ours": worker}, ["ours"], request, argparse.Namespace(**{**vars(args), "repeat": 0}))["ours"]
        if row.seconds is None or row.seconds > theirs.seconds:
            break
        best, steps = row, steps * 2
    return best


def network_rows(index: int, args: Any, done: dict[tuple[str, int, str, str], Row], absent: str) -> Iterator[Row]:
    """All rows of one network that are not done yet."""
    benchmark, part = NETWORKS[index]
    network = " ".join(filter(None, (benchmark, part)))
    setup = {"folder": str(args.instances.resolve()), "benchmark": benchmark, "part": part, "device": args.device}
    present = [name for name in args.tools if not (absent and name == "auto_LiRPA")]
    workers = {n: Worker({**setup, "tool": n, "threads": args.threads}) for n in present}
    try:
        for batch in args.batch:
            for method in args.methods:
                open_rows = [n for n in present if (network, batch, method, n) not in done]
                found = measure(workers, open_rows, {"batch": batch, "method": method}, args) if open_rows else {}
                for name in args.tools:
                    if name in found:
                        yield _named(found[name], network)
                    elif name not in present and (network, batch, method, name) not in done:
                        yield Row(network, batch, method, name, note=absent)
                theirs = found.get("auto_LiRPA", done.get((network, batch, method, "auto_LiRPA")))
                key = (network, batch, "alpha, equal time", "ours")
                if method == "alpha" and theirs is not None and "ours" in present and key not in done:
                    row = equal_time(workers["ours"], batch, theirs, args)
                    if row is not None:
                        yield _named(row, network, "alpha, equal time")
    finally:
        for worker in workers.values():
            worker.close()


def _named(row: Row, network: str, method: str = "") -> Row:
    return Row(**{**asdict(row), "network": network, "method": method or row.method})


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier run."""
    kinds = {"batch": int, "steps": int, "calls": int, "proven": int, "seconds": float, "peak": float, "sum": float}
    with path.open(newline="") as lines:
        return [
            Row(**{k: kinds.get(k, str)(v) for k, v in line.items() if v != "" or k == "note"})  # type: ignore[arg-type]
            for line in csv.DictReader(lines)
        ]


def table(rows: list[Row]) -> Iterator[str]:
    """The rows as Markdown, one line for each network, batch and method; times of others relative to ours."""
    yield "| network | batch | method | " + " | ".join(f"{n}: s, MB, sum, proven" for n in tools.NAMES) + " | speed |"
    yield "| --- " * (len(tools.NAMES) + 4) + "|"
    cells = {row.key: row for row in rows}
    for network, batch, method in dict.fromkeys(key[:3] for key in cells):
        found = [cells.get((network, batch, method, name)) for name in tools.NAMES]
        ours, theirs = found[0], found[-1] or cells.get((network, batch, method.split(",")[0], "auto_LiRPA"))
        ratio = ""
        if ours and theirs and ours.seconds and theirs.seconds:
            ratio = f"{theirs.seconds / ours.seconds:.2f}x"
        yield f"| {network} | {batch} | {method} | " + " | ".join(map(_cell, found)) + f" | {ratio} |"


def _cell(row: Row | None) -> str:
    if row is None or row.seconds is None:
        return row.note if row else ""
    steps = f" ({row.steps} steps)" if row.steps else ""
    return f"{row.seconds:.4g}, {row.peak:.0f}, {row.sum:.6g}, {row.proven}{steps}"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Bounds side by side with auto_LiRPA.")
    parser.add_argument("--instances", type=Path, required=True, help="folder of the competition's benchmarks")
    parser.add_argument("--out", type=Path, required=True, help="CSV file, which is continued")
    parser.add_argument("--fresh", action="store_true", help="measure what is in the file already again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that is not idle")
    parser.add_argument("--repeat", type=int, default=5, help="measured calls of a tool, besides one to warm up")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds of one call")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds after which no call is repeated")
    parser.add_argument("--slow", type=float, default=5.0, help="seconds from which on the first call counts too")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tools", nargs="+", choices=tools.NAMES, default=list(tools.NAMES))
    parser.add_argument("--networks", type=int, nargs="+", default=list(range(len(NETWORKS))), help="by number")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing in the file, write row by row, print the table."""
    args = options()
    rows = read_rows(args.out) if args.out.exists() and not args.fresh else []
    absent = tools.missing()
    start = time.monotonic()
    with args.out.open("w", newline="") as target:
        writer = csv.DictWriter(target, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
        for index in args.networks:
            for row in network_rows(index, args, {r.key: r for r in rows}, absent):
                rows.append(row)
                writer.writerow(asdict(row))
                target.flush()
                print(f"{time.monotonic() - start:6.0f} s", *row.key, _cell(row), file=sys.stderr)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
