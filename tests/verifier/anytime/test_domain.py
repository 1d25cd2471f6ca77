"""Regions and their parts: points are moved into them in exact arithmetic, parts cover them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds import Box, LpBall
from verifier.anytime.boxes import Boxes
from verifier.anytime.domain import Domain


def balls() -> list[LpBall]:
    """Of all norms and of nasty scales, some cut by a box that may not hold the centre."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for k in range(60):
        centre = torch.randn(1, 2, 3, generator=draw, dtype=torch.float64) * 10.0 ** (k % 7 - 3)
        radius = torch.rand(1, generator=draw, dtype=torch.float64) * 10.0 ** (k % 5 - 3)
        corner = centre + radius * 0.3 * torch.randn(1, 2, 3, generator=draw, dtype=torch.float64)
        within = Box(corner.minimum(centre + radius * 0.1), corner + radius) if k % 2 else None
        found.append(LpBall(centre, radius, (1.0, 2.0, math.inf)[k % 3], within))
    return found


def holds(region: LpBall, point: Tensor) -> bool:
    """In fractions."""
    pairs = zip(point.tolist(), region.centre.flatten().tolist(), strict=True)
    away = [abs(Fraction(a) - Fraction(b)) for a, b in pairs]
    radius = Fraction(float(region.radius))
    ball = {1.0: sum(away) <= radius, 2.0: sum(a * a for a in away) <= radius**2, math.inf: max(away) <= radius}
    box = region.within
    return ball[region.p] and (
        box is None or bool(((box.lower.flatten() <= point) & (point <= box.upper.flatten())).all())
    )


def test_points_are_moved_into_balls_exactly() -> None:
    found = 0
    for region in balls():
        domain = Domain.of(region)
        low, high = domain.ends()
        wild = torch.randn(40, low.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        points = domain.inside(torch.cat([low + (0.5 + wild) * (high - low), low, high]))
        known = points[points.isfinite().all(1)]
        assert all(holds(region, point) for point in known)
        found += known.shape[0]
    assert found > 60 * 38


def test_no_point_is_made_up_where_rounding_leaves_it_open() -> None:
    """A box that touches the ball in one point that floats need not hold."""
    within = Box(torch.tensor([[0.6, 0.8]], dtype=torch.float64), torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    region = LpBall(torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 2.0, within)
    domain = Domain.of(region)
    assert bool(domain.inside(torch.ones(1, 2, dtype=torch.float64)).isnan().all())
    assert not bool(domain.certain(*domain.ends()))


@pytest.mark.parametrize("number", range(6))
def test_halves_cover_the_region_and_share_the_point_between_them(number: int) -> None:
    region = balls()[number]
    domain = Domain.of(region)
    ends = domain.ends()
    boxes = Boxes.made(
        {
            "lower": ends[0], "upper": ends[1], "bound": torch.zeros(1, dtype=torch.float64),
            "axis": torch.tensor([number % 3]), "unstable": torch.tensor([0]), "wait": torch.tensor([0]),
            "depth": torch.tensor([4]),
        },
        {7: (torch.zeros(1, 2), torch.ones(1, 2))},
    )  # fmt: skip
    halves, smaller = boxes.halves()
    assert bool(smaller.all()) and halves.count == 2 and halves.depth.tolist() == [5, 5]
    axis = number % 3
    assert halves.upper[0, axis] == halves.lower[1, axis]
    assert ends[0][0, axis] < halves.upper[0, axis] < ends[1][0, axis]
    assert torch.equal(halves.lower.amin(0), ends[0][0]) and torch.equal(halves.upper.amax(0), ends[1][0])
    assert halves.inherited[7][1].shape == (2, 2)
    draw = torch.rand(500, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = domain.inside(ends[0] + draw * (ends[1] - ends[0]))
    points = points[points.isfinite().all(1)]
    inside = [((low <= points) & (points <= high)).all(1) for low, high in zip(halves.lower, halves.upper, strict=True)]
    assert points.shape[0] and bool((inside[0] | inside[1]).all())
    held = domain.inhabited(halves.lower, halves.upper)
    assert all(bool(one) or not bool(mine.any()) for one, mine in zip(held, inside, strict=True))


def test_a_box_of_no_width_has_no_halves() -> None:
    point = torch.zeros(1, 1, dtype=torch.float64)
    ends = [point, torch.nextafter(point, point + 1)]
    zero = torch.zeros(1, dtype=torch.int64)
    for upper in ends:
        boxes = Boxes(point, upper, torch.zeros(1, dtype=torch.float64), zero, zero, zero, zero, {})
        assert not bool(boxes.halves()[1].any())
