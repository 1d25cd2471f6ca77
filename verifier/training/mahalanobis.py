"""The max-Mahalanobis centre loss (Pang et al., ICLR 2020): features are drawn to fixed points, one a class, that are
as far from each other as any could be. The class of an input is that of the nearest centre."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from verifier.errors import InputError


def centres(classes: int, size: int, radius: float = 10.0) -> Tensor:
    """``[classes, size]``: the corners of a regular simplex on the sphere of this radius (algorithm 1 of the paper).

    ``<m_i, m_j> = -radius^2 / (classes - 1)`` for i != j. Raises ``InputError`` for fewer than two classes and for
    fewer than ``classes - 1`` features, where there is no such simplex.
    """
    if classes < 2 or size < classes - 1:
        raise InputError(
            f"{classes} centres in {size} dimensions: two classes or more, and at least classes - 1 features are needed"
        )
    if not (math.isfinite(radius) and radius > 0):
        raise InputError(f"radius: {radius} is not a positive number")
    found = torch.zeros(classes, max(size, classes), dtype=torch.float64)
    found[0, 0] = 1
    for i in range(1, classes):
        for j in range(i):
            found[i, j] = -(1 / (classes - 1) + found[i] @ found[j]) / found[j, j]
        if i < classes - 1:  # the last has no direction of its own
            found[i, i] = (1 - found[i] @ found[i]).sqrt()
    return (radius * found[:, :size]).to(torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class CentreLoss:
    """``|z - m_y|^2 / 2`` for features ``z`` ``[B, F]`` and ``centres`` ``[classes, F]`` (equation 8): an ``Objective``
    for ``Plain`` and ``Adversarial``. The module returns features; ``with_centres`` makes it a classifier."""

    centres: Tensor

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See ``Objective``. Raises ``InputError`` for features of another size."""
        if outputs.ndim != 2 or outputs.shape[1] != self.centres.shape[1]:
            raise InputError(
                f"features of shape {list(outputs.shape)} and centres in {self.centres.shape[1]} dimensions: the "
                f"module must return [B, {self.centres.shape[1]}]"
            )
        return (outputs - self.centres.to(outputs)[y]).square().sum(1) / 2


def with_centres(module: nn.Module, centres: Tensor) -> nn.Sequential:
    """The classifier of the nearest centre: ``<m_k, z>``, which differs from ``-|z - m_k|^2 / 2`` by what is the same
    for all classes, since all centres are equally long."""
    last = nn.Linear(centres.shape[1], centres.shape[0], bias=False)
    with torch.no_grad():
        last.weight.copy_(centres)
    last.weight.requires_grad_(False)
    return nn.Sequential(module, last).train(module.training)
