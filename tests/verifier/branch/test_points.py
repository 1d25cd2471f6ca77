"""Splits of any operator at any point: bounds hold wherever the half-spaces do, children cover their parent, and
searches decide what root bounds do not."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import dual as dual_module
from bounds.ascent import DualRows
from bounds.backward import Split
from bounds.dual import evaluate
from bounds.graph import Builder, Graph
from bounds.ops.base import Op
from bounds.ops.bilinear import Product
from bounds.ops.exponential import Exp
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.jumps import Floor, Jumping, Step
from bounds.ops.periodic import Sin
from bounds.ops.piecewise import Clip
from bounds.ops.relu import Relu
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid, Tanh
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen
from verifier.branch.splits import Splits, children
from verifier.strategy import AscentPlan

D = torch.float64
SIGN = Step(-1.0, 0.0, 1.0)
KINDS: dict[str, tuple[Op, ...]] = {
    "sigmoid": (Sigmoid(), Sigmoid()),
    "tanh, relu": (Tanh(), Relu()),
    "sin, exp": (Sin(), Exp()),
    "clip, sign": (Clip(-0.5, 0.75), SIGN),
    "floor, tanh": (Floor(), Tanh()),
    "max, sigmoid": (Max(), Sigmoid()),
    "product, tanh": (Product(), Tanh()),
    "tanh, softmax": (Tanh(), Softmax(-1)),
}


def network(ops: tuple[Op, ...], seed: int, inputs: int = 3, width: int = 5) -> Graph:
    """Layers of these operators, one output; operators of two operands read two products of weights."""
    rng, build = np.random.default_rng(seed), Builder()
    x = build.input((inputs,))

    def dense(x: int, width: int) -> int:
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((build.shape(x)[0], width), (width,)))
        return build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))

    for op in ops:
        operands = 2 if isinstance(op, Max | Product) else 1
        x = build.add(op, *[dense(x, width) for _ in range(operands)])
    return build.finish([dense(x, 1)])


def search(planted: ModuleType, graph: Graph, threshold: float = -1e4, radius: float = 1.0) -> ActivationSplit:
    """The search over a box around 0 for one clause, whatever root bounds say."""
    ends = np.full(graph.nodes[graph.inputs[0]].shape[0], radius, dtype=np.float32)
    query = planted.query(graph, [(-ends, ends)], [(0, [(0, 1, threshold)])])
    plans = prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))
    problem = Problem.of(query)
    # Bounds for a threshold out of reach leave the clause open.
    ((_, part),) = screen(Problem.of(planted.query(graph, [(-ends, ends)], [(0, [(0, 1, 1e4)])])), plans[1])
    return ActivationSplit(problem, plans, refine(problem, plans, part.open[0], 0, 0.0), AscentPlan(batch=16))


def around(searched: ActivationSplit, points: Tensor, seed: int, share: float = 0.4) -> Splits:
    """One subproblem for each of the ``points`` ``[K, n]``, which lies in it, often on its border; random slopes and
    multipliers."""
    plan, draw = prepare(searched.bounding.exact.graph, D), torch.Generator().manual_seed(seed)
    graph = plan.graph
    values: dict[int, Tensor] = {graph.inputs[0]: points}
    for node in graph.nodes:
        if node.id in plan.operands:
            given = zip(node.inputs, plan.operands[node.id], strict=True)
            values[node.id] = node.op.forward(*(values[i] if c is None else c for i, c in given))
    at = searched.positions.gather({p.before: values[p.before] for p in searched.positions.places}, points)
    batch = searched._root().take(torch.zeros(points.shape[0], dtype=torch.int64))
    kind, gap, betas = (torch.rand(at.shape, generator=draw, dtype=D) for _ in range(3))
    gap = torch.where(gap < 0.5, 0.0, gap - 0.5)
    low, high = (at - gap).float(), (at + gap).float()
    low, high = (
        torch.where(low > at, low.nextafter(-high.abs() - 9), low),
        torch.where(high < at, high.nextafter(low.abs() + 9), high),
    )
    above, below = kind < share, kind > 1 - share
    batch = replace(
        batch,
        low=torch.where(above, low, batch.low),
        high=torch.where(below, high, batch.high),
        betas=(betas * above - betas * below).half(),
    )
    slopes = torch.rand(batch.slopes.shape, generator=draw)
    return replace(batch, slopes=torch.where(slopes < 0.5, slopes, batch.slopes.float()).half())


def cube(count: int, size: int, seed: int) -> Tensor:
    return torch.rand((count, size), generator=torch.Generator().manual_seed(seed), dtype=D) * 2 - 1


def slack(planted: ModuleType, ops: tuple[Op, ...], seed: int) -> float:
    """The least of output minus bound at points of random subproblems: negative is unsound."""
    graph = network(ops, seed)
    searched = search(planted, graph, 0.0)
    points = cube(200, 3, seed)
    batch = around(searched, points, seed)
    stored = searched.bounding.ascended(batch, 0)
    found = searched.bounding.ascended(batch, 3)
    least = torch.inf
    for chosen in (stored, found):
        proven = searched.bounding.decided(batch, chosen)
        least = min(least, float((graph.evaluate(points)[0][:, 0] - proven).min()))
    return least


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bounds_hold_where_the_half_spaces_do(planted: ModuleType, kind: str) -> None:
    for seed in range(3):
        assert slack(planted, KINDS[kind], seed) >= 0


@torch.no_grad()
def test_a_wrong_sign_at_a_point_shows(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dual_module, "Split", lambda signed, point=None: Split(signed, None if point is None else -point)
    )
    assert slack(planted, KINDS["sigmoid"], 0) < 0
    monkeypatch.setattr(dual_module, "Split", lambda signed, point=None: Split(-signed, point))
    assert slack(planted, KINDS["sigmoid"], 0) < 0


@torch.no_grad()
def test_a_closed_half_has_the_value_at_the_jump(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """``sign(x0) + 1`` is 0 or 2 beside the jump, 1 at it: neither half may say more than 1."""

    def bounds() -> tuple[float, float]:
        build = Builder()
        x = build.input((1,))
        one, shift = build.constant(torch.ones(1, 1, dtype=D)), build.constant(torch.ones(1, dtype=D))
        steps = build.add(SIGN, build.add(Gemm(), x, one))
        result = []
        for side in (1.0, -1.0):
            out = build.add(Gemm(), steps, build.constant(torch.full((1, 1), side, dtype=D)), shift)
            searched = search(planted, build.finish([out]), 0.0)
            batch = searched._root()
            half = replace(batch, low=batch.low * 0) if side > 0 else replace(batch, high=batch.high * 0)
            half = replace(half, low=half.low.nan_to_num(0.0), high=half.high.nan_to_num(0.0))
            result.append(float(searched.bounding.decided(half, searched.bounding.ascended(half, 5))[0]))
        return result[0], result[1]

    assert max(bounds()) <= 1
    outline = Jumping._outline

    def open_ended(self: Jumping, low: Tensor, high: Tensor, sign: int) -> list[tuple[Tensor, Tensor]]:
        right, left = self.sides(low)[1], self.sides(high)[0]
        return [(low, right), *outline(self, low, high, sign)[1:-1], (high, left)]

    monkeypatch.setattr(Jumping, "_outline", open_ended)
    assert max(bounds()) > 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_children_cover_their_parent(planted: ModuleType, kind: str) -> None:
    """They share the point, which lies strictly inside the interval that the parent has there."""
    searched = search(planted, network(KINDS[kind], 1), 0.0)
    points = cube(40, 3, 1)
    batch = around(searched, points, 1, share=0.1)
    kept = searched._remember(batch, searched.bounding.ascended(batch, 2))
    kept = kept.take(kept.next >= 0)
    assert kept.size > 20
    first, second = children(kept).take(slice(0, kept.size)), children(kept).take(slice(kept.size, 2 * kept.size))
    at = kept.next.unsqueeze(1)
    assert torch.equal(first.low.gather(1, at)[:, 0], kept.point)
    assert torch.equal(second.high.gather(1, at)[:, 0], kept.point)
    assert torch.equal(first.high, kept.high)
    assert torch.equal(second.low, kept.low)
    state, _ = searched.positions.between(searched.bounding.exact, kept.low, kept.high)
    low = searched.positions.gather({n: b[0] for n, b in state.bounds.items()}, kept.low)
    high = searched.positions.gather({n: b[1] for n, b in state.bounds.items()}, kept.low)
    assert bool(((low.gather(1, at)[:, 0] < kept.point) & (kept.point < high.gather(1, at)[:, 0])).all())
    for child in (first, second):
        changed = (child.low != kept.low) | (child.high != kept.high)
        assert bool((changed.sum(1) == 1).all())


@torch.no_grad()
def test_the_gradient_of_multipliers_at_points(planted: ModuleType) -> None:
    searched = search(planted, network(KINDS["sigmoid"], 2), 0.0)
    root, plan = searched.bounding.points, prepare(searched.bounding.exact.graph, D)
    assert root is not None
    batch = around(searched, cube(20, 3, 2), 2)
    dual, _ = root.dual(plan, batch)
    rows, point, _ = DualRows.of(dual, root.multipliers(dual, batch.slopes, batch.betas, batch.weights))
    before = rows.value(point).clone()
    gradient, step, checked = rows.gradient(), 1e-6, 0
    for part in rows.parts:
        if part.kind == 2:
            for column in range(part.columns.start, part.columns.stop):
                moved = point.clone()
                moved[:, column] += step * point[:, column].sign()
                after = evaluate(dual, rows.multipliers(moved))[1]
                expected = gradient[:, column] * point[:, column].sign()
                torch.testing.assert_close((after - before) / step, expected, rtol=1e-3, atol=1e-4)
                checked += int((point[:, column] != 0).sum())
    assert checked > 50


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        ("sigmoid", 4),
        ("tanh, relu", 6),
        ("clip, sign", 5),
        ("max, sigmoid", 5),
        ("product, tanh", 5),
        ("tanh, softmax", 5),
    ],
)
@torch.no_grad()
def test_searches_decide_what_root_bounds_do_not(planted: ModuleType, kind: str, seed: int) -> None:
    """Below the least value of a network the search proves it, just above it never does."""
    graph = network(KINDS[kind], seed, inputs=2, width=4)
    axis = torch.linspace(-1, 1, 201, dtype=D)
    least = float(graph.evaluate(torch.cartesian_prod(axis, axis))[0].min())
    first = next(iter(search(planted, graph, least).run())).lower_bound
    assert first < -0.05, "root bounds leave a gap"
    for threshold, proven in ((least + first * 0.6, True), (least + 1e-3, False)):
        searched = search(planted, graph, threshold)
        left = [step.open_subproblems for step, _ in zip(searched.run(), range(12 if proven else 5), strict=False)]
        assert (left[-1] == 0) is proven
        assert len(left) > 1
