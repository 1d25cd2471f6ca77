"""Exact minima and distortions against exhaustive enumeration of phases, which knows neither programs nor bounds."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from bounds import Alpha, Box, Crown, Graph, compute_bounds, trace
from bounds.ops.base import UnsupportedOperatorError
from milp.adversarial import distortion
from milp.engine import NO_LIMITS, Limits
from milp.exact import Outcome
from milp.highs import Progress, Watch
from milp.model import Model, Solution, Status
from milp.optimum import minimum
from milp.settle import Standing


def network(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for one, two in itertools.pairwise(widths):
        layers += [nn.Linear(one, two), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def graph_of(module: nn.Sequential) -> Graph:
    return trace(module, torch.zeros(1, module[0].in_features))


def enumerated(module: nn.Sequential, low: Tensor, high: Tensor, row: Tensor) -> float:
    """The least ``row . f`` over a box: for every choice of phases a linear program over the inputs it belongs to."""
    linear = [(m.weight.detach().double(), m.bias.detach().double()) for m in module if isinstance(m, nn.Linear)]
    counts = [b.shape[0] for _, b in linear[:-1]]
    best = math.inf
    for phases in itertools.product((0.0, 1.0), repeat=sum(counts)):
        signs = torch.tensor(phases, dtype=torch.float64).split(counts)
        matrix, bias = torch.eye(low.shape[0], dtype=torch.float64), torch.zeros(low.shape[0], dtype=torch.float64)
        rows, sides = [], []
        for (weight, offset), phase in zip(linear, [*signs, None], strict=True):
            matrix, bias = weight @ matrix, weight @ bias + offset
            if phase is not None:
                side = 1 - 2 * phase  # z >= 0 where the phase is 1, z <= 0 where it is 0
                rows.append(side[:, None] * matrix)
                sides.append(-side * bias)
                matrix, bias = phase[:, None] * matrix, phase * bias
        found = linprog(
            (row @ matrix).numpy(),
            A_ub=torch.cat(rows).numpy(),
            b_ub=torch.cat(sides).numpy(),
            bounds=list(zip(low.tolist(), high.tolist(), strict=True)),
        )
        if found.status == 0:
            best = min(best, found.fun + float(row @ bias))
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("runner", ["solver first", "proof alone"])
def test_the_minimum_is_that_of_all_phases(seed: int, runner: str) -> None:
    module = network(seed, 2, 4, 4, 2)
    graph, row = graph_of(module), torch.tensor([[1.0, -1.0]])
    box = Box.around(torch.zeros(1, 2, dtype=torch.float64), 1.5)
    found = minimum(graph, box, row) if runner == "solver first" else minimum(graph, box, row, runner=None)
    expected = enumerated(module, *(end.flatten() for end in (box.lower, box.upper)), row[0].double())
    assert found.status is Outcome.PROVEN
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert found.value - 1e-6 <= found.bound <= expected + 1e-9
    assert found.point is not None and bool((found.point >= box.lower).all() and (found.point <= box.upper).all())
    assert float((row * graph.evaluate(found.point)[0]).sum()) == found.value
    for method in (Crown(), Alpha()):
        assert float(compute_bounds(graph, box, method, rows=row.unsqueeze(0)).lower) <= found.value


def test_a_limit_leaves_a_proven_bound() -> None:
    graph, row = graph_of(network(7, 4, 30, 30, 1)), torch.ones((1, 1))
    box = Box.around(torch.zeros(1, 4, dtype=torch.float64), 3.0)
    found = minimum(graph, box, row, seconds=1e-9)
    torch.manual_seed(0)
    points = box.lower + (box.upper - box.lower) * torch.rand(20_000, 1, 4, dtype=torch.float64)
    assert found.status is Outcome.LIMIT
    assert -math.inf < found.bound <= float(graph.evaluate(points)[0].amin())
    assert found.value >= found.bound


def test_a_point_to_begin_with_counts() -> None:
    graph, row = graph_of(network(7, 4, 30, 30, 1)), torch.ones((1, 1))
    box = Box.around(torch.zeros(1, 4, dtype=torch.float64), 3.0)
    torch.manual_seed(0)
    points = box.lower + (box.upper - box.lower) * torch.rand(2_000, 1, 4, dtype=torch.float64)
    values = graph.evaluate(points)[0].flatten()
    found = minimum(graph, box, row, point=points[values.argmin()].unsqueeze(0), seconds=1e-9, runner=None)
    assert found.value == pytest.approx(float(values.min()), abs=1e-6) and found.point is not None
    with pytest.raises(ValueError, match="a point of shape"):
        minimum(graph, box, row, point=points)


def test_what_the_solver_says_is_passed_on_and_proves_nothing() -> None:
    graph, row = graph_of(network(1, 2, 4, 4, 2)), torch.tensor([[1.0, -1.0]])
    box = Box.around(torch.zeros(1, 2, dtype=torch.float64), 1.5)
    true, heard = minimum(graph, box, row), list[Standing]()

    def boastful(model: Model, limits: Any = None, *, start: Any = None, watch: Watch | None = None) -> Solution:
        assert watch is not None
        watch(Progress(1e6, math.inf, 0.0))
        return Solution(Status.INFEASIBLE, math.inf, math.inf)

    found = minimum(graph, box, row, runner=boastful, watch=heard.append)
    assert heard[0].claimed == 1e6 and heard[0].bound <= true.value
    assert found.claimed == math.inf
    assert found.status is Outcome.PROVEN and found.bound <= true.value <= found.value + 1e-6


@pytest.mark.parametrize("what", ["minimum", "distortion"])
def test_whoever_watches_hears_of_points_that_are_attained(what: str) -> None:
    """Also of those that the solver finds; a bound that is heard at any time is one of the whole."""
    graph, heard = graph_of(network(3, 2, 8, 8, 3)), list[Standing]()
    x = torch.tensor([[0.2, -0.3]], dtype=torch.float64)
    if what == "minimum":
        row = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64)
        found = minimum(graph, Box.around(x, 1.5), row, watch=heard.append)
    else:
        found = distortion(graph, x, int(graph.evaluate(x.unsqueeze(0))[0].argmax()), watch=heard.append)
    assert found.status is Outcome.PROVEN and any(s.point is not None for s in heard)
    for standing in heard:
        assert standing.bound <= found.value
        if standing.point is None:
            continue
        assert standing.point.shape == (1, 1, 2)
        if what == "minimum":
            assert standing.value == float((row * graph.evaluate(standing.point)[0]).sum())
        else:
            assert standing.value == float((standing.point - x).abs().amax())


@pytest.mark.parametrize("norm", ["inf", "1"])
@pytest.mark.parametrize("seed", [1, 3])
def test_no_example_is_nearer(seed: int, norm: str) -> None:
    graph = graph_of(network(seed, 2, 5, 5, 3))
    x = torch.tensor([[0.2, -0.3]], dtype=torch.float64)
    label = int(graph.evaluate(x.unsqueeze(0))[0].argmax())
    found = distortion(graph, x, label, norm)  # type: ignore[arg-type]
    assert found.status is Outcome.PROVEN and found.point is not None
    scores = graph.evaluate(found.point)[0].flatten()
    assert int(scores.argmax()) != label or float(scores.topk(2).values.diff()) == 0
    change = (found.point - x).abs()
    assert float(change.amax() if norm == "inf" else change.sum()) == found.value
    assert found.value - 1e-6 <= found.bound <= found.value
    # All that is nearer keeps the label: a fine grid over the ball.
    steps = torch.linspace(-1, 1, 301, dtype=torch.float64) * found.bound * (1 - 1e-9)
    grid = torch.cartesian_prod(steps, steps)
    grid = grid if norm == "inf" else grid[grid.abs().sum(1) <= found.bound * (1 - 1e-9)]
    assert bool((graph.evaluate((x + grid).unsqueeze(1))[0].flatten(1).argmax(1) == label).all())


def test_where_no_other_class_is_reached_that_is_proven() -> None:
    graph = graph_of(network(1, 2, 5, 5, 3))
    x = torch.tensor([[0.2, -0.3]], dtype=torch.float64)
    label = int(graph.evaluate(x.unsqueeze(0))[0].argmax())
    nearest = distortion(graph, x, label).value
    within = Box.around(x, nearest * 0.9)
    found = distortion(graph, x, label, within=within)
    assert found.status is Outcome.PROVEN and found.bound == math.inf and found.point is None
    assert distortion(graph, x, label, most=nearest / 2).bound >= nearest / 2


def test_what_is_asked_must_make_sense() -> None:
    graph = graph_of(network(1, 2, 5, 5, 3))
    x = torch.tensor([[0.2, -0.3]], dtype=torch.float64)
    label = int(graph.evaluate(x.unsqueeze(0))[0].argmax())
    with pytest.raises(ValueError, match="not classified as"):
        distortion(graph, x, (label + 1) % 3)
    with pytest.raises(ValueError, match="the known ones are 'inf' and '1'"):
        distortion(graph, x, label, "2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="classes 0 to 2"):
        distortion(graph, x, 3)
    with pytest.raises(ValueError, match="takes"):
        distortion(graph, x[0], label)
    with pytest.raises(ValueError, match="among the inputs that count"):
        distortion(graph, x, label, within=Box.around(x + 5, 1.0))
    with pytest.raises(ValueError, match="a row of shape"):
        minimum(graph, Box.around(x, 1.0), torch.zeros(3))


class Thrice(nn.Module):
    """The input three times: elements of the output are one column of the program."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x, x], 1)


