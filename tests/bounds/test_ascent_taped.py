"""The ascent against one by automatic differentiation: the same gradients, the same bounds after the same steps.

The taped ascent uses nothing of ``climb.py``, ``ascent.py`` and the condensed walks: torch's own Adam on the parameters
of each node's lines, ``backward`` under the tape.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds import Alpha, Box, Crown, compute_bounds
from bounds.ascent import INNER, Asked, DualRows, decide, optimise
from bounds.backward import State
from bounds.climb import Pace, Slope, climb
from bounds.condensed import Condensed, Operators
from bounds.condensed_walk import CAREFUL, CondensedRows
from bounds.dual import Dual, Multipliers, Objective, by_rows, each, evaluate, freedoms, initial
from bounds.graph import Builder, Graph
from bounds.layouts import Selection
from bounds.ops.arithmetic import Add
from bounds.ops.base import Freedom, Nonlinear, Op
from bounds.ops.bilinear import Product
from bounds.ops.conv import Conv
from bounds.ops.exponential import Exp
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.piecewise import Abs
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding

D = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def chain(op: Op, gain: float = 1.0) -> Graph:
    """Three layers of six neurons with a skip, an operator of one or two operands behind each, four outputs."""
    build = Builder()
    x = first = build.input((4,))
    for k in range(3):
        width = build.shape(x)[0]
        sides = [
            build.add(Gemm(), x, *(build.constant(gain * c) for c in (normal(9 * k + j, width, 6), normal(k + 50, 6))))
            for j in range(2 if isinstance(op, Max | Product) else 1)
        ]
        x = build.add(op, *sides)
    x = build.add(Add(), x, build.add(Gemm(), first, build.constant(normal(90, 4, 6))))
    return build.finish([build.add(Gemm(), x, build.constant(normal(91, 6, 4)))])


def image(op: Op) -> Graph:
    """Two convolutions of a 6x6 image with an operator behind each, joined with a third one by a sum."""
    build = Builder()
    x = build.input((1, 2, 6, 6))
    conv = Conv((2, 2), (1, 1), (1, 1, 1, 1))
    one = build.add(op, build.add(conv, x, build.constant(normal(1, 3, 2, 3, 3)), build.constant(normal(2, 3))))
    same = Conv((1, 1), (1, 1), (1, 1, 1, 1))
    two = build.add(op, build.add(same, one, build.constant(normal(3, 3, 3, 3, 3) / 2)))
    joined = build.add(op, build.add(Add(), build.add(same, two, build.constant(normal(4, 3, 3, 3, 3) / 2)), one))
    return build.finish([build.add(Gemm(), build.add(Reshape((27,)), joined), build.constant(normal(5, 27, 4)))])


CASES = [
    pytest.param(graph, radius, id=name)
    for name, graph, radius in (
        ("relu", chain(Relu(), 0.5), 0.5),
        ("sigmoid", chain(Sigmoid()), 0.4),
        ("abs", chain(Abs(), 0.5), 0.4),
        ("exp", chain(Exp(), 0.3), 0.3),
        ("max", chain(Max(), 0.5), 0.4),
        ("product", chain(Product(), 0.5), 0.3),
        ("softmax", chain(Softmax(-1)), 0.4),
        ("image relu", image(Relu()), 0.3),
        ("image sigmoid", image(Sigmoid()), 0.5),
    )
]


def known(graph: Graph, radius: float, rounding: Rounding | None = None) -> tuple[Plan, State]:
    """A plan, and the state of one box with CROWN bounds."""
    plan = prepare(graph, D, rounding=rounding)
    middle = normal(7, 1, *graph.nodes[graph.inputs[0]].shape) / 3
    state, _ = propagate(plan, Box(middle - radius, middle + radius), tighten=crown)
    return plan, state


def wanted(plan: Plan, state: State) -> Asked:
    """Both sides of all outputs."""
    count = plan.graph.nodes[plan.output].shape[0]
    sign = torch.ones(2 * count, dtype=D)
    sign[count:] = -1
    units = Selection(torch.arange(count).repeat(2), sign, (count,), mirrored=True)
    return Asked(plan, state, plan.output, units, torch.zeros(2 * count, dtype=torch.int64))


def problem(asked: Asked) -> tuple[Dual, Multipliers]:
    """The rows, and a start inside the ranges of their parameters: at their ends there are several subgradients."""
    state = by_rows(asked.plan, asked.state, asked.owner)
    dual = Dual(asked.plan, state, asked.node, Objective.single(asked.dense()), {})
    start, free = initial(asked.plan, state), freedoms(asked.plan, state)
    for node, pair in start.items():
        limits = zip(pair, free[node], strict=True)
        below, above = (v if v is None or f is None else v * 0.2 + 0.8 * inside(f, v) for v, f in limits)
        start[node] = below, above
    return dual, Multipliers(start, {}, dual.objective.weights)


def inside(side: Freedom, like: Tensor) -> Tensor:
    """Random parameters between 0.3 and 0.7 of their ranges."""
    share = 0.3 + 0.4 * torch.rand(like.shape, generator=torch.Generator().manual_seed(2), dtype=D)
    return side.least + (side.greatest - side.least) * share


def scales(plan: Plan, node: int, range_: Tensor) -> Tensor:
    """How far a step of size 1 goes."""
    op = plan.graph.nodes[node].op
    assert isinstance(op, Nonlinear)
    return range_ if op.through_origin else range_ * CAREFUL


def taped(asked: Asked, pace: Pace) -> Tensor:
    """The best bounds ``[R]`` after each row's ascent by torch's Adam under a tape."""
    dual, start = problem(asked)
    free = freedoms(asked.plan, dual.state)
    places, bases, moves, ends = list[tuple[int, int]](), list[Tensor](), list[Tensor](), list[tuple[Tensor, Tensor]]()
    for node, pair in start.slopes.items():
        for side, values in enumerate(pair):
            limits = free[node][side]
            if values is not None and limits is not None:
                scale = scales(asked.plan, node, (limits.greatest - limits.least).clamp(min=0)).expand_as(values)
                places.append((node, side))
                bases.append(torch.where(scale > 0, scale, 1.0))
                ends.append((limits.least, limits.greatest))
                moves.append((values / bases[-1]).requires_grad_())
    optimiser = torch.optim.Adam(moves, lr=pace.rate)
    best = torch.full((asked.owner.shape[0],), -torch.inf, dtype=D)
    for step in range(pace.steps + 1):
        pairs: dict[int, list[Tensor | None]] = {}
        for (node, side), base, move in zip(places, bases, moves, strict=True):
            pairs.setdefault(node, [None, None])[side] = base * move
        slopes = {node: (pair[0], pair[1]) for node, pair in pairs.items()}
        bound = evaluate(dual, Multipliers(slopes, {}, start.weights))[1]
        best = torch.maximum(best, bound.detach())
        if step == pace.steps:
            return best
        optimiser.param_groups[0]["lr"] = pace.rate * pace.decay**step
        optimiser.zero_grad()
        (-bound.sum()).backward()
        optimiser.step()
        with torch.no_grad():
            for base, move, (least, greatest) in zip(bases, moves, ends, strict=True):
                move.copy_(torch.minimum(torch.maximum(move, least / base), greatest / base))
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_gradients_equal_those_of_a_tape(graph: Graph, radius: float) -> None:
    """Away from the start (where a smooth line may bend), by both ways of walking."""
    with torch.no_grad():
        asked = wanted(*known(graph, radius))
        dual, start = problem(asked)
        rows, point, _ = DualRows.of(dual, start)
        least, greatest = rows.bounds
        share = torch.rand(point.shape, generator=torch.Generator().manual_seed(3), dtype=D)
        point = torch.where(greatest > least, least + (greatest - least) * (0.1 + 0.8 * share), point)
        value, found = rows.value(point), rows.gradient()
        free = greatest > least
    with torch.enable_grad():
        moved = point.clone().requires_grad_()
        total = evaluate(dual, rows.multipliers(moved))[1]
        (expected,) = torch.autograd.grad(total.sum(), moved)
    assert torch.equal(total, value)
    weights = dual.objective.weights.shape[1]
    mine, theirs = (torch.where(free, g, 0.0)[:, :-weights] for g in (found, expected))
    assert int((theirs != 0).sum()) > 20
    assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-11 * float(theirs.abs().max()))
    if any(isinstance(node.op, Softmax) for node in graph.nodes):
        return  # there is one way only
    with torch.no_grad():
        network = Condensed(asked.plan, asked.state)
        compact = CondensedRows.of(network, network.rays(asked.node, asked.rows))
        slopes = rows.multipliers(point).slopes
        own = compact.read(slopes, torch.arange(point.shape[0]))
        assert torch.allclose(compact.value(own), value, rtol=1e-11, atol=1e-11)
        empty = {n: each(pair, torch.zeros_like) for n, pair in slopes.items()}
        compact.write(compact.gradient(), empty, torch.arange(point.shape[0]))
        spread = DualRows.of(dual, Multipliers(empty, {}, dual.objective.weights))[1][:, :-weights]
        assert torch.allclose(torch.where(free[:, :-weights], spread, 0.0), theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_bounds_equal_those_of_a_taped_ascent(graph: Graph, radius: float) -> None:
    """To 1e-5 after the same steps, by both ways of walking."""
    pace = Pace(10, rate=0.03, decay=0.95)
    asked = wanted(*known(graph, radius))
    expected = taped(asked, pace)
    with torch.no_grad():
        start = evaluate(*problem(asked))[1]
        found = optimise(asked, pace, start=problem(asked)[1].slopes).bound
        rows, point, scale = DualRows.of(*problem(asked))
        other = climb(rows, point, scale, pace, None).value
    assert float((expected - start).max()) > 1e-3
    for mine in (found, other):
        assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("graph", "radius"), CASES)
def test_decided_bounds_hold_and_a_warm_start_never_loses(graph: Graph, radius: float) -> None:
    with torch.no_grad():
        plan, state = known(graph, radius, Rounding.of(D))
        search, rough = prepare(graph, D), known(graph, radius)[1]
        asked, rows = wanted(plan, state), wanted(search, rough)
        found = optimise(rows, Pace(6, 0.4))
        _, decided = decide(asked, found)
        _, again = decide(asked, optimise(rows, Pace(6, 0.4), start=found.slopes))
        assert bool((again >= decided - 1e-9).all())
        low, high = state.box.lower, state.box.upper
        share = torch.rand((4000, *low.shape[1:]), generator=torch.Generator().manual_seed(1), dtype=D)
        share[:2000] = share[:2000].round()
        output = graph.evaluate(low + (high - low) * share)[0]
        assert bool((torch.cat([output, -output], 1) >= decided).all())


def test_bounds_start_from_earlier_ones() -> None:
    """At the front door: a second ascent from the parameters of the first is at least as good, rows and both sides."""
    graph = chain(Relu(), 0.5)
    box = Box(-torch.ones(2, 4) / 2, torch.ones(2, 4) / 2)
    rows = normal(5, 3, 4)
    plain = compute_bounds(graph, box, Crown(), rows=rows, semantics=None)
    first = compute_bounds(graph, box, Alpha(4), rows=rows, semantics=None)
    second = compute_bounds(graph, box, Alpha(4, start=first.slopes), rows=rows, semantics=None)
    proven = compute_bounds(graph, box, Alpha(4, start=first.slopes), rows=rows)
    assert bool((first.lower >= plain.lower - 1e-5).all()) and bool((first.upper < plain.upper).any())
    assert bool((second.lower >= first.lower - 1e-5).all()) and bool((second.upper <= first.upper + 1e-5).all())
    assert bool((second.lower > first.lower + 1e-4).any())
    assert torch.allclose(proven.lower, second.lower.double(), atol=1e-3)


class _Hills(Slope):
    """``-(x - 1)^2 + height`` for each row, P = 1."""

    def __init__(self, height: Tensor, seen: list[int]) -> None:
        self.height, self.seen, self.at = height, seen, height

    def value(self, point: Tensor) -> Tensor:
        self.seen.append(point.shape[0])
        self.at = point
        return self.height - (point[:, 0] - 1) ** 2

    def gradient(self) -> Tensor:
        return -2 * (self.at - 1)

    def project(self, point: Tensor) -> None:
        point.clamp_(0, 1)

    def take(self, index: Tensor) -> _Hills:
        taken = _Hills(self.height[index], self.seen)
        taken.at = self.at[index]
        return taken


def test_rows_leave_when_they_are_done() -> None:
    """At their goal (with their mate, where they come in pairs), and when they gain nothing more."""
    height = torch.tensor([2.0, 0.5, -1.0, 0.1], dtype=D)
    start, scale = torch.zeros(4, 1, dtype=D), torch.ones(1, 1, dtype=D)

    def sizes(pace: Pace, goal: float | None, pairs: bool = False) -> tuple[list[int], Tensor]:
        seen: list[int] = []
        return seen, climb(_Hills(height, seen), start, scale, pace, goal, pairs).value

    seen, value = sizes(Pace(40, 0.1, 1.0), 0.0)
    assert seen[0] == 4 and seen[1] == 3 and seen[-1] == 1 and bool((value[[0, 1, 3]] > 0).all())
    paired, _ = sizes(Pace(40, 0.1, 1.0), 0.0, pairs=True)
    assert paired[1] == 2 and len(paired) < len(seen)
    whole, best = sizes(Pace(40, 0.1, 1.0), None)
    assert whole == [4] * 41 and torch.allclose(best, height, atol=1e-3)
    patient, near = sizes(replace(INNER, steps=40, rate=0.1, decay=1.0), None)
    assert len(patient) < 41 and torch.allclose(near, height, atol=0.05)


def test_condensed_links_choose_operators_for_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices and operators give the same bounds, and both are used."""
    graph = image(Relu())
    with torch.no_grad():
        plan, state = known(graph, 0.3)
        results: list[Tensor] = []
        kinds: list[bool] = []
        for denser in (0.0, 1e9):
            monkeypatch.setattr("bounds.condensed.DENSER", denser)
            network = Condensed(plan, state)
            results.append(optimise(wanted(plan, state), Pace(5)).bound)
            kinds.append(isinstance(network.stage(max(plan.relaxed)).sources[0], Operators))
    assert kinds == [True, False]
    assert torch.allclose(results[0], results[1], rtol=1e-9, atol=1e-9)
