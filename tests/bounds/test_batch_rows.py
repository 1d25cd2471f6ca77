"""Rows of many boxes, some of whose inputs are fixed: chunks of them see what single boxes see."""

from __future__ import annotations

import pytest
import torch

from bounds import Box, Crown, Graph, compute_bounds, propagate
from bounds.compute import Semantics
from bounds.graph import Builder
from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid

INPUTS, BOXES = 20, 5


def network() -> Graph:
    draw = torch.Generator().manual_seed(0)
    build = Builder()
    x = build.input((INPUTS,))
    operators: tuple[Op | None, ...] = (Relu(), Sigmoid(), Relu(), None)
    for op in operators:
        width = build.shape(x)[0]
        size = (width, 9 if op is None else 30), (9 if op is None else 30,)
        weight, bias = (build.constant(torch.randn(s, generator=draw, dtype=torch.float64) / 2) for s in size)
        x = build.add(Gemm(), x, weight, bias)
        x = x if op is None else build.add(op, x)
    return build.finish([x])


def boxes() -> Box:
    """Boxes of different sizes; six inputs vary somewhere, the others differ between boxes."""
    draw = torch.Generator().manual_seed(1)
    centre = torch.randn((BOXES, INPUTS), generator=draw, dtype=torch.float64)
    radius = torch.rand((BOXES, INPUTS), generator=draw, dtype=torch.float64) * 0.3
    radius[:, 6:] = 0
    radius[0, 2:] = 0
    return Box(centre - radius, centre + radius)


@pytest.mark.parametrize("semantics", [None, "real"])
@pytest.mark.parametrize("memory", [None, 12 * 8 * 30 * 25])
@pytest.mark.parametrize("alone", [False, True])
def test_boxes_together_and_alone(
    semantics: Semantics | None, memory: int | None, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 25 rows lie in one box or across two; boxes of many rows are walked one after the other."""
    monkeypatch.setattr(propagate, "ALONE_FROM", 0 if alone else 1 << 40)
    graph, region = network(), boxes()
    found = compute_bounds(graph, region, Crown(), semantics=semantics, memory=memory)
    for k in range(BOXES):
        single = compute_bounds(graph, Box(region.lower[k : k + 1], region.upper[k : k + 1]), semantics=semantics)
        torch.testing.assert_close(found.lower[k : k + 1], single.lower, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.upper[k : k + 1], single.upper, rtol=1e-9, atol=1e-9)


def test_the_way_to_varying_inputs_alone() -> None:
    """Without error terms rows are not written out at inputs: the same bounds as where they are."""
    graph, region = network(), boxes()
    quick, proven = (compute_bounds(graph, region, Crown(), semantics=s) for s in (None, "real"))
    torch.testing.assert_close(quick.lower, proven.lower, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(quick.upper, proven.upper, rtol=1e-9, atol=1e-9)
    assert bool((quick.lower >= proven.lower).all())
