"""An attack that looks for the nearest input of another class, in any of the three norms.

Each of several descents has a radius of its own: it shrinks while the point is of another class and grows while it is
not, so that points settle where the class changes. Before a point of another class is known, a radius is how far the
margin's linear model says that one is. (Pintor et al., Fast minimum-norm adversarial attacks, NeurIPS 2021, section 2.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier import limits
from verifier.attacks.threats import project_onto_ball
from verifier.radii import Centre

POINTS, STEPS = 16, 200
"""Descents, and steps of each."""

FURTHEST = 64.0
"""Starts lie between the first radius and so many times it: far ones may be of another class at once, and come nearer
from there by other ways."""

RADIUS_RATES, STEP_RATES = (0.1, 0.002), (0.5, 0.01)
"""By how much a radius changes in a step, and the length of a step as a share of it: at first and at last."""


def nearest(centre: Centre, known: Tensor | None, first: float, seed: int, until: float) -> Tensor:
    """Points ``[K, *input shape]`` in float64 where another class is ahead, as computed in float32, the nearest first
    (K may be 0). ``known``: such a point, where one is known; ``first``: a radius to begin with; ``seed``: of random
    starts. Stops at the time ``until`` (of ``limits.now``)."""
    with torch.enable_grad():
        work = _Descents(centre, known, first, seed)
        for step in range(STEPS):
            if limits.now() >= until:
                break
            work.step(step / STEPS)
    hit = work.best.isfinite()
    order = work.best[hit].argsort()
    return work.best_at[hit][order].double().reshape(-1, *centre.x.shape)


class _Descents:
    """State: where the descents are (``away`` ``[N, n]`` from the input), their radii, and the best of each."""

    def __init__(self, centre: Centre, known: Tensor | None, first: float, seed: int) -> None:
        self.centre, self.graph = centre, centre.graph.to(torch.float32)
        self.x, self.p = centre.x.flatten().float(), float(centre.norm)
        draw = torch.Generator().manual_seed(seed)
        self.radius = first * FURTHEST ** (torch.arange(POINTS) / (POINTS - 1))
        start = torch.randn((POINTS, self.x.shape[0]), generator=draw)
        self.away = start * (self.radius / start.norm(p=self.p, dim=1))[:, None]
        self.away[0] = 0.0
        if known is not None:
            self.away[1:2] = known.flatten().float() - self.x
        self.best, self.best_at = torch.full((POINTS,), math.inf), self.x.expand(POINTS, -1).clone()

    def step(self, share: float) -> None:
        """One step of all descents, after this share of them."""
        points = self._inside(self.x + self.away)
        margin, slope = self._margin(points)
        self.away = points - self.x
        length = self.away.norm(p=self.p, dim=1)
        hit = margin <= 0
        better = hit & (length < self.best)
        self.best = torch.where(better, length, self.best)
        self.best_at = torch.where(better[:, None], points, self.best_at)
        dual = slope.norm(p={1.0: math.inf, 2.0: 2.0, math.inf: 1.0}[self.p], dim=1).clamp(min=1e-12)
        rate, size = (a + (b - a) * (1 - math.cos(math.pi * share)) / 2 for a, b in (RADIUS_RATES, STEP_RATES))
        grown = torch.where(self.best.isfinite(), self.radius * (1 + rate), length + margin / dual)
        shrunk = torch.minimum(self.radius, self.best) * (1 - rate)
        self.radius = torch.where(hit, shrunk, grown)
        if self.p == math.inf:
            way = slope.sign()
        else:
            way = slope / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.away = project_onto_ball(self.away - size * self.radius[:, None] * way, self.radius, self.p)

    def _margin(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The label's margins ``[N]`` over the other classes, and their slopes ``[N, n]``."""
        at = points.detach().requires_grad_()
        scores = self.graph.evaluate(at.reshape(-1, *self.centre.x.shape))[0].flatten(1)
        label = torch.arange(scores.shape[1]) == self.centre.label
        margin = scores[:, self.centre.label] - scores.masked_fill(label, -math.inf).amax(1)
        (slope,) = torch.autograd.grad(margin.sum(), at)
        return margin.detach(), torch.nan_to_num(slope)

    def _inside(self, points: Tensor) -> Tensor:
        if self.centre.inner is None:
            return points
        low, high = self.centre.inner
        return points.clamp(low, high)

