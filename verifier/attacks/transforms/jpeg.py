"""Compression in the manner of JPEG: cosine coefficients of 8 x 8 blocks, rounded to multiples of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attacks.transforms.layout import Layout

# The steps for luminance of ITU-T T.81, table K.1, for values 0..255 at quality 50.
_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """The parameter is the quality, above 0 to 100; at 100 nothing is rounded. Every channel is compressed by itself
    with the steps of luminance, ``span`` being the width of the data range. Pixels are repeated to fill blocks.

    The gradient in the quality takes what rounding adds, in steps, as constant, and that in the image passes rounding
    as if it were not there (Shin and Song, 2017, use smooth roundings instead)."""

    layout: Layout
    span: float = 1.0

    @property
    def neutral(self) -> Tensor:
        """100."""
        return torch.full((1,), 100.0, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        images, cosines = self.layout.images(x), _cosines(x)
        height, width = self.layout.height, self.layout.width
        blocks = functional.pad(images, (0, -width % 8, 0, -height % 8), "replicate").unfold(2, 8, 8).unfold(3, 8, 8)
        coefficients = cosines @ blocks @ cosines.T
        # The scale of the steps by quality that the Independent JPEG Group's library uses.
        scale = torch.where(theta < 50, 50 / theta.clamp(min=1e-3), (2 - theta / 50).clamp(min=0))
        steps = scale[:, :, None, None, None, None] * x.new_tensor(_STEPS) * (self.span / 255)
        ratio = (coefficients / steps.clamp(min=1e-20)).detach()
        # What rounding adds, not what it gives: transforms back and forth would not return an image exactly.
        change = cosines.T @ (steps * (ratio.round() - ratio)) @ cosines
        changes = change.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
        return self.layout.flat(images + changes[:, :, :height, :width])


def _cosines(like: Tensor) -> Tensor:
    """The orthogonal matrix of the discrete cosine transform (type 2) of 8 numbers."""
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)
