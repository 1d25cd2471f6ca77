"""The front door's other answers: lines, inner nodes, kept nodes, prepared graphs, gradients, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.box import Box
from bounds.compute import (
    Alpha,
    Bounds,
    Crown,
    DomainError,
    Forward,
    Interval,
    Method,
    compute_bounds,
    prepare,
)
from bounds.graph import Builder, Constant, Graph
from bounds.jacobian import jacobian_bounds
from bounds.ops.base import Interval as Ends
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat, Slice
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid, Tanh

D = torch.float64
METHODS = (Interval(), Forward(), Crown(), Alpha(steps=3))


def network(seed: int = 0, op: Any = None) -> Graph:
    """Three inputs, two hidden layers of six, two outputs."""
    draw = torch.Generator().manual_seed(seed)
    build = Builder()
    x = build.input((3,), "x")
    for width in (6, 6):
        weight = build.constant(torch.randn((build.shape(x)[0], width), generator=draw))
        x = build.add(op or Relu(), build.add(Gemm(), x, weight, build.constant(torch.randn(width, generator=draw))))
    return build.finish([build.add(Gemm(), x, build.constant(torch.randn((6, 2), generator=draw)), name="out")])


def box(boxes: int = 2, radius: float = 0.4, dtype: torch.dtype = D) -> Box:
    centre = torch.linspace(-0.5, 0.5, 3 * boxes, dtype=dtype).reshape(boxes, 3)
    return Box(centre - radius, centre + radius)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_lines_hold_in_exact_arithmetic(networks: ModuleType, exact: ModuleType, method: Method) -> None:
    """Of the output and of rows over it: ``rows . x + bias`` in fractions against the exact value, no tolerance."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng)
        size = graph.nodes[graph.inputs[0]].shape[0]
        middle, radius = torch.from_numpy(rng.normal(size=(2, size))), torch.from_numpy(rng.random((2, size)))
        boxes = Box(middle - radius, middle + radius)
        rows = torch.from_numpy(rng.normal(size=(3, *graph.nodes[graph.outputs[0]].shape)))
        for forms in (None, rows):
            lines = compute_bounds(graph, boxes, method, rows=forms).lines
            for k in (0, 1):
                low, high = exact.exact(boxes.lower[k]), exact.exact(boxes.upper[k])
                x = low + (high - low) * exact.exact(rng.random(low.shape))
                y = exact.evaluate(graph, x, rng)[graph.outputs[0]]
                y = y if forms is None else exact.exact(forms).dot(y)
                sides = ((lines.lower_rows, lines.lower_bias, 1), (lines.upper_rows, lines.upper_bias, -1))
                for coefficients, bias, sign in sides:
                    assert coefficients.shape == (2, *y.shape, size) and bias.shape == (2, *y.shape)
                    for row, offset, value in zip(coefficients[k], bias[k].tolist(), y, strict=True):
                        if math.isfinite(offset):
                            assert sign * (exact.exact(row).dot(x) + Fraction(offset)) <= sign * value