@pytest.mark.parametrize("least", [-3.0, 0.0])
def test_coefficients_of_one_column_are_not_lost_in_their_sum(least: float) -> None:
    """As computed, ``1e16 + 1 - 1e16`` is 0; the minimum of the exact sum is ``least``."""
    graph, box = trace(Thrice(), torch.zeros(1, 1)), Box(torch.tensor([[[least]]]), torch.tensor([[[5.0]]]))
    found = minimum(graph, box, torch.tensor([[1e16, 1.0, -1e16]], dtype=torch.float64), runner=None, seconds=5.0)
    assert -1000.0 < found.bound <= least


class Whole(nn.Module):
    """Rounds down."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(0.3 * x)


def test_whole_numbers_that_floats_do_not_tell_apart_are_not_split() -> None:
    graph, end = trace(Whole(), torch.zeros(1, 1)), torch.tensor([[[1e20]]], dtype=torch.float64)
    found = minimum(graph, Box(-end, end), torch.ones((1, 1)), runner=None)
    assert found.status is Outcome.OPEN and -math.inf < found.bound <= found.value


class Steps(nn.Module):
    """``sum floor(w x)``: whole numbers that the solver does not walk over."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, -1.0], [0.5, 2.0]]) * 1e9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(nn.functional.linear(x, self.weight)).sum(1, keepdim=True)


