"""Windows of images and of flat inputs, and how their size shrinks during a random search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.threats import Threat
from verifier.errors import InputError

Shape = tuple[int, int, int]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The steps of 10,000 after which the share of elements that a step changes is halved: those of the code published with
Square attack (Andriushchenko et al., ECCV 2020)."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Channels, height and width of the inputs; a flat input is one row of ``width`` elements."""

    channels: int
    height: int
    width: int

    @staticmethod
    def of(shape: Shape | None, threat: Threat) -> Windows:
        """Raises ``InputError`` where the shape does not hold as many elements as the examples."""
        count = threat.centre.shape[1]
        layout = Windows(*((1, 1, count) if shape is None else shape))
        if layout.channels * layout.height * layout.width != count:
            raise InputError(f"shape {list(shape or ())}: it should be [C, H, W] with {count} elements in all")
        return layout

    @property
    def shape(self) -> Shape:
        """C, H, W."""
        return self.channels, self.height, self.width

    def window(self, share: float) -> tuple[int, int]:
        """Height and width of a square (of a flat input: of a block) with this share of all places, at least 1."""
        if self.height == 1:
            return 1, min(max(1, round(share * self.width)), self.width)
        side = min(max(1, round(math.sqrt(share * self.height * self.width))), self.height, self.width)
        return side, side

    def places(self, count: int, window: tuple[int, int], draw: torch.Generator) -> Tensor:
        """``[count, H, W]`` bool: a window at a random place of each."""
        device = draw.device
        top, left = (
            torch.randint(whole - part + 1, (count, 1), generator=draw, device=device)
            for whole, part in zip((self.height, self.width), window, strict=True)
        )
        rows, columns = torch.arange(self.height, device=device), torch.arange(self.width, device=device)
        down = (rows >= top) & (rows < top + window[0])
        across = (columns >= left) & (columns < left + window[1])
        return down[:, :, None] & across[:, None, :]


def share_at(step: int, steps: int, first: float) -> float:
    """The share of the elements that step ``step`` of ``steps`` changes, ``first`` at first."""
    return first / 2.0 ** sum(step * 10_000 > limit * steps for limit in _HALVINGS)


def signs(shape: tuple[int, ...], like: Tensor, draw: torch.Generator) -> Tensor:
    """Random numbers -1 and 1, in the type of ``like``."""
    coins = torch.randint(2, shape, generator=draw, device=like.device)
    return (2 * coins - 1).to(like.dtype)
