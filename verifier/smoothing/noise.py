"""Noise that classifiers are smoothed with: what it is, how it is drawn, and what shifts of it can do.

The smoothed classifier g(x) is the class that the base classifier gives ``x + noise`` most often. Where its class A has
a probability of at least ``p`` and every other at most ``q``, no change of x by less than ``shift(norm, size).radius(p,
q)`` makes another class the most probable, for whatever base classifier. Here are distributions with independent
elements; ``radial`` has those of spheres and cubes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.special import betainc, ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from verifier.errors import InputError
from verifier.smoothing.shifts import Ladder, Larger, Overlap, Scaled, Shift

Norm = Literal["1", "2", "inf"]

_SCALES = (1e-100, 1e100)

_LEAST_TAIL = 2.0**-53
"""Quantiles of binomial numbers are sought no further out than a probability below 1 can be from it: beyond, those of
scipy are wrong, and corners underflow. A tail that ends early is shorter, which is safe."""


@runtime_checkable
class Noise(Protocol):
    """A distribution around 0, the same for every input of a size."""

    @property
    def words(self) -> str:
        """Its name and scale, as logs say it."""

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """``[rows, size]``, on the generator's device."""

    def shift(self, norm: Norm, size: int) -> Shift:
        """What shifts in the norm do to inputs of ``size`` elements."""

    def variance(self, size: int) -> float:
        """Of one element."""


@runtime_checkable
class Independent(Noise, Protocol):
    """Noise whose elements are independent of each other, all with one distribution."""

    def below(self, z: np.ndarray) -> np.ndarray:
        """The probabilities that an element is at most ``z``."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Normal noise of standard deviation ``sigma`` in every element.

    Norm 2: sigma / 2 (Phi^-1(p) - Phi^-1(q)) (Cohen et al., ICML 2019, theorem 1), sigma Phi^-1(p) for two classes. The
    ball of the norm 1 with this radius lies in that of the norm 2, as does that of the norm inf with a radius that is
    sqrt(size) times smaller.
    """

    sigma: float

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"gaussian sigma={self.sigma:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        normal = torch.randn((rows, size), generator=generator, device=generator.device, dtype=dtype)
        return normal.mul_(self.sigma)

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""
        return Ladder(self.sigma / greatest_two_norm(norm, size), _normal_tail)

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.sigma**2

    def below(self, z: np.ndarray) -> np.ndarray:
        """See ``Independent``."""
        found: np.ndarray = ndtr(z / self.sigma)
        return found