def test_lines_give_the_bounds() -> None:
    graph, boxes = network(), box()
    for method in (Forward(), Crown()):
        found = compute_bounds(graph, boxes, method, semantics=None)
        rows = found.lines.lower_rows
        least = (rows.clamp(min=0) * boxes.lower[:, None] + rows.clamp(max=0) * boxes.upper[:, None]).sum(-1)
        assert bool((found.lower >= least + found.lines.lower_bias - 1e-9).all())
    constant = compute_bounds(graph, boxes, Interval()).lines
    assert not bool(constant.lower_rows.any()) and constant.upper_rows.shape == (2, 2, 3)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_inner_nodes_and_kept_ones(method: Method) -> None:
    """A node in place of the output is that of the graph cut there; kept nodes are at least as tight."""
    graph, boxes = network(1), box()
    hidden = [n.id for n in graph.nodes if isinstance(n.op, Gemm)][1]
    cut = Graph(graph.nodes, graph.inputs, (hidden,), graph.constants)
    alone, whole = compute_bounds(graph, boxes, method, node=hidden), compute_bounds(cut, boxes, method)
    assert torch.equal(alone.lower, whole.lower) and torch.equal(alone.upper, whole.upper)
    output = compute_bounds(graph, boxes, method, keep=[hidden])
    low, high = output.at(hidden)
    assert bool((low >= alone.lower - 1e-9).all()) and bool((high <= alone.upper + 1e-9).all())
    assert torch.equal(output.at(graph.outputs[0])[0], output.lower)
    with pytest.raises(KeyError):
        alone.at(graph.outputs[0])
    forms = torch.randn((4, 6), dtype=D, generator=torch.Generator().manual_seed(3))
    assert compute_bounds(graph, boxes, method, node=hidden, rows=forms).lower.shape == (2, 4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("semantics", ["real", None])
def test_prepared_graphs_give_the_same(method: Method, semantics: Any) -> None:
    graph, boxes = network(2), box(dtype=torch.float32)
    ready = prepare(graph, torch.float32, semantics=semantics)
    once, again = (compute_bounds(g, boxes, method, semantics=semantics) for g in (graph, ready))
    assert torch.equal(once.lower, again.lower) and torch.equal(once.upper, again.upper)
    assert once.semantics == again.semantics == semantics
    other = None if semantics else "real"
    with pytest.raises(ValueError, match=f"prepared for semantics={semantics!r}, not {other!r}"):
        compute_bounds(ready, boxes, method, semantics=other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "op"),
    [(Interval(), Relu()), (Interval(), Tanh()), (Interval(), Sigmoid()), (Crown(), Relu()), (Forward(), Relu())],
    ids=repr,
)
def test_bounds_are_differentiable(method: Method, op: Any) -> None:
    """The gradient of a bound with respect to weights and the box against central differences, in float64.

    Lines around S-shaped functions touch at points that are chosen in steps: what they give has jumps.
    """
    graph = network(4, op)
    weights = [n.inputs[1] for n in graph.nodes if isinstance(n.op, Gemm)]
    rows = torch.tensor([[1.0, -1.0]], dtype=D)
    start = box(1)

    def bound(tensors: Sequence[Tensor]) -> Tensor:
        values = dict(zip(weights, tensors, strict=False))
        constants = {i: Constant(values.get(i, c.value)) for i, c in graph.constants.items()}
        region = Box(*tensors[-2:])
        found = compute_bounds(graph.with_constants(constants), region, method, rows=rows, semantics=None)
        return found.lower.sum() - found.upper.sum()

    point = [graph.constants[i].value.clone() for i in weights] + [start.lower, start.upper]
    leaves = [p.clone().requires_grad_() for p in point]
    gradients = torch.autograd.grad(bound(leaves), leaves)
    draw = torch.Generator().manual_seed(5)
    for k, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, dtype=D, generator=draw)
        h = 1e-6
        ends = []
        for sign in (1, -1):
            moved = [p + sign * h * direction if j == k else p for j, p in enumerate(point)]
            ends.append(float(bound(moved)))
        slope = (ends[0] - ends[1]) / (2 * h)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-6)
        assert bool(gradient.any())


def test_nothing_carries_a_gradient_unasked() -> None:
    leaf = torch.zeros((1, 3), dtype=D, requires_grad=True)
    region = Box(leaf - 0.1, leaf + 0.1)
    assert not compute_bounds(network(), region).lower.requires_grad
    assert not compute_bounds(network(), region, Alpha(steps=2), semantics=None).lower.requires_grad
    assert compute_bounds(network(), region, semantics=None).lines.lower_rows.requires_grad


@dataclass(frozen=True, slots=True)
class _Gap(Relu):
    """A ReLU that claims to have no value below -0.5."""

    def outside(self, operands: Sequence[Ends]) -> Tensor | None:
        return operands[0][0] < -0.5


def test_a_box_outside_the_domain_names_the_node() -> None:
    build = Builder()
    x = build.input((2,), "x")
    graph = build.finish([build.add(_Gap(), x, name="gap")])
    inside = torch.tensor([[0.0, 0.0], [0.2, 0.3]])
    assert compute_bounds(graph, Box(inside - 0.1, inside)).lower.shape == (2, 2)
    low = inside.clone()
    low[1, 0] = -0.75
    with pytest.raises(DomainError, match=r"node 1 \(_Gap, 'gap'\) has no value on part of box 1: .* reach -0.75 to"):
        compute_bounds(graph, Box(low, inside.clamp(min=0)))


