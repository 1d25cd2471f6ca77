"""Points where a function may be small: samples of a region, and short descents along the sign of the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.anytime.bounding import Function
from verifier.anytime.domain import Domain
from verifier.errors import InputError

SAMPLES, CORNERS, STEPS, SHRINK = 16, 4, 12, 0.7


def samples(domain: Domain, seed: int) -> Tensor:
    """The centre, uniformly drawn points, and as many corners (all of them, where these are few), ``[N, n]``; NaN
    where rounding leaves open whether there is such a point (``Domain.inside``)."""
    low, high = domain.ends()
    draw = torch.Generator().manual_seed(seed)
    shares = torch.rand((2 * SAMPLES, low.shape[1]), generator=draw, dtype=torch.float64)
    shares[SAMPLES:] = shares[SAMPLES:].round()
    free = (low < high)[0].nonzero().flatten()
    if 0 < free.shape[0] <= CORNERS:
        number = torch.arange(SAMPLES)
        shares[SAMPLES:, free] = (number[:, None] >> torch.arange(free.shape[0]) & 1).double()
    return domain.inside(torch.cat([low / 2 + high / 2, low * (1 - shares) + high * shares]))


def descended(function: Function, points: Tensor, width: Tensor, sign: float, steps: int = STEPS) -> Tensor:
    """All points ``[N', n]`` of descents of ``sign * f`` from ``points``, with these; the first step is a quarter of
    ``width`` ``[N or 1, n]`` long, each further one shorter."""
    found, size = [points], 0.25
    for _ in range(steps):
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            value = function.values(at).sum()
            if not value.requires_grad:  # such as the number of the greatest element
                break
            (slope,) = torch.autograd.grad(value, at)
        points = function.domain.inside(points - sign * size * width * slope.sign())
        found.append(points)
        size *= SHRINK
    return torch.cat(found)


def check_finite(function: Function, points: Tensor) -> None:
    """Raises ``InputError`` where f has no finite value at points of the region: then no range has ends."""
    with torch.no_grad():
        values = function.values(points)
    lost = ~values.isfinite() & points.isfinite().all(1)  # a point that is not finite stands for none
    if bool(lost.any()):
        first = points[lost][0]
        at = ", ".join(f"{x:.6g}" for x in first[:8].tolist()) + (", ..." if first.shape[0] > 8 else "")
        raise InputError(f"the function is not finite on the region: {float(values[lost][0])} at the input ({at})")
