"""The forward error of float32: no evaluation in any order is further from the exact value, in fractions."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds import Box, Builder, Crown, Interval
from bounds.forward_error import forward_error
from bounds.methods import Method
from bounds.ops.base import NoDerivativeError
from bounds.ops.jumps import Step
from bounds.ops.relu import Relu


@pytest.mark.parametrize("method", [Interval(), Crown()], ids=repr)
def test_no_order_of_evaluation_is_further_off(
    networks: ModuleType, exact: ModuleType, singles: ModuleType, method: Method
) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scales = networks.Scales(cancel=seed % 3 == 0, smooth=seed % 2 == 0, weight=(1.0, 30.0)[seed % 2])
        graph = networks.random_graph(rng, scales, image=seed == 7)
        size, output = graph.nodes[graph.inputs[0]].shape[0], graph.outputs[0]
        centre = torch.from_numpy(rng.normal(size=(2, size))).float()
        box = Box(centre - 0.25 * torch.tensor([[1.0], [0.0]]), centre + 0.25 * torch.tensor([[1.0], [0.0]]))
        rows = torch.from_numpy(rng.normal(size=(2, graph.nodes[output].shape[0])))
        error, forms = forward_error(graph, box, method), forward_error(graph, box, method, rows=rows)
        for k in range(6):
            low, high = (ends[k % 2].numpy() for ends in (box.lower, box.upper))
            x = np.clip(low + (high - low) * rng.random(size).astype(np.float32), low, high)
            computed = singles.evaluate(graph, x, rng)[output]
            true = exact.evaluate(graph, exact.exact(torch.from_numpy(x).double()))[output]
            away = exact.exact(computed) - true
            for limit, value in zip(error[k % 2].tolist(), away, strict=True):
                assert abs(value) <= Fraction(limit)
            for limit, value in zip(forms[k % 2].tolist(), exact.exact(rows).dot(away), strict=True):
                assert abs(value) <= Fraction(limit)


def test_an_exact_network_has_no_error() -> None:
    build = Builder()
    graph = build.finish([build.add(Relu(), build.input((2,), "x"))])
    assert float(forward_error(graph, Box.around(torch.zeros(2), 1.0)).max()) < 1e-300


def test_jumps_have_no_bound() -> None:
    build = Builder()
    graph = build.finish([build.add(Step(-1.0, 0.0, 1.0), build.input((2,), "x"))])
    with pytest.raises(NoDerivativeError, match="jump"):
        forward_error(graph, Box.around(torch.zeros(2), 1.0))
