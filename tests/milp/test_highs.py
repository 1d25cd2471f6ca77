"""Mixed-integer programs by HiGHS: the right optimum, the right status, early ends, and no trust in what comes in."""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import replace
from types import ModuleType

import highspy
import pytest
import torch
from torch import Tensor

from milp.engine import Limits
from milp.highs import Progress, Runner, solve
from milp.model import Model, Solution, Status
from milp.process import ProcessRunner

TOLERANCE = 1e-6
PATIENCE = 60.0
"""Seconds after which a run that hangs is given up."""


def real(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.fixture(scope="module")
def network(programs: ModuleType) -> Model:
    """A network whose search meets several points, and bounds on the way to the optimum."""
    return programs.Network.random(3, [3, 6, 6]).model()


@pytest.fixture(scope="module")
def optimum(network: Model) -> Solution:
    found = solve(network)
    assert found.status is Status.OPTIMAL
    return found


def knapsack(programs: ModuleType) -> Model:
    """Worth 10, 13, 7, 8 at weights 5, 6, 3, 4 of at most 10: the second and the fourth, worth 21."""
    rows = torch.tensor([[5.0, 6.0, 3.0, 4.0]], dtype=torch.float64)
    whole = torch.ones(4, dtype=torch.bool)
    sides = (real(-math.inf), real(10.0))
    return programs.program(-real(10, 13, 7, 8), rows, sides, (real(0, 0, 0, 0), real(1, 1, 1, 1)), whole, 2.0)


def pair(programs: ModuleType, row: tuple[float, float], side: tuple[float, float], whole: bool) -> Model:
    """Minimise x + y over one row and the box [0, 10]^2."""
    ends = (real(0, 0), real(10, 10))
    integer = torch.full((2,), whole)
    return programs.program(real(1, 1), real(*row)[None], (real(side[0]), real(side[1])), ends, integer)


def agrees(model: Model, x: Tensor | None, value: float) -> bool:
    """Whether the point satisfies the model and has this value, to the solver's tolerances."""
    if x is None:
        return False
    row = torch.repeat_interleave(torch.arange(model.row_lower.shape[0]), model.start.diff())
    sums = torch.zeros_like(model.row_lower).index_add(0, row, model.value * x[model.index])
    inside = (sums >= model.row_lower - TOLERANCE) & (sums <= model.row_upper + TOLERANCE)
    ends = (x >= model.lower - TOLERANCE) & (x <= model.upper + TOLERANCE)
    whole = ((x - x.round()).abs() <= TOLERANCE) | ~model.integer
    return bool(inside.all() & ends.all() & whole.all()) and abs(float(model.cost @ x) + model.offset - value) < 1e-6


def test_knapsack(programs: ModuleType) -> None:
    found = solve(knapsack(programs))
    assert found.status is Status.OPTIMAL
    assert found.value == pytest.approx(-19) and found.bound == pytest.approx(-19)
    assert found.x is not None and found.x.round().tolist() == [0, 1, 0, 1]


def test_equality_of_whole_numbers(programs: ModuleType) -> None:
    found = solve(pair(programs, (3, 5), (14, 14), whole=True))
    assert found.status is Status.OPTIMAL and found.value == pytest.approx(4)
    assert found.x is not None and found.x.round().tolist() == [3, 1]


@pytest.mark.parametrize(
    ("row", "side", "whole"),
    [((2, 4), (7, 7), True), ((1, 1), (25, math.inf), True), ((1, 1), (25, math.inf), False)],
)
def test_infeasible(programs: ModuleType, row: tuple[float, float], side: tuple[float, float], whole: bool) -> None:
    found = solve(pair(programs, row, side, whole))
    assert found.status is Status.INFEASIBLE
    assert found.value == found.bound == math.inf and found.x is None


def test_no_whole_number_between_the_ends(programs: ModuleType) -> None:
    model = pair(programs, (1, 1), (0, 20), whole=True)
    assert solve(replace(model, lower=real(0, 0.2), upper=real(10, 0.7))).status is Status.INFEASIBLE


def test_many_rows_through_one_vertex(programs: ModuleType) -> None:
    """Each row twice, and all of them active at the optimum."""
    base = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [2, 1, 0]], dtype=torch.float64)
    rows, corner = base.repeat(2, 1), real(1, 1, 1)
    sides, ends = (rows @ corner, torch.full((10,), math.inf, dtype=torch.float64)), (real(0, 0, 0), real(2, 2, 2))
    for integer in (torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, True])):
        found = solve(programs.program(real(1, 1, 1), rows, sides, ends, integer))
        assert found.status is Status.OPTIMAL and found.value == pytest.approx(3)


