"""Children cover their parents; literals of many boxes and clauses equal a plain evaluation one by one."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.frontier import Subproblems
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import MOST_CLAUSES, Literals, Problem, outward
from verifier.query import Query
from verifier.strategy import SplitPlan

D = torch.float64
Clauses = list[tuple[int, list[tuple[int, int, float]]]]


def query_of(planted: ModuleType, size: int, forms: int, boxes: list, clauses: Clauses) -> Query:
    build = Builder()
    weight = torch.from_numpy(np.random.default_rng(0).normal(size=(size, forms)))
    graph = build.finish([build.add(Gemm(), build.input((size,)), build.constant(weight))])
    return planted.query(graph, boxes, clauses)


def search_of(query: Query) -> InputSplit:
    plan = prepare(query.graph, D, rounding=Rounding.of(D))
    return InputSplit(Problem.of(query), (plan,), SplitPlan(batch=64, fill=4))


@pytest.mark.parametrize("seed", range(20))
def test_children_cover_and_shrink(planted: ModuleType, seed: int) -> None:
    """Twelve bisections in a row: the two children share the cut, are smaller, and leave no gap; widths may be zero,
    a few units in the last place, or of very different sizes."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=4).astype(np.float32)
    radius = rng.choice([0.0, 1e-7, 1e-3, 10.0], size=4).astype(np.float32)
    box = (centre - radius, centre + radius)
    search = search_of(query_of(planted, 4, 1, [box], [(0, [(0, 1, 0.0)])]))
    parents = search.bounds.start()
    for _ in range(12):
        scores = torch.from_numpy(rng.random(tuple(parents.lower.shape)))
        children, _, still = search._bisect(parents, scores)
        assert children.size == 2 * (parents.size - still.size)
        stuck = {tuple(row) for row in torch.cat([still.lower, still.upper], 1).tolist()}
        split = [
            k
            for k in range(parents.size)
            if tuple(torch.cat([parents.lower[k], parents.upper[k]]).tolist()) not in stuck
        ]
        assert len(split) * 2 == children.size
        for at, k in enumerate(split):
            check_pair(parents, children, k, (at, at + len(split)), rng)
        for low, high, place in zip(still.lower, still.upper, still.task, strict=True):
            varying = search.problem.varying[search.problem.box[place]][search.free]
            middle = (low + high) / 2
            assert not bool((varying & (middle > low) & (middle < high)).any())
        if not children.size:
            break
        parents = children.take(torch.from_numpy(rng.permutation(children.size)[:16]))


def check_pair(
    parents: Subproblems, children: Subproblems, k: int, pair: tuple[int, int], rng: np.random.Generator
) -> None:
    low, high = parents.lower[k], parents.upper[k]
    (a, b), (c, d) = ((children.lower[i], children.upper[i]) for i in pair)
    moved = (b != high).nonzero().flatten()
    assert len(moved) == 1 and torch.equal(moved, (c != low).nonzero().flatten())
    assert torch.equal(a, low) and torch.equal(d, high)
    assert low[moved] < b[moved] == c[moved] < high[moved]
    points = low + (high - low) * torch.from_numpy(rng.random((20, low.shape[0])))
    inside = ((points >= a) & (points <= b)).all(1) | ((points >= c) & (points <= d)).all(1)
    assert bool(inside.all())
    assert float(children.share[pair[0]] + children.share[pair[1]]) == float(parents.share[k])


def random_clauses(rng: np.random.Generator, boxes: int, forms: int) -> Clauses:
    clauses: Clauses = []
    for box in range(boxes):
        for _ in range(int(rng.choice([0, 1, 2, 5, MOST_CLAUSES + 7], p=[0.1, 0.3, 0.3, 0.2, 0.1]))):
            count = int(rng.integers(0, 4))
            clauses.append(
                (box, [(int(rng.integers(forms)), int(rng.choice([-1, 1])), float(rng.normal())) for _ in range(count)])
            )
    return [*clauses, (boxes - 1, [(0, 1, 0.0)])]


