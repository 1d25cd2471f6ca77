"""The tangent: branches far away, poles beside and inside, boxes that hold one."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch

from bounds import Box, Crown, DomainError, compute_bounds
from bounds.graph import Builder
from bounds.ops.periodic import Tan
from bounds.rounding import Rounding

mpf = mpmath.mpf
mpmath.mp.prec = 200
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@both_dtypes
@pytest.mark.parametrize("branch", [-(2**22), -(10**4), -1, 1, 3, 10**5, 2**23])
def test_far_branches(dtype: torch.dtype, branch: int) -> None:
    """Intervals and lines against 60 digits, where the zero of the branch is not a number of float64."""
    shares = torch.tensor([[-0.45, 0.45], [-0.3, -0.01], [0.0, 0.49], [-0.499, -0.2], [-0.1, 0.2]]).double()
    ends = ((branch + shares) * math.pi).to(dtype)
    low, high = ends[:, :1], torch.maximum(ends[:, :1], ends[:, 1:])
    rounding = Rounding.of(dtype)
    for slopes in (None, torch.full_like(low, 1.5), torch.full_like(low, 40.0), torch.full_like(low, -2.0)):
        lines = Tan().relaxation([(low, high)], rounding, (slopes, slopes))
        least, most = Tan().interval([(low, high)], rounding)
        assert slopes is None or bool((least.isfinite() | Tan().void(low, high)).all())
        for n in range(low.shape[0]):
            if math.isinf(least[n]):
                continue
            for k in range(41):
                x = mpf(float(low[n])) + (mpf(float(high[n])) - mpf(float(low[n]))) * k / 40
                value = mpmath.tan(x)
                assert float(least[n]) <= value <= float(most[n])
                for line, sign in ((lines.lower[0], 1), (lines.upper[0], -1)):
                    assert (value - mpf(float(line.slopes[0][n])) * x - mpf(float(line.offset[n]))) * sign >= 0


@both_dtypes
def test_an_interval_with_a_pole_says_nothing(dtype: torch.dtype) -> None:
    pairs = [(1.0, 2.0), (-2.0, -1.0), (-10.0, 10.0), (1.57, 1.571), (4.0, 5.0), (2.0**27, 2.0**27), (0.0, math.inf)]
    low, high = (torch.tensor([[p[k]] for p in pairs], dtype=dtype) for k in (0, 1))
    outside = Tan().outside([(low, high)])
    assert outside is not None
    assert bool(outside.all())
    least, most = Tan().interval([(low, high)], Rounding.of(dtype))
    assert bool((least == -math.inf).all() and (most == math.inf).all())
    lines = Tan().relaxation([(low, high)], Rounding.of(dtype))
    assert bool((lines.lower[0].offset == -math.inf).all() and (lines.upper[0].offset == math.inf).all())
    slopes = Tan().derivative_range(low, high, rounding=Rounding.of(dtype))
    assert bool((slopes[1] == math.inf).all())
    free = torch.tensor([[1.6], [-1.5], [0.0]], dtype=dtype), torch.tensor([[4.7], [1.5], [0.0]], dtype=dtype)
    inside = Tan().outside([free])
    assert inside is not None
    assert not bool(inside.any())


def test_boxes_in_one_branch_are_bounded_and_others_refused() -> None:
    build = Builder()
    graph = build.finish([build.add(Tan(), build.input((1,)), name="slope")])
    found = compute_bounds(graph, Box(torch.tensor([[2.0]]).double(), torch.tensor([[4.0]]).double()), Crown())
    assert math.tan(2.0) - 1e-9 <= float(found.lower) <= math.tan(2.0)
    assert math.tan(4.0) <= float(found.upper) <= math.tan(4.0) + 1e-9
    with pytest.raises(DomainError, match="slope"):
        compute_bounds(graph, Box(torch.tensor([[1.0]]).double(), torch.tensor([[2.0]]).double()), Crown())
