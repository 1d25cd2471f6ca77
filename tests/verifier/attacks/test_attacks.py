"""Candidates are in their box, in the model's dtype, and true in torch; planted counterexamples are found."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from verifier.attacks.clauses import ClauseArrays
from verifier.attacks.descent import Places, diversify
from verifier.attacks.plan import AttackPlan
from verifier.attacks.pool import Pool
from verifier.attacks.search import candidates, cost
from verifier.query import Cases, Query, Specification

Clause = list[tuple[int, int, float, bool]]  # form, sign, threshold (already times sign), strict


def network(inputs: int, hidden: int, layers: int, outputs: int, seed: int) -> Graph:
    g = torch.Generator().manual_seed(seed)
    builder = Builder()
    x, width = builder.input((inputs,)), inputs
    for _ in range(layers):
        weight = builder.constant((torch.randn(width, hidden, generator=g) * (2 / width) ** 0.5).float())
        bias = builder.constant((torch.randn(hidden, generator=g) * 0.1).float())
        x, width = builder.add(Relu(), builder.add(Gemm(), x, weight, bias)), hidden
    weight = builder.constant((torch.randn(width, outputs, generator=g) / width**0.5).float())
    return builder.finish([builder.add(Gemm(), x, weight, builder.constant(torch.zeros(outputs)))])


def identity(n: int, scale: float = 1.0) -> Graph:
    builder = Builder()
    x = builder.input((n,))
    return builder.finish([builder.add(Gemm(), x, builder.constant(torch.eye(n) * scale))])


def query(graph: Graph, lower: np.ndarray, upper: np.ndarray, cases: list[list[Clause]]) -> Query:
    """``cases[m]``: the clauses of box m, whose ends are ``lower[m]``, ``upper[m]`` in the model's dtype."""
    clauses = [clause for box in cases for clause in box]
    literals = [literal for clause in clauses for literal in clause]
    arrays = Cases(
        lower=lower.astype(np.float64),
        upper=upper.astype(np.float64),
        inner_lower=lower,
        inner_upper=upper,
        varying=lower < upper,
        clauses_of=np.cumsum([0] + [len(box) for box in cases]),
        literals_of=np.cumsum([0] + [len(clause) for clause in clauses]),
        form=np.array([t[0] for t in literals], dtype=np.int64),
        sign=np.array([t[1] for t in literals], dtype=np.int64),
        threshold=np.array([t[2] for t in literals], dtype=np.float64),
        strict=np.array([t[3] for t in literals], dtype=bool),
    )
    empty = np.zeros(0, dtype=np.int64)
    nothing = Specification((), empty, empty, empty, empty, empty, empty, empty, empty, (), (), ())
    return Query(graph, arrays, nothing, b"")


def true_in(query: Query, x: torch.Tensor) -> list[int]:
    """The clauses that are true at a point, by a plain loop."""
    (forms,) = query.graph.to(x.dtype).evaluate(x.unsqueeze(0))
    c = query.cases
    found = []
    for m in range(len(c.clauses_of) - 1):
        point = x.numpy()
        if not ((c.inner_lower[m] <= point) & (point <= c.inner_upper[m])).all():
            continue
        for k in range(c.clauses_of[m], c.clauses_of[m + 1]):
            run = range(c.literals_of[k], c.literals_of[k + 1])
            values = [c.sign[i] * float(forms[0, c.form[i]]) - c.threshold[i] for i in run]
            if all(v < 0 or (v == 0 and not c.strict[i]) for v, i in zip(values, run, strict=True)):
                found.append(k)
    return found


def first(query: Query, plan: AttackPlan | None = None, **options: object) -> torch.Tensor | None:
    return next(candidates(query, plan or AttackPlan(), **options), None)  # type: ignore[arg-type]