@pytest.mark.parametrize("seed", range(25))
def test_slack_and_margins_equal_a_plain_evaluation(planted: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, forms = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    clauses = random_clauses(rng, count, forms)
    boxes = [(np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32))] * count
    problem = Problem.of(query_of(planted, 2, forms, boxes, clauses))
    task = torch.from_numpy(rng.permutation(np.repeat(np.arange(problem.tasks), 2))[: problem.tasks + 1])
    literals = Literals.of(problem, task)
    bounds = torch.from_numpy(rng.normal(size=(len(task), len(literals.columns))))
    alive = (problem.clauses[task] >= 0) & torch.from_numpy(rng.random((len(task), problem.clauses.shape[1])) < 0.8)
    slack = literals.slack(bounds)
    margins = literals.margins(slack, alive)
    seen = set()
    for k, which in enumerate(task.tolist()):
        lower = {
            (int(problem.form[c]), int(problem.sign[c])): float(bounds[k, j]) for j, c in enumerate(literals.columns)
        }
        for c, clause in enumerate(problem.clauses[which].tolist()):
            if clause < 0 or not bool(alive[k, c]):
                assert float(margins[k, c]) == np.inf
                continue
            box, wanted = clauses[clause]
            assert box == int(problem.box[which])
            expected = [lower[form, sign] - threshold for form, sign, threshold in wanted]
            assert slack[k, c, : len(expected)].tolist() == expected
            assert bool((slack[k, c, len(expected) :] == -np.inf).all())
            assert float(margins[k, c]) == max(expected, default=-np.inf)
            seen.add(clause)
    # Together the tasks hold every clause of every box once.
    kept = problem.clauses[problem.clauses >= 0].tolist()
    assert sorted(kept) == list(range(len(clauses)))
    assert seen or not kept


def test_a_clause_without_literals_is_never_refuted(planted: ModuleType) -> None:
    box = (np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32))
    query = query_of(planted, 1, 1, [box], [(0, []), (0, [(0, 1, -100.0)])])
    for name, engine in planted.ENGINES.items():
        assert not engine(query, planted.Budget(rounds=5)), name
    alone = query_of(planted, 1, 1, [box], [(0, [(0, 1, -100.0)])])
    for name, engine in planted.ENGINES.items():
        assert engine(alone, planted.Budget(rounds=5)), name


def test_a_point_that_nothing_splits_stays_open(planted: ModuleType) -> None:
    """No input varies and rounding keeps the literal open: it is counted as stuck, never refuted."""
    point = np.array([1.0, 2.0], dtype=np.float32)
    query = query_of(planted, 2, 1, [(point, point)], [(0, [(0, 1, 0.0)])])
    value = query.graph.evaluate(torch.from_numpy(point).double()[None])[0].item()
    exactly = replace(query, cases=replace(query.cases, threshold=np.array([value])))
    steps = list(search_of(exactly).run())
    assert steps[-1].open_subproblems == steps[-1].stuck == 1


def test_boxes_in_float32_contain_the_given_ones(planted: ModuleType) -> None:
    query = query_of(planted, 2, 1, [(np.zeros(2, np.float32), np.ones(2, np.float32))], [(0, [(0, 1, 0.0)])])
    plan = prepare(query.graph, torch.float32, rounding=Rounding.of(torch.float32))
    rng = np.random.default_rng(0)
    ends = np.sort(rng.normal(size=(2, 500, 2)) * rng.choice([1e-42, 1.0, 1e30], size=(1, 500, 1)), axis=0)
    lower, upper = torch.from_numpy(ends[0]), torch.from_numpy(ends[1])
    box = outward(lower, upper, plan)
    assert box.lower.dtype == torch.float32
    assert bool((box.lower.double() <= lower).all() and (box.upper.double() >= upper).all())
    exact = outward(box.lower.double(), box.upper.double(), plan)
    assert torch.equal(exact.lower, box.lower) and torch.equal(exact.upper, box.upper)
