"""How often a base classifier gives each class under noise: drawn, evaluated and counted on the device, batch by
batch, and a batch may hold the samples of several inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.smoothing.noise import Noise

Scores = Callable[[Tensor], Tensor]
"""A base classifier: outputs ``[P, classes]`` at flat points ``[P, n]``."""

_BLOCK = 128
"""Points of a batch at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The samples of one input: where the noise is added, ``x`` ``[n]``, and its own source of chance, so that they do
    not depend on what else is sampled."""

    x: Tensor
    draw: torch.Generator


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """Draws from a base classifier of ``classes`` classes, ``rows`` points of type ``dtype`` in an evaluation; as many
    as ``block`` are drawn and counted together, since for a few these cost more than a small network."""

    scores: Scores
    classes: int
    noise: Noise
    rows: int
    dtype: torch.dtype = torch.float32

    @property
    def block(self) -> int:
        """The most points of a batch."""
        return self.rows * max(1, _BLOCK // self.rows)

    def counts(self, stream: Stream, samples: int) -> Tensor:
        """``[classes + 1]`` int64 on the device: how many of the next ``samples`` noisy copies are of each class;
        those whose scores are not all finite are counted last, and are of no class."""
        total = torch.zeros(self.classes + 1, dtype=torch.int64, device=stream.x.device)
        while samples > 0:
            count = min(samples, self.block)
            total += self.batch([(stream, count)])[0]
            samples -= count
        return total

    def batch(self, parts: Sequence[tuple[Stream, int]]) -> Tensor:
        """``[parts, classes + 1]``: the counts of several streams; the parts are ``block`` at most in all."""
        with torch.inference_mode():
            points = _joined([self.noise.draw(count, len(s.x), s.draw, self.dtype).add_(s.x) for s, count in parts])
            scores = _joined([self.scores(part) for part in points.split(self.rows)])
            places, width = chosen(scores, self.classes), self.classes + 1
            if len(parts) > 1:
                many = torch.tensor([count for _, count in parts], device=places.device)
                firsts = torch.arange(len(parts), device=places.device) * width
                places += firsts.repeat_interleave(many, output_size=len(places))
            total = torch.zeros(len(parts) * width, dtype=torch.int64, device=places.device)
            return total.scatter_add_(0, places, torch.ones_like(places)).reshape(len(parts), width)


def chosen(scores: Tensor, classes: int) -> Tensor:
    """``[P]``: the class of each of the ``scores`` ``[P, classes]``; ``classes``, that is none, where they are not all
    finite."""
    return torch.where(scores.sum(1).isfinite(), scores.argmax(1), classes)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; what is one already is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