def unit_box(boxes: int, n: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    return np.full((boxes, n), -1, dtype), np.full((boxes, n), 1, dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(0, 12))
def test_margins_equal_exact_arithmetic(seed: int, forms: int, clauses: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = 3
    cases: list[list[Clause]] = [[] for _ in range(boxes)]
    for _ in range(clauses):
        literals = [
            (int(rng.integers(forms)), int(rng.choice([-1, 1])), float(rng.integers(-2, 3)) / 4, bool(rng.integers(2)))
            for _ in range(rng.integers(0, 4))
        ]
        cases[int(rng.integers(boxes))].append(literals)
    q = query(identity(forms), *unit_box(boxes, forms), cases)
    arrays = ClauseArrays.of(q.cases)
    assert arrays.size == clauses
    values = torch.from_numpy(rng.integers(-4, 5, (clauses, forms)) / np.float32(4)).float()
    flat = [clause for box in cases for clause in box]
    truth = []
    for k, clause in enumerate(flat):
        exact = [(s * Fraction(float(values[k, f])) - Fraction(t), strict) for f, s, t, strict in clause]
        truth.append(all(v < 0 or (v == 0 and not strict) for v, strict in exact))
        expected = max((float(v) for v, _ in exact), default=-math.inf)
        assert float(arrays.margin(values[k : k + 1], torch.tensor([k]))) == pytest.approx(expected, abs=1e-12)
    assert arrays.satisfied(values, torch.arange(clauses)).tolist() == truth
    for first_clause in range(0, clauses, 5):
        last = min(first_clause + 5, clauses)
        count = len(torch.unique_consecutive(arrays.box[first_clause:last]))
        points = values[:1].expand(count, -1).repeat(2, 1, 1)
        table = arrays.table(points, first_clause, last)
        plain = arrays.margin(values[:1].expand(last - first_clause, -1), torch.arange(first_clause, last))
        assert torch.equal(table, plain.expand(2, -1))


def test_a_choice_of_clauses_keeps_their_numbers_and_boxes() -> None:
    cases: list[list[Clause]] = [[[(0, 1, 0.0, False)], []], [], [[(1, 1, 1.0, False), (0, -1, 2.0, True)]]]
    arrays = ClauseArrays.of(query(identity(2), *unit_box(3, 2), cases).cases, np.array([2, 0]))
    assert arrays.clause.tolist() == [0, 2]
    assert arrays.box.tolist() == [0, 2]
    assert arrays.start.tolist() == [0, 1, 3]
    assert arrays.form.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match=r"0\.\.2"):
        ClauseArrays.of(query(identity(2), *unit_box(3, 2), cases).cases, np.array([3]))


@pytest.mark.parametrize("summed", [False, True])
def test_slope_is_the_derivative_of_the_objective(summed: bool) -> None:
    cases: list[list[Clause]] = [[[(0, 1, -0.5, False), (1, -1, -0.25, False), (0, -1, -3.0, False)]]]
    arrays = ClauseArrays.of(query(identity(2), *unit_box(1, 2), cases).cases)
    targets = arrays.targets(torch.zeros(5, dtype=torch.int64))
    forms = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = targets.values(forms)
    slope = targets.slope(values, targets.margin(values), torch.full((5,), summed), 0.0, 2)

    def objective(forms: torch.Tensor) -> torch.Tensor:
        values = targets.values(forms).view(5, 3)
        return values.clamp(min=0).sum(1) if summed else values.amax(1)

    for column in range(2):
        moved = forms.clone()
        moved[:, column] += 1e-6
        assert torch.allclose((objective(moved) - objective(forms)) / 1e-6, slope[:, column], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([np.float32, np.float64]))
def test_candidates_are_in_their_box_and_true(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    n, boxes = int(rng.integers(1, 8)), int(rng.integers(1, 5))
    graph = network(n, 8, 2, 3, seed % 1000)
    middle = rng.normal(size=(boxes, n)) * 10.0 ** rng.integers(-6, 3, (boxes, n))
    width = 10.0 ** rng.integers(-8, 2, (boxes, n)) * (rng.random((boxes, n)) < 0.7)
    lower, upper = (middle - width).astype(dtype), (middle + width).astype(dtype)
    cases: list[list[Clause]] = []
    for m in range(boxes):
        inside = torch.from_numpy(lower[m] + rng.random(n).astype(dtype) * (upper[m] - lower[m]))
        inside = inside.clamp(torch.from_numpy(lower[m]), torch.from_numpy(upper[m]))
        value = graph.to(inside.dtype).evaluate(inside.unsqueeze(0))[0][0]
        slack = 0.05 * (1 + value.abs())
        cases.append([[(f, s, float(s * value[f] + slack[f]), bool(rng.integers(2))) for f, s in ((0, 1), (1, -1))]])
    q = query(graph, lower, upper, cases)
    found = first(q)
    assert found is not None
    assert found.dtype == torch.from_numpy(lower).dtype
    for x in found:
        assert true_in(q, x)


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_corner_of_a_wide_network_is_found(seed: int) -> None:
    n = 200
    graph = network(n, 64, 2, 10, seed)
    lower, upper = np.zeros((1, n), np.float32), np.full((1, n), 0.3, np.float32)
    g = torch.Generator().manual_seed(seed)
    samples = graph.to(torch.float32).evaluate(torch.rand(2000, n, generator=g) * 0.3)[0]
    # Ten spreads beyond the best of 2000 random points: only a directed search gets there.
    difference = samples[:, 1] - samples[:, 0]
    goal = float(difference.min() - 4 * difference.std())
    builder = Builder()
    (node,) = builder.embed(graph, [builder.input((n,))])
    rows = torch.zeros(10, 1)
    rows[1], rows[0] = 1, -1
    form = builder.finish([builder.add(Gemm(), node, builder.constant(rows))])
    q = query(form, lower, upper, [[[(0, 1, goal, False)]]])
    found = first(q)
    assert found is not None
    assert true_in(q, found[0])


def test_one_open_clause_among_many_boxes() -> None:
    boxes, n = 3000, 3
    rng = np.random.default_rng(0)
    middle = rng.random((boxes, n)).astype(np.float32)
    lower, upper = middle - np.float32(0.01), middle + np.float32(0.01)
    cases: list[list[Clause]] = [[[(0, 1, float(lower[m, 0]) - 0.5, False)]] for m in range(boxes)]
    # Only the last tenth of the width of one coordinate fulfils both literals.
    cases[1234] = [[(0, 1, float(middle[1234, 0]) - 0.009, False), (1, -1, -float(middle[1234, 1]) - 0.009, True)]]
    q = query(identity(n), lower, upper, cases)
    found = first(q)
    assert found is not None
    assert true_in(q, found[0]) == [1234]
    rest = np.delete(np.arange(boxes), 1234)
    assert first(q, indices=rest) is None


def test_a_corner_that_random_points_miss() -> None:
    n = 40
    builder = Builder()
    total = builder.add(Gemm(), builder.input((n,)), builder.constant(torch.ones(n, 1)))
    q = query(builder.finish([total]), *unit_box(1, n), [[[(0, 1, 1.0 - n, False), (0, -1, float(n), False)]]])
    found = first(q, AttackPlan(probes=3, stages=0))
    assert found is not None
    assert float(found[0].sum()) <= 1 - n


def test_strict_literals_exclude_equality() -> None:
    lower = upper = np.full((1, 1), 0.5, np.float32)
    assert first(query(identity(1), lower, upper, [[[(0, 1, 0.5, False)]]])) is not None
    assert first(query(identity(1), lower, upper, [[[(0, 1, 0.5, True)]]])) is None


def test_half_precision_is_searched_in_single_precision() -> None:
    lower, upper = np.full((1, 3), 0.1, np.float16), np.full((1, 3), 0.3, np.float16)
    q = query(identity(3), lower, upper, [[[(0, -1, -0.299, False), (1, 1, 0.101, False)]]])
    found = first(q)
    assert found is not None and found.dtype == torch.float16
    assert all(true_in(q, x.to(torch.float32)) for x in found)


def test_empty_boxes_and_clauses_without_literals() -> None:
    lower, upper = np.array([[1.0], [0.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    assert first(query(identity(1), lower, upper, [[[]], []])) is None
    found = first(query(identity(1), lower, upper, [[], [[]]]))
    assert found is not None and 0 <= float(found[0]) <= 1
    assert first(query(identity(1), lower, upper, [[], []])) is None


def test_asking_again_demands_more() -> None:
    # The centre is just true; a refusal of it must lead on to points that are true by more.
    q = query(identity(2), *unit_box(1, 2), [[[(0, 1, 0.0, False), (1, -1, 0.0, False)]]])
    margins = [
        float(torch.maximum(points[:, 0], -points[:, 1]).min())
        for points in islice(candidates(q, AttackPlan(probes=1)), 4)
    ]
    assert len(margins) >= 2
    assert margins[0] == 0
    assert all(later < earlier for earlier, later in pairwise(margins))


def test_deterministic_and_without_global_randomness() -> None:
    lower, upper = unit_box(1, 6)
    graph = network(6, 16, 3, 2, 5)
    value = graph.to(torch.float32).evaluate(torch.zeros(1, 6))[0]
    q = query(graph, lower, upper, [[[(0, 1, float(value[0, 0]) - 0.5, False)]]])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    runs = [first(q, AttackPlan(probes=1)) for _ in range(2)]
    assert torch.equal(state, torch.get_rng_state())
    assert runs[0] is not None and runs[1] is not None
    assert torch.equal(runs[0], runs[1])


def test_the_deadline_ends_the_search() -> None:
    lower, upper = unit_box(1, 5)
    q = query(network(5, 64, 4, 2, 0), lower, upper, [[[(0, 1, -1e6, False)]]])
    assert first(q, deadline=time.monotonic() - 1) is None
    begin = time.monotonic()
    assert first(q, AttackPlan(rounds=10**6), deadline=begin + 0.3) is None
    assert 0.3 <= time.monotonic() - begin < 1.5


def test_a_network_that_overflows_or_ignores_its_input() -> None:
    lower, upper = unit_box(1, 2)
    assert first(query(identity(2, 3e38), lower * 10, upper * 10, [[[(0, 1, -math.inf, True)]]])) is None
    builder = Builder()
    x = builder.input((2,))
    weight, bias = builder.constant(torch.zeros(2, 1)), builder.constant(torch.ones(1))
    flat = builder.finish([builder.add(Gemm(), x, weight, bias)])
    assert first(query(flat, lower, upper, [[[(0, 1, 0.5, False)]]])) is None
    assert first(query(flat, lower, upper, [[[(0, 1, 1.0, False)]]])) is not None


def test_diversified_points_stay_in_the_box() -> None:
    lower = torch.tensor([[0.0, 0.25, -1.0]]).repeat(7, 1)
    upper = torch.tensor([[0.1, 0.25, 1.0]]).repeat(7, 1)
    places = Places(lower, lower, upper).centre()
    moved = diversify(network(3, 8, 1, 2, 0).to(torch.float32), places, 3, torch.Generator().manual_seed(0)).x
    assert bool(((moved >= lower) & (moved <= upper)).all())
    assert bool((moved != places.x).any())


def test_pool_keeps_the_best_point_of_each_clause() -> None:
    index = torch.tensor([4, 2, 4, 7, 2])
    margin = torch.tensor([3.0, 1.0, 0.5, 2.0, 1.0], dtype=torch.float64)
    pool = Pool.of(index, margin, torch.arange(5.0).unsqueeze(1), 2)
    assert pool.index.tolist() == [4, 2]
    assert pool.x.flatten().tolist() == [2, 1]
    pool = pool.with_points(torch.tensor([7]), torch.tensor([-1.0], dtype=torch.float64), torch.tensor([[9.0]]), 3)
    assert pool.index.tolist() == [7, 4, 2]


def test_cost_counts_multiply_adds() -> None:
    work, elements = cost(network(10, 20, 1, 5, 0))
    assert 10 * 20 + 20 * 5 <= work <= 3 * (10 * 20 + 20 * 5)
    assert elements == 1 + 10 + 20 + 20 + 5


@pytest.mark.parametrize("options", [{"rounds": 0}, {"stages": -1}, {"longest": 0.1, "shortest": 0.2}, {"decay": 1.5}])
def test_a_plan_checks_itself(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="AttackPlan"):
        AttackPlan(**options)  # type: ignore[arg-type]
