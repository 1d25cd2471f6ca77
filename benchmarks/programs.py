"""What mixed-integer programs cost and gain: encoding, linear programs for single neurons, and queries decided alone.

    python benchmarks/programs.py encode  --instances BENCHMARKS
    python benchmarks/programs.py tighten --instances BENCHMARKS [--seconds 30] [--nodes 1] [--only NAME NET PROPERTY]
    python benchmarks/programs.py clauses --instances BENCHMARKS [--timeout 10] [--only mnist_fc ...]
    python benchmarks/programs.py decide  --instances BENCHMARKS [--timeout 60] [--only rl_benchmarks ...] [--out F.csv]

``BENCHMARKS`` is a folder of the competition's benchmarks. Seconds are of the processor.

- ``encode``: a network over a box whose neurons have CROWN bounds, as a model (mnist_fc 256x6, cifar10_resnet 2b).
- ``tighten``: neurons of one instance (mnist_fc 256x4) one by one, those first whose phases the bound of the property's
  worst clause depends on most, each end by a linear program or a search of ``--nodes`` of them; after each layer the
  root bound of the clauses by a linear program over the better bounds.
- ``clauses``: boxes with several clauses that bounds leave open, as one program for all of them and as one a clause:
  the least bound by linear programs, the solver's search, the proof.
- ``decide``: every instance by the exact stage alone (the attack before it and the solver's own search included), each
  leaf re-checked, and each unsat proved again from its record.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)  # a file beside this one is called like a package

import torch  # noqa: E402

import bounds  # noqa: E402
import verifier  # noqa: E402
from bounds import Alpha, Bounds, Box, Crown, Prepared, compute_bounds  # noqa: E402
from milp.encode import encode  # noqa: E402
from milp.exact import Goal, Outcome, search  # noqa: E402
from milp.highs import Limits, solve  # noqa: E402
from milp.model import Model  # noqa: E402
from milp.recheck import lower_bound  # noqa: E402
from milp.simplex import Simplex  # noqa: E402
from milp.tighten import candidates, tightened  # noqa: E402
from verifier import pipeline  # noqa: E402
from verifier.exact.programs import EncodedBox, box_program, clause_program  # noqa: E402
from verifier.instances import Instance, read_instances  # noqa: E402
from verifier.query import Query  # noqa: E402
from verifier.record.recheck import recheck  # noqa: E402
from verifier.strategy import ProgramPlan, choose, features  # noqa: E402
from verifier.verdict import TO_TOLERANCE  # noqa: E402

ENCODED = (("mnist_fc", "256x6", "prop_3"), ("cifar10_resnet", "2b", "prop_3"))
TIGHTENED = ("mnist_fc", "256x4", "prop_6_0.03")
SEVERAL = ("mnist_fc", "acasxu")
SMALLEST = ("rl_benchmarks", "safenlp", "reach_prob_density")
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Decided:
    """One instance by programs alone: the word, processor seconds, subproblems, and of an unsat the leaves that were
    proved again from the record (``proved``: all of them)."""

    benchmark: str
    onnx: str
    vnnlib: str
    result: str
    expected: str
    seconds: float
    subproblems: int = 0
    leaves: int = 0
    proved: bool = False
    reason: str = ""


def find(instances: Path, benchmark: str, network: str, prop: str) -> Query:
    """The first instance of a benchmark whose names have these parts."""
    for instance in read_instances([instances / benchmark]):
        if network in instance.onnx and prop in instance.vnnlib:
            return query_of(instance)
    raise SystemExit(f"{benchmark}: no instance has {network} and {prop} in its names")


def query_of(instance: Instance) -> Query:
    """Read an instance."""
    return verifier.read(instance.networks[0][1], instance.query)


def first_box(query: Query) -> Box:
    """The query's first box."""
    return Box(*(torch.from_numpy(end[:1].copy()) for end in (query.cases.lower, query.cases.upper)))


