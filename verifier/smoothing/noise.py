"""Noise that classifiers are smoothed with, and the radius that probabilities under it certify.

The smoothed classifier g(x) is the class that the base classifier gives ``x + noise`` most often. Where its class A has
a probability of at least ``p`` and every other at most ``q``, no change of x by less than the radius makes another
class the most probable, for whatever base classifier. Without ``q`` it is 1 - p. The radii are closed forms; each is
rounded down by more than its evaluation can be off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from scipy.special import ndtri
from torch import Tensor

from verifier.errors import InputError

Norm = Literal["1", "2", "inf"]

_DOWN = 1 - 1e-9
"""What closed forms are multiplied with: special functions are exact to about 1e-14 of their values here."""


@runtime_checkable
class Noise(Protocol):
    """A distribution around 0, the same for every input of a size."""

    @property
    def words(self) -> str:
        """Its name and scale, as logs say it."""

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """``[rows, size]``, on the generator's device."""

    def radius(self, norm: Norm, size: int, p: float, q: float) -> float:
        """Certified in the norm for inputs of ``size`` elements (0: nothing is). Raises ``UnsupportedError`` where
        nothing is known."""

    def variance(self, size: int) -> float:
        """Of one element."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Normal noise of standard deviation ``sigma`` in every element.

    Norm 2: sigma / 2 (Phi^-1(p) - Phi^-1(q)) (Cohen et al., ICML 2019, theorem 1), sigma Phi^-1(p) for two classes. The
    ball of the norm 1 with this radius lies in that of the norm 2, as does that of the norm inf with a radius that is
    sqrt(size) times smaller.
    """

    sigma: float

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"gaussian sigma={self.sigma:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        normal = torch.randn((rows, size), generator=generator, device=generator.device, dtype=dtype)
        return normal.mul_(self.sigma)

    def radius(self, norm: Norm, size: int, p: float, q: float) -> float:
        """See ``Noise``."""
        if p <= q:
            return 0.0
        found = self.sigma / 2 * float(ndtri(p) - ndtri(q))
        return found * _DOWN / (math.sqrt(size) if norm == "inf" else 1.0)

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.sigma**2


