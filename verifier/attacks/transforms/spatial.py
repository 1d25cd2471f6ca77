"""Rotations and translations (Engstrom et al., Exploring the landscape of spatial robustness, ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.sampling import Padding, bilinear, pixels


@dataclass(frozen=True, slots=True)
class Spatial:
    """Parameters (angle in radians, pixels down, pixels right): rotated about the middle m, then moved by t,

        x_p = I(m + R(angle) (p - t - m)),      R(a) (r, c) = (r cos a - c sin a, r sin a + c cos a),

    with the bilinear interpolant I. Without translation this is the rotation that ``bounds.rotation`` encloses, up to
    the rounding of the model's type.
    """

    layout: Layout
    padding: Padding = "zero"

    @property
    def neutral(self) -> Tensor:
        """Zeros."""
        return torch.zeros(3, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``; places are computed in float64."""
        images = self.layout.images(x)
        return self.layout.flat(bilinear(images, *self._places(theta.double()), self.padding))

    def _places(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column ``[P, H, W]`` of what is carried to the pixels."""
        height, width = self.layout.height, self.layout.width
        angle, down, right = (theta[:, k, None, None] for k in range(3))
        rows, columns = pixels(height, width, theta.device)
        r, c = rows - (height - 1) / 2 - down, columns - (width - 1) / 2 - right
        cos, sin = angle.cos(), angle.sin()
        return (r * cos - c * sin) + (height - 1) / 2, (r * sin + c * cos) + (width - 1) / 2
