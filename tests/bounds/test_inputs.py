"""Input sets: the least value of a line over boxes, balls and both, against exact points and a solver's optimum."""

from __future__ import annotations

import math
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from bounds.backward import LinearBounds
from bounds.box import Box, LpBall
from bounds.concretize import concretize, minimiser
from bounds.graph import Builder
from bounds.layouts import Owner
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding

D = torch.float64
SIZE = 7


def plan_of(size: int, dtype: torch.dtype = D, rounding: bool = True) -> Plan:
    build = Builder()
    graph = build.finish([build.add(Relu(), build.input((size,), "x"))])
    return prepare(graph, dtype, rounding=Rounding.of(dtype) if rounding else None)


def lines_of(rows: torch.Tensor, owner: Owner) -> LinearBounds:
    zero = torch.zeros(rows.shape[0], dtype=rows.dtype)
    return LinearBounds(rows, zero, zero, owner)


def draw(rng: np.random.Generator, p: float, boxes: int, cut: float) -> tuple[LpBall, Box]:
    """Balls, and boxes that cut them (also ones that miss the centre)."""
    centre = torch.from_numpy(rng.normal(size=(boxes, SIZE)))
    radius = torch.from_numpy(rng.random(boxes) + 0.1)
    low = centre - torch.from_numpy(rng.random((boxes, SIZE))) * cut
    high = centre + torch.from_numpy(rng.random((boxes, SIZE))) * cut
    shift = torch.zeros(boxes, SIZE, dtype=D)
    shift[:, 0] = (high - low)[:, 0] * torch.from_numpy(rng.integers(-1, 2, boxes))
    near = torch.where(shift.abs() < radius[:, None] / 2, shift, 0.0)
    ball = LpBall(centre, radius, p, Box(low + near, high + near))
    return ball, ball.box()


def solved(row: np.ndarray, ball: LpBall, k: int) -> float:
    """The minimum of ``row x`` over set k: a linear program for p = 1, the Lagrange dual on a fine grid for p = 2."""
    box = ball.box()
    centre = ball.centre[k].numpy()
    low, high = box.lower[k].numpy() - centre, box.upper[k].numpy() - centre
    radius = float(ball.radius[k])
    if ball.p == 1:
        n = row.size
        above = np.block([[np.eye(n), -np.eye(n)], [-np.eye(n), -np.eye(n)], [np.zeros(n), np.ones(n)]])
        found = linprog(
            np.concatenate([row, np.zeros(n)]),
            A_ub=above,
            b_ub=np.concatenate([np.zeros(2 * n), [radius]]),
            bounds=[*zip(low, high, strict=True), *[(0, None)] * n],
        )
        return float(row @ centre + found.fun)
    weights = np.concatenate([[1e-12], np.geomspace(1e-4, 1e4, 20001)])[:, None]
    step = np.clip(-row / (2 * weights), low, high)
    return float(row @ centre + (step @ row + weights[:, 0] * ((step**2).sum(1) - radius**2)).max())


