"""Bounds of many boxes: each part of them alone holds at sampled points, and in every network and region."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import Box, Graph, LpBall
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from verifier.anytime.bounding import Asked, Function
from verifier.anytime.domain import Domain
from verifier.anytime.functional import with_expression

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(networks: ModuleType, seed: int, p: float | None) -> Function:
    """A network over all operators, its first output, on a box or on a ball."""
    rng = np.random.default_rng(seed)
    kinds = {"smooth": seed % 2 == 0, "products": seed % 5 == 1, "waves": seed % 7 == 2, "jumps": seed % 11 == 3}
    graph: Graph = networks.random_graph(rng, networks.Scales(weight=1.0 + 2 * (seed % 3 == 0), **kinds))
    centre = torch.tensor(rng.normal(size=(1, *graph.nodes[graph.inputs[0]].shape)))
    width = torch.tensor(rng.uniform(0, 1, size=centre.shape) * (rng.random(centre.shape) > 0.2))
    region: Box | LpBall = Box(centre - width, centre + width)
    if p is not None:
        region = LpBall(centre, torch.tensor([0.8], dtype=torch.float64), p)
    return Function.of(with_expression(graph, "y[0]"), Domain.of(region))


def parts(function: Function, count: int) -> tuple[Tensor, Tensor]:
    """Random boxes in the domain."""
    low, high = function.domain.ends()
    draw = torch.Generator().manual_seed(count)
    share = torch.rand(2, count, low.shape[1], generator=draw, dtype=torch.float64)
    ends = low + share * (high - low)
    return ends.amin(0), ends.amax(0)


def lowest(function: Function, lower: Tensor, upper: Tensor, sign: float) -> Tensor:
    """``[N]``: the least sampled value of ``sign * f`` in each box (inf: no point of it is in the region)."""
    draw = torch.Generator().manual_seed(0)
    share = torch.rand(200, *lower.shape, generator=draw, dtype=torch.float64)
    share = torch.where(torch.rand(share.shape, generator=draw) < 0.3, share.round(), share)
    points = function.domain.inside((lower + share * (upper - lower)).flatten(0, 1)).unflatten(0, (200, -1))
    mine = ((lower <= points) & (points <= upper)).all(-1)
    values = sign * function.values(points.flatten(0, 1)).unflatten(0, (200, -1))
    return torch.where(mine & values.isfinite(), values, math.inf).amin(0)


def lines_alone(function: Function, asked: Asked, number: int) -> Tensor:
    plan = function.plans[number]
    return function._lines(plan, function._state(plan, asked), asked).bound


def mean_value_alone(function: Function, asked: Asked, number: int) -> Tensor:
    plan = function.plans[number]
    slopes = function._jacobian(plan, function._state(plan, asked), asked.sign)
    return torch.full_like(asked.lower[:, 0], -math.inf) if slopes is None else function._mean_value(asked, *slopes)


def interval_alone(function: Function, asked: Asked, number: int) -> Tensor:
    plan = function.plans[number]
    low, high = function._state(plan, asked).bounds[plan.output]
    return (low if asked.sign > 0 else -high).flatten().double()


def all_together(function: Function, asked: Asked, _: int) -> Tensor:
    return function.bound(asked).bound


@pytest.mark.parametrize("number", [0, 1], ids=["coarse", "fine"])
@pytest.mark.parametrize("part", [lines_alone, interval_alone, mean_value_alone, all_together])
def test_each_part_of_a_bound_holds(
    networks: ModuleType, part: Callable[[Function, Asked, int], Tensor], number: int
) -> None:
    told = 0
    for seed in range(16):
        function = drawn(networks, seed, (None, None, 1.0, 2.0)[seed % 4])
        if part is mean_value_alone and not function.smooth:
            continue
        lower, upper = parts(function, 6)
        for sign in (1.0, -1.0):
            asked = Asked(lower, upper, sign, inherited={})
            with torch.no_grad():
                bound = part(function, asked, number)
            least = lowest(function, lower, upper, sign)
            slack = 1e-12 * least.abs().clamp(max=1e300)
            assert bool((bound <= least + slack).all()), (seed, sign, bound, least)
            told += int(bound.isfinite().sum())
    assert told > 30


@pytest.mark.parametrize("number", [0, 1], ids=["coarse", "fine"])
def test_what_is_clipped_is_no_better_than_what_is_attained(networks: ModuleType, number: int) -> None:
    clipped = 0
    for seed in range(16):
        function = drawn(networks, seed, (None, None, 1.0, 2.0)[seed % 4])
        lower, upper = parts(function, 6)
        for sign in (1.0, -1.0):
            least = lowest(function, lower, upper, sign)
            for value in least[least.isfinite()].tolist():
                asked, plan = Asked(lower, upper, sign, value, {}), function.plans[number]
                with torch.no_grad():
                    found = function._lines(plan, function._state(plan, asked), asked)
                assert bool((found.lower >= lower).all() and (found.upper <= upper).all())
                clipped += int((found.lower > lower).any(1).sum() + (found.upper < upper).any(1).sum())
                for ends in ((lower, torch.minimum(found.lower, upper)), (torch.maximum(found.upper, lower), upper)):
                    for i in range(lower.shape[1]):  # the part beyond one clipped end
                        part = lower.clone(), upper.clone()
                        part[0][:, i], part[1][:, i] = ends[0][:, i], ends[1][:, i]
                        gone = part[0][:, i] < part[1][:, i]
                        if bool(gone.any()):
                            best = lowest(function, part[0][gone], part[1][gone], sign)
                            assert bool((best >= value - 1e-12 * abs(value)).all()), (seed, sign, value)
    assert clipped > 30


def test_float32_bounds_hold_in_float64(exact: ModuleType) -> None:
    """Sums that cancel: float32 alone is off by far more than what the bound leaves."""
    worst = 0.0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        build = Builder()
        x = build.input((4,))
        for before, after in ((4, 6), (6, 1)):
            weight, bias = (torch.from_numpy(rng.normal(size=s) * 1e3) for s in ((before, after), (after,)))
            x = build.add(Gemm(), x, build.constant(weight), build.constant(bias))
        graph = build.finish([x])
        centre = torch.tensor(rng.normal(size=(1, 4)))
        domain = Domain.of(Box(centre - 1e-7, centre + 1e-7))
        function = Function.of(graph, domain)
        ends = domain.ends()
        corners = [np.where([k >> i & 1 for i in range(4)], ends[0][0], ends[1][0]) for k in range(16)]
        least = min(exact.evaluate(graph, exact.exact(c))[graph.outputs[0]][0] for c in corners)
        plan = function.plans[0]
        assert plan.dtype == torch.float32
        with torch.no_grad():
            state = function._state(plan, Asked(*ends, 1.0, inherited={}))
            found = function._lines(plan, state, Asked(*ends, 1.0, inherited={}))
        assert exact.exact(found.bound)[0] <= least
        worst = max(worst, (float(found.bound + found.lost) - float(least)) / abs(float(least)))
        fine = function.bound(Asked(*ends, 1.0, float(least), {}))
        assert exact.exact(fine.bound)[0] <= least and float(fine.bound) == pytest.approx(float(least), rel=1e-9)
    assert worst > 0, "without its error terms no float32 bound was wrong: the networks are too tame"


def monotone() -> Function:
    """Rises in the first input, falls in the second, turns in the third."""
    build = Builder()
    x = build.input((3,))
    y = with_expression(build.finish([x]), "2*y[0] - 3*y[1] + abs(y[2] - 0.3) + relu(y[0] - y[1])")
    one = torch.ones(1, 3, dtype=torch.float64)
    return Function.of(y, Domain.of(Box(-one, one)))


@pytest.mark.parametrize(("sign", "low", "high"), [(1.0, (-1.0, 1.0), (-1.0, 1.0)), (-1.0, (1.0, -1.0), (1.0, -1.0))])
def test_boxes_are_collapsed_onto_the_face_of_the_minimum(
    sign: float, low: tuple[float, float], high: tuple[float, float]
) -> None:
    function = monotone()
    found = function.bound(Asked(*function.domain.ends(), sign, inherited={}))
    assert tuple(found.lower[0].tolist()) == (*low, -1.0) and tuple(found.upper[0].tolist()) == (*high, 1.0)
    least = -5.0 if sign > 0 else -(5.0 + 1.3 + 2.0)
    assert float(found.bound[0]) == pytest.approx(least, abs=1e-5) and float(found.bound[0]) <= least
    assert int(found.axis[0]) == 2


def test_a_box_is_never_collapsed_onto_the_wrong_face(networks: ModuleType) -> None:
    """The face that is left holds the least value of the whole box."""
    collapsed = 0
    for seed in range(14):
        function = drawn(networks, seed, None)
        lower, upper = parts(function, 6)
        lower, upper = lower, lower + (upper - lower) * 0.2
        for sign in (1.0, -1.0):
            found = function.bound(Asked(lower, upper, sign, inherited={}))
            assert bool((lower <= found.lower).all() & (found.upper <= upper).all())
            draw = torch.Generator().manual_seed(0)
            share = torch.rand(100, *lower.shape, generator=draw, dtype=torch.float64)
            points = lower + share * (upper - lower)
            whole, face = (
                sign * function.values(p.flatten(0, 1)).unflatten(0, (100, -1))
                for p in (points, torch.minimum(torch.maximum(points, found.lower), found.upper))
            )
            assert bool((face <= whole + 1e-9 * whole.abs()).all())
            collapsed += int(((found.lower == found.upper) & (lower < upper)).sum())
    assert collapsed > 30


def test_infinite_slopes_leave_an_axis_that_can_be_split() -> None:
    build = Builder()
    graph = with_expression(build.finish([build.input((2,))]), "norm2(y) - y[0]")
    zero = torch.zeros(1, 2, dtype=torch.float64)
    for upper in ([[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 2.0]]):
        ends = zero, torch.tensor(upper, dtype=torch.float64)
        function = Function.of(graph, Domain.of(Box(*ends)))
        found = function.bound(Asked(*ends, 1.0, inherited={}))
        row = torch.arange(1)
        assert bool(found.lower[row, found.axis] < found.upper[row, found.axis]) or bool(found.bound >= -1e-9)


def test_overflow_says_nothing() -> None:
    """What is beyond the greatest float is not claimed to be below it."""
    build = Builder()
    graph = with_expression(build.finish([build.input((2,))]), "y[0] * y[1]")
    ends = torch.zeros(1, 2, dtype=torch.float64), torch.full((1, 2), 1e200, dtype=torch.float64)
    function = Function.of(graph, Domain.of(Box(*ends)))
    assert float(function.bound(Asked(*ends, -1.0, inherited={})).bound) == -math.inf


def test_a_region_of_another_shape_is_refused() -> None:
    function = monotone()
    one = torch.ones(1, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="shape"):
        Function.of(function.graph, Domain.of(Box(-one, one)))


def test_inherited_bounds_do_not_change_what_is_true(networks: ModuleType) -> None:
    for seed in range(8):
        function = drawn(networks, seed, (None, 2.0)[seed % 2])
        lower, upper = parts(function, 4)
        parent = function.bound(Asked(lower, upper, 1.0, inherited={}))
        middle = parent.lower / 2 + parent.upper / 2
        child = Asked(parent.lower, middle, 1.0, inherited=parent.inherited)
        least = lowest(function, child.lower, child.upper, 1.0)
        found, alone = function.bound(child).bound, function.bound(replace(child, inherited={})).bound
        slack = 1e-12 * least.abs().clamp(max=1e300)
        assert bool((found <= least + slack).all()) and bool((alone <= least + slack).all())
