"""Planted truth: random queries with a hidden counterexample that no engine may refute.

    PYTHONPATH=.:benchmarks python -P benchmarks/planted.py --count 5000 --jobs 2 --out planted.jsonl --resume

(``-P``, because a script beside it is called like the package ``bounds``.) Instances are given to an engine in parts of
``PART``; with ``--out`` each part is a line of the file, and ``--resume`` runs those that it does not have.

Each query has a random network, one to three boxes with one to three clauses each, and a point of one box that
fulfils one clause by a relative margin of 1e-2 down to 1e-6 of the outputs' scale. Half of the points are the least
found of many, so that little else of the box is a counterexample. Nothing searches for the point: the engines that
prove are run alone, for some rounds each, and ``unsat`` from any of them is an error. So that the gate cannot pass by
never refuting, the same queries are asked again with thresholds out of reach, and refutations are counted. With
``--dense`` the networks are layers of ReLUs alone, where splits of activations at 0 have most to do.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from planted_engines import ENGINES, Budget, Engine, UnprovedError
from random_networks import Scales, dense_graph, random_graph

from bounds.graph import Graph
from verifier.query import Cases, Query, Specification

MARGINS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
PART = 100
OUT_OF_REACH = 0.35
"""How far below the least sampled value a threshold is put, relative to the spread, to make a property hold."""


class FalseRefutationError(AssertionError):
    """An engine refuted a query that has a counterexample."""


@dataclass(frozen=True, slots=True)
class Instance:
    """``query`` is fulfilled by ``point``; ``impossible`` is the same query with thresholds out of reach."""

    query: Query
    impossible: Query
    point: np.ndarray
    margin: float


def instances(seed: int, count: int, first: int = 0, dense: bool = False) -> Iterator[Instance]:
    """``count`` instances from number ``first`` on; equal seeds give equal ones."""
    for k in range(first, first + count):
        rng = np.random.default_rng([seed, k])
        yield instance(rng, dense_graph(rng) if dense else _graph(rng))


def _graph(rng: np.random.Generator) -> Graph:
    weight, cancel = float(rng.choice([0.5, 1.0, 2.0])), rng.random() < 0.1
    jumps, products, waves = (bool(b) for b in rng.random(3) < 0.25)
    return random_graph(rng, Scales(weight, cancel=cancel, jumps=jumps, products=products, waves=waves))


def instance(rng: np.random.Generator, graph: Graph) -> Instance:
    """One random instance of a network."""
    size = graph.nodes[graph.inputs[0]].shape[0]
    boxes = [_box(rng, size) for _ in range(int(rng.integers(1, 4)))]
    hidden = int(rng.integers(len(boxes)))
    values = [_sample(rng, graph, *box) for box in boxes]
    margin = float(rng.choice(MARGINS))
    clauses: list[tuple[int, list[tuple[int, int, float]]]] = []
    point = np.zeros(size)
    for b, (points, outputs) in enumerate(values):
        count = int(rng.integers(1, 4))
        target = int(rng.integers(count)) if b == hidden else -1
        for k in range(count):
            literals, place = _clause(rng, outputs, margin if k == target else -OUT_OF_REACH)
            if k == target:
                point = points[place]
            clauses.append((b, literals))
    asked = query(graph, boxes, clauses)
    return Instance(asked, _impossible(asked, values), point, margin)


def _box(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ends are float32 numbers; some inputs do not vary."""
    centre, radius = rng.normal(size=size), rng.random(size) * rng.choice([0.05, 0.3, 1.0])
    radius[rng.random(size) < 0.1] = 0
    ends = np.sort(np.stack([centre - radius, centre + radius]).astype(np.float32), axis=0)
    return ends[0], ends[1]


