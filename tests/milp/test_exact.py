"""The search whose leaves are all proven: equal to enumeration, honest about the stuck, safe from a wrong solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from torch import Tensor

from milp.engine import NO_LIMITS, Limits
from milp.exact import Answer, Goal, Outcome, Relaxation, Search, search
from milp.model import Model, Solution, Status
from milp.recheck import Leaf, leaves
from milp.simplex import Simplex


def solved(model: Model, goal: Goal, kept: list[Leaf] | None = None) -> Answer:
    keep = None if kept is None else kept.append
    return search(model, Simplex(model), goal, keep=keep)


@pytest.mark.parametrize("seed", range(24))
def test_the_minimum_of_a_random_program_is_that_of_enumeration(programs: ModuleType, seed: int) -> None:
    model, kept = programs.random_program(seed), []
    expected, answer = programs.least(model), solved(model, Goal(), kept)
    assert answer.outcome == Outcome.PROVEN and answer.stuck == answer.left == 0
    assert answer.value == pytest.approx(expected, abs=1e-6)
    assert answer.bound == pytest.approx(expected, abs=3e-6)  # inf: refuted
    assert len(kept) == answer.closed
    assert leaves(model, kept) == pytest.approx(answer.bound, abs=1e-9)


def test_random_programs_have_points_and_have_none(programs: ModuleType) -> None:
    answers = [solved(programs.random_program(seed), Goal()) for seed in range(24)]
    assert 2 <= sum(answer.value == math.inf for answer in answers) <= 20
    assert sum(answer.nodes > 5 for answer in answers) > 5


@pytest.mark.parametrize("seed", range(12))
def test_the_minimum_of_a_network_is_that_of_its_phases(programs: ModuleType, seed: int) -> None:
    network = programs.Network.random(seed, [(2, 7), (3, 4, 4), (2, 3, 3, 2)][seed % 3])
    model, inputs, kept = network.model(), network.weights[0].shape[1], []
    goal = Goal(evaluate=lambda x: network(x[:inputs].clamp(-1, 1)))
    expected, answer = programs.least(model), solved(model, goal, kept)
    assert answer.outcome == Outcome.PROVEN
    assert answer.value == pytest.approx(expected, abs=2e-6) and answer.bound <= answer.value
    assert answer.bound >= answer.value - 1.1e-6
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand((300, inputs), generator=draw, dtype=torch.float64) * 2 - 1
    assert min(network(point) for point in points) >= answer.bound
    assert leaves(model, kept) == pytest.approx(answer.bound, abs=1e-9)
    for missing in range(len(kept)):
        assert leaves(model, kept[:missing] + kept[missing + 1 :]) == -math.inf


@pytest.mark.parametrize("seed", range(6))
def test_a_threshold_is_proven_below_the_minimum_and_answered_by_a_point_above(programs: ModuleType, seed: int) -> None:
    network = programs.Network.random(seed, (3, 5, 4))
    model = network.model()
    least = programs.least(model)

    def evaluate(x: Tensor) -> float:
        return network(x[:3].clamp(-1, 1))

    for given in (None, evaluate):
        below = solved(model, Goal(least - 1e-4, evaluate=given))
        assert below.outcome == Outcome.PROVEN and below.bound > least - 1e-4
        above = solved(model, Goal(least + 1e-4, evaluate=given))
        assert above.outcome == Outcome.CANDIDATE and above.x is not None
        assert evaluate(above.x) <= least + 1.1e-4
        assert above.bound <= least


@dataclass(frozen=True, slots=True)
class Changed:
    """A solver whose answers are changed before they are read."""

    solver: Relaxation
    change: Callable[[Solution], Solution]

    def solve(self, lower: Tensor, upper: Tensor, *, limits: Limits = NO_LIMITS) -> Solution:
        return self.change(self.solver.solve(lower, upper, limits=limits))


def flipped(found: Solution) -> Solution:
    return replace(found, dual=None if found.dual is None else -found.dual)


def too_high(found: Solution) -> Solution:
    return replace(found, value=found.value + 9, bound=found.bound + 9)


def never(found: Solution) -> Solution:
    return replace(found, status=Status.INFEASIBLE, value=math.inf, bound=math.inf, x=None)


def failed(found: Solution) -> Solution:
    return Solution(Status.FAILED, math.inf, -math.inf, reason="nothing")


def garbage(found: Solution) -> Solution:
    return replace(found, dual=torch.full((3,), math.nan), x=None)


@pytest.mark.parametrize("change", [flipped, too_high, never, failed, garbage])
def test_a_wrong_solver_proves_nothing_wrong(programs: ModuleType, change: Callable[[Solution], Solution]) -> None:
    for seed in range(0, 8, 2):
        model, kept = programs.random_program(seed, integers=3), []
        expected = programs.least(model)
        answer = search(model, Changed(Simplex(model), change), Goal(), keep=kept.append)
        assert answer.bound <= expected + 1e-9
        assert leaves(model, kept) <= expected + 1e-9
        if change is not too_high:
            assert answer.outcome == Outcome.OPEN and answer.stuck > 0
        if change is failed:
            whole = (model.upper - model.lower + 1)[model.integer]
            assert answer.stuck == int(whole.prod()) and answer.closed == 0 and answer.bound == -math.inf


def test_a_point_that_the_function_does_not_confirm_leaves_its_phases_stuck(programs: ModuleType) -> None:
    network = programs.Network.random(1, (2, 4))
    model = network.model()
    least = programs.least(model)
    higher = Goal(evaluate=lambda x: network(x[:2].clamp(-1, 1)) + 0.25)
    answer = solved(model, higher)
    assert answer.outcome == Outcome.OPEN and answer.stuck >= 1
    assert answer.bound == pytest.approx(least, abs=1e-6)
    assert answer.value == pytest.approx(least + 0.25, abs=1e-6)


def test_a_search_that_is_cut_short_says_what_it_knows_and_goes_on(programs: ModuleType) -> None:
    network = programs.Network.random(5, (3, 6, 5))
    model = network.model()
    solver, goal = Simplex(model), Goal(evaluate=lambda x: network(x[:3].clamp(-1, 1)))
    whole = solved(model, goal)
    cut = search(model, solver, goal, nodes=5)
    assert cut.outcome == Outcome.LIMIT and cut.nodes == 5 and cut.left > 0
    assert -math.inf < cut.bound < whole.bound
    none = search(model, solver, goal, seconds=0.0)
    assert (none.outcome, none.nodes, none.left, none.bound) == (Outcome.LIMIT, 1, 1, -math.inf)
    work = Search(model, solver, goal)
    bounds, state = [], work.start()
    for state in work.run():
        bounds.append(state.bound)
        if len(bounds) == 5:
            break
    for state in work.run(state):  # noqa: B020
        bounds.append(state.bound)
    assert work.terminate(state).bound == pytest.approx(whole.bound, abs=1e-6)
    assert bounds == sorted(bounds)


def test_ends_between_whole_numbers_lose_no_point(programs: ModuleType) -> None:
    for seed in range(6):
        model = programs.random_program(seed, integers=2)
        apart = torch.where(model.integer, 0.25, 0.0)
        loose = replace(model, lower=model.lower - apart, upper=model.upper + apart)
        kept: list[Leaf] = []
        answer = solved(loose, Goal(), kept)
        wide = replace(model, lower=model.lower - model.integer.double(), upper=model.upper + model.integer.double())
        assert programs.least(wide) - 3e-6 <= answer.bound <= programs.least(model)
        assert leaves(loose, kept) == pytest.approx(answer.bound, abs=1e-9)
