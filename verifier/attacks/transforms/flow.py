"""Flows: every pixel is read from a place of its own (stAdv; Xiao et al., Spatially transformed adversarial examples,
ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.sampling import Padding, bilinear, pixels


@dataclass(frozen=True, slots=True)
class Flow:
    """Parameters ``[2, H, W]`` (flat), in pixels: ``x_p = I(p + flow_p)`` with the bilinear interpolant I, the same
    flow for all channels."""

    layout: Layout
    padding: Padding = "border"

    @property
    def neutral(self) -> Tensor:
        """Zeros."""
        return torch.zeros(2 * self.layout.height * self.layout.width, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        flow = theta.double().reshape(-1, 2, self.layout.height, self.layout.width)
        rows, columns = pixels(self.layout.height, self.layout.width, theta.device)
        images = bilinear(self.layout.images(x), rows + flow[:, 0], columns + flow[:, 1], self.padding)
        return self.layout.flat(images)


@dataclass(frozen=True, slots=True)
class Roughness:
    """A penalty on flows that are not smooth: ``weight`` times the sum over neighbouring pixels of the distance between
    their flows (stAdv, equation 4; a pair counts once). The flow is the first part of the parameters."""

    layout: Layout
    weight: float = 0.05

    def __call__(self, theta: Tensor, who: Tensor) -> Tensor:
        """``[P]`` at parameters ``[P, d]``."""
        height, width = self.layout.height, self.layout.width
        flow = theta[:, : 2 * height * width].reshape(-1, 2, height, width)
        total = theta.new_zeros(len(theta))
        for axis in (2, 3):
            # A tiny number below the root keeps its slope finite where neighbours agree.
            total = total + (flow.diff(dim=axis).square().sum(1) + 1e-12).sqrt().flatten(1).sum(1)
        return self.weight * total