@dataclass(frozen=True, slots=True)
class Laplace:
    """Density proportional to exp(-|x|_1 / scale).

    Norm 1: it shrinks by a factor of exp(r / scale) at most, so that scale / 2 (log(p / q)) follows (Lecuyer et al.,
    S&P 2019), and -scale log(2 (1 - p)) for two classes (Teng et al., 2019), which is the quantile: up to scale / 2
    (-log(2 (1 - p)) - log(2 q)) in general. Norm inf: by the sum of the elements' signs, a binomial number
    (``sign_tail``; about scale Phi^-1(p) / sqrt(size)). Norm 2: through both.
    """

    scale: float

    def __post_init__(self) -> None:
        positive("scale", self.scale)

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

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""
        one = Ladder(self.scale, exponential_tail)
        if norm == "1":
            return one
        inf = Ladder(self.scale, partial(sign_tail, size=size))
        return inf if norm == "inf" else Larger((Scaled(one, 1 / math.sqrt(size)), inf))

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return 2 * self.scale**2

    def below(self, z: np.ndarray) -> np.ndarray:
        """See ``Independent``."""
        less = np.exp(-np.abs(z) / self.scale) / 2
        return np.where(z < 0, less, 1 - less)


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every element uniform in [-width, width]: a cube, the best shape for the norm 1 (the Wulff crystal of Yang et
    al., ICML 2020).

    A shift by v leaves the part prod(1 - |v_i| / (2 width)) of the cube. Norm 1: width (p - q) (Lee et al., NeurIPS
    2019; Yang et al.), since at most r / (2 width) is lost. Norm inf: all elements move, 2 width (1 - (1 - (p - q) /
    2)^(1 / size)). Norm 2: for r up to the width the product is least where all |v_i| are equal (the logarithm of a
    factor is convex in v_i^2 up to half of the cube's edge).
    """

    width: float

    def __post_init__(self) -> None:
        positive("width", self.width)

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"uniform width={self.width:g}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``."""
        u = torch.rand((rows, size), generator=generator, device=generator.device, dtype=dtype)
        return u.mul_(2 * self.width).sub_(self.width)

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``."""

        def reach(loss: float) -> float:
            if norm == "1":
                return 2 * self.width * loss
            each = -2 * self.width * math.expm1(math.log1p(-loss) / size)
            return each if norm == "inf" else min(self.width, math.sqrt(size) * each)

        return Overlap(reach)

    def variance(self, size: int) -> float:
        """See ``Noise``."""
        return self.width**2 / 3

    def below(self, z: np.ndarray) -> np.ndarray:
        """See ``Independent``."""
        return np.clip((z + self.width) / (2 * self.width), 0, 1)


def exponential_tail(t: float) -> float:
    """``Ladder.tail`` of densities that shrink by a factor of at most e in a unit: a set of probability t <= 1/2 gains
    at most t in it."""
    return -math.log(2 * t)


def sign_tail(t: float, size: int) -> float:
    """``Ladder.tail`` of Laplace noise of scale 1 in the norm inf.

    Along a vector of signs the logarithm of the density falls by S, the sum of ``size`` independent signs (and along
    other directions no set gains more: what it gains is convex in the direction). The most that a set of probability s
    gains is E[S; the largest S of probability s]: piecewise linear in s, of slope 2k - size where k signs are +1, and
    size pmf(k - 1; size - 1) / 2 at the corner ``P(at least k)``. So 1 / phi integrates to logarithms.
    """
    t = max(t, _LEAST_TAIL)
    k = int(binom.isf(t, size, 0.5))  # P(more than k) <= t
    whole = np.arange(size // 2 + 1, k)
    found = float((np.log(whole / (size - whole)) / (2 * whole - size)).sum())
    if size % 2 == 0:  # 0 is the median of S: until its first corner nothing is gained
        found += _even_middle(max(t, _above(size // 2, size)), size)
    slope = 2 * k - size
    if slope > 0:
        above, corner = _above(k, size), _gain(k, size)
        found += -math.log((size - k) / k + slope * max(0.0, t - above) / corner) / slope
    return max(0.0, found)


def _even_middle(t: float, size: int) -> float:
    return max(0.0, 0.5 - t) / _gain(size // 2 + 1, size)


def _gain(k: int, size: int) -> float:
    """E[S; at least k signs are +1]."""
    return size / 2 * float(binom.pmf(k - 1, size - 1, 0.5))


def _above(k: int, size: int) -> float:
    """P(more than k signs are +1), to more digits than cumulative distributions of large sizes have."""
    return float(betainc(k + 1, size - k, 0.5)) if k < size else 0.0


def _normal_tail(t: float) -> float:
    return -float(ndtri(t))


def greatest_two_norm(norm: Norm, size: int) -> float:
    """Of vectors of ``size`` elements whose ``norm`` is 1, the greatest norm 2: what holds for shifts by less than r in
    the norm 2 holds for those by less than r over this in ``norm``."""
    return math.sqrt(size) if norm == "inf" else 1.0


def check_norm(norm: str) -> Norm:
    """Raise ``InputError`` for an unknown norm."""
    match norm:
        case "1" | "2" | "inf":
            return norm
    raise InputError(f"norm {norm!r}: the known ones are inf, 2 and 1")


def positive(name: str, value: float) -> None:
    """Raise ``InputError`` for a scale that is none, or so far from 1 that its square is out of range."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: {value} is not a positive number")
    if not _SCALES[0] <= value <= _SCALES[1]:
        raise InputError(f"{name}: {value:g} is not between {_SCALES[0]:g} and {_SCALES[1]:g}")