@dataclass(frozen=True, slots=True)
class Laplace:
    """Density proportional to exp(-|x|_1 / scale).

    Norm 1: the larger of scale / 2 log(p / q) and -scale log(1 - p + q) (Teng et al., 2019, theorem 1; the first is
    what Lecuyer et al., S&P 2019, have from differential privacy). A change by r in the norm 2 or inf is one by at most
    sqrt(size) r or size r in the norm 1.
    """

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"laplace scale={self.scale:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``: the difference of two exponential numbers."""
        one, two = (
            torch.empty((rows, size), dtype=dtype, device=generator.device).exponential_(generator=generator)
            for _ in range(2)
        )
        return one.sub_(two).mul_(self.scale)

    def radius(self, norm: Norm, size: int, p: float, q: float) -> float:
        """See ``Noise``."""
        if p <= q:
            return 0.0
        # p and q are of a distribution: what p + q exceeds 1 by is rounding.
        gap = max(1 - p + q, 2.0**-52)
        found = max(self.scale / 2 * math.log(p / max(q, 1e-300)), -self.scale * math.log(gap)) * _DOWN
        return found / {"1": 1.0, "2": math.sqrt(size), "inf": float(size)}[norm]

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return 2 * self.scale**2


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every element uniform in [-width, width].

    Norm 1: width (p - q) (Yang et al., ICML 2020, and Lee et al., NeurIPS 2019: probabilities change by at most
    1 / (2 width) per unit). Norm inf: 2 width (1 - (1 - (p - q) / 2)^(1 / size)), since the two cubes share
    (1 - r / (2 width))^size of their volume. Norm 2: through the norm 1.
    """

    width: float

    def __post_init__(self) -> None:
        _positive("width", self.width)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"uniform width={self.width:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        u = torch.rand((rows, size), generator=generator, device=generator.device, dtype=dtype)
        return u.mul_(2 * self.width).sub_(self.width)

    def radius(self, norm: Norm, size: int, p: float, q: float) -> float:
        """See ``Noise``."""
        if p <= q:
            return 0.0
        gap = min(p - q, 1.0)
        one = self.width * gap * _DOWN
        if norm == "1":
            return one
        if norm == "2":
            return one / math.sqrt(size)
        return max(one / size, -2 * self.width * math.expm1(math.log1p(-gap / 2) / size) * _DOWN)

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.width**2 / 3


@dataclass(frozen=True, slots=True)
class Cubic:
    """Density proportional to exp(-|x|_inf / scale).

    Norm inf: like ``Laplace`` in the norm 1, since a shift by r changes the density by a factor of at most
    exp(r / scale) (Yang et al., ICML 2020, table 1). The balls of the norms 1 and 2 with this radius lie in its ball.
    """

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"cubic scale={self.scale:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``: a uniform point of a cube's surface, at a distance that is a sum of ``size`` exponentials."""
        u = torch.rand((rows, size), generator=generator, device=generator.device, dtype=dtype).mul_(2).sub_(1)
        face = torch.randint(size, (rows, 1), generator=generator, device=generator.device)
        u.scatter_(1, face, torch.where(u.gather(1, face) < 0, -1.0, 1.0).to(dtype))
        shape = torch.full((rows, 1), float(size), dtype=torch.float64, device=generator.device)
        return u.mul_((torch._standard_gamma(shape, generator=generator) * self.scale).to(dtype))

    def radius(self, norm: Norm, size: int, p: float, q: float) -> float:
        """See ``Noise``."""
        return Laplace(self.scale).radius("1", size, p, q)

    def variance(self, size: int) -> float:
        """See ``Noise``: of the radius times that of a face's points."""
        return self.scale**2 * size * (size + 1) * (1 + (size - 1) / 3) / size


def probability_needed(noise: Noise, norm: Norm, size: int, radius: float) -> float:
    """The least p (with q = 1 - p) whose certified radius is at least ``radius``, up to rounding; inf where none is.
    By bisection: radii grow with p."""
    low, high = 0.5, 1.0
    if noise.radius(norm, size, math.nextafter(1, 0), math.nextafter(0, 1)) < radius:
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if noise.radius(norm, size, middle, 1 - middle) >= radius else (middle, high)
    return high


def largest_certifiable(variance: float, norm: Norm, size: int, p: float) -> float:
    """No noise whose elements have this variance on average certifies more than this radius from a probability p alone
    (with q = 1 - p), in the manner of Blum et al. (JMLR 2020).

    For a shift v of r in the norm inf with signs s, the sum T of the elements times s has, for some s, a variance of at
    most size * variance (it is their average over all s). By Cantelli's inequality the half-space T <= t holds with
    probability p at t = sd sqrt(p / (1 - p)), and after the shift, by r size, with less than 1/2 where r size > t + sd.
    So r <= sd (1 + sqrt(p / (1 - p))) / size with sd = sqrt(size * variance): it shrinks with the root of the size. In
    the norm 2 a shift of r has r / sqrt(size) in each element, in the norm 1 r / size.
    """
    if not 0.5 <= p < 1:
        return math.inf if p >= 1 else 0.0
    inf = math.sqrt(variance / size) * (1 + math.sqrt(p / (1 - p)))
    return inf * {"inf": 1.0, "2": math.sqrt(size), "1": float(size)}[norm]


def check_norm(norm: str) -> Norm:
    """Raise ``InputError`` for an unknown norm."""
    match norm:
        case "1" | "2" | "inf":
            return norm
    raise InputError(f"norm {norm!r}: the known ones are inf, 2 and 1")


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: {value} is not a positive number")
