"""Perturbations of an input that have few parameters: affine nodes in front of a graph.

An image ``x(e) = x0 + e_1 d_1 + ... + e_k d_k`` depends on k parameters: how bright it is, how much contrast it has,
how far it is blended into another one. With these nodes in front, the graph is a function of the parameters, and a
``Box`` over them is the set of inputs (a single box of k numbers, whatever the size of the image). What is computed
here (a difference of two images, a mean) carries an error bound, so proven bounds hold for the exact perturbation.

``within`` clips the perturbed input to the range of the data, as cameras and image libraries do.

Rotations are not affine in their angle, since interpolation multiplies coordinates that are sines and cosines:
``rotation.py`` encloses them by affine pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.base import Shape
from bounds.ops.gemm import Gemm
from bounds.ops.piecewise import Clip
from bounds.ops.shaping import Reshape
from bounds.rounding import Rounding

Direction = tuple[Tensor, Tensor | None]
"""A direction, and how far the exact one may be from it elementwise (None: it is exact)."""


def along(
    graph: Graph, origin: Tensor, directions: Tensor | Sequence[Direction], within: tuple[float, float] | None = None
) -> Graph:
    """``e -> graph(origin + sum_i e_i directions[i])`` for an input ``e`` ``[k]``.

    ``origin`` ``[*input shape]`` and ``directions`` ``[k, *input shape]`` (or pairs with error bounds) are taken as
    exact numbers in float32 or float64. Raises ``ValueError`` for shapes that do not fit, no direction, a range whose
    ends are crossed, and a graph with more than one input.
    """
    if len(graph.inputs) != 1:
        raise ValueError(f"a perturbation needs a graph with one input, not {len(graph.inputs)}")
    shape = graph.nodes[graph.inputs[0]].shape
    pairs = [(d, None) for d in directions] if isinstance(directions, Tensor) else list(directions)
    if not pairs:
        raise ValueError("a perturbation needs at least one direction")
    if within is not None and not within[0] <= within[1]:
        raise ValueError(f"within={within}: the low end is above the high end")
    for tensor in (origin, *(d for d, _ in pairs)):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"a perturbation of shape {tuple(tensor.shape)} for an input of shape {shape}")
    return _in_front(graph, shape, origin.double(), pairs, within)


def brightness(graph: Graph, x: Tensor, within: tuple[float, float] | None = None) -> Graph:
    """``e -> graph(x + e)``: one parameter, added to every element."""
    return along(graph, x, torch.ones_like(x, dtype=torch.float64).unsqueeze(0), within)


def contrast(graph: Graph, x: Tensor, about: float | None = None, within: tuple[float, float] | None = None) -> Graph:
    """``e -> graph(x + e (x - m))``: more contrast for e > 0, none at all at -1.

    ``about`` is the grey m that stays as it is (an exact number); by default the mean of all elements of ``x``.
    """
    value, rounding = x.double(), Rounding.of(torch.float64)
    doubt = 0.0
    if about is None:
        about = float(value.mean())
        doubt = float(rounding.affine(value.numel() + 2, value.abs().mean())) * 2
    direction = value - about
    error = direction.abs() * (2 * rounding.unit) + rounding.tiny + doubt
    return along(graph, x, [(direction, error)], within)


def brightness_and_contrast(
    graph: Graph, x: Tensor, about: float = 0.5, within: tuple[float, float] | None = None
) -> Graph:
    """``(b, c) -> graph(x + b + c (x - about))``: both at once."""
    direction, error = _difference(x, torch.full_like(x, about, dtype=torch.float64))
    return along(graph, x, [(torch.ones_like(direction), None), (direction, error)], within)


def blend(graph: Graph, start: Tensor, end: Tensor, within: tuple[float, float] | None = None) -> Graph:
    """``t -> graph((1 - t) start + t end)``: the straight path between two inputs, 0 to 1."""
    if start.shape != end.shape:
        raise ValueError(f"a path from shape {tuple(start.shape)} to shape {tuple(end.shape)}")
    return along(graph, start, [_difference(end, start)], within)


def _difference(a: Tensor, b: Tensor) -> Direction:
    """``a - b`` in float64 and what its rounding may be."""
    rounding, difference = Rounding.of(torch.float64), a.double() - b.double()
    return difference, difference.abs() * (2 * rounding.unit) + rounding.tiny


def _in_front(
    graph: Graph, shape: Shape, origin: Tensor, directions: Sequence[Direction], within: tuple[float, float] | None
) -> Graph:
    build = Builder()
    e = build.input((len(directions),), "parameters")
    weight = torch.stack([d.double().flatten() for d, _ in directions])
    errors = torch.stack(
        [
            torch.zeros_like(w) if s is None else s.double().flatten()
            for w, (_, s) in zip(weight, directions, strict=True)
        ]
    )
    matrix = build.constant(weight, errors if bool((errors > 0).any()) else None, "directions")
    x = build.add(Gemm(), e, matrix, build.constant(origin.flatten(), name="origin"), name="perturbed")
    if within is not None:
        x = build.add(Clip(*within), x, name="within")
    (result,) = build.embed(graph, [build.add(Reshape(tuple(shape)), x)])
    return build.finish([result])