def measure_encoding(instances: Path) -> Iterator[str]:
    """A line for each network."""
    for benchmark, network, prop in ENCODED:
        query = find(instances, benchmark, network, prop)
        prepared, box = bounds.prepare(query.graph), first_box(query)
        known = compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched)
        seconds = []
        for _ in range(REPEATS):
            start = time.process_time()
            model = encode(prepared, box, known)
            seconds.append(time.process_time() - start)
        size = f"{model.lower.shape[0]} columns ({int(model.integer.sum())} phases), {model.row_lower.shape[0]} rows"
        range_ = f"{min(seconds):.3f} to {max(seconds):.3f} s"
        yield f"{benchmark} {network}: {size}, {model.index.shape[0]} entries: {range_}"


def measure_tightening(query: Query, seconds: float, nodes: int) -> Iterator[str]:
    """A line for each layer: neurons, linear programs, seconds, and the clauses' bound from a linear program."""
    prepared, box = bounds.prepare(query.graph), first_box(query)
    known = compute_bounds(prepared, box, Alpha(), keep=prepared.plan.watched)
    start = time.process_time()
    least, chosen = root_bound(query, prepared, known)
    yield f"bound {least:.5f} from the ascent's bounds of neurons ({time.process_time() - start:.2f} s)"
    spent = 0.0
    for node, order in chosen.items():
        start, before = time.process_time(), known
        known = tightened(prepared, box, known, {node: order}, nodes=nodes, seconds=max(0.0, seconds - spent))
        took = time.process_time() - start
        spent += took
        least, _ = root_bound(query, prepared, known)
        share = f"{count_tighter(before, known, node)} of {len(order)} neurons tighter"
        cost = f"{took:.2f} s, {1000 * took / (2 * len(order)):.1f} ms an end"
        yield f"bound {least:.5f} after node {node}: {share}, in all by {gained(before, known, node):.1%}, {cost}"


def root_bound(query: Query, prepared: Prepared, known: Bounds) -> tuple[float, dict[int, list[int]]]:
    """The least re-checked bound of a clause of the first box by a linear program, and the neurons that weigh on it,
    by pre-activation."""
    encoded, found = EncodedBox.over(query, prepared, 0, known), []
    for clause in encoded.clauses:
        program = clause_program(encoded, clause).model
        dual = Simplex(program).solve().dual
        if dual is not None:
            found.append((lower_bound(program, dual), program, dual))
    least, program, dual = min(found, key=lambda one: one[0])
    return least, candidates(prepared, known, program, dual)


def count_tighter(before: Bounds, after: Bounds, node: int) -> int:
    """How many elements of a node have a narrower interval."""
    old, new = before.intervals[node], after.intervals[node]
    return int(((new[0] > old[0]) | (new[1] < old[1])).sum())


def gained(before: Bounds, after: Bounds, node: int) -> float:
    """The share of the width of a node's unstable elements that is gone."""
    (low, high), new = before.intervals[node], after.intervals[node]
    open_ = (low < 0) & (high > 0)
    return 1 - float((new[1] - new[0])[open_].sum() / (high - low)[open_].sum())


def measure_clauses(instances: Path, names: list[str], timeout: float) -> Iterator[str]:
    """Two lines for the first box of every instance whose bounds leave several clauses open."""
    for instance in read_instances([instances / name for name in names]):
        query = query_of(instance)
        encoded = EncodedBox.of(query, bounds.prepare(query.graph), 0, Alpha())
        single = [program for k in encoded.clauses if corner((program := clause_program(encoded, k)).model) <= 0]
        if len(single) > 1:
            yield f"{' '.join(instance.key)}: {len(single)} clauses, {int(encoded.model.integer.sum())} phases"
            whole = box_program(encoded, [program.clauses[0] for program in single])
            yield f"  one program: {tried([whole.model], timeout)}"
            yield f"  one a clause: {tried([program.model for program in single], timeout)}"


def corner(model: Model) -> float:
    """The least value of a program whose rows are left out."""
    return float(torch.minimum(model.cost * model.lower, model.cost * model.upper).sum()) + model.offset


