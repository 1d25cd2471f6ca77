"""Rotations of an image, enclosed by affine pieces: for each small range of angles a chord and an error for each pixel.

The rotated image has at each pixel the value of the bilinear interpolant (zero outside the image) at the place that
the rotation about the middle carries there:

    x_p(a) = I(m + R(a) (p - m)),        R(a) (r, c) = (r cos a - c sin a, r sin a + c cos a).

It is continuous in the angle, not affine. While a runs through a range of width h, the place moves along an arc of
radius ``rho = |p - m|``, so with the steepest gradient G of the cells on the way ``x_p`` is Lipschitz with
``L = rho G``; a function of that kind whose chord has the slope s leaves the chord by at most
``h (L^2 - s^2) / (2 L)``. So ``x_p(a) = (1 - t) x_p(low) + t x_p(high) + e_p`` with ``t`` in [0, 1] and an ``e_p``
of at most that size: affine in t and e. Twice as many pieces halve the errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bounds.box import Box
from bounds.graph import Builder, Graph
from bounds.ops.arithmetic import Add
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Slice
from bounds.ops.shaping import Reshape


@dataclass(frozen=True, slots=True, eq=False)
class RotatedPiece:
    """``graph`` of the parameters ``(t, e)`` ``[1 + pixels]``, and the ``box`` of these over which its input takes (at
    least) all images rotated by ``low`` to ``high`` (radians)."""

    graph: Graph
    box: Box
    low: float
    high: float


def rotations(graph: Graph, image: Tensor, angles: Sequence[float]) -> list[RotatedPiece]:
    """One piece for each range between neighbouring ``angles`` (increasing, in radians, each range below 1 radian).

    ``image`` ``[1, C, H, W]`` is the graph's input, exact numbers in float32 or float64. Bounds of every piece's graph
    over its box together hold for every rotated image (in exact arithmetic under the semantics "real"). Raises
    ``ValueError`` for other shapes and angles.
    """
    shape = graph.nodes[graph.inputs[0]].shape
    if len(graph.inputs) != 1 or tuple(image.shape) != shape or len(shape) != 4 or shape[0] != 1:
        raise ValueError(
            f"a rotation needs an image [1, C, H, W] like the graph's input {shape}, not {tuple(image.shape)}"
        )
    ranges = list(itertools.pairwise(angles))
    if not ranges or not all(low < high < low + 1 for low, high in ranges):
        raise ValueError(f"angles must increase by less than 1 radian each, and be two at least: {list(angles)}")
    return [_piece(graph, image.double(), low, high) for low, high in ranges]


def rotated(image: Tensor, angle: float) -> Tensor:
    """The image ``[1, C, H, W]`` rotated by an angle in radians (float64, up to rounding)."""
    row, column = _places(image, angle)
    top, left = row.floor(), column.floor()
    down, right = row - top, column - left
    padded = functional.pad(image.double(), (1, 1, 1, 1))

    def at(y: Tensor, x: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        # One ring of zeros stands for everything outside.
        return padded[0, :, (y + 1).long().clamp(0, height + 1), (x + 1).long().clamp(0, width + 1)]

    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return (above * (1 - down) + below * down).unsqueeze(0)


def _offsets(image: Tensor) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64) - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    return rows.unsqueeze(1).expand(height, width), columns.expand(height, width)


def _places(image: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Row and column ``[H, W]`` of the places that are carried to the pixels."""
    r, c = _offsets(image)
    height, width = image.shape[-2:]
    cos, sin = math.cos(angle), math.sin(angle)
    return (r * cos - c * sin) + (height - 1) / 2, (r * sin + c * cos) + (width - 1) / 2


def _steepest(image: Tensor, middle: tuple[Tensor, Tensor], reach: float) -> Tensor:
    """``[C, H, W]``: the largest gradient of the interpolant in all cells within ``reach`` of the places."""
    ring = math.ceil(reach) + 2
    wide = functional.pad(image, (ring + 1,) * 4)[0]
    across, along = wide.diff(dim=2).abs(), wide.diff(dim=1).abs()
    x = torch.maximum(across[:, :-1], across[:, 1:])
    y = torch.maximum(along[:, :, :-1], along[:, :, 1:])
    cells = (x * x + y * y).sqrt()
    size = 2 * (ring - 1) + 1
    most = functional.max_pool2d(cells.unsqueeze(0), size, stride=1, padding=ring - 1)[0]
    row, column = ((place.floor().long() + ring + 1).clamp(0, most.shape[k + 1] - 1) for k, place in enumerate(middle))
    return most[:, row, column]


def _piece(graph: Graph, image: Tensor, low: float, high: float) -> RotatedPiece:
    start, end, width = rotated(image, low)[0], rotated(image, high)[0], high - low
    (r, c), shape = _offsets(image), tuple(image.shape)
    radius = (r * r + c * c).sqrt()
    # Radii, places and gradients are computed: a millionth is far more than they are off by.
    reach = float(radius.max()) * width / 2 * (1 + 1e-6) + 1e-6
    limit = radius * (1 + 1e-6) * _steepest(image, _places(image, (low + high) / 2), reach) * (1 + 1e-6)
    slope = (end - start) / width
    away = width * (limit - slope * slope / limit.clamp(min=1e-300)).clamp(min=0) / 2
    # Computed places are off by less than 8 units of height + width, values by that times the gradient (below 3 times
    # the greatest element) and a few units; the ends count once for themselves and twice for the slope.
    slack = (sum(shape[-2:]) + 16) * 256 * 2.0**-53 * float(image.abs().max()) + 1e-300
    error = (away * (1 + 1e-6) + 4 * slack).flatten()
    one = error.new_ones(1)
    box = Box(torch.cat([0 * one, -error]).unsqueeze(0), torch.cat([one, error]).unsqueeze(0))
    return RotatedPiece(_in_front(graph, shape, start.flatten(), (end - start).flatten()), box, low, high)


def _in_front(graph: Graph, shape: tuple[int, ...], start: Tensor, direction: Tensor) -> Graph:
    """``(t, e) -> graph(start + t direction + e)``."""
    build, count = Builder(), start.shape[0]
    parameters = build.input((1 + count,), "parameters")
    t = build.add(Slice((0,), (1,), (0,), (1,)), parameters)
    e = build.add(Slice((1,), (1 + count,), (0,), (1,)), parameters)
    path = build.add(Gemm(), t, build.constant(direction.unsqueeze(0)), build.constant(start))
    x = build.add(Reshape(shape), build.add(Add(), path, e), name="rotated")
    (result,) = build.embed(graph, [x])
    return build.finish([result])
