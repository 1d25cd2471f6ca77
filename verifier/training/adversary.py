"""The adversary of adversarial training: a few projected gradient steps on a batch.

Nothing it finds counts as a counterexample, so it is plainer than ``verifier.attacks``: one run, float arithmetic, the
last point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from verifier.errors import InputError

Values = Callable[[Tensor], Tensor]
"""What an adversary makes large: points ``[B, *shape]`` to values ``[B]``."""


@dataclass(frozen=True, slots=True)
class Adversary:
    """Points within ``radius`` of inputs in the ``norm``, and inside ``within``: ``steps`` of projected gradient ascent
    (Madry et al., ICLR 2018) along the sign of the gradient ("inf") or its direction ("2").

    A step has the length ``2.5 radius / steps``, so that the far side of the ball can be reached. ``start`` is the
    part of the radius that the first point, drawn at random, may be away.
    """

    radius: float
    steps: int = 10
    norm: Literal["inf", "2"] = "inf"
    within: tuple[float, float] | None = None
    start: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.radius) and self.radius >= 0):
            raise InputError(f"radius: {self.radius} is not a number from 0 up")
        if self.steps < 1:
            raise InputError(f"steps={self.steps}: at least one is needed")
        if self.norm not in ("inf", "2"):
            raise InputError(f"norm {self.norm!r}: training knows inf and 2")
        if self.within is not None and not self.within[0] < self.within[1]:
            raise InputError(f"within={self.within}: the low end must be below the high one")

    def points(self, values: Values, x: Tensor, draw: torch.Generator) -> Tensor:
        """``[B, *shape]`` without a gradient: at a distance of at most ``radius`` from ``x``, up to rounding."""
        with torch.enable_grad():
            found = self._inside(x + self._first(x, draw), x)
            for _ in range(self.steps):
                found.requires_grad_(True)
                (gradient,) = torch.autograd.grad(values(found).sum(), found)
                step = 2.5 * self.radius / self.steps * self._direction(gradient)
                found = self._inside(found.detach() + step, x)
        return found.detach()

    def _first(self, x: Tensor, draw: torch.Generator) -> Tensor:
        if self.norm == "inf":
            u = torch.rand(x.shape, generator=draw, device=x.device, dtype=x.dtype)
            return self.start * self.radius * (2 * u - 1)
        normal = torch.randn(x.shape, generator=draw, device=x.device, dtype=x.dtype)
        share = torch.rand((len(x), *[1] * (x.ndim - 1)), generator=draw, device=x.device, dtype=x.dtype)
        return self.start * self.radius * share * _unit(normal)

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.norm == "inf" else _unit(gradient)

    def _inside(self, points: Tensor, x: Tensor) -> Tensor:
        """The nearest point of the ball, and of the range where there is one."""
        change = points - x
        if self.norm == "inf":
            change = change.clamp(-self.radius, self.radius)
        else:
            length = _length(change)
            change = change * (self.radius / length.clamp(min=1e-30)).clamp(max=1.0)
        found = x + change
        return found if self.within is None else found.clamp(*self.within)


def _length(x: Tensor) -> Tensor:
    """``[B, 1, ...]``: the norm 2 of each example."""
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


def _unit(x: Tensor) -> Tensor:
    return x / _length(x).clamp(min=1e-30)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """The module in training or evaluation mode; each of its parts is put back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