def test_what_is_unknown_is_refused_with_what_is_known() -> None:
    graph, boxes = network(), box()
    with pytest.raises(ValueError, match=r"method 'crown': the known ones are Interval\(\), Forward\(\), Crown\(\)"):
        compute_bounds(graph, boxes, "crown")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="semantics 'exact': the known ones are 'real'"):
        compute_bounds(graph, boxes, semantics="exact")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"node 99: the graph has nodes 0 to \d+"):
        compute_bounds(graph, boxes, node=99)
    constant = next(iter(graph.constants))
    with pytest.raises(ValueError, match="does not depend on the input"):
        compute_bounds(graph, boxes, node=constant)
    broken = graph.with_constants({**graph.constants, constant: Constant(torch.full((3, 6), math.nan, dtype=D))})
    with pytest.raises(ValueError, match=rf"node {constant} \(Const\) is a constant with NaN or infinity"):
        compute_bounds(broken, boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"node": "out"}, "node 'out': nodes are given by id"),
        ({"keep": 3}, "keep=3: a sequence of node ids"),
        ({"rows": [[1.0, 0.0]]}, "rows are a list: a tensor"),
        ({"graph": torch.nn.Linear(3, 2)}, r"not of a Linear: bounds\.trace\(module, example\)"),
        ({"box": torch.zeros(1, 3)}, "the region is a Tensor"),
    ],
)
def test_arguments_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        compute_bounds(**{"graph": network(), "box": box(), **options})


def test_values_that_make_no_sense_are_refused() -> None:
    graph, boxes = network(), box()
    for memory in (0, 1e9, "1G"):
        with pytest.raises(ValueError, match="a whole number of bytes"):
            compute_bounds(graph, boxes, memory=memory)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no boxes"):
        compute_bounds(graph, boxes.take(torch.tensor([], dtype=torch.long)))
    with pytest.raises(ValueError, match="semantics 'reel'"):
        prepare(graph, semantics="reel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype torch\.float16"):
        prepare(graph, torch.float16)
    with pytest.raises(ValueError, match=r"no constant for the nodes \[\d+"):
        graph.with_constants({})
    with pytest.raises(TypeError, match="not of a Prepared"):
        jacobian_bounds(prepare(graph), boxes)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole number of steps"):
        Alpha(steps=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="start=3"):
        Alpha(start=3)  # type: ignore[arg-type]


def test_a_box_around_a_point() -> None:
    x = torch.tensor([0.5, 2.0])
    with pytest.raises(ValueError, match="negative"):
        Box.around(x, -0.1)
    with pytest.raises(TypeError, match="radius '1/50'"):
        Box.around(x, "1/50")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x is a ndarray"):
        Box.around(x.numpy(), 0.1)  # type: ignore[arg-type]
    assert Box.around(x, 0.1, within=(0, 1)).empty().tolist() == [True]  # and not the point 1, which is not near 2
    assert Box.around(x, 1.0, within=(0, 1)).upper.tolist() == [[1.0, 1.0]]


def test_memory_changes_no_bound() -> None:
    graph, boxes = network(), box()
    usual, little = compute_bounds(graph, boxes), compute_bounds(graph, boxes, memory=40_000)
    torch.testing.assert_close(usual.lower, little.lower)
    with pytest.raises(ValueError, match=r"one row .* needs \d+ bytes, and the budget is 8: raise it") as caught:
        compute_bounds(graph, boxes, memory=8)
    needed = int(str(caught.value).split(" needs ")[1].split()[0])
    with pytest.raises(ValueError, match="raise it"):
        compute_bounds(graph, boxes, memory=needed - 1)


def test_infinite_inputs_say_nothing() -> None:
    low = torch.tensor([[0.0, -math.inf, 0.0]], dtype=D)
    for method in METHODS:
        found: Bounds = compute_bounds(network(), Box(low, low.clamp(min=0)), method)
        assert not bool(found.lower.isnan().any()) and not bool(found.upper.isnan().any())


@pytest.mark.parametrize("method", [Interval(), Forward(), Crown(), Alpha(steps=2)])
def test_a_node_without_elements(method: Method) -> None:
    """A slice of nothing has bounds of nothing."""
    build = Builder()
    x = build.input((3,))
    nothing = build.add(Slice((0,), (0,), (0,), (1,)), x)
    graph = build.finish([build.add(Concat(0, (3, 0)), build.add(Relu(), x), nothing)])
    region = Box.around(torch.zeros(3, dtype=D), 1)
    found = compute_bounds(graph, region, method, keep=[nothing])
    assert found.at(nothing)[0].shape == (1, 0)
    torch.testing.assert_close(found.upper, torch.ones((1, 3), dtype=D))
