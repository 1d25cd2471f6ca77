"""Bounds in one call: sampled soundness in exact arithmetic, rows against the output, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds import Alpha, Bounds, Box, Builder, Crown, Graph, Interval, compute_bounds, margins
from bounds.compute import Method
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape

METHODS = (Interval(), Crown(), Alpha(steps=3))
D = torch.float64


def box_of(graph: Graph, rng: np.random.Generator, boxes: int = 2) -> Box:
    size = graph.nodes[graph.inputs[0]].shape[0]
    middle = torch.from_numpy(rng.normal(size=(boxes, size)))
    radius = torch.from_numpy(rng.random((boxes, size)))
    return Box(middle - radius, middle + radius)


def classes(seed: int = 0) -> Graph:
    """Four inputs, eight ReLUs, scores ``[1, 3]``."""
    draw = torch.Generator().manual_seed(seed)
    build = Builder()
    x = build.input((4,), "x")
    for width in (8, 8):
        weight = build.constant(torch.randn((build.shape(x)[0], width), generator=draw))
        x = build.add(Relu(), build.add(Gemm(), x, weight, build.constant(torch.randn(width, generator=draw))))
    scores = build.add(Gemm(), x, build.constant(torch.randn((8, 3), generator=draw)))
    return build.finish([build.add(Reshape((1, 3)), scores)])


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_no_point_leaves_the_bounds(networks: ModuleType, exact: ModuleType, method: Method) -> None:
    """The output, two forms over it, and every node, in fractions and without any tolerance."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        graph = networks.random_graph(rng)
        box = box_of(graph, rng)
        size = graph.nodes[graph.outputs[0]].shape[0]
        rows = torch.from_numpy(rng.normal(size=(2, size)))
        output, forms = compute_bounds(graph, box, method), compute_bounds(graph, box, method, rows=rows)
        assert output.lower.shape == (2, size) and forms.lower.shape == (2, 2)
        for k in range(4):
            which = k % 2
            low, high = exact.exact(box.lower[which]), exact.exact(box.upper[which])
            x = low + (high - low) * exact.exact(rng.integers(0, 2, low.shape) if k < 2 else rng.random(low.shape))
            values = exact.evaluate(graph, x, rng)
            y = values[graph.outputs[0]]
            check(output.lower[which], y, output.upper[which])
            check(forms.lower[which], exact.exact(rows).dot(y), forms.upper[which])
            for node in output.intervals:
                lower, upper = output.at(node)
                check(lower[which], values[node], upper[which])


def check(lower: torch.Tensor, values: np.ndarray, upper: torch.Tensor) -> None:
    for low, value, high in zip(lower.flatten().tolist(), np.ravel(values), upper.flatten().tolist(), strict=True):
        assert low == -np.inf or Fraction(low) <= value
        assert high == np.inf or value <= Fraction(high)


def width(found: Bounds) -> float:
    return float((found.upper - found.lower).sum())


def test_methods_improve_on_each_other() -> None:
    graph = classes()
    box = Box.around(torch.zeros(4), 0.5)
    loose, linear, ascended = (compute_bounds(graph, box, method) for method in METHODS)
    assert width(ascended) < width(linear) < width(loose)
    assert bool((linear.lower >= loose.lower).all()) and bool((linear.upper <= loose.upper).all())


@pytest.mark.parametrize("semantics", ["real", None])
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_unit_rows_are_the_output(method: Method, semantics: str | None) -> None:
    graph, box = classes(), Box.around(torch.zeros(4, dtype=D), 0.5)
    whole = compute_bounds(graph, box, method, semantics=semantics)
    rows = torch.eye(3).reshape(3, 1, 3)
    forms = compute_bounds(graph, box, method, rows=rows, semantics=semantics)
    assert whole.semantics == forms.semantics == semantics
    assert whole.lower.shape == (1, 1, 3) and forms.lower.shape == (1, 3)
    torch.testing.assert_close(forms.lower, whole.lower[:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(forms.upper, whole.upper[:, 0], rtol=1e-9, atol=1e-9)


def test_without_a_claim_the_box_says_the_dtype() -> None:
    graph, box = classes(), Box.around(torch.zeros(4), 0.5)
    rough, proven = compute_bounds(graph, box, semantics=None), compute_bounds(graph, box)
    assert rough.lower.dtype == torch.float32 and proven.lower.dtype == D
    torch.testing.assert_close(rough.lower.double(), proven.lower, rtol=1e-4, atol=1e-4)


def test_margins_are_differences_of_scores() -> None:
    graph, x = classes(), torch.rand((5, 4), dtype=D)
    scores = graph.evaluate(x)[0][:, 0]
    rows = margins(graph, 1)
    assert rows.shape == (2, 1, 3)
    found = (rows.reshape(2, 3) @ scores.T).T
    torch.testing.assert_close(found, torch.stack([scores[:, 1] - scores[:, 0], scores[:, 1] - scores[:, 2]], 1))
    box = Box(x[:1], x[:1])
    bounds = compute_bounds(graph, box, rows=rows)
    assert bool((bounds.lower <= found[:1] + 1e-12).all()) and bool((found[:1] - 1e-12 <= bounds.upper).all())
    assert width(bounds) < 1e-10, "at a point the bounds are the value"


def test_margins_prove_a_class() -> None:
    graph = classes()
    label = int(graph.evaluate(torch.zeros((1, 4)))[0].argmax())
    rows = margins(graph, label)
    small, large = (compute_bounds(graph, Box.around(torch.zeros(4), radius), rows=rows) for radius in (1e-3, 50))
    assert bool((small.lower > 0).all()) and not bool((large.lower > 0).all())


def test_torch_is_left_as_it_was() -> None:
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.enabled, torch.is_grad_enabled())
    with pytest.raises(ValueError, match="box 0 is empty"):
        compute_bounds(classes(), Box(torch.ones((1, 4)), torch.zeros((1, 4))))
    compute_bounds(classes(), Box.around(torch.zeros(4, requires_grad=True), 0.5), Alpha(steps=1))
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.enabled, torch.is_grad_enabled())


def test_what_does_not_fit_is_refused() -> None:
    graph, box = classes(), Box.around(torch.zeros(4), 0.5)
    with pytest.raises(ValueError, match=r"boxes of shape \(4,\) for an input of shape \(4,\): expected \(N, 4,\)"):
        compute_bounds(graph, Box(box.lower[0], box.upper[0]))
    with pytest.raises(ValueError, match=r"rows of shape \(3, 3\) for an output of shape \(1, 3\)"):
        compute_bounds(graph, box, rows=torch.eye(3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        compute_bounds(graph, box, rows=torch.full((1, 1, 3), torch.inf))
    with pytest.raises(ValueError, match="float16"):
        compute_bounds(graph, Box(box.lower.half(), box.upper.half()))
    with pytest.raises(ValueError, match="label 3: the output has 3 elements, 0 to 2"):
        margins(graph, 3)
    with pytest.raises(ValueError, match="at least one step"):
        Alpha(steps=0)
    build = Builder()
    build.input((4,))
    with pytest.raises(ValueError, match="does not depend on the input"):
        compute_bounds(build.finish([build.constant(torch.ones(2))]), box)
