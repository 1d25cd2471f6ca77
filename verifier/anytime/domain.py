"""The set of inputs a refiner works on: a box, or a ball cut into boxes, and the points that lie in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Box, LpBall
from bounds.rounding import difference_above

ROUNDED = 2**-21
"""Inputs that vary by less than this share of their values (two units of float32) hardly vary."""

_SHRINK = 1 - 2**-20
"""A point that rounding leaves outside of a ball is moved towards its centre by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """One box or one ball (float64), and its parts: boxes ``[N, n]`` over the flat input, each cut with the ball.

    ``inner``: ends ``[1, n]`` of a box whose points are tried. A ball of the norm infinity is a box whose ends floats
    need not hold: ``region`` contains it, and ``inner`` lies in it.
    """

    region: Box | LpBall
    inner: tuple[Tensor, Tensor]

    @staticmethod
    def of(region: Box | LpBall) -> Domain:
        """Raises ``ValueError`` for more than one region, an empty one and an unbounded one."""
        if region.size != 1:
            raise ValueError(f"{region.size} regions: one at a time is refined")
        region = region.to(torch.float64, "cpu")
        if bool(region.empty().any()):
            raise ValueError("the region is empty: no input satisfies it")
        around = region if isinstance(region, Box) else region.box()
        ends = around.lower.flatten(1), around.upper.flatten(1)
        if not all(bool(end.isfinite().all()) for end in ends):
            raise ValueError("the region is unbounded: every input needs two finite ends")
        if isinstance(region, LpBall) and region.p == math.inf:
            centre, radius = region.centre.flatten(1), region.radius[:, None]
            inner = difference_above(centre, radius), -difference_above(-centre, radius)
            return Domain(around, (torch.maximum(inner[0], ends[0]), torch.minimum(inner[1], ends[1])))
        return Domain(region, ends)

    @property
    def is_box(self) -> bool:
        """Whether the parts are boxes and nothing else."""
        return isinstance(self.region, Box)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input."""
        centre = self.region.lower if isinstance(self.region, Box) else self.region.centre
        return tuple(centre.shape[1:])

    @property
    def free(self) -> Tensor:
        """``[k]``: the inputs that vary, by more than what fixed inputs are widened by where the network's numbers
        do not hold their decimals."""
        low, high = (end[0] for end in self.ends())
        return (high - low > ROUNDED * torch.maximum(low.abs(), high.abs())).nonzero().flatten()

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least box around all of it, ``[1, n]`` each."""
        box = self.region if isinstance(self.region, Box) else self.region.box()
        return box.lower.flatten(1), box.upper.flatten(1)

    def part(self, lower: Tensor, upper: Tensor) -> Box | LpBall:
        """What lies in boxes ``[N, n]``."""
        box = Box(lower.reshape(-1, *self.shape), upper.reshape(-1, *self.shape))
        return box if isinstance(self.region, Box) else self._balls(lower.shape[0], box)

    def ball(self, lower: Tensor, upper: Tensor) -> LpBall:
        """``part`` of a ball."""
        found = self.part(lower, upper)
        assert isinstance(found, LpBall)
        return found

    def inhabited(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``[N]``: boxes that may hold a point of the region."""
        return ~self.part(lower, upper).empty()

    def certain(self, lower: Tensor, upper: Tensor) -> Tensor:
        """``[N]``: boxes that certainly hold a point of the region, given that a box's are never empty."""
        if isinstance(self.region, Box):
            return torch.ones(lower.shape[0], dtype=torch.bool)
        return self._holds(torch.minimum(torch.maximum(self.region.centre.flatten(1), lower), upper))[:, 0]

    def inside(self, points: Tensor) -> Tensor:
        """The points ``[N, n]`` moved into the region: certainly, or they are NaN. Where rounding keeps one outside of
        a ball it is what is nearest to the centre."""
        low, high = self.inner
        points = points.clamp(low, high)
        if isinstance(self.region, Box):
            return torch.where((low <= high).all(), points, torch.nan)
        centre, radius = self.region.centre.flatten(1), self.region.radius[:, None] * _SHRINK
        away = points - centre
        length = away.norm(p=self.region.p, dim=1, keepdim=True)
        moved = centre + away * (radius / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
        points = moved.clamp(low, high)
        nearest = torch.where(self._holds(centre.clamp(low, high)), centre.clamp(low, high), torch.nan)
        return torch.where(self._holds(points), points, nearest)

    def _holds(self, points: Tensor) -> Tensor:
        """``[N, 1]``: whether points are certainly in the ball."""
        assert isinstance(self.region, LpBall)
        balls = self._balls(points.shape[0], self.region.within)
        return balls.contains(points.reshape(-1, *self.shape))[:, None]

    def _balls(self, count: int, within: Box | None) -> LpBall:
        assert isinstance(self.region, LpBall)
        many = torch.zeros(count, dtype=torch.int64)
        return LpBall(self.region.centre[many], self.region.radius[many], self.region.p, within)
