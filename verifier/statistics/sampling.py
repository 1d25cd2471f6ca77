"""Uniform points of a box or an Lp ball, as images of Gaussian noise.

Every region is the image of a standard Gaussian under a map that carries it to the uniform distribution. So one move
serves all of them: ``sqrt(1 - s^2) z + s * noise`` leaves the Gaussian as it is, is reversible (the preconditioned
Crank-Nicolson proposal: Cotter, Roberts, Stuart and White, Statistical Science 28, 2013), and never leaves the region,
however many inputs there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Box, LpBall
from verifier.errors import InputError

MOST_TRIES = 1000
"""Points of a ball that are drawn for each one that must also lie within its box."""


@dataclass(frozen=True, slots=True, eq=False)
class Uniform:
    """The uniform distribution on one box (``p`` infinite: ``lower`` to ``upper``), or on the ball of norm ``p`` around
    ``centre`` cut to ``lower`` to ``upper``. All flat ``[d]`` in float64, points ``[N, *shape]``."""

    p: float
    lower: Tensor
    upper: Tensor
    centre: Tensor
    radius: float
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many Gaussian numbers make one point."""
        return len(self.lower) + (0 if math.isinf(self.p) else int(self.p))

    def points(self, noise: Tensor) -> Tensor:
        """The points ``[N, *shape]`` that ``noise`` ``[N, size]`` stands for.

        L2: the first d elements of a uniform unit vector of d + 2 are uniform in the unit ball. L1: so are d of d + 1
        Laplace numbers over the sum of all sizes (Barthe, Guedon, Mendelson and Naor, Annals of Probability 33, 2005).
        """
        count = len(self.lower)
        if math.isinf(self.p):
            found = torch.special.ndtr(noise) * (self.upper - self.lower) + self.lower
            found = torch.minimum(torch.maximum(found, self.lower), self.upper)
        elif self.p == 2:
            found = self.centre + self.radius * noise[:, :count] / noise.norm(dim=1, keepdim=True)
        else:
            sizes = -torch.special.log_ndtr(-noise.abs()) - math.log(2)
            ratio = sizes[:, :count] / sizes.sum(1, keepdim=True)
            found = self.centre + self.radius * noise[:, :count].sign() * ratio
        return found.reshape(-1, *self.shape)

    def inside(self, points: Tensor) -> Tensor:
        """``[N]`` bool: which points of the ball lie within its box."""
        flat = points.reshape(len(points), -1)
        return ((flat >= self.lower) & (flat <= self.upper)).all(1)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise ``[count, size]`` of uniform points. ``InputError`` where hardly a point of the ball is in its box."""
        found: list[Tensor] = []
        missing, tried = count, 0
        while missing > 0:
            noise = normal((max(count, 100), self.size), generator)
            kept = noise[self.inside(self.points(noise))][:missing]
            found.append(kept)
            missing, tried = missing - len(kept), tried + len(noise)
            if missing > 0 and tried >= MOST_TRIES * max(count, 100):
                raise InputError(
                    f"of {tried} points of the ball {count - missing} lie within its box: sample the box around both "
                    "(region.box()), or choose a smaller radius"
                )
        return torch.cat(found)


def moved(noise: Tensor, step: Tensor, generator: torch.Generator) -> Tensor:
    """A proposal for each point, as wide as ``step`` says: 0 stays, 1 draws anew."""
    return (1 - step * step).sqrt() * noise + step * normal(tuple(noise.shape), generator)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gaussian numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(region: Box | LpBall, shape: tuple[int, ...]) -> Uniform:
    """The uniform distribution on one region of inputs of this shape. Inputs that do not vary stay as they are.

    Raises ``InputError`` for several regions, an empty or infinite one, and one of another shape.
    """
    if not isinstance(region, Box | LpBall):
        raise InputError(f"the region is a {type(region).__name__}: a bounds.Box or a bounds.LpBall is needed")
    box = region if isinstance(region, Box) else region.box()
    if box.size != 1 or tuple(box.lower.shape[1:]) != shape:
        raise InputError(f"a region of shape {tuple(box.lower.shape)}: one of shape {(1, *shape)} is needed")
    if bool(region.empty()[0]):
        raise InputError("the region is empty: there is nothing to sample")
    if not bool(torch.isfinite(box.lower).all() and torch.isfinite(box.upper).all()):
        raise InputError("the region has infinite ends: a uniform distribution needs finite ones")
    lower, upper = (end.to(torch.float64).flatten() for end in (box.lower, box.upper))
    if isinstance(region, Box) or math.isinf(region.p):
        return Uniform(math.inf, lower, upper, lower, 0.0, shape)
    centre, radius = region.centre.to(torch.float64).flatten(), float(region.radius[0])
    if region.within is None:  # the box around the ball cuts nothing, but rounding might
        lower, upper = (torch.full_like(centre, s * math.inf) for s in (-1, 1))
    return Uniform(region.p, lower, upper, centre, radius, shape)
