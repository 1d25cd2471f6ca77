"""Noise of balls and cubes: a direction and a distance. See ``noise``.

Level sets that are cubes or spheres are the best shapes for some norms (the Wulff crystals of Yang et al., ICML 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from scipy.special import betaincinv
from torch import Tensor

from verifier.smoothing.noise import Norm, exponential_tail, greatest_two_norm, positive
from verifier.smoothing.shifts import Ladder, Overlap, Shift


@dataclass(frozen=True, slots=True)
class Cubic:
    """Density proportional to exp(-|x|_inf / scale).

    A shift changes it at the faces that it is directed to, of a probability of 1 / (2 size) each. Norm inf: all faces,
    as for ``Laplace`` in the norm 1 (Yang et al., table 1). Norm 1: one face, so that a set gains 1 / (2 size) at most
    in a unit. Norm 2: over the faces that hold a probability s, at most sqrt(s / (2 size)), by Cauchy's inequality.
    """

    scale: float

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"cubic scale={self.scale:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``: a uniform point of a cube's surface, at a distance that is a sum of ``size`` exponentials."""
        u = torch.rand((rows, size), generator=generator, device=generator.device, dtype=dtype).mul_(2).sub_(1)
        face = torch.randint(size, (rows, 1), generator=generator, device=generator.device)
        u.scatter_(1, face, torch.where(u.gather(1, face) < 0, -1.0, 1.0).to(dtype))
        return u.mul_((_sums(rows, size, generator) * self.scale).to(dtype))

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""
        if norm == "inf":
            return Ladder(self.scale, exponential_tail)
        return Ladder(self.scale, partial(_face_tail, size=size, one=norm == "1"))

    def variance(self, size: int) -> float:
        """See ``Noise``: of the distance times that of a face's points."""
        return self.scale**2 * (size + 1) * (1 + (size - 1) / 3)


@dataclass(frozen=True, slots=True)
class Spherical:
    """Density proportional to exp(-|x|_2 / scale).

    Norm 2: a shift changes it by the cosine of the angle to it, whose square has a beta distribution: scale (size - 1)
    artanh of the cosine's quantile (Yang et al., table 1). The norm 1 as in the norm 2, inf by the root of the size, as
    for ``Gaussian``.
    """

    scale: float

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"spherical scale={self.scale:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        return _directions(rows, size, generator, dtype).mul_((_sums(rows, size, generator) * self.scale).to(dtype))

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""
        length = self.scale / greatest_two_norm(norm, size)
        return Ladder(length, exponential_tail if size == 1 else partial(_cosine_tail, size=size))

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.scale**2 * (size + 1)


@dataclass(frozen=True, slots=True)
class Ball:
    """Uniform in the ball of radius ``width`` of the norm 2.

    Norm 2: two balls at a distance of r share all but I(r^2 / (2 width)^2; 1/2, (size + 1) / 2) of their volumes, I
    being the incomplete beta function (Yang et al., level sets). The norms 1 and inf as for ``Gaussian``.
    """

    width: float

    def __post_init__(self) -> None:
        positive("width", self.width)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"ball width={self.width:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        u = torch.rand((rows, 1), generator=generator, device=generator.device, dtype=torch.float64)
        return _directions(rows, size, generator, dtype).mul_((u ** (1 / size) * self.width).to(dtype))

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""
        length = 2 * self.width / greatest_two_norm(norm, size)
        return Overlap(lambda loss: length * math.sqrt(float(betaincinv(0.5, (size + 1) / 2, loss))))

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.width**2 / (size + 2)


def _face_tail(t: float, size: int, one: bool) -> float:
    """``Ladder.tail`` of cubic noise in the norms 1 (``one``) and 2: of less than a face, ``exponential_tail``."""
    edge = 1 / (2 * size)
    s = max(t, edge)
    found = size * (1 - 2 * s) if one else 2 * math.sqrt(size) * (1 - math.sqrt(2 * s))
    return found + (math.log(edge / t) if t < edge else 0.0)


def _cosine_tail(t: float, size: int) -> float:
    """``(size - 1) artanh(c)``, c being exceeded by the cosine with a probability of t; (1 - c) / 2 is a quantile of
    the beta distribution with both parameters (size - 1) / 2."""
    b = float(betaincinv((size - 1) / 2, (size - 1) / 2, t))
    return (size - 1) / 2 * (math.log1p(-b) - math.log(b)) if b > 0 else 0.0


def _directions(rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Uniform on the sphere."""
    normal = torch.randn((rows, size), generator=generator, device=generator.device, dtype=dtype)
    return normal.div_(normal.norm(dim=1, keepdim=True).clamp_(min=1e-30))


def _sums(rows: int, size: int, generator: torch.Generator) -> Tensor:
    """``[rows, 1]`` float64: sums of ``size`` exponential numbers."""
    shape = torch.full((rows, 1), float(size), dtype=torch.float64, device=generator.device)
    return torch._standard_gamma(shape, generator=generator)
