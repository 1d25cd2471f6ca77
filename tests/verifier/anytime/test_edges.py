"""Functions without a finite value, without derivatives, of many inputs; programs of parts; mistaken questions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from bounds import Box, Crown, Graph, LpBall, trace
from milp import minimum
from verifier.anytime.bounding import Function
from verifier.anytime.closing import Program, encodable
from verifier.anytime.domain import Domain
from verifier.anytime.enclosure import Enclosure
from verifier.anytime.refinement import refine
from verifier.anytime.sensitivity import sensitivity
from verifier.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One number from ``[1, n]``."""
        return self.function(x).sum(1, keepdim=True)


def graph(function: Any, n: int = 2) -> Graph:
    return trace(Of(function), torch.full((1, n), 0.5, dtype=torch.float64))


def box(low: float, high: float, n: int = 2) -> Box:
    one = torch.ones(1, 1, n, dtype=torch.float64)
    return Box(one * low, one * high)


def last(*args: Any, steps: int = 60, **options: Any) -> Enclosure:
    return list(itertools.islice(refine(*args, **options), steps))[-1]


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [(torch.log, -1, 1), (torch.log, 0, 1), (torch.reciprocal, -1, 1), (torch.exp, 0, 1000),
     (torch.relu, -1e308, 1.7e308)],
)  # fmt: skip
def test_functions_that_are_not_finite_are_named(function: Any, low: float, high: float) -> None:
    with pytest.raises(InputError, match="not finite on the region"):
        last(graph(function), box(low, high))


def test_nothing_is_claimed_beyond_the_greatest_float(caplog: pytest.LogCaptureFixture) -> None:
    """Finite at every point that is tried, not everywhere: the log says at which node."""
    found = last(graph(lambda x: 1 / (x - 0.123)), box(0, 1), steps=4)
    assert found.lower == -math.inf and found.upper == math.inf and found.gap == math.inf and found.status == "open"
    said = [record.getMessage() for record in caplog.records if record.name.startswith("verifier")]
    assert len(said) == 1 and "(Reciprocal, 'reciprocal') has no finite bounds on the region" in said[0]


def test_slopes_without_ends_are_explained(caplog: pytest.LogCaptureFixture) -> None:
    found = sensitivity(graph(torch.exp), box(0, 800), splits=0)
    assert bool(found.upper.isinf().all())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("verifier")]
    assert len(said) == 1 and "(Exp, 'exp') has no finite bounds on the region" in said[0]


def test_one_infinite_side_is_a_gap() -> None:
    point = torch.zeros(1)
    found = Enclosure(-math.inf, 3.0, 5.0, 5.0, point, point, "open", 1, 1, 0, 1, 0.0)
    assert found.gap == math.inf


def test_jumps_leave_the_other_bounds() -> None:
    """Neither slopes nor programs need to be known."""
    for name, function in (("sign", torch.sign), ("floor", lambda x: torch.floor(3 * x) + x)):
        net = graph(function)
        assert not Function.of(net, Domain.of(box(-1, 1))).smooth, name
        found = last(net, box(-1, 1), steps=10)
        draw = torch.rand(3000, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
        values = net.evaluate(draw)[0]
        assert found.lower <= values.min() and values.max() <= found.upper
        assert found.least < found.greatest and math.isfinite(found.gap)
    place = graph(lambda x: torch.argmax(x, 1, keepdim=True).double(), 3)  # no gradient at all
    assert last(place, box(-1, 1, 3)).status == "exact"


@pytest.mark.parametrize("p", [None, 2.0])
def test_784_inputs_are_left_to_phases(p: float | None) -> None:
    torch.manual_seed(0)
    net = trace(nn.Sequential(nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 1)), torch.zeros(1, 784))
    region: Box | LpBall = box(-0.05, 0.05, 784)
    if p is not None:
        region = LpBall(torch.zeros(1, 1, 784, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64), p)
    found = last(net, region, gap=1e-5, steps=30)
    row = torch.ones(1, 1, dtype=torch.float64)
    assert found.boxes <= 4 and found.programs > 0  # the whole region, twice for each side
    if p is None:
        assert found.status == "exact"
        assert found.lower == pytest.approx(minimum(net, box(-0.05, 0.05, 784), row).value, abs=1e-4)
    assert found.lower <= found.least <= found.greatest <= found.upper


def test_programs_of_parts_are_exact() -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1)]
    net = trace(nn.Sequential(*layers), torch.zeros(1, 2))
    function = Function.of(net, Domain.of(box(-2, 2)))
    assert encodable(function)
    for low in (-2.0, -0.5, 1.0):
        part = box(low, low + 1)
        ends = part.lower.flatten(1), part.upper.flatten(1)
        for sign in (1.0, -1.0):
            program = Program.of(function, ends, sign, 1e-7, Crown())
            state = program.run(program.search.start(), math.inf, 10_000)
            truth = minimum(net, part, torch.full((1, 1), sign, dtype=torch.float64), gap=1e-7)
            assert state.bound <= truth.value + 1e-12 and state.bound == pytest.approx(truth.value, abs=1e-6)
            assert state.x is not None
            point = program.point(state.x)
            assert bool(((ends[0] <= point) & (point <= ends[1])).all())
            assert sign * float(function.values(point[None])) == pytest.approx(truth.value, abs=1e-6)


def test_balls_that_a_box_barely_touches_have_no_programs() -> None:
    """Rounding leaves open whether there is a point at all: nothing is claimed to be attained."""
    within = Box(torch.tensor([[[0.6, 0.8]]], dtype=torch.float64), torch.full((1, 1, 2), 2.0, dtype=torch.float64))
    centre = torch.zeros(1, 1, 2, dtype=torch.float64)
    found = last(graph(torch.relu), LpBall(centre, torch.ones(1, dtype=torch.float64), 2.0, within), steps=5)
    assert found.least == math.inf and found.least_at is None and found.lower <= 1.4 <= found.upper


def test_a_function_that_is_constant_and_a_point() -> None:
    for net, region in ((graph(lambda x: 0 * x + 3), box(-1, 1)), (graph(lambda x: x * x), box(0.5, 0.5))):
        found = last(net, region)
        assert found.status == "exact" and found.lower <= found.least and found.upper - found.lower < 1e-9


@pytest.mark.parametrize(
    "options",
    [{"of": "x"}, {"gap": math.nan}, {"gap": -1.0}, {"timeout": math.nan}, {"timeout": -1.0}, {"memory": 0},
     {"label": 0}, {"functional": "y[9]"}, {"functional": torch.ones(3)}, {"functional": "y[0]", "label": 0}],
)  # fmt: skip
def test_mistakes_in_the_question(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        last(graph(torch.relu), box(0, 1), **options)


@pytest.mark.parametrize(
    "region",
    [box(1, 0), box(0, math.inf), box(0, 1, 3), Box(torch.zeros(2, 1, 2), torch.ones(2, 1, 2)),
     Box(torch.zeros(1, 2), torch.ones(1, 2))],
)  # fmt: skip
def test_regions_that_do_not_fit(region: Box) -> None:
    with pytest.raises(InputError):
        last(graph(torch.relu), region)