def tried(models: list[Model], timeout: float) -> str:
    """What programs that share the time come to, and the processor seconds of each part."""
    start, limit = time.process_time(), timeout / len(models)
    duals = [(model, Simplex(model).solve().dual) for model in models]
    least = min(-math.inf if dual is None else lower_bound(model, dual) for model, dual in duals)
    linear = time.process_time()
    runs = [solve(model, Limits(limit, bound=0.0, value=0.0)) for model in models]
    said = [word(run.bound > 0, run.value <= 0) for run in runs]
    solved = time.process_time()
    answers = [search(model, Simplex(model), Goal(threshold=0.0), seconds=limit) for model in models]
    proven = [word(answer.outcome is Outcome.PROVEN, answer.outcome is Outcome.CANDIDATE) for answer in answers]
    ended, count = time.process_time(), sum(answer.nodes for answer in answers)
    return (
        f"linear {least:.4g} in {linear - start:.2f} s; solver {counted(said)} in {solved - linear:.2f} s; proof "
        f"{counted(proven)} in {ended - solved:.2f} s, {count} programs"
    )


def word(refuted: bool, found: bool) -> str:
    """How a program ended."""
    return "point" if found else "refuted" if refuted else "open"


def counted(words: list[str]) -> str:
    """Each word with its number."""
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))


def measure_decisions(instances: Path, names: list[str], timeout: float) -> Iterator[Decided]:
    """Every instance of these benchmarks by programs alone."""
    for instance in read_instances([instances / name for name in names]):
        query, start = query_of(instance), time.process_time()
        strategy = replace(choose(features(query)), programs=ProgramPlan())
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "record"
            verdict = pipeline.verify(query, timeout=timeout, strategy=strategy, record=record)
            took = time.process_time() - start
            reason = verdict.reason if isinstance(verdict, verifier.Unknown) else ""
            row = Decided(*instance.key, verdict.word, instance.expected, took, reason=reason)
            if isinstance(verdict, verifier.Verified):
                report = recheck(query, record)
                row = replace(row, subproblems=verdict.subproblems, leaves=report.leaves, proved=report.proved)
        yield row


def main() -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encode", "tighten", "clauses", "decide"))
    parser.add_argument("--instances", type=Path, required=True, metavar="BENCHMARKS")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--only", nargs="+", metavar="BENCHMARK")
    parser.add_argument("--out", type=Path, metavar="FILE.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "decide":
        names = options.only or list(SMALLEST)
        report(measure_decisions(options.instances, names, options.timeout), options.out)
        return
    if options.what == "encode":
        lines = measure_encoding(options.instances)
    elif options.what == "clauses":
        lines = measure_clauses(options.instances, options.only or list(SEVERAL), options.timeout)
    else:
        query = find(options.instances, *(options.only or TIGHTENED))
        lines = measure_tightening(query, options.seconds, options.nodes)
    for line in lines:
        print(line, flush=True)


def report(rows: Iterator[Decided], out: Path | None) -> None:
    """Rows into the table as they come; at the end what they amount to."""
    found = []
    for row in rows:
        found.append(row)
        print(", ".join(map(str, astuple(row))), file=sys.stderr, flush=True)
        if out is not None:
            with out.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([field.name for field in fields(Decided)])
                writer.writerows(map(astuple, found))
    for name in dict.fromkeys(row.benchmark for row in found):
        part = [row for row in found if row.benchmark == name]
        count = {word: sum(row.result == word for row in part) for word in ("sat", "unsat")}
        proved = sum(row.proved for row in part)
        wrong = sum({row.result, row.expected} == {"sat", "unsat"} for row in part)
        seconds = sum(row.seconds for row in part)
        claimed = sum(row.reason == TO_TOLERANCE for row in part)
        print(
            f"{name}: {len(part)} instances, {count}, {proved} unsat proved again, {claimed} {TO_TOLERANCE}, {wrong} "
            f"wrong, {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
