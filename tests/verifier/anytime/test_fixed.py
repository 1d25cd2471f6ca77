"""Inputs that do not vary are folded into the layer that reads them: the function stays the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bounds import Box, Graph, LpBall, trace
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from verifier.anytime.fixed import Reduced
from verifier.anytime.functional import with_expression
from verifier.anytime.refinement import refine
from verifier.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 10


def network(seed: int, bias: bool = True) -> Graph:
    torch.manual_seed(seed)
    layers = [nn.Linear(SIZE, 8, bias=bias), nn.ReLU(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 2)]
    return with_expression(trace(nn.Sequential(*layers), torch.zeros(1, SIZE)), "y[0] - y[1]")


def region(free: Sequence[int]) -> Box:
    """A box in which these inputs vary, around another point each."""
    low = torch.linspace(-1, 1, SIZE, dtype=torch.float64).reshape(1, 1, SIZE) / 3
    high = low.clone()
    high[0, 0, list(free)] += 0.7
    return Box(low, high)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_function_stays_the_same(seed: int, bias: bool) -> None:
    graph, box = network(seed, bias), region([1, 4, 8][: seed % 3 + 1])
    found = Reduced.of(graph, box)
    assert found.kept is not None and found.kept.tolist() == [1, 4, 8][: seed % 3 + 1]
    assert found.region.size == 1 and isinstance(found.region, Box) and found.region.lower.shape[-1] == seed % 3 + 1
    draw = torch.Generator().manual_seed(seed)
    for _ in range(5):
        share = torch.rand(found.region.lower.shape, generator=draw, dtype=torch.float64)
        part = found.region.lower + share * (found.region.upper - found.region.lower)
        whole = found.whole(part[0])
        assert whole is not None and bool(((box.lower[0] <= whole) & (whole <= box.upper[0])).all())
        value = graph.to(torch.float64).evaluate(whole.unsqueeze(0))[0]
        assert float(found.graph.to(torch.float64).evaluate(part)[0]) == pytest.approx(float(value), abs=1e-13)


def test_the_bias_knows_its_rounding() -> None:
    found = Reduced.of(network(0), region([3]))
    errors = [c.error for c in found.graph.constants.values() if c.error is not None]
    assert len(errors) == 1 and errors[0].shape == (8,) and bool((errors[0] > 0).all())


@pytest.mark.parametrize("seed", range(3))
def test_ranges_are_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, box = network(seed), region([0, 9])
    folded = list(refine(graph, box, gap=1e-5))[-1]
    monkeypatch.setattr("verifier.anytime.fixed.FIXED_SHARE", 2.0)
    assert Reduced.of(graph, box).kept is None
    plain = list(refine(graph, box, gap=1e-5))[-1]
    assert folded.lower <= plain.least and plain.lower <= folded.least
    assert folded.upper >= plain.greatest and plain.upper >= folded.greatest
    assert folded.status == plain.status == "exact"
    for found in (folded, plain):
        for point, value in ((found.least_at, found.least), (found.greatest_at, found.greatest)):
            assert point is not None and point.shape == (1, SIZE)
            assert float(graph.to(torch.float64).evaluate(point[None])[0]) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("shape", [(SIZE, 1), (SIZE,), (1, SIZE), (1, 2, SIZE // 2)])
def test_regions_of_another_shape_are_refused_where_most_inputs_are_fixed(shape: tuple[int, ...]) -> None:
    box = region([3])
    other = Box(box.lower.reshape(shape), box.upper.reshape(shape))
    with pytest.raises(InputError, match="region"):
        next(refine(network(0), other))


def test_sums_that_overflow_are_left_to_the_layer() -> None:
    """Of fixed inputs alone they do, while the whole sum has a value."""
    build = Builder()
    weight = torch.tensor([[1e300], [1e300], [-1e300], [-1e300]], dtype=torch.float64)
    graph = build.finish([build.add(Gemm(), build.input((4,)), build.constant(weight))])
    low = torch.tensor([[0.0, 1e8, 1e8, 1e8]], dtype=torch.float64)
    high = torch.tensor([[1.0, 1e8, 1e8, 1e8]], dtype=torch.float64)
    assert Reduced.of(graph, Box(low, high)).graph is graph
    with pytest.raises(InputError, match="not finite"):
        next(refine(graph, Box(low * 1e8, high * 1e8)))


def conv() -> Graph:
    layers = [nn.Conv2d(1, 1, 2), nn.Flatten(), nn.Linear(2, 1)]
    return trace(nn.Sequential(*layers), torch.zeros(1, 1, 2, 3))


def test_what_is_left_alone() -> None:
    for graph, where in (
        (network(0), region(range(6))),  # few are fixed
        (network(0), region([])),  # all are
        (network(0), LpBall(region([]).lower, torch.ones(1, dtype=torch.float64), 2.0)),
        (conv(), Box(torch.zeros(1, 1, 1, 2, 3), torch.tensor([[[[[0, 0, 0], [0, 0, 1.0]]]]]))),
    ):
        found = Reduced.of(graph, where)
        assert found.graph is graph and found.region is where
        point = where.lower[0] if isinstance(where, Box) else where.centre[0]
        assert found.whole(point) is point
