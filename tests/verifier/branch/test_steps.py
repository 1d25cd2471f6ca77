"""Searches a step at a time: a state is all that the rest of a search depends on, and the least value lies between the
two bounds that every step reports."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch

import verifier
from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.activation_stage import split_activations
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem, Step
from verifier.branch.root import refine, screen
from verifier.query import Query
from verifier.report.result import schema, verdict_record
from verifier.run import Run
from verifier.strategy import AscentPlan, SplitPlan, choose, features

D = torch.float64
DIGITS = Path(__file__).resolve().parents[3] / "benchmarks" / "digits"
Searched = InputSplit | ActivationSplit


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def network(seed: int) -> Graph:
    """Two inputs, two layers of eight ReLUs, two outputs."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((2,))
    for width in (8, 8, 2):
        weight, bias = (rng.normal(size=s).astype(np.float32) for s in ((build.shape(x)[0], width), width))
        x = build.add(Gemm(), x, build.constant(torch.from_numpy(weight)), build.constant(torch.from_numpy(bias)))
        x = build.add(Relu(), x) if width == 8 else x
    return build.finish([x])


def query_of(planted: ModuleType, graph: Graph, distance: float) -> Query:
    """Unsafe: an output is ``distance`` below the least value that it has on a grid; so the least value of the query is
    ``distance``, or a little less."""
    axis = torch.linspace(-1, 1, 201, dtype=D)
    least = graph.evaluate(torch.cartesian_prod(axis, axis))[0].amin(0)
    box = (np.full(2, -1, dtype=np.float32), np.full(2, 1, dtype=np.float32))
    query: Query = planted.query(graph, [box], [(0, [(k, 1, float(least[k]) - distance)]) for k in range(2)])
    return query


def by_inputs(query: Query) -> InputSplit:
    plans = tuple(prepare(query.graph, dtype, rounding=Rounding.of(dtype)) for dtype in (torch.float32, D))
    return InputSplit(Problem.of(query), plans, SplitPlan(batch=8, fill=1))


def by_activations(query: Query) -> ActivationSplit:
    problem = Problem.of(query)
    plans = (prepare(query.graph, torch.float32), prepare(query.graph, D, rounding=Rounding.of(D)))
    ((_, part),) = screen(problem, plans[1])
    task = refine(problem, plans, part.open[0], 0, 0.0)
    return ActivationSplit(problem, plans, task, AscentPlan(batch=4, steps=3, root_steps=3))


def same(one: list[Step], two: list[Step]) -> bool:
    return [(s.lower_bound, s.upper_bound, s.open_subproblems, s.refuted, s.least_margin) for s in one] == [
        (s.lower_bound, s.upper_bound, s.open_subproblems, s.refuted, s.least_margin) for s in two
    ]


@pytest.mark.parametrize("engine", [by_inputs, by_activations])
@pytest.mark.parametrize("seed", range(4))
def test_the_least_value_lies_between_the_bounds(
    planted: ModuleType, seed: int, engine: Callable[[Query], Searched]
) -> None:
    """The least value over a grid is at most 0.02 too large, and a search comes near it."""
    steps = list(engine(query_of(planted, network(seed), 0.3)).run())
    assert steps[-1].open_subproblems == 0 and len(steps) > 2
    for before, step in itertools.pairwise(steps):
        assert step.lower_bound <= 0 or not step.open_subproblems
        assert 0.28 <= step.upper_bound <= before.upper_bound
    assert steps[-1].upper_bound <= 0.35, "points near the least value were tried"


@pytest.mark.parametrize("engine", [by_inputs, by_activations])
def test_a_search_goes_on_from_a_state_where_it_was(planted: ModuleType, engine: Callable[[Query], Searched]) -> None:
    """Another search over the same query, given the state after three steps, takes the same further steps."""
    query = query_of(planted, network(0), 0.02)
    whole = list(engine(query).run())
    first = engine(query)
    state, steps = first.start(), []
    for _ in range(3):
        state, step = first.step(state)  # type: ignore[arg-type]
        steps.append(step)
    rest = list(engine(query).run(state))  # type: ignore[arg-type]
    assert len(rest) > 2 and same(whole, steps + rest)


def test_the_bound_is_of_all_boxes_not_only_of_the_one_at_hand(planted: ModuleType) -> None:
    """The first box is decided while the second waits, which has a point 4 below its threshold (none is replayed)."""
    one = query_of(planted, network(0), 0.3)
    ends = one.cases.lower[0].astype(np.float32), one.cases.upper[0].astype(np.float32)
    clauses = [(box, [(0, 1, float(one.cases.threshold[0]) + away)]) for box, away in ((0, 0.0), (1, 4.3))]
    query, seen = planted.query(one.graph, [ends] * 2, clauses), list[verifier.Progress]()

    def watch(progress: verifier.Progress) -> None:
        if progress.stage == "activation split" and progress.open_subproblems:
            seen.append(progress)
        if len(seen) > 2 and progress.open_share <= 0.5:
            raise KeyboardInterrupt

    plans = prepare(query.graph, torch.float32), prepare(query.graph, D, rounding=Rounding.of(D))
    replayer = SimpleNamespace(replay=lambda points: None)
    run = Run(query, Problem.of(query), *plans, choose(features(query)), replayer, 0.0, np.inf, report=watch)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        split_activations(run, None)
    assert max(progress.lower_bound for progress in seen) <= -3.9


def test_a_verdict_that_stays_open_names_both_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps as soon as a point was tried."""
    clock, late = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])

    def watch(progress: verifier.Progress) -> None:
        if progress.upper_bound < np.inf:
            late[0] = 1e6

    box = verifier.read(DIGITS / "digits.onnx", DIGITS / "robust.vnnlib").cases
    centre = ((box.lower[0] + box.upper[0]) / 2).astype(np.float32)
    query = verifier.robustness(DIGITS / "digits.onnx", centre, 0.1)
    verdict = verifier.verify(query, timeout=1e5, report=watch)
    assert isinstance(verdict, verifier.TimedOut)
    assert verdict.best_bound < 0 < verdict.upper_bound < 100
    recorded = verdict_record(verdict)
    jsonschema.validate(recorded, schema())
    assert float(recorded["lower_bound"]) < 0 < float(recorded["upper_bound"])
