"""Where the pixels of a flat input are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from verifier.errors import InputError

_MOST_CHANNELS = 4
"""An axis of this size or less counts as the channels, where it comes first or last."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Images of ``channels`` x ``height`` x ``width`` elements; ``last``: the channels are the last axis."""

    channels: int
    height: int
    width: int
    last: bool = False

    @staticmethod
    def of(shape: tuple[int, ...]) -> Layout:
        """From the shape of one input: [C, H, W], [H, W, C], [H, W], with leading 1s, or [n] with n a square number.
        Raises ``InputError`` for others, and where first and last axis could both be the channels."""
        axes = list(shape)
        while len(axes) > 1 and axes[0] == 1:
            axes = axes[1:]
        if len(axes) == 1 and math.isqrt(axes[0]) ** 2 == axes[0]:
            return Layout(1, math.isqrt(axes[0]), math.isqrt(axes[0]))
        if len(axes) == 2:
            return Layout(1, axes[0], axes[1])
        if len(axes) == 3 and (axes[0] <= _MOST_CHANNELS) != (axes[2] <= _MOST_CHANNELS):
            first = axes[0] <= _MOST_CHANNELS
            return Layout(axes[0], axes[1], axes[2]) if first else Layout(axes[2], axes[0], axes[1], True)
        raise InputError(f"an input of shape {list(shape)} is not known to be an image: name its Layout")

    @property
    def size(self) -> int:
        """Elements of an image."""
        return self.channels * self.height * self.width

    def images(self, x: Tensor) -> Tensor:
        """``[P, C, H, W]`` of flat inputs ``[P, n]``. Raises ``InputError`` for another n."""
        if x.shape[1] != self.size:
            raise InputError(
                f"inputs of {x.shape[1]} elements are not images of {self.channels} x {self.height} x {self.width}"
            )
        if self.last:
            return x.reshape(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)
        return x.reshape(-1, self.channels, self.height, self.width)

    def flat(self, images: Tensor) -> Tensor:
        """The way back."""
        return (images.permute(0, 2, 3, 1) if self.last else images).flatten(1)