@pytest.mark.parametrize("p", [1, 2])
def test_the_minimum_over_a_ball_that_a_box_cuts(p: float) -> None:
    rng = np.random.default_rng(p)
    plan = plan_of(SIZE)
    for cut in (0.05, 0.3, 1.0, 5.0):
        ball, box = draw(rng, p, 6, cut)
        rows = torch.from_numpy(rng.normal(size=(18, SIZE)))
        rows[::5, 2] = 0
        lines = lines_of(rows, Owner(None, 6, 3))
        value, point = concretize(plan, lines, box, ball), minimiser(lines, box, ball)
        for r in range(18):
            best = solved(rows[r].numpy(), ball, r // 3)
            assert value[r] <= best + (1e-9 if p == 1 else 1e-5)
            assert value[r] == pytest.approx(best, abs=2e-6 * (1 + abs(best)))
            assert float(rows[r] @ point[r]) == pytest.approx(best, abs=2e-5 * (1 + abs(best)))
            away = (point[r] - ball.centre[r // 3]).abs()
            length = float(away.sum() if p == 1 else away.square().sum().sqrt())
            assert length <= float(ball.radius[r // 3]) * (1 + 1e-6)
            assert bool(((point[r] >= box.lower[r // 3]) & (point[r] <= box.upper[r // 3])).all())


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, D])
def test_no_exact_point_lies_below(exact: ModuleType, p: float, dtype: torch.dtype) -> None:
    """Rows with huge cancellation and subnormal coefficients; points exactly inside, in fractions."""
    rng = np.random.default_rng(int(min(p, 9)) + (dtype == D))
    plan, tiny = plan_of(SIZE, dtype), torch.finfo(dtype).tiny
    for scale in (1.0, 1e8, 1e-8, tiny):
        for cut in (0.02, 1.0, 50.0):
            ball, box = draw(rng, p, 2, cut)
            ball, box = ball.to(dtype), ball.to(dtype).box()
            rows = torch.from_numpy(rng.normal(size=(4, SIZE)) * scale).to(dtype)
            rows[1, 3] = -rows[1, 2]
            rows[2, :4] = tiny / 3
            lines = lines_of(rows, Owner.by_index(torch.tensor([0, 1, 0, 1])))
            value = concretize(plan, lines, box, ball)
            near = minimiser(lines, box, ball)
            for r in range(4):
                for x in inside(exact, rng, ball, r % 2, near[r]):
                    least = sum(exact.exact(rows[r].double()) * x)
                    assert Fraction(float(value[r])) <= least


def inside(exact: ModuleType, rng: np.random.Generator, ball: LpBall, k: int, near: torch.Tensor) -> list[np.ndarray]:
    """Points exactly in set k: the minimiser and random ones, drawn towards the centre until they are."""
    centre, radius = exact.exact(ball.centre[k].double()), Fraction(float(ball.radius[k]))
    within = ball.within
    assert within is not None
    low, high = (exact.exact(b[k].double()) for b in (within.lower, within.upper))
    found = []
    for start in (
        exact.exact(near.double()),
        *(exact.exact(rng.normal(size=SIZE)) * radius + centre for _ in range(2)),
    ):
        home = np.minimum(np.maximum(centre, low), high)
        for step in range(60):
            share = Fraction(2**40 - 4**step, 2**40) if step < 20 else Fraction(0)
            x = np.minimum(np.maximum(home + (start - home) * share, low), high)
            if length_within(x - centre, radius, ball.p):
                found.append(x)
                break
    return found


def length_within(away: np.ndarray, radius: Fraction, p: float) -> bool:
    if p == 1:
        return bool(sum(abs(a) for a in away) <= radius)
    return bool(sum(a * a for a in away) <= radius**2) if p == 2 else max(abs(a) for a in away) <= radius


def test_a_ball_is_never_worse_than_its_box() -> None:
    rng = np.random.default_rng(3)
    for p in (1, 2):
        ball, box = draw(rng, p, 3, 2.0)
        lines = lines_of(torch.from_numpy(rng.normal(size=(3, SIZE))), Owner(None, 3, 1))
        plan = plan_of(SIZE, rounding=False)
        assert bool((concretize(plan, lines, box, ball) >= concretize(plan, lines, box)).all())


def test_one_ball_alone_is_the_dual_norm() -> None:
    row = torch.tensor([[3.0, -4.0]], dtype=D)
    plan, lines = plan_of(2, rounding=False), lines_of(row, Owner(None, 1, 1))
    for p, dual in ((1, 4.0), (2, 5.0), (math.inf, 7.0)):
        ball = LpBall(torch.tensor([[1.0, 1.0]], dtype=D), torch.tensor([0.5], dtype=D), p)
        assert float(concretize(plan, lines, ball.box(), ball)) == pytest.approx(-1 - 0.5 * dual)


def test_the_derivative_of_the_minimum_is_the_minimiser() -> None:
    rng = np.random.default_rng(5)
    for p in (1, 2):
        ball, box = draw(rng, p, 2, 0.4)
        rows = torch.from_numpy(rng.normal(size=(2, SIZE))).requires_grad_()
        lines = lines_of(rows, Owner(None, 2, 1))
        concretize(plan_of(SIZE, rounding=False), lines, box, ball).sum().backward()
        assert rows.grad is not None
        assert torch.allclose(rows.grad, minimiser(lines, box, ball).detach(), atol=1e-5)


def test_the_enclosing_box_is_rounded_outward(exact: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, D):
        centre = torch.from_numpy(rng.normal(size=(40, 3))).to(dtype)
        radius = torch.from_numpy(10.0 ** rng.integers(-9, 3, 40)).to(dtype)
        box = LpBall(centre, radius, 2).box()
        c, r = exact.exact(centre.double()), exact.exact(radius.double())[:, None]
        assert (exact.exact(box.lower.double()) <= c - r).all() and (exact.exact(box.upper.double()) >= c + r).all()
        inner = torch.nextafter(box.lower, centre), torch.nextafter(box.upper, centre)
        assert (exact.exact(inner[0].double()) > c - r).all() and (exact.exact(inner[1].double()) < c + r).all()


def test_what_a_ball_contains() -> None:
    centre, radius = torch.zeros(1, 2, dtype=D), torch.ones(1, dtype=D)
    for p, length in ((1, 2.0), (2, math.sqrt(2)), (math.inf, 1.0)):
        ball = LpBall(centre, radius, p, Box(torch.full((1, 2), -0.6, dtype=D), torch.full((1, 2), 5.0, dtype=D)))
        inner, outer = 0.999 / length, 1.001 / length
        assert bool(ball.contains(torch.full((1, 2), inner, dtype=D)))
        assert not bool(ball.contains(torch.full((1, 2), outer, dtype=D)))
        assert bool(ball.contains(centre)) and not bool(ball.contains(torch.tensor([[-0.7, 0.0]], dtype=D)))
        assert not bool(ball.empty())
        far = Box(torch.full((1, 2), outer, dtype=D), torch.full((1, 2), 9.0, dtype=D))
        assert bool(LpBall(centre, radius, p, far).empty())


def test_what_is_no_ball() -> None:
    centre = torch.zeros(2, 3)
    for radius, p, word in (
        (torch.ones(2), 3, "norm p = 3"),
        (torch.ones(3), 2, "expected"),
        (torch.ones(2, dtype=D), 2, "radius of torch.float64"),
        (torch.tensor([1.0, -1.0]), 2, "radius >= 0"),
        (torch.tensor([1.0, math.nan]), 2, "finite"),
    ):
        with pytest.raises(ValueError, match=word):
            LpBall(centre, radius, p)
    with pytest.raises(ValueError, match="box around a ball"):
        LpBall(centre, torch.ones(2), 2, Box(torch.zeros(3, 3), torch.ones(3, 3)))
