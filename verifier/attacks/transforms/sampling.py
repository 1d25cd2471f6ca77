"""Images read between their pixels: the bilinear interpolant, zero or constant outside of the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Padding = Literal["zero", "border"]


def bilinear(images: Tensor, row: Tensor, column: Tensor, padding: Padding = "zero") -> Tensor:
    """The interpolant of ``images`` ``[P, C, H, W]`` at places ``[P, h, w]`` (pixel centres are integers): ``[P, C, h,
    w]``, differentiable in images and places, and exact where places are integers.

    ``"zero"``: a pixel beyond the edge is 0 (``bounds.rotation`` says the same); ``"border"``: places beyond the middle
    of the outermost pixels count as these.
    """
    height, width = images.shape[-2:]
    if padding == "border":
        row, column = row.clamp(0, height - 1), column.clamp(0, width - 1)
    top, left = row.detach().floor(), column.detach().floor()
    down, right = ((a - b).to(images.dtype).unsqueeze(1) for a, b in ((row, top), (column, left)))
    # One ring stands for everything outside; with constant borders only its weight, 0, is ever asked for.
    padded = functional.pad(images, (1, 1, 1, 1)).flatten(2)

    def at(r: Tensor, c: Tensor) -> Tensor:
        inside = (r + 1).long().clamp(0, height + 1) * (width + 2) + (c + 1).long().clamp(0, width + 1)
        index = inside.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
        return padded.gather(2, index).unflatten(2, row.shape[1:])

    above = at(top, left) * (1 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (1 - right) + at(top + 1, left + 1) * right
    return above * (1 - down) + below * down


def pixels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns ``[H, W]`` of the pixels, float64."""
    rows = torch.arange(height, dtype=torch.float64, device=device)
    columns = torch.arange(width, dtype=torch.float64, device=device)
    return rows[:, None].expand(height, width), columns.expand(height, width)
