"""Points of a threat model lie in it exactly: judged in fractions, for centres and radii of any size."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verifier.attacks import problems
from verifier.attacks.rounding import box_around
from verifier.attacks.threats import Balls, Boxes, Threat
from verifier.errors import InputError

SCALES = st.sampled_from([1e-30, 1e-6, 1e-3, 1.0, 255.0, 1e8])
RADII = st.fractions(min_value=0, max_value=3, max_denominator=10**6)
TYPES = st.sampled_from([np.float32, np.float64])


def exactly_inside(point: np.ndarray, centre: np.ndarray, radius: Fraction, norm: str) -> bool:
    away = [abs(Fraction(a) - Fraction(b)) for a, b in zip(point.tolist(), centre.tolist(), strict=True)]
    match norm:
        case "inf":
            return max(away) <= radius
        case "2":
            return sum(a * a for a in away) <= radius**2
        case "1":
            return sum(away) <= radius
        case _:
            return sum(a != 0 for a in away) <= radius


def far_points(threat: Threat, seed: int, size: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return threat.centre + size * torch.randn(threat.centre.shape, generator=draw).to(threat.centre.dtype)


@given(st.integers(0, 10**6), st.sampled_from(["inf", "2", "1", "0"]), SCALES, RADII, TYPES)
def test_projections_and_random_points_lie_inside_exactly(
    seed: int, norm: str, scale: float, radius: Fraction, dtype: type
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((3, 7)) * scale).astype(dtype)
    ends = (Fraction(float(x.min())) - 1, Fraction(float(x.max())) + Fraction(1, 3))
    radius = Fraction(int(radius)) if norm == "0" else radius * Fraction(scale)
    threat = problems.ball(x, radius, norm, ends)
    who = torch.arange(3)
    for size in (0.1, 10.0):
        for points in (threat.project(far_points(threat, seed, size * scale), who),
                       threat.random(who, torch.Generator().manual_seed(seed))):  # fmt: skip
            assert points.dtype == torch.from_numpy(x).dtype
            for point, centre in zip(points.numpy(), x, strict=True):
                assert exactly_inside(point, centre, radius, norm)
                assert all(ends[0] <= Fraction(v) <= ends[1] for v in point.tolist())


@given(st.integers(0, 10**6), st.sampled_from(["2", "1"]), SCALES, TYPES)
def test_what_a_ball_is_said_to_contain_it_contains(seed: int, norm: str, scale: float, dtype: type) -> None:
    """Points at and around the surface: none is called inside that is not."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((1, 5)) * scale).astype(dtype)
    radius = Fraction(scale) / 3
    threat = problems.ball(x, radius, norm, None)
    away = random.standard_normal(5)
    away *= float(radius) / np.linalg.norm(away, ord=int(norm))
    steps = 1 + np.arange(-8, 9)[:, None] * float(np.finfo(dtype).eps)
    points = (x.astype(np.float64) + away * steps).astype(dtype)
    said = threat.contains(torch.from_numpy(points), torch.zeros(len(points), dtype=torch.int64))
    for point, inside in zip(points, said.tolist(), strict=True):
        assert not inside or exactly_inside(point, x[0], radius, norm)
    assert bool(threat.contains(torch.from_numpy(x), torch.zeros(1, dtype=torch.int64)).all())


@given(st.floats(-1e3, 1e3, width=32), RADII)
def test_the_ends_of_a_box_are_the_outermost_floats_inside(value: float, radius: Fraction) -> None:
    x = np.array([value], dtype=np.float32)
    low, high = box_around(x, radius, None)
    for end, outward in ((low, -np.inf), (high, np.inf)):
        beyond = np.nextafter(end, np.float32(outward))
        assert abs(Fraction(float(end[0])) - Fraction(value)) <= radius
        assert abs(Fraction(float(beyond[0])) - Fraction(value)) > radius


@given(st.integers(0, 2**32), RADII, SCALES, TYPES, st.booleans())
def test_the_ends_of_many_boxes_are_the_outermost_floats_inside_the_range(
    seed: int, radius: Fraction, scale: float, kind: type[np.floating], ranged: bool
) -> None:
    x = np.abs(np.random.default_rng(seed).normal(0, scale, 40)).astype(kind)
    x[:3] = 0, 0.5, x[-1] / 2  # the first two with exact ends for many radii
    ends = (Fraction(0), Fraction(float(x.max())) * Fraction(10**9 + 1, 10**9)) if ranged else None
    low, high = box_around(x, radius, ends)
    for centre, a, b in zip(x, low, high, strict=True):
        first, last = Fraction(float(centre)) - radius, Fraction(float(centre)) + radius
        if ends is not None:
            first, last = max(first, ends[0]), min(last, ends[1])
        assert Fraction(float(np.nextafter(a, kind(-np.inf)))) < first <= Fraction(float(a))
        assert Fraction(float(b)) <= last < Fraction(float(np.nextafter(b, kind(np.inf))))