def _sample(
    rng: np.random.Generator, graph: Graph, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 points of the box (corners, and points inside) and the outputs there."""
    share = np.concatenate([rng.integers(0, 2, (64, lower.size)), rng.random((192, lower.size))])
    points = (lower + (upper - lower) * share.astype(np.float32)).astype(np.float32)
    points = np.clip(points, lower, upper)
    return points, graph.evaluate(torch.from_numpy(points).double())[0].numpy()


def _clause(rng: np.random.Generator, outputs: np.ndarray, margin: float) -> tuple[list[tuple[int, int, float]], int]:
    """Literals (form, sign, threshold) that one sampled point fulfils by ``margin`` of the scale; that point.

    With a negative margin none of the samples does, by as much.
    """
    scale = np.abs(outputs).max() if margin > 0 else np.ptp(outputs, axis=0).max()
    forms = outputs.shape[1]
    kinds = [(f, s) for f in range(forms) for s in (1, -1)]
    chosen = [kinds[i] for i in rng.permutation(len(kinds))[: int(rng.integers(1, 4))]]
    weights = rng.random(len(chosen)) + 0.05
    signed = np.stack([s * outputs[:, f] for f, s in chosen], axis=1)
    place = int((signed @ weights).argmin()) if margin < 0 or rng.random() < 0.7 else int(rng.integers(len(outputs)))
    return [(f, s, float(signed[place, k] + margin * scale)) for k, (f, s) in enumerate(chosen)], place


def query(
    graph: Graph, boxes: list[tuple[np.ndarray, np.ndarray]], clauses: list[tuple[int, list[tuple[int, int, float]]]]
) -> Query:
    """A query by hand: float32 boxes, and clauses (box, literals (form, sign, threshold)) in the order of the boxes."""
    literals = [literal for _, clause in clauses for literal in clause]
    lower, upper = (np.stack([box[k] for box in boxes]) for k in (0, 1))
    owners = np.array([b for b, _ in clauses])
    cases = Cases(
        lower=lower.astype(np.float64),
        upper=upper.astype(np.float64),
        inner_lower=lower,
        inner_upper=upper,
        varying=lower < upper,
        clauses_of=np.searchsorted(owners, np.arange(len(boxes) + 1)),
        literals_of=np.cumsum([0] + [len(clause) for _, clause in clauses]),
        form=np.array([f for f, _, _ in literals]),
        sign=np.array([s for _, s, _ in literals]),
        threshold=np.array([t for _, _, t in literals]),
        strict=np.zeros(len(literals), dtype=bool),
    )
    none = np.zeros(0, dtype=np.int64)
    nothing = Specification((), *[none] * 8, forms=(), inputs=(), outputs=())  # nothing is replayed here
    return Query(graph, cases, nothing, b"")


def _impossible(query: Query, values: list[tuple[np.ndarray, np.ndarray]]) -> Query:
    """Every literal below all samples of its box by ``OUT_OF_REACH`` of their spread."""
    cases = query.cases
    box = np.repeat(np.arange(len(values)), np.diff(cases.literals_of[cases.clauses_of]))
    threshold = cases.threshold.copy()
    for k, (b, form, sign) in enumerate(zip(box, cases.form, cases.sign, strict=True)):
        signed = sign * values[b][1][:, form]
        threshold[k] = signed.min() - OUT_OF_REACH * (np.ptp(signed) + 1e-3 * np.abs(signed).max()) - 1e-6
    return replace(query, cases=replace(cases, threshold=threshold))


def gate(  # noqa: PLR0913 - which instances, and how hard an engine tries
    engine: Engine,
    seed: int,
    count: int,
    budget: Budget | None = None,
    twins: int = 3,
    first: int = 0,
    dense: bool = False,
) -> Counter[str]:
    """Run an engine on planted instances; raises ``FalseRefutationError`` where it refutes one.

    Returns how many it left open, and how many of every ``twins``-th impossible twin it refuted and left open.
    """
    budget = Budget() if budget is None else budget
    counts: Counter[str] = Counter()
    with torch.no_grad():
        for k, one in enumerate(instances(seed, count, first, dense), first):
            if engine(one.query, budget):
                raise FalseRefutationError(f"instance {k} of seed {seed}: {one.point} fulfils it by {one.margin:g}")
            counts["planted, open"] += 1
            if k % twins:
                continue
            counts["impossible, refuted" if engine(one.impossible, budget) else "impossible, open"] += 1
    return counts


@dataclass(frozen=True, slots=True)
class Part:
    """``count`` instances of a seed from ``first`` on for one engine."""

    engine: str
    seed: int
    first: int
    count: int
    budget: Budget
    dense: bool = False


def work(part: Part) -> dict[str, object]:
    """A part's counts, or what was refuted falsely (``false``), in a process of its own or in this one."""
    torch.set_num_threads(1)
    start, line = time.monotonic(), asdict(part)
    try:
        counts = gate(ENGINES[part.engine], part.seed, part.count, part.budget, first=part.first, dense=part.dense)
    except (FalseRefutationError, UnprovedError) as error:
        return line | {"false": str(error), "counts": {}, "took": time.monotonic() - start}
    return line | {"counts": dict(counts), "took": time.monotonic() - start}


def parts(names: Iterable[str], seed: int, count: int, budget: Budget, dense: bool = False) -> list[Part]:
    """What there is to do: all engines look at the first instances, then at the next ones."""
    return [Part(n, seed, k, min(PART, count - k), budget, dense) for k in range(0, count, PART) for n in names]


def run(todo: list[Part], jobs: int, out: Path | None, resume: bool) -> list[dict[str, object]]:
    """The lines of all parts: those that the file has, then the others as they come, each written at once."""
    lines: list[dict[str, object]] = []
    if resume and out is not None and out.exists():
        lines = [json.loads(text) for text in out.read_text(encoding="utf-8").splitlines()]
    elif out is not None:
        out.write_text("", encoding="utf-8")
    known = [{key: value for key, value in line.items() if key in Part.__slots__} for line in lines]
    wanted = [asdict(part) for part in todo]
    lines = [line for line, of in zip(lines, known, strict=True) if of in wanted]
    rest = [part for part, of in zip(todo, wanted, strict=True) if of not in known]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for line in pool.map(work, rest) if jobs > 1 else map(work, rest):
            lines.append(line)
            if "false" in line:
                print(f"FALSE UNSAT by {line['engine']}: {line['false']}", flush=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    return lines


def main() -> None:
    """Print the counts of every engine; exit code 1 where one refuted a planted instance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0, help="for an engine on one query (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.jsonl", help="a line for each part that is done")
    parser.add_argument("--resume", action="store_true", help="run only the parts that the file does not have")
    parser.add_argument("--dense", action="store_true", help="networks of ReLUs alone")
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append")
    options = parser.parse_args()
    names = options.engine or list(ENGINES)
    todo = parts(names, options.seed, options.count, Budget(options.rounds, options.seconds), options.dense)
    lines = run(todo, options.jobs, options.out, options.resume)
    for name in names:
        mine = [line for line in lines if line["engine"] == name]
        counts: Counter[str] = Counter()
        for line in mine:
            counts.update(line["counts"])  # type: ignore[call-overload] - as read from the file
        text = ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))
        print(f"{name:26} {text}, false {sum('false' in line for line in mine)} "
              f"({sum(float(str(line['took'])) for line in mine):.0f} s)", flush=True)
    sys.exit(any("false" in line for line in lines))


if __name__ == "__main__":
    main()
