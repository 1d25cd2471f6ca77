"""Rotated images lie in their enclosures, and bounds over these hold for every angle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bounds import Builder, Crown, Graph, compute_bounds
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.rotation import rotated, rotations

SHAPE = (1, 2, 5, 6)


def scores(rng: np.random.Generator) -> Graph:
    build = Builder()
    x = build.input(SHAPE, "x")
    kernel = build.constant(torch.from_numpy(rng.normal(size=(3, 2, 3, 3))))
    x = build.add(Relu(), build.add(Conv((1, 1), (1, 1), (0, 0, 0, 0)), x, kernel))
    x = build.add(Reshape((36,)), x)
    return build.finish([build.add(Gemm(), x, build.constant(torch.from_numpy(rng.normal(size=(36, 2)))))])


def test_a_quarter_turn_is_exact() -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 1, 5, 5)))
    assert torch.allclose(rotated(image, 0.0), image)
    assert torch.allclose(rotated(image, math.pi / 2), torch.rot90(image, -1, (2, 3)), atol=1e-12) or torch.allclose(
        rotated(image, math.pi / 2), torch.rot90(image, 1, (2, 3)), atol=1e-12
    )


def test_rotation_as_torch_samples_it() -> None:
    """Against ``grid_sample`` with zeros outside."""
    image, angle = torch.from_numpy(np.random.default_rng(1).random((1, 1, 6, 6))), 0.3
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[[cos, sin, 0.0], [-sin, cos, 0.0]]], dtype=torch.float64)
    grid = torch.nn.functional.affine_grid(turn, [1, 1, 6, 6], align_corners=False)
    wanted = torch.nn.functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    assert torch.allclose(rotated(image, angle), wanted, atol=1e-9)


@pytest.mark.parametrize("width", [1e-3, 0.02, 0.3])
def test_every_angle_is_enclosed(width: float) -> None:
    """Images with hard edges; no tolerance but the slack that the enclosure has for its own rounding."""
    rng = np.random.default_rng(2)
    for image in (torch.from_numpy(rng.random(SHAPE)), torch.from_numpy(rng.integers(0, 2, SHAPE)).double()):
        graph = scores(rng)
        for start in (-0.4, 0.0, 1.2):
            (piece,) = rotations(graph, image, [start, start + width])
            low, error = rotated(image, piece.low).flatten(), piece.box.upper[0, 1:]
            high = rotated(image, piece.high).flatten()
            bounds = compute_bounds(piece.graph, piece.box, Crown())
            for share in (0.0, 0.25, 0.5, 0.99, *rng.random(20)):
                x = rotated(image, piece.low + share * (piece.high - piece.low))
                away = (x.flatten() - (low + share * (high - low))).abs()
                assert bool((away <= error).all())
                y = graph.evaluate(x.unsqueeze(0))[0]
                assert bool((bounds.lower <= y + 1e-9).all() and (y - 1e-9 <= bounds.upper).all())


def test_more_pieces_are_tighter() -> None:
    rng = np.random.default_rng(3)
    graph, image = scores(rng), torch.from_numpy(rng.random(SHAPE))
    widths = []
    for count in (2, 8):
        pieces = rotations(graph, image, np.linspace(0.0, 0.2, count + 1).tolist())
        found = [compute_bounds(p.graph, p.box, Crown()) for p in pieces]
        lower, upper = torch.cat([b.lower for b in found]).amin(0), torch.cat([b.upper for b in found]).amax(0)
        widths.append(float((upper - lower).sum()))
    assert widths[1] < 0.6 * widths[0]


def test_what_is_no_rotation() -> None:
    graph, image = scores(np.random.default_rng(4)), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="image"):
        rotations(graph, image[0], [0.0, 0.1])
    with pytest.raises(ValueError, match="angles"):
        rotations(graph, image, [0.1, 0.0])
