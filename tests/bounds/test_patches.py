"""The ascent over patches gives what the ascent over whole images gives, and what it decides holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bounds import Alpha, Box, compute_bounds, machine
from bounds import ascent as ascents
from bounds.ascent import Asked, decide, optimise
from bounds.ascent import Found as Optimised
from bounds.backward import State
from bounds.climb import Pace
from bounds.condensed import Condensed
from bounds.condensed_walk import CondensedRows
from bounds.dual import by_rows, initial
from bounds.graph import Builder, Graph
from bounds.layouts import Places, Selection, Windows
from bounds.links import Matrices
from bounds.ops.arithmetic import Add, Mul, Sub
from bounds.ops.base import Op, Parameters
from bounds.ops.conv import Conv
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.pooling import AveragePool
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.ops.sshape import Sigmoid
from bounds.patch_ascent import Seen, climbed, decided
from bounds.patches import Frame, Geometry, Patches, Sliding, frames
from bounds.plan import Plan, prepare
from bounds.propagate import crown, propagate
from bounds.rounding import Rounding

D = torch.float64


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


class Net:
    """An image of two channels, layer by layer; ``wide`` by ``wide``."""

    def __init__(self, wide: int = 16) -> None:
        self.build, self.seed = Builder(), 0
        self.x = self.build.input((1, 2, wide, wide))

    def constant(self, *shape: int) -> int:
        self.seed += 1
        return self.build.constant(normal(self.seed, *shape) / 2)

    def conv(self, x: int, kernel: int, stride: int, pads: tuple[int, ...], groups: int = 1, dilation: int = 1) -> int:
        channels = self.build.shape(x)[1]
        weight, bias = self.constant(4, channels // groups, kernel, kernel), self.constant(4)
        return self.build.add(Conv((stride, stride), (dilation, dilation), pads, groups), x, weight, bias)

    def finish(self, x: int) -> tuple[Graph, int]:
        """The graph, and the node whose elements are bounded."""
        size = self.build.shape(x)
        flat = self.build.add(Reshape((size[1] * size[2] * size[3],)), self.build.add(Relu(), x))
        last = self.build.add(Gemm(), flat, self.constant(size[1] * size[2] * size[3], 3))
        return self.build.finish([last]), x


def chain(op: Op) -> tuple[Graph, int]:
    """Strides, unequal pads; the first link is short enough for a matrix."""
    net = Net()
    x = net.build.add(op, net.conv(net.x, 3, 2, (1, 1, 1, 1)))
    return net.finish(net.conv(x, 2, 2, (0, 1, 1, 0)))


def deep(op: Op) -> tuple[Graph, int]:
    """Groups, dilations, two convolutions with nothing between them, constants of one number for a channel."""
    net = Net(24)
    x = net.conv(net.conv(net.x, 3, 1, (1, 1, 1, 1)), 2, 2, (0, 0, 1, 1), groups=2)
    x = net.build.add(
        op, net.build.add(Sub(), net.build.add(Mul(), x, net.constant(1, 4, 1, 1)), net.constant(1, 1, 1, 1))
    )
    x = net.build.add(op, net.conv(x, 2, 2, (1, 1, 0, 0), dilation=2))
    return net.finish(net.conv(x, 1, 1, (0, 0, 0, 0)))


def joined(op: Op) -> tuple[Graph, int]:
    """Two ways of different reach that meet in a sum, and in a maximum."""
    net = Net(20)
    first = net.build.add(op, net.conv(net.x, 3, 2, (1, 1, 1, 1)))
    inner = net.build.add(op, net.conv(first, 3, 1, (1, 1, 1, 1)))
    both = net.build.add(Add(), net.conv(inner, 2, 2, (0, 0, 0, 0)), net.conv(first, 1, 2, (0, 0, 0, 0)))
    most = net.build.add(Max(), both, net.conv(first, 3, 2, (1, 1, 1, 1)))
    return net.finish(net.conv(most, 1, 1, (0, 0, 0, 0)))


CASES = [
    pytest.param(make, op, id=f"{make.__name__}, {type(op).__name__}")
    for make in (chain, deep, joined)
    for op in (Relu(), Sigmoid())
]
Make = Callable[[Op], tuple[Graph, int]]


def prepared(make: Make, op: Op, rounding: bool = False, count: int = 2) -> tuple[Plan, State, int, Geometry]:
    graph, target = make(op)
    plan = prepare(graph, D, rounding=Rounding.of(D) if rounding else None)
    shape = graph.nodes[graph.inputs[0]].shape
    middle = normal(77, count, *shape)
    radius = torch.full((count, 1, 1, 1, 1), 0.1, dtype=D) / torch.arange(1, count + 1).reshape(-1, 1, 1, 1, 1)
    state, _ = propagate(plan, Box(middle - radius, middle + radius), tighten=crown)
    geometry = frames(prepare(graph, D), target)
    assert geometry is not None
    return plan, state, target, geometry


def every_third(plan: Plan, target: int, count: int) -> tuple[Selection, Tensor]:
    """Some elements from both sides, over all boxes in turn."""
    shape = plan.graph.nodes[target].shape
    index = torch.arange(0, shape[1] * shape[2] * shape[3], 3)
    sign = torch.ones(2 * index.shape[0], dtype=D)
    sign[index.shape[0] :] = -1
    return Selection(index.repeat(2), sign, shape, mirrored=True), (torch.arange(index.shape[0]) % count).repeat(2)


def whole(plan: Plan, state: State, target: int, rows: tuple[Selection, Tensor], pace: Pace) -> Optimised:
    """The ascent over whole images."""
    return optimise(Asked(plan, state, target, *rows), pace)


@pytest.mark.parametrize(("make", "op"), CASES)
def test_steps_over_patches_are_those_over_whole_images(make: Make, op: Op) -> None:
    """The same bounds from the start and after steps: walks and gradients are the same."""
    plan, state, target, geometry = prepared(make, op)
    rows = every_third(plan, target, 2)
    for steps in (0, 3):
        pace = Pace(steps, 0.3)
        seen, full = climbed(geometry, state, rows, pace, None), whole(plan, state, target, rows, pace)
        assert torch.allclose(seen.bound, full.bound, rtol=1e-9, atol=1e-9)
        if not steps:
            start = seen.bound
    assert float((seen.bound - start).max()) > 1e-3  # the ascent does something
    sticking = [seen.patches.ground.inside(n) is not None for n in geometry.frames]
    assert any(sticking), "no patch sticks out of its image: pads are not tested"


def test_gradients_are_those_of_whole_images() -> None:
    """At a random point, element by element."""
    plan, state, target, geometry = prepared(joined, Relu(), count=1)
    rows = every_third(plan, target, 1)
    patches = Patches.of(geometry, state, *rows)
    small = CondensedRows.of(patches, patches.rays(rows[0]))
    network = Condensed(plan, state)
    full = CondensedRows.of(network, network.rays(target, rows[0]))
    slopes = {
        n: tuple(None if s is None else torch.rand_like(s) for s in pair)
        for n, pair in initial(plan, by_rows(plan, state, rows[1])).items()
    }
    point = full.read(slopes, torch.arange(rows[1].shape[0]))  # type: ignore[arg-type]
    near = small.point.clone()
    for node, place in small.columns.items():
        for side, at in zip(slopes[node], (place.lower, place.upper), strict=True):
            if side is not None and at is not None:
                near[:, at] = gathered(patches, node, side)
    small.project(near)
    assert torch.allclose(small.value(near), full.value(point), rtol=1e-9, atol=1e-9)
    one, two = small.gradient(), full.gradient()
    for node, place in small.columns.items():
        if place.lower is None:
            continue
        laid = laid_out(
            patches,
            node,
            one[:, place.lower] * patches.stage(node).free[0].greatest.ne(patches.stage(node).free[0].least),
        )  # type: ignore[union-attr]
        stage, where = network.stage(node), full.columns[node].lower
        assert where is not None
        assert torch.allclose(laid.flatten(1)[:, stage.index[: stage.choices]], two[:, where], rtol=1e-9, atol=1e-9)


def windows(patches: Patches, node: int, values: Tensor) -> Windows:
    """Numbers of rows at their patches, each row a place of its own."""
    ground, frame = patches.ground, patches.ground.geometry.frames[node]
    origin = ground.place * torch.tensor(frame.factor) - torch.tensor(frame.shift)
    rows = torch.arange(patches.lines)
    shaped = values.reshape(-1, *ground.geometry.shape(node))
    return Windows.of_whole(shaped, Places(rows, origin[patches.where], rows))


def laid_out(patches: Patches, node: int, values: Tensor) -> Tensor:
    shape = patches.plan.graph.nodes[node].shape
    return windows(patches, node, values).inside(shape).dense(shape)


def gathered(patches: Patches, node: int, values: Tensor) -> Tensor:
    """Values ``[R, *shape]`` at the patches of their rows."""
    sample = windows(patches, node, torch.zeros(patches.lines, len(patches.stage(node).index), dtype=D))
    return sample.gather(values)[0].flatten(1)


def test_links_take_matrices_and_operators() -> None:
    plan, state, target, geometry = prepared(chain, Relu())
    patches = Patches.of(geometry, state, *every_third(plan, target, 2))
    assert isinstance(patches.stage(max(geometry.plan.relaxed & geometry.frames.keys())).sources[0], Matrices)
    plan, state, target, geometry = prepared(deep, Relu())
    patches = Patches.of(geometry, state, *every_third(plan, target, 2))
    assert any(isinstance(s, Sliding) for n in geometry.frames if n in plan.relaxed for s in patches.stage(n).sources)


@pytest.mark.parametrize("single", [False, True], ids=["real", "float32"])
@pytest.mark.parametrize(("make", "op"), CASES)
def test_decided_bounds_are_those_of_dense_rows(make: Make, op: Op, single: bool) -> None:
    """The same lines, walked over windows and over dense rows: equal up to the error terms, which stay as small."""
    plan, state, target, geometry = prepared(make, op, rounding=True)
    if single:
        plan = replace(plan, machine=machine.SINGLE)
        state, _ = propagate(plan, state.box, tighten=crown)
    rows = every_third(plan, target, 2)
    seen = climbed(geometry, state, rows, Pace(2, 0.3), None)
    found = decided(plan, state, rows, seen)
    dense: dict[int, Parameters] = {}
    for node, (below, above) in initial(plan, by_rows(plan, state, rows[1])).items():
        if node in seen.parameters:
            low, high = seen.parameters[node]
            dense[node] = (
                None if low is None or below is None else laid_out(seen.patches, node, low),
                None if high is None or above is None else laid_out(seen.patches, node, high),
            )
    _, plain = decide(Asked(plan, state, target, *rows), Optimised(seen.bound, dense))
    if single:  # its charges are seen at their sizes over all boxes
        assert bool((found >= plain - 1e-12).all()) and torch.allclose(found, plain, rtol=1e-3, atol=1e-3)
    else:
        assert torch.allclose(found, plain, rtol=1e-10, atol=1e-10)
        assert bool((found < seen.bound).all()), "no error terms"
        assert torch.allclose(found, seen.bound, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [chain, deep, joined])
@pytest.mark.parametrize("semantics", ["real", None])
def test_bounds_of_inner_neurons_hold(make: Make, semantics: str | None) -> None:
    """From the front door, at corners and inside; and the patches are used."""
    graph, target = make(Relu())
    middle = normal(5, 2, *graph.nodes[graph.inputs[0]].shape)
    box = Box(middle - 0.1, middle + 0.1)
    found = compute_bounds(graph, box, Alpha(4), semantics=semantics)  # type: ignore[arg-type]
    share = torch.rand((400, 1, *middle.shape[1:]), generator=torch.Generator().manual_seed(1), dtype=D)
    share[:200] = share[:200].round()
    points = box.lower + (box.upper - box.lower) * share
    value = replace(graph, outputs=(target,)).evaluate(points.flatten(0, 1))[0].reshape(400, *found.at(target)[0].shape)
    low, high = found.at(target)
    assert bool((value >= low - 1e-9).all() and (value <= high + 1e-9).all())


def test_the_front_door_walks_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[Seen]()

    def counted(*args: object) -> Seen:
        calls.append(climbed(*args))  # type: ignore[arg-type]
        return calls[-1]

    monkeypatch.setattr(ascents, "climbed", counted)
    graph, _ = chain(Relu())
    middle = normal(5, 1, *graph.nodes[graph.inputs[0]].shape)
    found = compute_bounds(graph, Box(middle - 0.1, middle + 0.1), Alpha(4))
    assert calls and found.semantics == "real"
    few = compute_bounds(graph, Box(middle - 0.1, middle + 0.1), Alpha(4), memory=300_000)
    assert len(calls) > 2 and torch.allclose(few.lower, found.lower, atol=1e-9)


def test_where_patches_do_not_work() -> None:
    """A pooling, a constant of its own at each place, an operand that is no image, and patches as large as images."""
    net = Net()
    pooled = net.build.add(
        AveragePool((2, 2), (2, 2)),
        net.build.add(Relu(), net.conv(net.x, 3, 1, (1, 1, 1, 1))),
    )
    uneven = net.build.add(Add(), net.conv(net.x, 3, 1, (1, 1, 1, 1)), net.constant(1, 4, 16, 16))
    far = net.conv(net.build.add(Relu(), net.conv(net.x, 3, 1, (1, 1, 1, 1))), 13, 1, (6, 6, 6, 6))
    near = net.conv(net.build.add(Relu(), net.conv(net.x, 3, 1, (1, 1, 1, 1))), 3, 1, (1, 1, 1, 1))
    ends = [net.build.add(Reshape((-1,)), x) for x in (pooled, uneven, far, near)]
    graph = net.build.finish(ends)
    for node, fits in zip((pooled, uneven, far, near), (False, False, False, True), strict=True):
        plan = prepare(replace(graph, outputs=(node,)), D)
        assert (frames(plan, node) is not None) == fits


def test_frames_join() -> None:
    """The union of two patches, and how each lies in it."""
    one, two = Frame((2, 2), (1, 1), (3, 3)), Frame((2, 2), (0, 2), (4, 3))
    both = one.joined(two)
    assert both == Frame((2, 2), (1, 2), (5, 4))
    assert both.margins(one) == (1, 0, 0, 2) and both.margins(two) == (0, 1, 1, 0)
    assert one.joined(Frame((1, 2), (1, 1), (3, 3))) is None