def test_without_rows_and_without_columns(programs: ModuleType) -> None:
    none = torch.zeros((0, 2), dtype=torch.float64)
    whole = torch.tensor([True, False])
    free = programs.program(real(1, -1), none, (real(), real()), (real(0, 0), real(2, 2)), whole, 4.0)
    assert solve(free).value == pytest.approx(2)
    row = torch.zeros((1, 0), dtype=torch.float64)
    empty = programs.program(real(), row, (real(-1), real(0)), (real(), real()), offset=3.0)
    found = solve(empty)
    assert (found.status, found.value, found.bound) == (Status.OPTIMAL, 3, 3)
    assert solve(replace(empty, row_lower=real(-2), row_upper=real(-1))).status is Status.INFEASIBLE


@pytest.mark.parametrize("seed", range(40))
def test_equals_every_choice_of_the_whole_numbers(programs: ModuleType, seed: int) -> None:
    model = programs.random_program(seed, integers=4)
    found, least = solve(model), programs.least(model)
    if math.isinf(least):
        assert found.status is Status.INFEASIBLE
    else:
        assert found.status is Status.OPTIMAL and found.value == pytest.approx(least, abs=TOLERANCE)
        assert found.bound == pytest.approx(least, abs=TOLERANCE) and agrees(model, found.x, found.value)


def test_stops_at_a_bound(network: Model, optimum: Solution) -> None:
    asked = optimum.value - 0.3
    found = solve(network, Limits(bound=asked))
    assert found.status is Status.STOPPED
    assert asked < found.bound < optimum.value - 0.01, "it went on to the optimum"


def test_a_bound_that_is_not_reached_changes_nothing(network: Model, optimum: Solution) -> None:
    found = solve(network, Limits(bound=optimum.value + 1, value=optimum.value - 1))
    assert found.status is Status.OPTIMAL and found.value == pytest.approx(optimum.value, abs=TOLERANCE)


def test_stops_at_a_value(network: Model, optimum: Solution) -> None:
    said: list[Progress] = []
    solve(network, watch=said.append)
    values = [p.value for p in said if p.x is not None]
    assert len(values) > 1, "the first point is the best one: another network is needed"
    found = solve(network, Limits(value=values[0]))
    assert found.status is Status.STOPPED
    assert optimum.value + TOLERANCE < found.value <= values[0]
    assert agrees(network, found.x, found.value) and found.bound <= optimum.value


def test_a_start_is_used(network: Model, optimum: Solution) -> None:
    """Without a node of search there is no point but the one that was given, whole columns deciding."""
    assert optimum.x is not None
    none = solve(network, Limits(nodes=0))
    assert none.status is Status.LIMIT and none.value == math.inf and none.x is None
    for start in (optimum.x, torch.where(network.integer, optimum.x, 0.3)):
        found = solve(network, Limits(nodes=0), start=start)
        assert found.status is Status.LIMIT and found.value == pytest.approx(optimum.value, abs=TOLERANCE)
        assert agrees(network, found.x, found.value)


@pytest.mark.parametrize("start", [torch.zeros(3), torch.full((24,), math.nan), torch.full((4,), math.nan)])
def test_a_start_that_is_none(programs: ModuleType, start: Tensor) -> None:
    with pytest.raises(ValueError, match="one finite number for each of the 4 columns"):
        solve(knapsack(programs), start=start)


def test_a_start_far_from_everything(programs: ModuleType) -> None:
    assert solve(knapsack(programs), start=torch.full((4,), -1e30)).value == pytest.approx(-19)


def test_what_a_watcher_is_told(network: Model, optimum: Solution) -> None:
    said: list[Progress] = []
    solve(network, watch=said.append)
    points = [p for p in said if p.x is not None]
    assert points and points[-1].value == pytest.approx(optimum.value, abs=TOLERANCE)
    assert all(agrees(network, p.x, p.value) for p in points)
    for before, after in itertools.pairwise(said):
        assert after.bound >= before.bound and after.value <= before.value and after.seconds >= before.seconds
    assert all(p.bound <= optimum.value + TOLERANCE for p in said)


@pytest.mark.parametrize("error", [ValueError("enough"), KeyboardInterrupt(), RuntimeError("enough")])
def test_what_a_watcher_raises_reaches_the_caller(network: Model, optimum: Solution, error: BaseException) -> None:
    def watch(_: Progress) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        solve(network, watch=watch)
    assert caught.value is error
    assert solve(network).value == pytest.approx(optimum.value, abs=TOLERANCE)


