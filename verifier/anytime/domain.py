"""The set of inputs a refiner works on: a box, or a ball cut into boxes, and the points that lie in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Box, LpBall

_SHRINK = 1 - 2**-20
"""A point that rounding leaves outside of a ball is moved towards its centre by this factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """One box or one ball (float64), and its parts: boxes ``[N, n]`` over the flat input, each cut with the ball."""

    region: Box | LpBall

    @staticmethod
    def of(region: Box | LpBall) -> Domain:
        """Raises ``ValueError`` for more than one region, an empty one and an unbounded one."""
        if region.size != 1:
            raise ValueError(f"{region.size} regions: one at a time is refined")
        region = region.to(torch.float64, "cpu")
        if isinstance(region, LpBall) and region.p == math.inf:
            region = region.box()
        if bool(region.empty().any()):
            raise ValueError("the region is empty: no input satisfies it")
        found = Domain(region)
        if not all(bool(end.isfinite().all()) for end in found.ends()):
            raise ValueError("the region is unbounded: every input needs two finite ends")
        return found

    @property
    def is_box(self) -> bool:
        """Whether the parts are boxes and nothing else."""
        return isinstance(self.region, Box)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input."""
        centre = self.region.lower if isinstance(self.region, Box) else self.region.centre
        return tuple(centre.shape[1:])

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

    def inside(self, points: Tensor) -> Tensor:
        """The points ``[N, n]`` moved into the region; where rounding keeps one outside of a ball, the centre."""
        points = points.clamp(*self.ends())
        if isinstance(self.region, Box):
            return points
        centre, radius = self.region.centre.flatten(1), self.region.radius[:, None] * _SHRINK
        away = points - centre
        length = away.norm(p=self.region.p, dim=1, keepdim=True)
        moved = centre + away * (radius / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
        points = moved.clamp(*self.ends())
        fits = self._balls(points.shape[0], self.region.within).contains(points.reshape(-1, *self.shape))
        return torch.where(fits[:, None], points, centre.clamp(*self.ends()))

    def _balls(self, count: int, within: Box | None) -> LpBall:
        assert isinstance(self.region, LpBall)
        many = torch.zeros(count, dtype=torch.int64)
        return LpBall(self.region.centre[many], self.region.radius[many], self.region.p, within)
