"""Common corruptions with a parameter: noise, blur, brightness and contrast (Hendrycks and Dietterich, ICLR 2019).

Brightness and contrast are those of ``bounds.perturbations``, so that attacks and certificates speak of one set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attacks.transforms.layout import Layout


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """``x + strength * pattern`` with one fixed ``pattern`` ``[n]`` for all examples; parameter: the strength."""

    pattern: Tensor

    @staticmethod
    def gaussian(size: int, seed: int = 0) -> Noise:
        """Standard normal, the same for the same seed."""
        draw = torch.Generator().manual_seed(seed)
        return Noise(torch.randn(size, generator=draw, dtype=torch.float64))

    @property
    def neutral(self) -> Tensor:
        """Zero."""
        return torch.zeros(1, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        return x + theta * self.pattern.to(x)


@dataclass(frozen=True, slots=True)
class Brightness:
    """``x + b``."""

    @property
    def neutral(self) -> Tensor:
        """Zero."""
        return torch.zeros(1, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        return x + theta


@dataclass(frozen=True, slots=True)
class Contrast:
    """``x + c (x - m)``, m the grey ``about`` (None: the mean of all elements of the example)."""

    about: float | None = None

    @property
    def neutral(self) -> Tensor:
        """Zero."""
        return torch.zeros(1, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        grey = x.double().mean(1, keepdim=True).to(x.dtype) if self.about is None else self.about
        return x + theta * (x - grey)


@dataclass(frozen=True, slots=True)
class BrightnessContrast:
    """``x + b + c (x - about)``, parameters (b, c)."""

    about: float = 0.5

    @property
    def neutral(self) -> Tensor:
        """Zeros."""
        return torch.zeros(2, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        return x + theta[:, :1] + theta[:, 1:] * (x - self.about)


@dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur; the parameter is its standard deviation in pixels (at least 0). Weights beyond ``reach`` pixels
    are cut off and the others sum to 1; pixels beyond the edge repeat the outermost ones."""

    layout: Layout
    reach: int

    @property
    def neutral(self) -> Tensor:
        """Zero."""
        return torch.zeros(1, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        away = torch.arange(-self.reach, self.reach + 1, dtype=x.dtype, device=x.device)
        weights = torch.exp(-away.square() / (2 * theta.square()).clamp(min=1e-6))
        weights = weights / weights.sum(1, keepdim=True)
        images = self.layout.images(x)
        for axis in (2, 3):
            images = self._along(images, weights, axis)
        return self.layout.flat(images)

    def _along(self, images: Tensor, weights: Tensor, axis: int) -> Tensor:
        ends = (0, 0, self.reach, self.reach) if axis == 2 else (self.reach, self.reach, 0, 0)
        padded, size = functional.pad(images, ends, "replicate"), images.shape[axis]
        parts = [weights[:, k, None, None, None] * padded.narrow(axis, k, size) for k in range(weights.shape[1])]
        return torch.stack(parts).sum(0)
