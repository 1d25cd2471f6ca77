"""Boxes: the sets of inputs that bounds are valid on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """N axis-aligned boxes: ``lower <= x <= upper`` elementwise, both ``[N, *shape]``, ends included."""

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower {tuple(self.lower.shape)} and upper {tuple(self.upper.shape)} differ in shape")
        if torch.isnan(self.lower).any() or torch.isnan(self.upper).any():
            raise ValueError("a box has NaN bounds")

    @staticmethod
    def around(x: Tensor, radius: float | Tensor, within: tuple[float, float] | None = None) -> Box:
        """``{x' : |x' - x| <= radius}`` elementwise for one input ``x`` ``[*shape]``, as a batch of one box.

        ``within`` intersects it with ``[low, high]``. The ends are rounded to nearest.
        """
        lower, upper = (x - radius).unsqueeze(0), (x + radius).unsqueeze(0)
        if within is not None:
            lower, upper = lower.clamp(*within), upper.clamp(*within)
        return Box(lower, upper)

    @property
    def size(self) -> int:
        """N, the number of boxes."""
        return int(self.lower.shape[0])

    def empty(self) -> Tensor:
        """``[N]`` bool: which boxes contain no point."""
        return (self.lower > self.upper).flatten(1).any(1)

    def take(self, index: Tensor) -> Box:
        """The boxes at ``index`` ``[K]``, in that order."""
        return Box(self.lower[index], self.upper[index])

    def intersection(self, other: Box) -> Box:
        """Elementwise intersection (which may be empty)."""
        return Box(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Box:
        """Nearest values of another dtype; see ``rounding.cast_outward`` for an enclosing conversion."""
        return Box(self.lower.to(device=device, dtype=dtype), self.upper.to(device=device, dtype=dtype))
