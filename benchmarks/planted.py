"""Planted truth: random queries with a hidden counterexample that no engine may refute.

    PYTHONPATH=.:benchmarks python -P benchmarks/planted.py --count 2000 --seed 0

(``-P``, because a script beside it is called like the package ``bounds``.)

Each query has a random network, one to three boxes with one to three clauses each, and a point of one box that
fulfils one clause by a relative margin of 1e-2 down to 1e-6 of the outputs' scale. Half of the points are the least
found of many, so that little else of the box is a counterexample. Nothing searches for the point: the engines that
prove are run alone, for some rounds each, and ``unsat`` from any of them is an error. So that the gate cannot pass by
never refuting, the same queries are asked again with thresholds out of reach, and refutations are counted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from random_networks import Scales, random_graph

from bounds.graph import Graph
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem, Step
from verifier.branch.root import refine, screen
from verifier.query import Cases, Query
from verifier.strategy import AscentPlan, SplitPlan

MARGINS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
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


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one engine on one query (rounds alone give the same result whatever else the machine does)."""

    rounds: int = 20
    seconds: float = 1.0


Engine = Callable[[Query, Budget], bool]
"""Whether a query was refuted within a budget."""


def instances(seed: int, count: int) -> Iterator[Instance]:
    """``count`` instances; equal seeds give equal ones."""
    for k in range(count):
        yield instance(np.random.default_rng([seed, k]))


def instance(rng: np.random.Generator) -> Instance:
    """One random instance."""
    weight, cancel = float(rng.choice([0.5, 1.0, 2.0])), rng.random() < 0.1
    jumps, products, waves = (bool(b) for b in rng.random(3) < 0.25)
    graph = random_graph(rng, Scales(weight, cancel=cancel, jumps=jumps, products=products, waves=waves))
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
    return Query(graph, cases, None, b"")  # type: ignore[arg-type] - nothing is replayed here


def _impossible(query: Query, values: list[tuple[np.ndarray, np.ndarray]]) -> Query:
    """Every literal below all samples of its box by ``OUT_OF_REACH`` of their spread."""
    cases = query.cases
    box = np.repeat(np.arange(len(values)), np.diff(cases.literals_of[cases.clauses_of]))
    threshold = cases.threshold.copy()
    for k, (b, form, sign) in enumerate(zip(box, cases.form, cases.sign, strict=True)):
        signed = sign * values[b][1][:, form]
        threshold[k] = signed.min() - OUT_OF_REACH * (np.ptp(signed) + 1e-3 * np.abs(signed).max()) - 1e-6
    return replace(query, cases=replace(cases, threshold=threshold))


# Engines ------------------------------------------------------------------------------------------------------------


def _exact(query: Query, dtype: torch.dtype = torch.float64) -> Plan:
    return prepare(query.graph, dtype, rounding=Rounding.of(dtype))


def _limited(steps: Iterable[Step], budget: Budget) -> bool:
    """Whether the last step within the budget has nothing open."""
    end, left = time.monotonic() + budget.seconds, 0
    for step in itertools.islice(steps, budget.rounds):
        left = step.open_subproblems
        if time.monotonic() > end:
            break
    return left == 0


def screened(query: Query, budget: Budget) -> bool:
    """Bounds of whole boxes."""
    return not [task for _, part in screen(Problem.of(query), _exact(query)) for task in part.open]


def input_split(query: Query, budget: Budget) -> bool:
    """Input splits in float32, then float64 where rounding alone keeps a box open."""
    plans = (_exact(query, torch.float32), _exact(query))
    return _limited(InputSplit(Problem.of(query), plans, SplitPlan(batch=64, fill=16)).run(), budget)


def input_split_float64(query: Query, budget: Budget) -> bool:
    """Input splits in float64 alone."""
    return _limited(InputSplit(Problem.of(query), (_exact(query),), SplitPlan(batch=64, fill=16)).run(), budget)


def input_split_forward(query: Query, budget: Budget) -> bool:
    """Input splits with forward linear bounds before backward ones."""
    plans = (_exact(query, torch.float32), _exact(query))
    return _limited(InputSplit(Problem.of(query), plans, SplitPlan(batch=64, fill=16, forward=True)).run(), budget)


def input_split_forward_alone(query: Query, budget: Budget) -> bool:
    """Input splits with forward linear bounds alone."""
    plans = (_exact(query, torch.float32), _exact(query))
    options = SplitPlan(batch=64, fill=16, forward=True, backward=False)
    return _limited(InputSplit(Problem.of(query), plans, options).run(), budget)


def _activations(query: Query, budget: Budget, refinement: int, candidates: int = 3) -> bool:
    options = AscentPlan(root_steps=8, steps=4, last_steps=20, batch=32, candidates=candidates)
    problem, plans = Problem.of(query), (prepare(query.graph, torch.float32), _exact(query))
    for task in [found for _, part in screen(problem, plans[1]) for found in part.open]:
        refined = refine(problem, plans, task, refinement, float("inf"))
        if not _limited(ActivationSplit(problem, plans, refined, options).run(), budget):
            return False
    return True


def activation_split(query: Query, budget: Budget) -> bool:
    """Activation splits over plain root bounds."""
    return _activations(query, budget, 0)


def activation_split_refined(query: Query, budget: Budget) -> bool:
    """Activation splits over ascended root bounds."""
    return _activations(query, budget, 3)


def activation_split_by_score(query: Query, budget: Budget) -> bool:
    """Activation splits chosen by the intercept score alone."""
    return _activations(query, budget, 0, candidates=0)


ENGINES: Mapping[str, Engine] = {
    f.__name__: f
    for f in (
        screened,
        input_split,
        input_split_float64,
        input_split_forward,
        input_split_forward_alone,
        activation_split,
        activation_split_refined,
        activation_split_by_score,
    )
}


def gate(engine: Engine, seed: int, count: int, budget: Budget | None = None, twins: int = 3) -> Counter[str]:
    """Run an engine on planted instances; raises ``FalseRefutationError`` where it refutes one.

    Returns how many it left open, and how many of every ``twins``-th impossible twin it refuted and left open.
    """
    budget = Budget() if budget is None else budget
    counts: Counter[str] = Counter()
    with torch.no_grad():
        for k, one in enumerate(instances(seed, count)):
            if engine(one.query, budget):
                raise FalseRefutationError(f"instance {k} of seed {seed}: {one.point} fulfils it by {one.margin:g}")
            counts["planted, open"] += 1
            if k % twins:
                continue
            counts["impossible, refuted" if engine(one.impossible, budget) else "impossible, open"] += 1
    return counts


def main() -> None:
    """Print the counts of every engine; exit code 1 where one refuted a planted instance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engine", choices=sorted(ENGINES), action="append")
    options = parser.parse_args()
    wrong = False
    for name in options.engine or ENGINES:
        start = time.monotonic()
        try:
            counts = gate(ENGINES[name], options.seed, options.count, Budget(options.rounds))
            line = ", ".join(f"{what} {n}" for what, n in sorted(counts.items()))
        except FalseRefutationError as error:
            wrong, line = True, f"FALSE UNSAT: {error}"
        print(f"{name:26} {line} ({time.monotonic() - start:.0f} s)", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
