"""The transposed step of a convolution whose windows lie side by side is that of any other."""

from __future__ import annotations

import pytest
import torch

from bounds.ops.conv import Conv


@pytest.mark.parametrize(
    ("strides", "pads", "size"),
    [
        ((2, 2), (0, 0, 0, 0), (6, 8)),
        ((3, 2), (1, 0, 2, 1), (8, 9)),  # a rest that no window reaches
        ((2, 3), (0, 2, 0, 0), (7, 7)),
        ((2, 2), (-1, 0, 0, -1), (7, 8)),
    ],
)
def test_pullback_is_the_transpose(strides: tuple[int, int], pads: tuple[int, ...], size: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((4, 3, *strides), (2, 1, 3, *size)))
    op, point = Conv(strides, (1, 1), pads), x.requires_grad_()
    result = op.forward(point, weight)
    rows = torch.randn(result.shape, generator=draw, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((result * rows).sum(), point)
    found = op.pullback(rows, 0, [None, weight], (1, 3, *size))
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_no_rows_are_pulled_back_to_none() -> None:
    op, weight = Conv((2, 2), (1, 1), (0, 0, 0, 0)), torch.ones((4, 3, 2, 2), dtype=torch.float64)
    rows = torch.zeros((0, 1, 4, 3, 4), dtype=torch.float64)
    assert op.pullback(rows, 0, [None, weight], (1, 3, 6, 8)).shape == (0, 1, 3, 6, 8)
