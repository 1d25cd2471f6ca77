"""Merging equal and mirrored neurons leaves the function as it is, in exact fractions."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from verifier.network.normalise import merge_neurons, rewrite


def network(layers: list[tuple[Tensor, Tensor | None]], keep: int | None = None) -> Graph:
    """Gemms with ReLU between them; ``keep``: the output of this layer is an output too."""
    build = Builder()
    node = build.input((1, layers[0][0].shape[0]))
    outputs = []
    for k, (weight, bias) in enumerate(layers):
        node = build.add(Relu(), node) if k else node
        if keep == k:
            outputs.append(node)
        constants = [build.constant(c) for c in (weight, bias) if c is not None]
        node = build.add(Gemm(), node, *constants)
    return build.finish([node, *outputs])


def paired(rng: np.random.Generator, inputs: int, coarse: bool) -> tuple[Tensor, Tensor]:
    """A layer of 12 neurons: four of their own, two copies, four mirrored, and two that are nothing but zero."""
    weight, bias = rng.normal(size=(inputs, 4)), rng.normal(size=4)
    if coarse:
        weight, bias = np.round(weight * 4) / 4, np.round(bias * 4) / 4
    sign = np.array([1, 1, 1, 1, 1, 1, -1, -1, -1, -1, 0, 0.0])
    order, column = rng.permutation(12), np.array([0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 0, 0])
    weight, bias = (weight[:, column] * sign)[:, order], (bias[column] * sign)[order]
    return torch.from_numpy(weight).float().double(), torch.from_numpy(bias).float().double()


def relus(graph: Graph) -> list[int]:
    return [n.shape[-1] for n in graph.nodes if isinstance(n.op, Relu)]


@pytest.mark.parametrize("coarse", [True, False], ids=["coarse weights", "any weights"])
@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("seed", range(4))
def test_same_function(exact: ModuleType, seed: int, coarse: bool, biased: bool) -> None:
    """Exactly so for weights whose sums are exact, to rounding for others."""
    rng = np.random.default_rng(seed)
    first, second = paired(rng, 3, coarse), paired(rng, 12, coarse)
    last = (torch.from_numpy(rng.normal(size=(12, 2))).float().double(), None)
    if coarse:
        last = ((last[0] * 4).round() / 4, None)
    graph = network([(w, b if biased else None) for w, b in (first, second)] + [last])
    merged = rewrite(graph, (merge_neurons,))
    assert max(relus(merged)) <= 5
    for _ in range(6):
        x = exact.exact(rng.normal(size=(1, 3)).round(2))
        one, two = exact.evaluate(graph, x)[graph.outputs[0]], exact.evaluate(merged, x)[merged.outputs[0]]
        if coarse:
            assert (one == two).all()
        else:
            assert max(abs(one - two).flatten()) < 1e-12
    if coarse:
        assert all(c.error is None for c in merged.constants.values())


def test_rounded_sums_carry_an_error_that_covers_them(exact: ModuleType) -> None:
    """``1 + 2^-60`` is no double: the sum of two equal neurons' rows is off, and says by how much."""
    weight, after = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0], [2.0**-60]], dtype=torch.float64)
    merged = rewrite(network([(weight, None), (after, None)]), (merge_neurons,))
    (constant,) = [c for c in merged.constants.values() if c.error is not None]
    true = exact.exact(after).sum()
    assert constant.error is not None
    assert abs(true - exact.exact(constant.value).item()) <= exact.exact(constant.error).item()


def test_mirrored_pairs_that_cancel_need_no_relu() -> None:
    """``relu(z) - relu(-z)`` is z."""
    weight, after = torch.tensor([[1.0, -1.0], [2.0, -2.0]]), torch.tensor([[1.0], [-1.0]])
    merged = rewrite(network([(weight, None), (after, None)]), (merge_neurons,))
    assert relus(merged) == []
    x = torch.tensor([[[3.0, -5.0]], [[1.0, 1.0]]])
    assert merged.evaluate(x)[0].flatten().tolist() == [-7.0, 3.0]


def test_left_alone() -> None:
    """Distinct neurons, layers that others read, and nearly mirrored neurons."""
    rng = np.random.default_rng(1)
    plain = [(torch.from_numpy(rng.normal(size=s)), None) for s in ((3, 12), (12, 2))]
    assert relus(rewrite(network(plain), (merge_neurons,))) == [12]
    shared = [paired(rng, 3, True), (plain[1][0], None)]
    assert relus(rewrite(network(shared, keep=1), (merge_neurons,))) == [12]
    weight = torch.tensor([[1.0, -1.0 - 2**-50]], dtype=torch.float64)
    near = [(weight, None), (torch.ones((2, 1), dtype=torch.float64), None)]
    assert relus(rewrite(network(near), (merge_neurons,))) == [2]
