"""Linear relaxations solved again and again: multipliers that prove what is said, whatever was asked before."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from milp import recheck
from milp.engine import Limits
from milp.model import Model, Solution, Status
from milp.simplex import Simplex

TOLERANCE = 1e-6


def proven(model: Model, found: Solution, lower: Tensor, upper: Tensor) -> bool:
    """Whether the multipliers alone prove the answer."""
    assert found.dual is not None and found.dual.shape == model.row_lower.shape
    if found.status is Status.INFEASIBLE:
        return recheck.refuted(model, found.dual, lower, upper)
    assert found.status is Status.OPTIMAL and found.x is not None and found.bound == found.value
    assert bool((found.x >= lower - TOLERANCE).all() and (found.x <= upper + TOLERANCE).all())
    assert float(model.cost @ found.x) + model.offset == pytest.approx(found.value, abs=TOLERANCE)
    bound = recheck.lower_bound(model, found.dual, lower, upper)
    return found.value - TOLERANCE <= bound <= found.value + TOLERANCE


def draws(model: Model, seed: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Column ends inside the model's, and costs: the model's own or others."""
    draw, columns = torch.Generator().manual_seed(seed), model.cost.shape[0]
    found = []
    for turn in range(count):
        lower, upper = model.lower.clone(), model.upper.clone()
        chosen = torch.randperm(columns, generator=draw)[:3]
        middle = torch.rand(3, generator=draw, dtype=torch.float64) * (upper - lower)[chosen] + lower[chosen]
        (lower if turn % 2 else upper)[chosen] = middle
        cost = torch.randn(columns, generator=draw, dtype=torch.float64) if turn % 3 == 0 else model.cost
        found.append((lower, upper, cost))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_every_answer_is_proven_by_its_multipliers(programs: ModuleType, seed: int) -> None:
    """And is what a solver says that starts afresh."""
    model = programs.random_program(seed)
    simplex, seen = Simplex(model), set()
    for lower, upper, cost in draws(model, seed, 16):
        found, priced = simplex.solve(lower, upper, cost), replace(model, cost=cost)
        assert proven(priced, found, lower, upper)
        fresh = programs.PlainSimplex(priced).solve(lower, upper)
        assert found.status is fresh.status
        assert found.value == pytest.approx(fresh.value, abs=TOLERANCE)
        seen.add(found.status)
    assert Status.OPTIMAL in seen


def test_some_of_them_are_infeasible(programs: ModuleType) -> None:
    count = 0
    for seed in range(25):
        model = programs.random_program(seed)
        simplex = Simplex(model)
        count += sum(simplex.solve(*d).status is Status.INFEASIBLE for d in draws(model, seed, 16))
    assert count > 20


def test_the_signs_of_multipliers(programs: ModuleType) -> None:
    """x + 2 y >= 3 at the least x + y; x + 2 y <= 3 at the most; a ray for each side that cannot be reached."""
    ends = tuple(torch.full((2,), end, dtype=torch.float64) for end in (0.0, 10.0))
    cost, row = torch.ones(2, dtype=torch.float64), torch.tensor([[1.0, 2.0]], dtype=torch.float64)

    def found(sign: float, low: float, high: float) -> Solution:
        sides = (torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64))
        return Simplex(programs.program(sign * cost, row, sides, ends)).solve()

    for sign, sides, value, dual in ((1.0, (3.0, math.inf), 1.5, 0.5), (-1.0, (-math.inf, 3.0), -3.0, -1.0)):
        answer = found(sign, *sides)
        assert answer.value == pytest.approx(value)
        assert answer.dual is not None and answer.dual.tolist() == pytest.approx([dual])
    above, below = found(1.0, 31.0, math.inf).dual, found(1.0, -math.inf, -1.0).dual
    assert above is not None and below is not None and float(above[0]) > 0 > float(below[0])


def test_calls_leave_nothing_behind(programs: ModuleType) -> None:
    """The same question has the same answer after others, also after one that had no time or no room."""
    model = programs.random_program(3)
    simplex = Simplex(model)
    first = simplex.solve()
    assert first.status is Status.OPTIMAL
    for lower, upper, cost in draws(model, 0, 6):
        simplex.solve(lower, upper, cost)
        simplex.solve(upper, lower)
        simplex.solve(cost=-cost, limits=Limits(seconds=0.0))
        again = simplex.solve()
        assert again.status is Status.OPTIMAL and again.value == pytest.approx(first.value, abs=TOLERANCE)


