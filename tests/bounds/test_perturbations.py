"""Perturbations with few parameters: the perturbed input in fractions, and bounds against it."""

from __future__ import annotations

from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds import Box, Builder, Crown, Graph, compute_bounds
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.perturbations import along, blend, brightness, brightness_and_contrast, contrast

D = torch.float64
SHAPE = (1, 2, 3)


def scores(rng: np.random.Generator) -> Graph:
    build = Builder()
    x = build.add(Reshape((6,)), build.input(SHAPE, "x"))
    for width in (8, 3):
        weight = torch.from_numpy(rng.normal(size=(build.shape(x)[0], width)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(torch.from_numpy(rng.normal(size=width))))
        x = build.add(Relu(), x) if width == 8 else x
    return build.finish([x])


def image(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.random(SHAPE)).float()


def test_bounds_hold_for_the_exact_perturbation(exact: ModuleType) -> None:
    rng = np.random.default_rng(0)
    graph, x, other = scores(rng), image(rng), image(rng)
    value, end = exact.exact(x.double()), exact.exact(other.double())
    mean, grey = sum(value.flatten()) / 6, Fraction(0.3)
    directions = torch.from_numpy(rng.normal(size=(2, *SHAPE)))
    cases = {
        brightness: (brightness(graph, x), lambda e: value + e[0]),
        contrast: (contrast(graph, x), lambda e: value + e[0] * (value - mean)),
        brightness_and_contrast: (
            brightness_and_contrast(graph, x, 0.3),
            lambda e: value + e[0] + e[1] * (value - grey),
        ),
        blend: (blend(graph, x, other), lambda e: (1 - e[0]) * value + e[0] * end),
        along: (
            along(graph, x, directions),
            lambda e: value + e.dot(exact.exact(directions.flatten(1))).reshape(SHAPE),
        ),
    }
    for changed, at in cases.values():
        size = changed.nodes[changed.inputs[0]].shape[0]
        box = Box(torch.full((1, size), -0.25, dtype=D), torch.full((1, size), 0.5, dtype=D))
        found = compute_bounds(changed, box, Crown())
        for share in (np.zeros(size), np.ones(size), rng.random(size)):
            e = Fraction(-1, 4) + Fraction(3, 4) * exact.exact(share)
            y = exact.evaluate(graph, at(e))[graph.outputs[0]]
            for low, v, high in zip(found.lower[0].tolist(), y, found.upper[0].tolist(), strict=True):
                assert Fraction(low) <= v <= Fraction(high)


def test_few_parameters_are_tighter_than_their_box() -> None:
    rng = np.random.default_rng(1)
    graph, x = scores(rng), image(rng)
    loose = compute_bounds(graph, Box.around(x.double(), 0.2))
    tight = compute_bounds(brightness(graph, x), Box.around(torch.zeros(1, dtype=D), 0.2))
    assert float((tight.upper - tight.lower).sum()) < 0.7 * float((loose.upper - loose.lower).sum())


def test_clipped_to_the_range_of_the_data() -> None:
    rng = np.random.default_rng(2)
    graph, x = scores(rng), image(rng)
    changed = brightness(graph, x, within=(0.0, 1.0))
    e = torch.tensor([[0.4]])
    assert torch.allclose(changed.evaluate(e)[0], graph.evaluate((x + 0.4).clamp(0, 1)[None])[0])


def test_what_does_not_fit() -> None:
    graph = scores(np.random.default_rng(3))
    with pytest.raises(ValueError, match="shape"):
        brightness(graph, torch.zeros(6))
    with pytest.raises(ValueError, match="path"):
        blend(graph, torch.zeros(SHAPE), torch.zeros(6))
    with pytest.raises(ValueError, match="the low end is above"):
        brightness(graph, torch.zeros(SHAPE), within=(1, 0))
    with pytest.raises(ValueError, match="at least one direction"):
        along(graph, torch.zeros(SHAPE), torch.zeros(0, *SHAPE))
