"""Adversarial patches: a rectangle of the image takes any values of the data range (Brown et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.attacks.goals import Goal
from verifier.attacks.oracle import Oracle
from verifier.attacks.threats import Boxes
from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.views import Ends
from verifier.attacks.trial import Problem
from verifier.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Patched:
    """The view of a problem: examples ``x`` ``[N, n]`` with the parameters ``[C, h, w]`` (flat) in the rectangle whose
    first row and column are ``corner`` ``[N, 2]``; all other elements are those of ``x``."""

    layout: Layout
    x: Tensor
    corner: Tensor
    size: tuple[int, int]

    @staticmethod
    def at(layout: Layout, x: Tensor, corner: Tensor, size: tuple[int, int]) -> Patched:
        """``corner`` of a shape that expands to ``[N, 2]``. Raises ``InputError`` for a patch that leaves the image."""
        corners = corner.to(x.device).expand(len(x), 2)
        room = torch.tensor([layout.height - size[0], layout.width - size[1]], device=x.device)
        if min(size) < 1 or bool(((corners < 0) | (corners > room)).any()):
            raise InputError(
                f"a patch of {size[0]} x {size[1]} pixels leaves an image of {layout.height} x {layout.width}"
            )
        return Patched(layout, x, corners, size)

    def __call__(self, theta: Tensor, who: Tensor) -> Tensor:
        """Inputs ``[P, n]`` at parameters ``[P, C h w]`` of the examples ``who`` ``[P]``."""
        return self.x[who].scatter(1, self._index(who), theta)

    def own(self) -> Tensor:
        """What the examples have in their rectangles: ``[N, C h w]``."""
        return self.x.gather(1, self._index(torch.arange(len(self.x), device=self.x.device)))

    def _index(self, who: Tensor) -> Tensor:
        """Where the parameters go: ``[P, C h w]``."""
        place = self.layout.images(torch.arange(self.layout.size, device=self.x.device).unsqueeze(0))[0]
        corner = self.corner[who]
        rows = corner[:, :1] + torch.arange(self.size[0], device=self.x.device)
        columns = corner[:, 1:] + torch.arange(self.size[1], device=self.x.device)
        return place[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1).flatten(1)


def patched(oracle: Oracle, goal: Goal, view: Patched, ends: Ends) -> Problem:
    """Each example with a patch of its own, values in ``ends`` (numbers of the examples' type), searched from the
    example as it is. Raises ``InputError`` for examples outside of the range."""
    own = view.own()
    if bool(((view.x < ends[0]) | (view.x > ends[1])).any()):
        raise InputError(f"an example lies outside the data range [{ends[0]}, {ends[1]}]")
    return Problem(oracle, goal, Boxes.of(torch.full_like(own, ends[0]), torch.full_like(own, ends[1]), own), view)


def salient_corners(oracle: Oracle, goal: Goal, layout: Layout, x: Tensor, size: tuple[int, int]) -> Tensor:
    """For each example ``[N, n]`` the corner ``[N, 2]`` of the rectangle in which the margin's gradient has the largest
    sum of absolute values; one evaluation with a gradient each, which no trial counts."""
    slopes = []
    for who in torch.arange(len(x), device=x.device).split(oracle.rows):
        at = x[who].detach().requires_grad_()
        (slope,) = torch.autograd.grad(goal.margin(oracle.outputs(at), who).sum(), at)
        slopes.append(slope)
    weight = layout.images(torch.cat(slopes).abs().nan_to_num(0, 0, 0)).sum(1, keepdim=True)
    sums = functional.avg_pool2d(weight, size, stride=1)
    best = sums.flatten(1).argmax(1)
    return torch.stack([best // sums.shape[-1], best % sums.shape[-1]], 1)
