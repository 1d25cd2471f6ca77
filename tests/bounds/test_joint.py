"""Joint ascent against automatic differentiation: the same gradient through the intervals, the same bounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds import Alpha, Box, Crown, compute_bounds
from bounds.climb import Pace, climb
from bounds.graph import Builder, Graph
from bounds.joint import Joint
from bounds.ops.arithmetic import Add
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.ops.sshape import Sigmoid
from bounds.plan import prepare
from bounds.propagate import crown, propagate

D = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def chain() -> Graph:
    """Four layers of eight neurons with a skip from the first to the last."""
    build = Builder()
    x = build.input((4,))
    first = x = build.add(Relu(), build.add(Gemm(), x, build.constant(normal(0, 4, 8)), build.constant(normal(1, 8))))
    for k in range(3):
        y = build.add(Gemm(), x, build.constant(normal(k + 2, 8, 8) / 2), build.constant(normal(k + 9, 8) / 2))
        x = build.add(Relu(), y)
    return build.finish([build.add(Gemm(), build.add(Add(), x, first), build.constant(normal(20, 8, 3)))])


def image() -> Graph:
    """Three convolutions, the last two joined by a sum."""
    build = Builder()
    x = build.add(Conv((2, 2), (1, 1), (1, 1, 1, 1)), build.input((1, 2, 6, 6)), build.constant(normal(1, 3, 2, 3, 3)))
    one, same = build.add(Relu(), x), Conv((1, 1), (1, 1), (1, 1, 1, 1))
    two = build.add(
        Relu(), build.add(same, one, build.constant(normal(3, 3, 3, 3, 3) / 2), build.constant(normal(2, 3)))
    )
    three = build.add(Relu(), build.add(Add(), build.add(same, two, build.constant(normal(4, 3, 3, 3, 3) / 2)), one))
    return build.finish([build.add(Gemm(), build.add(Reshape((27,)), three), build.constant(normal(5, 27, 3)))])


CASES = [pytest.param(chain(), 0.4, id="chain"), pytest.param(image(), 0.3, id="image")]


def around(graph: Graph, radius: float, count: int = 1) -> Box:
    middle = normal(7, count, *graph.nodes[graph.inputs[0]].shape) / 3
    return Box(middle - radius, middle + radius)


def problem(graph: Graph, radius: float) -> Joint:
    plan = prepare(graph, D)
    state, _ = propagate(plan, around(graph, radius), tighten=crown)
    eye = torch.eye(3, dtype=D)
    return Joint.of(plan, state, plan.output, torch.cat([eye, -eye]))


@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_gradient_equals_that_of_a_tape(graph: Graph, radius: float) -> None:
    with torch.no_grad():
        rows = problem(graph, radius)
        start = rows.start()
        share = torch.rand(start.shape, generator=torch.Generator().manual_seed(3), dtype=D)
        point = 0.1 + 0.8 * share
        value, found = rows.value(point), rows.gradient()
    with torch.enable_grad():
        moved = point.clone().requires_grad_()
        total = rows.value(moved)
        (expected,) = torch.autograd.grad(total.sum(), moved)
    last = rows.groups[-1].first
    assert len(rows.groups) >= 3 and torch.equal(value, total)
    assert int((expected[:, :last] != 0).sum()) > 20
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11 * float(expected.abs().max()))


@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_bounds_equal_those_of_a_taped_ascent(graph: Graph, radius: float) -> None:
    """By torch's Adam, to 1e-5 after the same steps."""
    rows = problem(graph, radius)
    start = 0.2 * rows.start() + 0.4
    with torch.no_grad():
        mine = climb(rows, start, torch.ones_like(start), Pace(8, rate=0.03, decay=0.95), None).value
    with torch.enable_grad():
        point = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([point], lr=0.03)
        best = first = float(rows.value(start))
        for step in range(9):
            total = rows.value(point)
            best = max(best, float(total.detach()))
            optimiser.param_groups[0]["lr"] = 0.03 * 0.95**step
            optimiser.zero_grad()
            (-total.sum()).backward()
            optimiser.step()
            with torch.no_grad():
                point.clamp_(0, 1)
    assert best > first + 1e-2
    assert float(mine) == pytest.approx(best, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("semantics", ["real", None])
@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_bounds_hold_and_are_never_below_crown(graph: Graph, radius: float, semantics: str | None) -> None:
    boxes = around(graph, radius, 2)
    plain = compute_bounds(graph, boxes, Crown(), semantics=semantics)
    found = compute_bounds(graph, boxes, Alpha(15, joint=True), semantics=semantics)
    assert bool((found.lower >= plain.lower - 1e-9).all()) and bool((found.upper <= plain.upper + 1e-9).all())
    assert float((found.upper - found.lower).sum()) < 0.97 * float((plain.upper - plain.lower).sum())
    share = torch.rand((3000, *boxes.lower.shape), generator=torch.Generator().manual_seed(4), dtype=D)
    share[:1500] = share[:1500].round()
    points = boxes.lower + (boxes.upper - boxes.lower) * share
    value = graph.evaluate(points.flatten(0, 1))[0].reshape(3000, 2, 3)
    slack = 0.0 if semantics else 1e-9
    assert bool((value >= found.lower - slack).all() and (value <= found.upper + slack).all())
    lines = found.lines
    below = torch.einsum("pni,nri->pnr", points.flatten(2), lines.lower_rows.flatten(2)) + lines.lower_bias
    assert bool((value >= below - 1e-9).all())


def test_what_joint_ascent_cannot_do_says_so() -> None:
    build = Builder()
    x = build.input((2,))
    x = build.add(Sigmoid(), build.add(Gemm(), x, build.constant(normal(0, 2, 3))), name="gate")
    graph = build.finish([build.add(Gemm(), x, build.constant(normal(1, 3, 1)))])
    with pytest.raises(ValueError, match=r"node \d+ is Sigmoid, 'gate'"):
        compute_bounds(graph, around(graph, 0.1), Alpha(3, joint=True))
    slopes = compute_bounds(chain(), around(chain(), 0.1), Alpha(2)).slopes
    with pytest.raises(ValueError, match="takes no start"):
        Alpha(3, start=slopes, joint=True)
