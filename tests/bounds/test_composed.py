"""Whole decompositions: reductions, quotients, normalisation, attention.

``forward`` against torch, and bounds of semantics "real" against 60 digits: no sampled point of a box leaves them,
with zero tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds import Box, Crown, Interval, compute_bounds
from bounds.graph import Builder, Graph
from bounds.ops import readers
from bounds.ops.base import OnnxNode
from bounds.ops.bilinear import MatrixProduct, Product, multiply, multiply_matrices
from bounds.ops.powers import Power
from bounds.ops.softmax import Softmax

mpf = mpmath.mpf
mpmath.mp.prec = 200
Exact = np.ndarray[Any, Any]
root = np.vectorize(mpmath.sqrt, otypes=[object])
power = np.vectorize(mpmath.exp, otypes=[object])
logarithm = np.vectorize(mpmath.log, otypes=[object])


def exact(values: Tensor) -> Exact:
    """A tensor as an array of exact numbers."""
    return np.vectorize(mpf, otypes=[object])(values.to(torch.float64).numpy())


def read(build: Builder, kind: str, operands: list[int], **attributes: Any) -> int:
    node = OnnxNode(kind, "node", attributes, tuple(operands), 1, 17)
    return readers()[kind].from_onnx(node, build)[0]


def standardised(x: Exact, axis: int | tuple[int, ...], epsilon: float) -> Exact:
    centred = x - x.mean(axis, keepdims=True)
    return centred / root((centred * centred).mean(axis, keepdims=True) + mpf(epsilon))


def layer_norm(build: Builder, x: int) -> int:
    scale, shift = (build.constant(torch.tensor(v, dtype=torch.float64)) for v in ([1.0, -2.0, 0.5], [0.25, 0.0, 3.0]))
    return read(build, "LayerNormalization", [x, scale, shift], epsilon=0.0625)


def instance_norm(build: Builder, x: int) -> int:
    one, zero = (build.constant(torch.full((2,), v, dtype=torch.float64)) for v in (1.0, 0.0))
    return read(build, "InstanceNormalization", [x, one, zero], epsilon=0.5)


def quotient(build: Builder, x: int) -> int:
    four = build.constant(torch.full((1, 1), 4.0, dtype=torch.float64))
    divisor = read(build, "Add", [read(build, "Abs", [x]), four])
    return read(build, "Div", [x, divisor])


def attention(build: Builder, x: int) -> int:
    scores = multiply_matrices(build, x, read(build, "Transpose", [x], perm=[1, 0]))
    return multiply_matrices(build, read(build, "Softmax", [scores], axis=-1), x)


def exact_attention(x: Exact) -> Exact:
    scores = x @ x.T
    weights = power(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ x


def reduction(kind: str, axes: list[int]) -> Callable[[Builder, int], int]:
    return lambda build, x: read(build, kind, [x], axes=axes, keepdims=0)


CASES: dict[str, tuple[tuple[int, ...], Callable[[Builder, int], int], Callable[[Exact], Exact]]] = {
    "max": ((2, 5), reduction("ReduceMax", [1]), lambda x: x.max(1)),
    "max of all": ((2, 3), reduction("ReduceMax", [0, 1]), lambda x: x.max()),
    "min": ((3, 2), reduction("ReduceMin", [0]), lambda x: x.min(0)),
    "l1": ((2, 3), reduction("ReduceL1", [1]), lambda x: abs(x).sum(1)),
    "l2": ((2, 3), reduction("ReduceL2", [0]), lambda x: root((x * x).sum(0))),
    "squares": ((2, 3), reduction("ReduceSumSquare", [1]), lambda x: (x * x).sum(1)),
    "log sum exp": ((2, 3), reduction("ReduceLogSumExp", [1]), lambda x: logarithm(power(x).sum(1))),
    "quotient": ((2, 2), quotient, lambda x: x / (abs(x) + 4)),
    "layer norm": ((2, 3), layer_norm, lambda x: standardised(x, 1, 0.0625) * [1, -2, mpf(0.5)] + [mpf(0.25), 0, 3]),
    "instance norm": ((1, 2, 3), instance_norm, lambda x: standardised(x, 2, 0.5)),
    "attention": ((3, 2), attention, exact_attention),
}
every_case = pytest.mark.parametrize("name", list(CASES))


def graph_of(name: str) -> Graph:
    shape, make, _ = CASES[name]
    build = Builder()
    return build.finish([make(build, build.input(shape))])


def boxes(shape: tuple[int, ...]) -> Box:
    rng = np.random.default_rng(8)
    middle = rng.normal(0, 1, (9, *shape)) * rng.choice([0.1, 1.0, 3.0], (9, *[1] * len(shape)))
    radius = np.resize([0.0, 1e-9, 0.01, 0.1, 0.5, 2.0], 9).reshape(9, *[1] * len(shape)) * rng.uniform(
        0, 1, middle.shape
    )
    return Box(torch.from_numpy(middle - radius), torch.from_numpy(middle + radius))


@every_case
def test_bounds_hold_in_exact_arithmetic(name: str) -> None:
    shape, _, reference = CASES[name]
    graph, box = graph_of(name), boxes(shape)
    generator = torch.Generator().manual_seed(1)
    found = [compute_bounds(graph, box, method) for method in (Interval(), Crown())]
    ends = [(exact(b.lower), exact(b.upper)) for b in found]
    for k in range(12):
        share = torch.rand(box.lower.shape, generator=generator, dtype=torch.float64)
        share = share if k % 2 else share.round()
        point = (box.lower + share * (box.upper - box.lower)).clamp(box.lower, box.upper)
        values = np.stack([np.asarray(reference(x), dtype=object) for x in exact(point)]).reshape(ends[0][0].shape)
        for low, high in ends:
            assert (low <= values).all() and (values <= high).all(), name
        computed = exact(graph.evaluate(point)[0])
        assert np.max(abs(computed - values)) <= mpf(1e-11) * (1 + np.max(abs(values)))


@every_case
def test_crown_is_no_wider_than_intervals(name: str) -> None:
    graph, box = graph_of(name), boxes(CASES[name][0])
    plain, crown = (compute_bounds(graph, box, method) for method in (Interval(), Crown()))
    assert bool((crown.lower >= plain.lower).all() and (crown.upper <= plain.upper).all())


def test_small_boxes_are_tight() -> None:
    """The error of lines is of second order in the radius: what is left of it is small against the true range."""
    centre = torch.tensor([[[0.5, -0.25], [1.0, 0.75], [-0.5, 0.125]]], dtype=torch.float64)
    for radius, share in ((1e-3, 1.1), (1e-5, 1.001)):
        box = Box(centre - radius, centre + radius)
        found = compute_bounds(graph_of("attention"), box, Crown())
        slope = torch.autograd.functional.jacobian(lambda x: graph_of("attention").evaluate(x)[0], centre)
        truth = 2 * radius * slope[0, :, :, 0].abs().sum((-1, -2))
        assert bool((found.upper - found.lower <= share * truth).all())


def test_results_of_a_softmax_sum_to_one() -> None:
    """So equal coefficients give a constant, and those of any row count by how far they lie apart."""
    build = Builder()
    mixed = read(build, "Softmax", [build.input((4,))], axis=-1)
    graph = build.finish([mixed])
    centre = torch.tensor([[0.5, -0.25, 1.0, 2.0]], dtype=torch.float64)
    box = Box(centre - 0.5, centre + 0.5)
    rows = torch.tensor([[1e6] * 4, [1e6, 1e6, 1e6 + 1, 1e6 - 1], [0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    found = compute_bounds(graph, box, Crown(), rows=rows)
    low, high = found.lower[0], found.upper[0]
    assert float(low[0]) <= 1e6 <= float(high[0])
    assert float(high[0] - low[0]) < 1e-7
    assert bool((high - low)[1] < 1.5 * (high - low)[2])


def test_one_node_times_itself_is_a_square() -> None:
    build = Builder()
    x = build.input((3,))
    square = multiply(build, x, x)
    product = multiply(build, x, read(build, "Abs", [x]))
    graph = build.finish([square, product])
    assert graph.nodes[graph.outputs[0]].op == Power(2)
    assert graph.nodes[graph.outputs[1]].op == Product()


def test_matrices_are_repeated_along_leading_axes() -> None:
    build = Builder()
    x = build.input((2, 3, 4))
    one, two = read(build, "Relu", [x]), read(build, "Slice", [x, *_indices(build, [0], [1], [0])])
    graph = build.finish([multiply_matrices(build, one, read(build, "Transpose", [two], perm=[0, 2, 1]))])
    point = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate(point)[0], point.relu() @ point[:, :1].transpose(-1, -2))
    assert any(n.op == MatrixProduct() for n in graph.nodes)


def test_a_softmax_over_several_axes() -> None:
    build = Builder()
    node = OnnxNode("Softmax", "node", {"axis": 1}, (build.input((2, 3, 2)),), 1, 11)
    (result,) = readers()["Softmax"].from_onnx(node, build)
    graph = build.finish([result])
    point = torch.randn(4, 2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(graph.evaluate(point)[0], point.flatten(2).softmax(-1).reshape(point.shape))
    assert any(n.op == Softmax(-1) for n in graph.nodes)


def _indices(build: Builder, *lists: list[int]) -> list[int]:
    return [build.constant(torch.tensor(values)) for values in lists]