def test_whole_numbers_beyond_32_bits() -> None:
    """The solver refuses the program, and the proof alone is nearly tight."""
    graph = trace(Steps(), torch.zeros(1, 2))
    box = Box(torch.zeros(1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.float64))
    found = minimum(graph, box, torch.ones((1, 1)), seconds=60.0)
    assert found.claimed == -math.inf and found.value == 0.0
    assert -3 <= found.bound <= 0.0


def crash(*_: object, **__: object) -> Solution:
    """A runner whose process dies."""
    return Solution(Status.FAILED, math.inf, -math.inf, reason="the solver's process crashed (SIGSEGV)")


def test_a_solver_that_fails_is_named_and_the_proof_goes_on() -> None:
    graph, row = graph_of(network(3, 2, 4, 1)), torch.ones((1, 1))
    box = Box.around(torch.zeros(1, 2, dtype=torch.float64), 1.0)
    plain, failed = minimum(graph, box, row), minimum(graph, box, row, runner=crash)
    assert plain.failed == "" and "SIGSEGV" in failed.failed and failed.claimed == -math.inf
    assert failed.status is Outcome.PROVEN and failed.value == pytest.approx(plain.value, abs=2e-6)
    classes, x = graph_of(network(4, 2, 4, 3)), torch.tensor([[0.1, -0.2]])
    label = int(classes.evaluate(x.double().unsqueeze(0))[0].argmax())
    found = distortion(classes, x, label, runner=crash)
    assert "SIGSEGV" in found.failed and found.status is Outcome.PROVEN


def test_a_distortion_with_an_envelope_is_proven() -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(2, 5), nn.Sigmoid(), nn.Linear(5, 3))
    graph, x = graph_of(module), torch.tensor([[0.3, -0.1]])
    label = int(graph.evaluate(x.double().unsqueeze(0))[0].argmax())
    with pytest.raises(UnsupportedOperatorError, match="envelope"):
        distortion(graph, x, label)
    found = distortion(graph, x, label, envelope=0.01, seconds=60.0)
    assert found.status is not Outcome.PROVEN or found.value - found.bound <= 1e-6
    assert 0 < found.bound <= found.value < math.inf and found.point is not None
    torch.manual_seed(2)
    near = x.double() + found.bound * (2 * torch.rand(20_000, 1, 2, dtype=torch.float64) - 1)
    assert bool((graph.evaluate(near)[0].argmax(-1) == label).all())
    assert found.bound > 0.5 * found.value


def test_every_class_has_its_share_of_the_time() -> None:
    """The first one's search never comes to an end; the others are looked at nevertheless."""
    graph, x = graph_of(network(11, 4, 20, 20, 5)), torch.zeros(1, 4)
    label = int(graph.evaluate(x.double().unsqueeze(0))[0].argmax())
    asked = list[float | None]()

    def slow(model: Model, limits: Limits = NO_LIMITS, **_: object) -> Solution:
        asked.append(limits.seconds)
        return Solution(Status.LIMIT, math.inf, -math.inf)

    distortion(graph, x, label, seconds=2.0, runner=slow)
    assert len(asked) > 1 and None not in asked
    assert asked[0] is not None and asked[0] < 2.0 * 0.5
