"""What multipliers prove: never more than in exact arithmetic, hardly less, whatever they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from milp.model import Model, Status
from milp.recheck import Leaf, Prover, Split, covers, ends, leaves, lower_bound, refuted

SIZES = (0.0, 1.0, 1e-6, 1e6, 1e-160, 1e100)


def scaled(model: Model, draw: torch.Generator) -> Model:
    """The same with coefficients, costs, sides and errors of very different sizes."""

    def factor(like: Tensor) -> Tensor:
        sizes = torch.tensor(SIZES[1:], dtype=torch.float64)
        return sizes[torch.randint(0, len(sizes), like.shape, generator=draw)]

    error = torch.rand(model.row_lower.shape, generator=draw, dtype=torch.float64) * factor(model.row_lower)
    return replace(
        model,
        cost=model.cost * factor(model.cost),
        value=model.value * factor(model.value),
        row_lower=model.row_lower * factor(model.row_lower),
        row_upper=model.row_upper * factor(model.row_upper),
        row_error=error,
        lower=model.lower * factor(model.lower),
        upper=model.upper * factor(model.upper),
    )


def magnitude(model: Model, dual: Tensor) -> float:
    """The sum of the absolute values of all terms of the bound."""
    far = torch.maximum(model.lower.abs(), model.upper.abs())
    row = torch.repeat_interleave(torch.arange(len(dual)), model.start.diff())
    size = float((model.cost.abs() * far).sum()) + abs(model.offset)
    size += float((model.value.abs() * dual.abs()[row] * far[model.index]).sum())
    for side in (model.row_lower, model.row_upper, model.row_error):
        size += float((dual.abs() * torch.where(side.isfinite(), side.abs(), 0.0)).sum())
    return size


def cases(programs: ModuleType, seed: int) -> Iterator[tuple[Model, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    plain = programs.random_program(seed)
    for model in (plain, scaled(plain, draw)):
        for size in SIZES:
            yield model, torch.randn(model.row_lower.shape, generator=draw, dtype=torch.float64) * size


@given(seed=st.integers(0, 2**31))
@hypothesis_settings(max_examples=10)
def test_never_more_than_in_fractions_and_hardly_less(programs: ModuleType, seed: int) -> None:
    for model, dual in cases(programs, seed):
        found = lower_bound(model, dual)
        exact = programs.exact_bound(model, dual, model.lower, model.upper)
        size = magnitude(model, dual)
        assert math.isfinite(size) and math.isfinite(found)
        assert Fraction(found) <= exact
        assert exact - Fraction(found) <= Fraction(1e-13 * size + 1e-290)


def test_the_bound_of_the_solver_s_dual_is_its_optimum(programs: ModuleType) -> None:
    solved = 0
    for seed in range(60):
        model = programs.random_program(seed)
        found = programs.PlainSimplex(model).solve(model.lower, model.upper)
        if found.status == Status.OPTIMAL:
            assert lower_bound(model, found.dual) == pytest.approx(found.value, abs=1e-6)
            solved += 1
    assert solved > 20


def test_wider_rows_bound_less(programs: ModuleType) -> None:
    model = programs.random_program(3)
    dual = torch.linspace(-1, 1, len(model.row_lower), dtype=torch.float64)
    wide = replace(model, row_error=torch.full_like(model.row_lower, 0.5))
    asked = torch.where(dual > 0, model.row_lower, model.row_upper).isfinite()
    expected = lower_bound(model, dual) - 0.5 * float(dual[asked].abs().sum())
    assert lower_bound(wide, dual) == pytest.approx(expected, rel=1e-12)


def test_a_multiplier_that_asks_for_an_infinite_side_counts_as_0(programs: ModuleType) -> None:
    model = programs.random_program(1)
    zeros = torch.zeros_like(model.row_lower)
    asks = torch.where(model.row_lower.isinf(), 1e9, torch.where(model.row_upper.isinf(), -1e9, 0.0))
    assert asks.count_nonzero() >= 4
    assert lower_bound(model, asks.double()) == lower_bound(model, zeros)


@pytest.mark.parametrize("hostile", [math.nan, math.inf, -math.inf, 1e308, -1e308])
def test_hostile_multipliers_prove_nothing(programs: ModuleType, hostile: float) -> None:
    model = programs.random_program(2)
    for row in range(len(model.row_lower)):
        dual = torch.zeros_like(model.row_lower)
        dual[row] = hostile
        asked = model.row_lower if hostile > 0 else model.row_upper
        if not math.isfinite(hostile) or bool(asked[row].isfinite()):
            assert lower_bound(model, dual) < -1e300
        assert not refuted(model, dual)


@pytest.mark.parametrize("field", ["cost", "value", "row_error"])
def test_a_model_that_is_not_finite_has_no_bound(programs: ModuleType, field: str) -> None:
    model = programs.random_program(2)
    values = getattr(model, field).clone()
    values[0] = math.nan
    ones = torch.full_like(model.row_lower, 1e-3)
    assert lower_bound(replace(model, **{field: values}), ones) == -math.inf


def test_infinite_column_ends_bound_nothing_and_crossed_ones_are_an_error(programs: ModuleType) -> None:
    model = programs.random_program(2)
    dual = torch.full_like(model.row_lower, 1e-3)
    assert lower_bound(model, dual, torch.full_like(model.lower, -math.inf)) == -math.inf
    with pytest.raises(ValueError, match="exceeds"):
        lower_bound(model, dual, model.upper + 1, model.upper)
    with pytest.raises(ValueError, match="not a number"):
        lower_bound(model, dual, model.lower * math.nan, model.upper)


def test_many_at_once_are_the_same_as_one_by_one(programs: ModuleType) -> None:
    model = programs.random_program(4)
    draw = torch.Generator().manual_seed(0)
    dual = torch.randn((7, len(model.row_lower)), generator=draw, dtype=torch.float64)
    lower = model.lower - torch.rand((7, len(model.lower)), generator=draw, dtype=torch.float64)
    upper = model.upper + 1
    together = Prover.of(model).bounds(dual, lower, upper.expand(7, -1))
    single = [lower_bound(model, y, low, upper) for y, low in zip(dual, lower, strict=True)]
    assert together.tolist() == pytest.approx(single, rel=1e-12)


def no_point(programs: ModuleType) -> Model:
    """x + y >= 3 and x - y = 0 on the unit square."""
    rows = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    sides = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([math.inf, 0.0], dtype=torch.float64)
    unit = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    return programs.program(torch.tensor([5.0, -7.0], dtype=torch.float64), rows, sides, unit, offset=11.0)


def test_a_ray_refutes_whatever_the_cost(programs: ModuleType) -> None:
    model = no_point(programs)
    ray = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert refuted(model, ray) and refuted(model, ray * 1e-9) and refuted(model, ray * 1e9)
    assert not refuted(model, -ray)
    assert not refuted(model, torch.zeros(2, dtype=torch.float64))
    assert not refuted(replace(model, row_error=torch.ones(2, dtype=torch.float64)), ray)
    found = programs.PlainSimplex(model).solve(model.lower, model.upper)
    assert found.status == Status.INFEASIBLE and refuted(model, found.dual)


def test_a_program_on_the_edge_is_not_refuted(programs: ModuleType) -> None:
    model = no_point(programs)
    edge = replace(model, row_lower=torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert not refuted(edge, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_leaves_prove_only_what_they_cover(programs: ModuleType) -> None:
    model = programs.random_program(7)
    zero = torch.zeros_like(model.row_lower)
    root, low = Split(0, 0, False), Split(1, 0, True)
    paths = [(root,), (root.other(), low), (root.other(), low.other())]
    tree = [Leaf(path, zero) for path in paths]
    expected = min(lower_bound(model, zero, *ends(model, path)) for path in paths)
    assert leaves(model, tree) == expected > -math.inf
    for missing in range(3):
        assert leaves(model, tree[:missing] + tree[missing + 1 :]) == -math.inf
    assert leaves(model, []) == -math.inf
    assert leaves(model, [Leaf((), zero)]) == lower_bound(model, zero)


@pytest.mark.parametrize(
    "split",
    [Split(9, 0, False), Split(0, 0.5, False), Split(0, math.nan, True), Split(77, 0, False), Split(-1, 0, False)],  # type: ignore[arg-type]
    ids=["real column", "not whole", "no number", "no column", "negative"],
)
def test_splits_that_leave_something_out_cover_nothing(programs: ModuleType, split: Split) -> None:
    model = programs.random_program(7)
    assert not covers(model, [(split,), (split.other(),)])
    assert covers(model, [(Split(0, 0, False),), (Split(0, 0, True),)])
    assert not covers(model, [(Split(0, 0, False),), (Split(0, 1, True),)])


def test_a_leaf_with_a_poor_or_a_wrong_ray_proves_nothing(programs: ModuleType) -> None:
    model = no_point(programs)
    ray = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert leaves(model, [Leaf((), ray, ray=True)]) == math.inf
    assert leaves(model, [Leaf((), -ray, ray=True)]) == -math.inf
    assert leaves(model, [Leaf((), ray * 0, ray=True)]) == -math.inf