def test_the_callers_tensors_may_change_later(programs: ModuleType) -> None:
    model = programs.random_program(3)
    simplex, lower = Simplex(model), model.lower.clone()
    before = simplex.solve(lower).value
    lower += 0.5 * (model.upper - model.lower)
    after = simplex.solve(lower)
    assert after.value == pytest.approx(Simplex(model).solve(lower).value, abs=TOLERANCE)
    assert after.value > before + 1e-3


def test_whole_columns_are_relaxed(programs: ModuleType) -> None:
    half = torch.tensor([0.5], dtype=torch.float64)
    ends = (torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    row = torch.ones((1, 1), dtype=torch.float64)
    found = Simplex(programs.program(half, row, (half, 2 * half), ends, torch.ones(1, dtype=torch.bool))).solve()
    assert found.value == pytest.approx(0.25) and found.x is not None and found.x.tolist() == pytest.approx([0.5])


def test_crossed_ends_and_no_time(programs: ModuleType) -> None:
    model = programs.random_program(3)
    simplex = Simplex(model)
    crossed = simplex.solve(model.upper, model.lower)
    assert crossed.status is Status.INFEASIBLE and crossed.dual is None and "column 0" in crossed.reason
    late = simplex.solve(limits=Limits(seconds=0.0))
    assert late.status is Status.LIMIT and late.bound == -math.inf and late.reason


def test_the_time_of_earlier_calls_does_not_count(programs: ModuleType) -> None:
    """The solver's clock runs on from one call to the next."""
    model = programs.random_program(3)
    simplex, costs = Simplex(model), torch.randn((2, model.cost.shape[0]), dtype=torch.float64)
    while simplex._engine._solver.getRunTime() < 0.5:
        for cost in costs:
            simplex.solve(cost=cost)
    assert simplex.solve(limits=Limits(seconds=0.5)).status is Status.OPTIMAL


def test_what_is_no_number_fails_and_is_forgotten(programs: ModuleType) -> None:
    model = programs.random_program(3)
    simplex = Simplex(model)
    value = simplex.solve().value
    for bad in (math.nan, math.inf):
        cost = model.cost.clone()
        cost[2] = bad
        assert simplex.solve(cost=cost).status is Status.FAILED
    lower = model.lower.clone()
    lower[2] = math.nan
    assert simplex.solve(lower).status is Status.FAILED
    assert simplex.solve().value == pytest.approx(value, abs=TOLERANCE)
    assert Simplex(replace(model, value=model.value * math.nan)).solve().status is Status.FAILED
    assert Simplex(replace(model, value=model.value * 1e16)).solve().status is Status.FAILED


def test_unbounded_is_no_answer(programs: ModuleType) -> None:
    model = programs.random_program(3)
    model = replace(model, cost=torch.ones_like(model.cost))
    free = replace(model, row_lower=torch.full_like(model.row_lower, -math.inf))
    found = Simplex(free).solve(lower=torch.full_like(model.lower, -math.inf))
    assert found.status is Status.FAILED and "unbounded" in found.reason and found.bound == -math.inf


def test_shapes_and_types_are_asked_for(programs: ModuleType) -> None:
    simplex = Simplex(programs.random_program(3))
    for given in (torch.zeros(1, dtype=torch.float64), simplex.model.cost.float()):
        with pytest.raises(ValueError, match="float64"):
            simplex.solve(given)


@pytest.mark.parametrize("seed", range(8))
def test_rows_that_come_later_count_like_those_from_the_start(programs: ModuleType, seed: int) -> None:
    model = programs.random_program(seed)
    rows = model.row_lower.shape[0]
    half = rows // 2
    entries = int(model.start[half])
    part = replace(
        model,
        start=model.start[: half + 1],
        index=model.index[:entries],
        value=model.value[:entries],
        row_lower=model.row_lower[:half],
        row_upper=model.row_upper[:half],
        row_error=model.row_error[:half],
    )
    simplex = Simplex(part)
    before = simplex.solve()
    simplex.extend(model)
    found, fresh = simplex.solve(), Simplex(model).solve()
    assert proven(model, found, model.lower, model.upper)
    assert found.status is fresh.status
    assert found.value == pytest.approx(fresh.value, abs=TOLERANCE)
    assert before.value <= found.value + TOLERANCE
    with pytest.raises(ValueError, match="start"):
        simplex.extend(replace(model, start=model.start[:-1]))