def test_no_time_and_few_nodes(network: Model, optimum: Solution) -> None:
    for limits in (Limits(seconds=0.0), Limits(seconds=-1.0), Limits(nodes=1)):
        found = solve(network, limits)
        assert found.status is Status.LIMIT and found.reason
        assert found.bound <= optimum.value <= found.value


@pytest.mark.parametrize("field", ["cost", "value", "lower", "upper", "row_lower", "row_upper"])
def test_nan_is_no_number(programs: ModuleType, field: str) -> None:
    """The solver takes it for one and answers "optimal"."""
    model = knapsack(programs)
    array = getattr(model, field).clone()
    array[0] = math.nan
    found = solve(replace(model, **{field: array}))
    assert found.status is Status.FAILED and found.reason and found.bound == -math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"offset": math.nan},
        {"offset": math.inf},
        {"value": real(5, math.inf, 3, 4)},
        {"value": real(5, 1e16, 3, 4)},
        {"cost": real(1, 2, 3, 1e25)},
        {"row_lower": real(math.inf), "row_upper": real(math.inf)},
        {"lower": real(0, 0, 0, -math.inf), "cost": real(1, 1, 1, 1), "integer": torch.zeros(4, dtype=torch.bool)},
    ],
)
def test_numbers_out_of_range_fail(programs: ModuleType, change: dict[str, object]) -> None:
    found = solve(replace(knapsack(programs), **change))
    assert found.status is Status.FAILED and found.reason and found.bound == -math.inf


@pytest.mark.parametrize("ends", [(-3e11, -4.0), (0.0, 2.0**31), (-(2.0**30), 5.0)])
@pytest.mark.parametrize("run", [solve, ProcessRunner()])
def test_whole_numbers_beyond_32_bits_are_refused(programs: ModuleType, ends: tuple[float, float], run: Runner) -> None:
    """The solver walks over them without an end."""
    model = knapsack(programs)
    low, high = (model.lower.clone(), model.upper.clone())
    low[2], high[2] = ends
    found = run(replace(model, lower=low, upper=high), Limits(seconds=PATIENCE))
    assert found.status is Status.FAILED and "column 2" in found.reason and found.bound == -math.inf


def test_crossed_ends_are_infeasible(programs: ModuleType) -> None:
    model = knapsack(programs)
    assert "column 1" in solve(replace(model, lower=real(0, 2, 0, 0))).reason
    found = solve(replace(model, row_lower=real(11)))
    assert found.status is Status.INFEASIBLE and "row 0" in found.reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.tensor([0, 1, 1, 3])}, "column 1 stands twice in row 0"),
        ({"index": torch.tensor([0, 1, 2, 4])}, "not among its 4"),
        ({"index": torch.tensor([0, 1, 2, -1])}, "not among its 4"),
        ({"index": torch.tensor([0, 1, 2, 3], dtype=torch.int32)}, "index is"),
        ({"start": torch.tensor([0, 3])}, "rises from 0"),
        ({"start": torch.tensor([1, 4])}, "rises from 0"),
        ({"start": torch.tensor([0, 4, 4])}, "start is"),
        ({"lower": torch.zeros(3, dtype=torch.float64)}, "lower is"),
        ({"cost": torch.zeros(4)}, "cost is"),
        ({"integer": torch.ones(4)}, "integer is"),
    ],
)
def test_arrays_that_do_not_fit_together(programs: ModuleType, change: dict[str, Tensor], message: str) -> None:
    """Some of them would corrupt the solver's memory."""
    with pytest.raises(ValueError, match=message):
        solve(replace(knapsack(programs), **change))


def test_columns_in_any_order(programs: ModuleType) -> None:
    model = knapsack(programs)
    turned = replace(model, index=model.index.flip(0), value=model.value.flip(0))
    assert solve(turned).value == pytest.approx(-19)


def test_after_somebody_else_has_used_more_threads(programs: ModuleType) -> None:
    """The solver's scheduler belongs to the thread, and refuses another number of threads than the first."""
    found: list[Solution] = []

    def work() -> None:
        other = highspy.Highs()
        other.setOptionValue("output_flag", False)
        other.setOptionValue("threads", 2)
        other.addVars(1, [0.0], [1.0])
        other.run()
        found.append(solve(knapsack(programs)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].status is Status.OPTIMAL and found[0].value == pytest.approx(-19)


def test_the_same_again(network: Model, optimum: Solution) -> None:
    again = solve(network)
    assert again.x is not None and optimum.x is not None
    assert torch.equal(again.x, optimum.x) and again.value == optimum.value
