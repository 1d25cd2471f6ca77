"""Transposed convolutions phase by phase are transposed convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

from bounds.ops import phases


@pytest.mark.parametrize("part", [1, 1 << 18])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 2), (2, 1)])
def test_results_are_those_of_the_transposed_convolution(
    strides: tuple[int, int], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels below and above the strides, cropped or with places appended; in one part or many."""
    monkeypatch.setattr(phases, "PART", part)
    generator = torch.Generator().manual_seed(0)
    compared = 0
    for kernel, padding, channels in itertools.product(
        ((1, 1), (2, 3), (4, 3), (3, 5)), ((0, 0), (1, 0), (1, 2)), (2, 40)
    ):
        rows = torch.randn((5, channels, 4, 3), generator=generator)
        weight = torch.randn((channels, 3 if channels == 2 else 16, *kernel), generator=generator)
        if any(p >= k for p, k in zip(padding, kernel, strict=True)):
            continue
        for rest in ((0, 0), (strides[0] - 1, strides[1] - 1)):
            wanted = functional.conv_transpose2d(rows, weight, None, strides, padding, rest)
            found = phases.transposed(rows, weight, strides, padding, rest)
            assert torch.allclose(found, wanted, atol=1e-4)
            compared += 1
    assert compared > 20


def test_they_are_differentiable() -> None:
    rows = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn((2, 3, 3, 3), generator=torch.Generator().manual_seed(1), requires_grad=True)
    gradients = []
    for result in (
        phases.transposed(rows, weight, (2, 2), (1, 1), (1, 1)),
        functional.conv_transpose2d(rows, weight, None, (2, 2), (1, 1), (1, 1)),
    ):
        gradients.append(torch.autograd.grad(result.square().sum(), (rows, weight)))
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-3)
