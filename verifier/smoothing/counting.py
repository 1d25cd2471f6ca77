"""How often a base classifier gives each class under noise: drawn and counted on the device, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.smoothing.noise import Noise

Scores = Callable[[Tensor], Tensor]
"""A base classifier: outputs ``[P, classes]`` at flat points ``[P, n]``."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws from a base classifier around inputs: ``classes`` of it, ``rows`` points in an evaluation, of type
    ``dtype``; ``draw`` is the source of all noise, on the device of the points."""

    scores: Scores
    classes: int
    noise: Noise
    rows: int
    draw: torch.Generator
    dtype: torch.dtype = torch.float32

    def counts(self, x: Tensor, samples: int) -> Tensor:
        """``[classes + 1]`` int64 on the device: how many of ``samples`` noisy copies of ``x`` ``[n]`` are of each
        class; those whose scores are not all finite are counted last, and are of no class."""
        total = torch.zeros(self.classes + 1, dtype=torch.int64, device=self.draw.device)
        left, ones = samples, torch.ones(1, dtype=torch.int64, device=self.draw.device)
        with torch.inference_mode():
            while left:
                count = min(left, self.rows)
                points = self.noise.draw(count, len(x), self.draw, self.dtype).add_(x)
                scores = self.scores(points)
                chosen = scores.argmax(1)
                chosen = torch.where(scores.sum(1).isfinite(), chosen, self.classes)
                total.scatter_add_(0, chosen, ones.expand(count))
                left -= count
        return total
