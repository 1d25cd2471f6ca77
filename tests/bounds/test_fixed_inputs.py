"""Boxes that are flat in some inputs: the ascent drops these, and finds what the general engine finds with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds.ascent import Asked, DualRows, optimise
from bounds.box import Box
from bounds.climb import Pace, climb
from bounds.condensed import Condensed
from bounds.dual import Dual, Multipliers, Objective, by_rows, initial
from bounds.graph import Builder, Graph
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.plan import prepare
from bounds.propagate import crown, propagate

D = torch.float64
PACE = Pace(6)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def image() -> Graph:
    """Two convolutions of a 6x6 image, with ReLUs, and four outputs."""
    build = Builder()
    x = build.input((1, 1, 6, 6))
    for k, before in enumerate((1, 3)):
        conv = Conv((1, 1), (1, 1), (1, 1, 1, 1))
        weights = build.constant(normal(k, 3, before, 3, 3)), build.constant(normal(k + 9, 3))
        x = build.add(Relu(), build.add(conv, x, *weights))
    return build.finish([build.add(Gemm(), build.add(Reshape((108,)), x), build.constant(normal(5, 108, 4) / 5))])


@pytest.mark.parametrize("denser", [0.0, 1e9], ids=["operators", "matrices"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_fixed_inputs_count_in_the_bias(share: float, denser: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bounds.condensed.DENSER", denser)
    plan = prepare(image(), D)
    middle, radius = normal(3, 1, 1, 1, 6, 6), torch.full((1, 1, 1, 6, 6), 0.2, dtype=D)
    radius.view(-1)[torch.arange(36) % 10 < 10 * share] = 0
    with torch.no_grad():
        state, _ = propagate(plan, Box(middle - radius, middle + radius), tighten=crown)
        rows, owner = torch.cat([torch.eye(4, dtype=D), -torch.eye(4, dtype=D)]), torch.zeros(8, dtype=torch.int64)
        network = Condensed(plan, state)
        left = None if share == 0 else (radius.flatten() > 0).nonzero().flatten()
        assert (network.varying is None) == (left is None)
        assert left is None or (network.varying is not None and torch.equal(network.varying, left))
        dropped = optimise(Asked(plan, state, plan.output, rows, owner), PACE).bound
        spread = by_rows(plan, state, owner)
        dual = Dual(plan, spread, plan.output, Objective.single(rows), {})
        kept, point, scale = DualRows.of(dual, Multipliers(initial(plan, spread), {}, dual.objective.weights))
        whole = climb(kept, point, scale, PACE, None).value
    torch.testing.assert_close(dropped, whole, rtol=1e-9, atol=1e-9)
