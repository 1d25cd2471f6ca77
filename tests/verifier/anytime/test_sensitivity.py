"""Slopes over a region: against all slopes of small networks at many points, and what follows from them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import verifier
from bounds import Box, Graph, LpBall, trace
from verifier.anytime.refinement import refine
from verifier.anytime.sensitivity import sensitivity


def network(seed: int, outputs: int = 1) -> Graph:
    """Three inputs, two layers of activations with a kink and without."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs)]
    return trace(nn.Sequential(*layers), torch.zeros(1, 3))


def slopes(graph: Graph, points: Tensor) -> Tensor:
    """``[N, inputs]`` at points ``[N, 1, inputs]``."""
    at = points.clone().requires_grad_()
    (found,) = torch.autograd.grad(graph.to(torch.float64).evaluate(at)[0].sum(), at)
    return found.flatten(1)


@pytest.mark.parametrize("seed", range(4))
def test_slopes_lie_within_their_ends_which_splits_narrow(seed: int) -> None:
    graph = network(seed)
    box = Box(*(torch.full((1, 1, 3), end, dtype=torch.float64) for end in (-0.5, 0.5)))
    draw = torch.Generator().manual_seed(seed)
    found = slopes(graph, torch.rand((3000, 1, 3), generator=draw, dtype=torch.float64) - 0.5)
    before = sensitivity(graph, box, splits=0)
    for splits in (16, 200):
        after = sensitivity(graph, box, splits=splits)
        assert after.parts <= splits + 1
        assert bool((after.lower <= found.amin(0)).all() and (found.amax(0) <= after.upper).all())
        assert bool((before.lower <= after.lower).all() and (after.upper <= before.upper).all())
        assert bool((after.seen <= torch.maximum(after.lower.abs(), after.upper.abs())).all())
        before = after
    assert after.parts > 100
    # Halves of halves: what is left between the ends and the samples is small.
    steepest = torch.maximum(after.lower.abs(), after.upper.abs())
    assert bool((steepest <= 1.5 * found.abs().amax(0)).all())
    assert sorted(after.ranking) == [0, 1, 2] and after.reach[after.ranking[0]] == after.reach.max()


def test_directions_that_are_proven() -> None:
    """Of the functional 2 x_0 - x_1 + |x_2| - 0 x_3, in which x_0 varies little."""

    class Known(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            weights = torch.tensor([[2.0], [-1.0], [0.0], [0.0]])
            return x @ weights + x[:, 2:3].abs()

    graph = trace(Known(), torch.zeros(1, 4))
    width = torch.tensor([0.1, 1.0, 3.0, 7.0], dtype=torch.float64)
    box = Box(-width.reshape(1, 1, 4) / 2, width.reshape(1, 1, 4) / 2)
    found = sensitivity(graph, box)
    # A slope of 0 is proven up to rounding, so that nothing is said of its direction.
    assert found.rising[:3].tolist() == [True, False, False] and found.falling[:3].tolist() == [False, True, False]
    assert found.lower.tolist() == pytest.approx([2, -1, -1, 0])
    assert found.upper.tolist() == pytest.approx([2, -1, 1, 0])
    assert found.reach.tolist() == pytest.approx([0.2, 1.0, 3.0, 0.0])
    assert found.ranking == (2, 1, 0, 3) and found.seen.tolist() == [2, 1, 1, 0]
    assert verifier.sensitivity(graph, box, "-y[0]").rising[:3].tolist() == [False, True, False]


def test_over_a_ball() -> None:
    graph = network(0)
    centre = torch.zeros(1, 1, 3, dtype=torch.float64)
    ball = LpBall(centre, torch.tensor([0.5], dtype=torch.float64), 2.0)
    found, around = sensitivity(graph, ball, splits=64), sensitivity(graph, ball.box(), splits=0)
    draw = torch.randn((2000, 1, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = 0.5 * draw / draw.norm(dim=2, keepdim=True)
    values = slopes(graph, points)
    assert bool((found.lower <= values.amin(0)).all() and (values.amax(0) <= found.upper).all())
    assert bool((around.lower <= found.lower).all() and (found.upper <= around.upper).all())


def test_confidence_of_a_class_closes_in() -> None:
    """The least and the greatest share that softmax gives a class, and slopes of it."""
    graph = network(1, outputs=3)
    box = Box(*(torch.full((1, 1, 3), end, dtype=torch.float64) for end in (-0.2, 0.2)))
    last = list(refine(graph, box, "softmax(y)[1]", gap=1e-3))[-1]
    assert last.status == "exact" and last.least - last.lower <= 1e-3 >= last.upper - last.greatest
    side = torch.linspace(-0.2, 0.2, 21, dtype=torch.float64)
    scores = graph.to(torch.float64).evaluate(torch.cartesian_prod(side, side, side).unsqueeze(1))[0]
    shares = scores.softmax(-1)[..., 1]
    assert last.lower <= shares.min() <= last.least + 0.01 and last.greatest - 0.01 <= shares.max() <= last.upper
    steepest = sensitivity(graph, box, "softmax(y)[1]").reach.sum()
    assert last.greatest - last.least <= float(steepest) < math.inf


def test_what_has_no_slopes_is_refused() -> None:
    class Jumping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x).sum(1, keepdim=True)

    graph = trace(Jumping(), torch.zeros(1, 2))
    box = Box(torch.full((1, 1, 2), -1.0), torch.full((1, 1, 2), 1.0))
    with pytest.raises(verifier.UnsupportedError, match="there are no slopes; the range can be refined"):
        sensitivity(graph, box)
    with pytest.raises(verifier.InputError, match="splits=-1"):
        sensitivity(network(0), box, splits=-1)
    with pytest.raises(verifier.InputError, match="has 3 elements and one number is needed"):
        sensitivity(network(0, outputs=3), box)
    with pytest.raises(verifier.InputError, match="timeout=-1: seconds, at least 0"):
        sensitivity(network(0), box, timeout=-1)
    empty = Box(torch.full((1, 1, 3), 1.0), torch.full((1, 1, 3), -1.0))
    with pytest.raises(verifier.InputError, match="empty"):
        sensitivity(network(0), empty)