@pytest.mark.parametrize("radius", [Fraction(10) ** 40, Fraction(10) ** 400])
def test_a_vast_radius_is_cut_by_the_range_or_refused(radius: Fraction) -> None:
    x = np.array([0.1, 0.7], dtype=np.float32)
    low, high = box_around(x, radius, (Fraction(0), Fraction(1)))
    assert low.tolist() == [0, 0] and high.tolist() == [1, 1]
    with pytest.raises(InputError, match="beyond the range of float32"):
        box_around(x, radius, None)


def test_a_projection_keeps_points_that_are_inside() -> None:
    x = np.full((1, 4), 0.5, dtype=np.float32)
    inside = torch.tensor([[0.55, 0.5, 0.45, 0.5]])
    for norm, radius in (("inf", "0.1"), ("2", "0.1"), ("1", "0.2"), ("0", "2")):
        threat = problems.ball(x, Fraction(radius), norm, (Fraction(0), Fraction(1)))
        assert torch.allclose(threat.project(inside, torch.zeros(1, dtype=torch.int64)), inside, atol=1e-6)


def test_steps_lead_downhill_and_are_of_the_sets_size() -> None:
    x = np.full((1, 4), 0.5, dtype=np.float32)
    gradient, who = torch.tensor([[3.0, -4.0, 0.0, 0.1]]), torch.zeros(1, dtype=torch.int64)
    for norm, order in (("inf", float("inf")), ("2", 2.0), ("1", 1.0)):
        threat = problems.ball(x, Fraction(1, 5), norm, None)
        step = threat.step(gradient, who)
        assert float((step * gradient).sum()) < 0
        assert float(step.norm(p=order)) == pytest.approx(0.2, rel=1e-5)


def test_examples_outside_of_the_range_are_refused() -> None:
    x = np.array([[0.5, 1.25]], dtype=np.float32)
    for norm in ("inf", "2", "0"):
        with pytest.raises(InputError, match="outside the data range"):
            problems.ball(x, Fraction(1), norm, (Fraction(0), Fraction(1)))


def test_wrong_sets_are_refused() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(InputError, match="give a data range"):
        Balls.of(x, Fraction(1), "0")
    with pytest.raises(InputError, match="negative"):
        Balls.of(x, Fraction(-1), "2")
    with pytest.raises(InputError, match="empty"):
        Boxes.of(x + 1, x)
    with pytest.raises(InputError, match="the known ones"):
        problems.ball(np.zeros((1, 2), np.float32), Fraction(1), "3")


@pytest.mark.parametrize("size", [1000, 20_000])
def test_a_small_ball_of_the_norm_1_among_many_elements_is_not_left(size: int) -> None:
    """Where the point is a million radii away, the projection has lost most of its digits."""
    random = np.random.default_rng(0)
    x, away = random.random((1, size)), 1 + 1e-9 * random.random((1, size))
    for scale in (1.0, 255.0):
        threat = problems.ball(x, Fraction(1, 10**6), "1")
        point = threat.project(torch.from_numpy(x + scale * away), torch.zeros(1, dtype=torch.int64)).numpy()
        assert exactly_inside(point[0], x[0], Fraction(1, 10**6), "1")
        assert (point != x).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", ["2", "1", "0"])
def test_balls_of_any_size_have_points(norm: str, dtype: type) -> None:
    most = np.finfo(dtype).max
    x, who = np.array([[0.5, -most, most]], dtype=dtype), torch.zeros(1, dtype=torch.int64)
    ends = (Fraction(float(-most)), Fraction(float(most)))
    threat = problems.ball(x, Fraction(10) ** 400, norm, ends)
    for point in (threat.random(who, torch.Generator().manual_seed(0)), threat.project(threat.centre * 0, who)):
        assert bool(point.isfinite().all())
    far = threat.project(torch.zeros((1, 3), dtype=threat.centre.dtype), who)
    assert bool(threat.contains(far, who).all())


def test_the_largest_numbers_are_ends_too() -> None:
    for dtype in (np.float32, np.float64):
        most = np.finfo(dtype).max
        low, high = box_around(np.array([most, -most], dtype=dtype), Fraction(0), None)
        assert low.tolist() == [most, -most] and high.tolist() == [most, -most]
