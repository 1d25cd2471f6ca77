"""Threat models: the set that each example's points must stay in, exactly.

Examples have numbers, and each of P points is tried for one of them (``who`` ``[P]``). ``project`` returns numbers of
the model's own element type that lie in the set as exact numbers, not up to a tolerance: a box has ends of that type,
and in a ball the change is scaled down a little and rounded towards the centre, coordinate by coordinate, so that the
exact norm of the exact difference stays at or below the radius.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import torch
from torch import Tensor

from verifier.attacks.rounding import below, rounded_towards, upper_distance
from verifier.errors import InputError

BallNorm = Literal["2", "1", "0"]

_SLACK = 1e-7
"""By how much a ball is made smaller before rounding: far more than float64's errors in its norm."""


class Threat(Protocol):
    """Where the points of N examples may lie; all tensors ``[N, d]`` in the type of the search."""

    @property
    def centre(self) -> Tensor:
        """The examples themselves ``[N, d]``, each in its set."""

    def project(self, x: Tensor, who: Tensor) -> Tensor:
        """The points ``[P, d]`` moved into the sets of ``who`` ``[P]``, exactly."""

    def contains(self, x: Tensor, who: Tensor) -> Tensor:
        """``[P]`` bool: proven to lie in the set (a point within rounding of a ball's surface may be refused)."""

    def random(self, who: Tensor, draw: torch.Generator) -> Tensor:
        """A random point of each set, ``[P, d]``."""

    def ends(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the greatest value that each element may have, ``[P, d]`` each (infinite: no limit). A ball's
        are those of its data range."""

    def step(self, gradient: Tensor, who: Tensor) -> Tensor:
        """The change ``[P, d]`` of the set's own size along which a function with this gradient falls most."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """``lower <= x <= upper`` ``[N, d]``, ends included and of the model's type; ``centre`` lies between them. The
    ball of the norm inf cut by a data range, and any box of a property."""

    lower: Tensor
    upper: Tensor
    centre: Tensor

    @staticmethod
    def of(lower: Tensor, upper: Tensor, centre: Tensor | None = None) -> Boxes:
        """Raises ``InputError`` where ends are crossed."""
        if bool((lower > upper).any()):
            raise InputError("a box is empty: lower > upper")
        middle = lower / 2 + upper / 2 if centre is None else centre
        return Boxes(lower, upper, torch.minimum(torch.maximum(middle, lower), upper))

    def project(self, x: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``: the nearest point of the box in every norm."""
        return torch.minimum(torch.maximum(x, self.lower[who]), self.upper[who])

    def contains(self, x: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``."""
        return ((x >= self.lower[who]) & (x <= self.upper[who])).all(1)

    def random(self, who: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Threat``: uniform."""
        lower = self.lower[who]
        u = torch.rand(lower.shape, generator=draw, dtype=lower.dtype, device=lower.device)
        return self.project(lower + u * self._width(who), who)

    def ends(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Threat``."""
        return self.lower[who], self.upper[who]

    def step(self, gradient: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``: as far as the further end is from the centre, against the sign; of a ball that a range cuts
        this is the radius."""
        centre = self.centre[who]
        reach = torch.maximum(self.upper[who] - centre, centre - self.lower[who])
        return -gradient.sign() * reach.clamp(max=torch.finfo(reach.dtype).max)

    def _width(self, who: Tensor) -> Tensor:
        return (self.upper[who] - self.lower[who]).clamp(max=torch.finfo(self.lower.dtype).max)


@dataclass(frozen=True, slots=True, eq=False)
class Balls:
    """The points at a distance of at most ``radius`` from ``centre`` ``[N, d]`` in a ``norm``, cut by a data range
    ``[low, high]`` that holds the centres. In the norm "0" the radius is how many elements may differ; a change of an
    element is then worth the whole range.

    ``radius`` is exact; ``low``, ``high`` are numbers of the model's type (infinite: no limit).
    """

    centre: Tensor
    radius: Fraction
    norm: BallNorm
    low: float
    high: float

    @staticmethod
    def of(
        centre: Tensor, radius: Fraction, norm: BallNorm, ends: tuple[float, float] = (-math.inf, math.inf)
    ) -> Balls:
        """A radius whose square is beyond the type's range counts as the largest one whose square is not. Raises
        ``InputError`` for a negative radius and for centres outside of the range."""
        if radius < 0:
            raise InputError(f"epsilon: {radius} is negative")
        if norm == "0" and not (math.isfinite(ends[0]) and math.isfinite(ends[1])):
            raise InputError("the norm 0 limits how many elements change, not by how much: give a data range")
        if bool(((centre < ends[0]) | (centre > ends[1])).any()):
            raise InputError(f"an example lies outside the data range [{ends[0]}, {ends[1]}]")
        most = Fraction(math.isqrt(int(torch.finfo(centre.dtype).max)))
        return Balls(centre, min(radius, most), norm, *ends)

    def project(self, x: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``. In the norms 2 and 1 the nearest point of the ball, cut by the range after; in the norm 0 the
        largest changes are kept."""
        centre = self.centre[who]
        inside = x.clamp(self.low, self.high)
        if self.norm == "0":
            return torch.where(_largest(inside - centre, self._count), inside, centre)
        reach = float(self.radius) * (1 - _SLACK)
        away = inside.double() - centre.double()
        away = project_onto_ball(away, away.new_full((len(away),), reach), float(self.norm))
        return rounded_towards(centre, away).clamp(self.low, self.high)

    def contains(self, x: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``: by an upper bound of the distance that has its rounding in it."""
        centre = self.centre[who]
        ranged = ((x >= self.low) & (x <= self.high)).all(1)
        if self.norm == "0":
            return ranged & ((x != centre).sum(1) <= self._count)
        return ranged & (upper_distance(x, centre, self.norm) <= below(self.radius))

    def random(self, who: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Threat``: in a random direction, at distances that fill the ball evenly (norms 2, 1); random elements
        at random values (norm 0)."""
        centre = self.centre[who]
        if self.norm == "0":
            u = torch.rand(centre.shape, generator=draw, dtype=centre.dtype, device=centre.device)
            pick = torch.rand(centre.shape, generator=draw, device=centre.device)
            chosen = _largest(pick, self._count)
            return torch.where(chosen, (self.low + u * (self.high - self.low)).clamp(self.low, self.high), centre)
        away = torch.randn(centre.shape, generator=draw, dtype=torch.float64, device=centre.device)
        if self.norm == "1":  # differences of exponentials, scaled to the sphere (Rubinstein)
            away = away.sign() * torch.empty_like(away).exponential_(generator=draw)
        length = away.norm(p=float(self.norm), dim=1, keepdim=True).clamp(min=1e-300)
        share = torch.rand((len(who), 1), generator=draw, dtype=torch.float64, device=centre.device)
        reach = float(self.radius) * share ** (1 / max(1, centre.shape[1]))
        return self.project((centre.double() + away / length * reach).to(centre.dtype), who)

    def ends(self, who: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Threat``."""
        like = self.centre[who]
        return torch.full_like(like, self.low), torch.full_like(like, self.high)

    def step(self, gradient: Tensor, who: Tensor) -> Tensor:
        """See ``Threat``: against the gradient scaled to the radius (norm 2); spread over the twentieth of the elements
        with the largest slopes (norm 1: along the largest alone the way would be long); a full range along the
        gradient scaled by its largest element (norm 0)."""
        if self.norm == "2":
            return -gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-30) * float(self.radius)
        if self.norm == "0":
            largest = gradient.abs().amax(1, keepdim=True).clamp(min=1e-30)
            return -gradient / largest * (self.high - self.low)
        room = torch.where(gradient > 0, self.centre[who] > self.low, self.centre[who] < self.high)
        count = max(1, gradient.shape[1] // 20)
        chosen = _largest(gradient * room, count)
        return -(gradient.sign() * chosen) * (float(self.radius) / count)

    @property
    def _count(self) -> int:
        return min(int(self.radius), self.centre.shape[1])


def project_onto_ball(away: Tensor, radius: Tensor, p: float) -> Tensor:
    """The vectors of p-norms at most ``radius`` ``[N]`` nearest (in the Euclidean norm) to ``away`` ``[N, n]``,
    up to rounding; p is 1, 2 or inf."""
    limit = radius.clamp(min=0)[:, None]
    if p == math.inf:
        return away.clamp(-limit, limit)
    if p == 2:
        length = away.norm(dim=1, keepdim=True)
        return away * (limit / length.clamp(min=1e-30)).clamp(max=1)
    size = away.abs()
    most = size.sort(dim=1, descending=True).values
    ranks = torch.arange(1, away.shape[1] + 1, dtype=away.dtype, device=away.device)
    drop = (most.cumsum(1) - limit) / ranks  # Duchi et al. (ICML 2008), figure 1
    last = (most > drop).sum(1, keepdim=True).clamp(min=1) - 1
    left = (size - drop.gather(1, last).clamp(min=0)).clamp(min=0)
    # Where the ball is far smaller than the vector, the difference has lost digits, and with many elements much of it.
    return away.sign() * left * (limit / left.sum(1, keepdim=True).clamp(min=1e-300)).clamp(max=1)


def _largest(change: Tensor, count: int) -> Tensor:
    """``[P, d]`` bool: the ``count`` largest absolute values of each row."""
    chosen = torch.zeros(change.shape, dtype=torch.bool, device=change.device)
    if count == 0:
        return chosen
    return chosen.scatter(1, change.abs().topk(min(count, change.shape[1]), dim=1).indices, True)
