"""Points where a function may be small: samples of a region, and short descents along the sign of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.anytime.bounding import Function
from verifier.anytime.domain import Domain

SAMPLES, STEPS, SHRINK = 16, 12, 0.7


def samples(domain: Domain, seed: int) -> Tensor:
    """The centre and uniformly drawn points, ``[N, n]``."""
    low, high = domain.ends()
    draw = torch.Generator().manual_seed(seed)
    shares = torch.rand((SAMPLES, low.shape[1]), generator=draw, dtype=torch.float64)
    return domain.inside(torch.cat([low / 2 + high / 2, low + shares * (high - low)]))


def descended(function: Function, points: Tensor, width: Tensor, sign: float, steps: int = STEPS) -> Tensor:
    """All points ``[steps * N, n]`` of descents of ``sign * f`` from ``points``; the first step is a quarter of
    ``width`` ``[N or 1, n]`` long, each further one shorter."""
    found, size = list[Tensor](), 0.25
    for _ in range(steps):
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            (slope,) = torch.autograd.grad(function.values(at).sum(), at)
        points = function.domain.inside(points - sign * size * width * slope.sign())
        found.append(points)
        size *= SHRINK
    return torch.cat(found)
