"""How many subproblems branch and bound works off in a second, by batch size, and how time grows with depth.

    python benchmarks/throughput.py --instances BENCHMARKS [--device cuda] [--out table.csv]

``BENCHMARKS`` is a folder of the competition's benchmarks (acasxu, mnist_fc, cifar10_resnet). The searches run as the
verifier runs them (``InputSplit``, ``ActivationSplit``), on a property that keeps them busy, without the attack and
without replays. Two tables come out:

- For each batch size: only the largest rounds count (those of at least half the size of the largest), so that the
  rounds in which the tree is still narrow do not blur the rate. ``round`` is the mean number of subproblems in them: it
  stays below the batch size where the tree did not grow wide enough in the time given. The first round, where caches
  and allocators are cold, never counts.
- By depth: a round takes all that is open, so round k is depth k of the tree, until the next one would not fit into
  the time given.

An input split bounds ``batch`` boxes a round; an activation split takes ``batch`` parents and bounds both children of
each. ``root`` is what comes before the search: reading, and for activation splits bounds of the root.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)  # a file beside this one is called like a package

import torch  # noqa: E402

import verifier  # noqa: E402
from bounds.plan import prepare  # noqa: E402
from bounds.rounding import Rounding, plain_products  # noqa: E402
from verifier.branch.activation_split import ActivationSplit  # noqa: E402
from verifier.branch.input_split import InputSplit  # noqa: E402
from verifier.branch.problem import Problem, Step  # noqa: E402
from verifier.branch.root import refine, screen  # noqa: E402
from verifier.instances import read_instances  # noqa: E402
from verifier.query import Query  # noqa: E402
from verifier.strategy import choose, features  # noqa: E402

WHOLE_LEVEL = 1 << 20
"""A batch that takes everything that is open."""
CASES = (
    ("acasxu", "3_3", "prop_9.", "input split"),
    ("mnist_fc", "256x4", "prop_6_0.03", "activation split"),
    ("cifar10_resnet", "2b", "prop_0_", "activation split"),
)
"""Benchmark, parts of the names of network and property, and the search."""


@dataclass(frozen=True, slots=True)
class Round:
    """One round: how many subproblems were bounded in it, and its seconds."""

    subproblems: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Rate:
    """A line of the first table; ``milliseconds`` is the time for one subproblem."""

    case: str
    batch: int
    round: float
    rounds: int
    per_second: float
    milliseconds: float
    root: float


@dataclass(frozen=True, slots=True)
class Level:
    """A line of the second table: the subproblems at a depth, their seconds, and those of all depths up to it."""

    case: str
    depth: int
    subproblems: int
    seconds: float
    total: float


Clock = Callable[[], float]


def find(folder: Path, benchmark: str, network: str, prop: str) -> Query:
    """The query of the first instance whose names contain the parts given."""
    for instance in read_instances([folder / benchmark]):
        if network in Path(instance.onnx).name and prop in Path(instance.vnnlib).name:
            return verifier.read(instance.networks[0][1], instance.query)
    raise SystemExit(f"{folder / benchmark}: no instance with {network} and {prop}")


def input_split(query: Query, batch: int, device: torch.device) -> tuple[Iterator[Step], Callable[[int], int], int]:
    """The steps, how many subproblems a round bounds of those that were open before it, and how many are at first."""
    plans = tuple(prepare(query.graph, t, device, Rounding.of(t)) for t in (torch.float32, torch.float64))
    problem = Problem.of(query, device)
    fill = 1 if batch == WHOLE_LEVEL else batch
    plan = replace(choose(features(query)).input_split, batch=batch, fill=fill)
    return InputSplit(problem, plans, plan).run(), lambda waiting: min(batch, waiting), problem.tasks


def activation_split(
    query: Query, batch: int, device: torch.device
) -> tuple[Iterator[Step], Callable[[int], int], int]:
    """The same for the first box that bounds alone leave open. The first round bounds the clauses at the root."""
    rough = prepare(query.graph, torch.float32, device)
    exact = prepare(query.graph, torch.float64, device, Rounding.of(torch.float64))
    problem = Problem.of(query, device)
    plan = replace(choose(features(query)).activation_split, batch=batch)
    task = next((task for _, part in screen(problem, exact) for task in part.open), None)
    if task is None:
        raise SystemExit("bounds alone decide this property: name another")
    task = refine(problem, (rough, exact), task, plan.intermediate_steps, float("inf"))
    steps = ActivationSplit(problem, (rough, exact), task, plan).run()
    return steps, lambda waiting: 2 * min(batch, waiting), int(task.alive.sum())


ENGINES = {"input split": input_split, "activation split": activation_split}


def rounds(
    steps: Iterator[Step], takes: Callable[[int], int], first: int, clock: Clock, activations: bool
) -> Iterator[Round]:
    """Measure a search round by round."""
    waiting, start = first, clock()
    at_root = activations
    for step in steps:
        now = clock()
        yield Round(waiting if at_root else takes(waiting), now - start)
        waiting, at_root = step.open_subproblems - step.stuck, False
        start = clock()


def rate(case: str, batch: int, found: Sequence[Round], root: float) -> Rate:
    """What the largest rounds but the first amount to."""
    later = list(found[1:]) or list(found)
    largest = max(r.subproblems for r in later)
    counted = [r for r in later if 2 * r.subproblems >= largest]
    seconds, count = sum(r.seconds for r in counted), sum(r.subproblems for r in counted)
    return Rate(case, batch, count / len(counted), len(counted), count / seconds, 1000 * seconds / count, root)


def levels(case: str, found: Sequence[Round]) -> list[Level]:
    """Rounds that took whole levels, with running totals."""
    total, lines = 0.0, []
    for depth, level in enumerate(found):
        total += level.seconds
        lines.append(Level(case, depth, level.subproblems, level.seconds, total))
    return lines


def measure(query: Query, search: str, batch: int, options: argparse.Namespace) -> tuple[list[Round], float]:
    """The rounds of one search, and the seconds before it."""
    clock: Clock = time.process_time if options.clock == "cpu" else time.perf_counter
    start = clock()
    steps, takes, first = ENGINES[search](query, batch, torch.device(options.device))
    root, found, spent = clock() - start, list[Round](), 0.0
    for done in rounds(steps, takes, first, clock, search == "activation split"):
        found.append(done)
        spent += done.seconds
        ahead = 2 * done.seconds if batch == WHOLE_LEVEL else 0.0  # the next level has up to twice as many
        if spent + ahead >= options.seconds:
            break
    return found, root


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    assert __doc__ is not None
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, required=True, metavar="BENCHMARKS")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64, 1024], metavar="N")
    parser.add_argument("--case", choices=[case[0] for case in CASES], action="append", metavar="BENCHMARK",
                        help="only these (default: all three)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each search (default: 20)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="on the CPU (default: 1)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: processor time, for machines with other work to do")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="both tables, one after the other")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> tuple[list[Rate], list[Level]]:
    """Measure everything; lines on stderr as they come."""
    rates, deep = list[Rate](), list[Level]()
    for benchmark, network, prop, search in CASES:
        if options.case and benchmark not in options.case:
            continue
        query = find(options.instances, benchmark, network, prop)
        case = f"{benchmark} {network} {prop.strip('._')}, {search}"
        for batch in options.batch:
            rates.append(rate(case, batch, *measure(query, search, batch, options)))
            print(rates[-1], file=sys.stderr, flush=True)
        deep += levels(case, measure(query, search, WHOLE_LEVEL, options)[0])
    return rates, deep


def markdown(lines: Sequence[Rate] | Sequence[Level]) -> str:
    """A table in Markdown."""
    rows = [list(asdict(lines[0])), ["---"] * len(asdict(lines[0]))]
    rows += [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in asdict(line).values()] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with torch.no_grad(), plain_products():
        tables = run(options)
    for lines in tables:
        if lines:
            print(markdown(lines) + "\n")
    if options.out is not None:
        with options.out.open("w", encoding="utf-8", newline="") as file:
            for lines in tables:
                writer = csv.DictWriter(file, list(asdict(lines[0])), lineterminator="\n")
                writer.writeheader()
                writer.writerows(asdict(line) for line in lines)


if __name__ == "__main__":
    main()
