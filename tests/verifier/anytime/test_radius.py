"""Brackets of robust radii: against the exact ones, against bounds alone, and from both sides at every step."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import verifier
from bounds import trace
from verifier.anytime import radius as module
from verifier.anytime.nearest import nearest
from verifier.anytime.radius import BracketSearch, Judge, radius
from verifier.attacks.threats import project_onto_ball
from verifier.network import Network, read_network
from verifier.radii import Centre, RadiusBracket, _root_above
from verifier.replay import open_session

X = np.array([0.25, -0.5])


@pytest.fixture(scope="module")
def network() -> Network:
    """Two inputs, three scores."""
    return read_network(Path(__file__).parents[2] / "corpus" / "ranking_deep_sat.onnx")


def check(network: Network, found: list[RadiusBracket], norm: str) -> None:
    """Both ends close in, and the point is of another class, where it is said to be."""
    for one, two in itertools.pairwise(found):
        assert one.lower <= two.lower <= two.upper <= one.upper
    last = found[-1]
    assert last.point is not None and last.other not in (None, last.label)
    away = [abs(Fraction(a) - Fraction(b)) for a, b in zip(last.point.reshape(-1).tolist(), X.tolist(), strict=True)]
    if norm == "2":
        assert sum(c * c for c in away) <= Fraction(last.upper) ** 2
    else:
        assert (max(away) if norm == "inf" else sum(away)) <= Fraction(last.upper)
    feed = {network.inputs[0].name: last.point.astype("f4").reshape(network.inputs[0].shape)}
    scores = open_session(network.model).run(None, feed)[0].reshape(-1)
    assert scores[last.other] == scores.max() and bool((feed[network.inputs[0].name] == last.point).all())


@pytest.mark.parametrize("norm", ["inf", "1"])
def test_brackets_close_in_on_the_exact_radius(network: Network, norm: str) -> None:
    true = verifier.exact_radius(network, X, norm, gap=1e-6)
    found = list(radius(network, X, norm, gap=5e-3))
    check(network, found, norm)
    assert all(b.lower <= true.upper and true.lower <= b.upper + 1e-6 for b in found)
    assert found[-1].status == "exact" and found[-1].upper - found[-1].lower <= 5e-3 * found[-1].upper


def test_the_euclidean_radius_is_that_of_a_grid(network: Network) -> None:
    found = list(radius(network, X, "2", gap=1e-2))
    check(network, found, "2")
    last = found[-1]
    assert last.status == "exact"
    angle, share = torch.meshgrid(torch.linspace(0, 2 * math.pi, 721), torch.linspace(0.01, 1.02, 200), indexing="ij")
    steps = torch.stack([angle.cos(), angle.sin()], -1) * (share * last.upper).unsqueeze(-1)
    points = (steps + torch.from_numpy(X)).reshape(-1, 1, 2).float()
    scores = verifier.load(str(Path(__file__).parents[2] / "corpus" / "ranking_deep_sat.onnx")).evaluate(points)[0]
    scores = scores.flatten(1)
    ahead = scores.argmax(1) == last.label
    lengths = (share * last.upper).flatten()
    assert bool(ahead[lengths < last.lower].all()) and not bool(ahead[lengths < 1.02 * last.upper].all())


def test_many_inputs_are_bounded_in_the_other_norms(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of balls alone come to an end by themselves, and are proven all the same."""
    monkeypatch.setattr(module, "MOST_FREE_INPUTS", 1)
    found = list(radius(network, X, "2", gap=1e-2))
    check(network, found, "2")
    assert found[-1].status in ("open", "exact") and 0 < found[0].lower < found[-1].lower <= 0.8887


def test_no_other_class_in_the_data_range(network: Network) -> None:
    for norm in ("inf", "2"):
        last = list(radius(network, X, norm, data_range=(-0.55, 0.3)))[-1]
        assert last.status == "none" and math.isinf(last.lower) and last.point is None


def test_the_last_bracket_says_that_no_class_is_left(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a verdict about the whole range says so, and not the first bounds."""
    monkeypatch.setattr(Centre, "by_bounds", lambda *_: (0.1, 0.2))
    found = list(radius(network, X, data_range=(-0.55, 0.3)))
    assert found[0].status == "limit" and found[-1].status == "none" and math.isinf(found[-1].lower)


def test_a_point_without_scores_is_named(network: Network) -> None:
    class Logarithm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    centre = replace(Centre.of(network, X, "inf", 0, None), graph=trace(Logarithm(), torch.zeros(1, 2)))
    with pytest.raises(verifier.InputError, match="scores are not all finite"):
        centre.check()


def test_what_is_found_counts(network: Network) -> None:
    """A data range that cuts the nearest point off moves the radius."""
    free = list(radius(network, X, "inf"))[-1]
    assert free.point is not None
    low = float((X.min() + free.point.min()) / 2) if free.point.min() < X.min() else -10.0
    high = 10.0 if low > -10 else float((X.max() + free.point.max()) / 2)
    cut = list(radius(network, X, "inf", data_range=(low, high), timeout=20))[-1]
    assert cut.lower >= free.lower and (cut.point is None or (low <= cut.point.min() and cut.point.max() <= high))


def test_tries_that_take_too_long_are_followed_by_nearer_and_then_longer_ones(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[float, float]]()
    search = BracketSearch(network, X)

    def attempt(self: BracketSearch, trial: float, seconds: float) -> str:
        asked.append((trial, seconds))
        return "proven" if trial < 0.5 or seconds >= 4 * module.PATIENCE else "late"

    monkeypatch.setattr(BracketSearch, "_verified", attempt)
    search.run(None)
    assert search.found().status == "exact"
    late = [(trial, seconds) for trial, seconds in asked if trial >= 0.5 and seconds < 4 * module.PATIENCE]
    assert late and {seconds for _, seconds in asked} == {module.PATIENCE * 2**k for k in range(3)}
    for (one, before), (two, after) in itertools.pairwise(asked):
        assert after > before or two < one or (two > one and (one, before) not in late)


def test_a_limit_ends_the_search(network: Network) -> None:
    (*_, last) = radius(network, X, timeout=0.0)
    assert last.status == "limit" and last.lower <= 0.748 <= last.upper


def test_points_of_no_other_class_are_not_believed(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an attack says: onnxruntime decides."""
    monkeypatch.setattr(module, "nearest", lambda *_: torch.from_numpy(X + 0.01).reshape(1, 1, 2))
    search = BracketSearch(network, X)
    search._attack(math.inf)
    assert search.point is None and math.isinf(search.upper)
    assert Judge(network, search.centre).other(torch.from_numpy(X)) is None


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_projections(p: float) -> None:
    """No point of the ball is nearer; inside nothing moves."""
    draw = torch.Generator().manual_seed(0)
    away = torch.randn((20, 5), generator=draw, dtype=torch.float64)
    radii = torch.rand(20, generator=draw, dtype=torch.float64) + 0.1
    found = project_onto_ball(away, radii, p)
    assert bool((found.norm(p=p, dim=1) <= radii * (1 + 1e-9)).all())
    inside = away.norm(p=p, dim=1) <= radii
    assert torch.equal(found[inside], away[inside])
    other = torch.randn((500, 5), generator=draw, dtype=torch.float64)
    other = other / other.norm(p=p, dim=1, keepdim=True)
    for k in range(20):
        assert bool(((other * radii[k] - away[k]).norm(dim=1) >= (found[k] - away[k]).norm() - 1e-9).all())


@pytest.mark.parametrize("norm", ["inf", "2", "1"])
def test_the_attack_comes_near(network: Network, norm: str) -> None:
    """Within 2 % of a search over a grid around the input."""
    centre = Centre.of(network, X, norm, None, None)
    found = nearest(centre, None, 0.1, 0, math.inf)
    side = torch.linspace(-1.2, 1.2, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    scores = network.graph.evaluate((grid + torch.from_numpy(X)).unsqueeze(1))[0].flatten(1)
    least = float(grid[scores.argmax(1) != centre.label].norm(p=float(norm), dim=1).min())
    assert centre.distance(found[0]) <= 1.02 * least
    assert [int(centre.scores(p).argmax()) == centre.label for p in found] == [False] * len(found)


@pytest.mark.parametrize("square", [Fraction(0), Fraction(4), Fraction(2), Fraction(1, 3), Fraction(2) ** -2000])
def test_roots_are_rounded_up(square: Fraction) -> None:
    root = _root_above(square)
    assert Fraction(root) ** 2 >= square
    assert root == 0 or Fraction(math.nextafter(root, 0)) ** 2 < square


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "3"}, "the known ones are inf, 2 and 1"),
        ({"timeout": math.nan}, "timeout=nan: seconds, at least 0"),
        ({"gap": 0.0}, "gap: 0.0 is not between 0 and 1"),
        ({"timeout": math.nan}, "timeout=nan: seconds"),
        ({"timeout": -1.0}, "timeout=-1.0: seconds"),
        ({"data_range": 3}, "data range 3: two numbers are needed"),
        ({"label": 0}, "class 2 scores 2.803"),
        ({"label": 9}, "label 9: the model has the classes 0 to 2"),
        ({"data_range": (0, 1)}, "outside the data range"),
    ],
)
def test_what_is_wrong_is_named(network: Network, options: dict[str, Any], message: str) -> None:
    with pytest.raises(verifier.InputError, match=message):
        next(radius(network, X, **options))


@pytest.mark.parametrize(("norm", "true"), [("inf", 2.0), ("1", 4.0), ("2", 8**0.5)])
def test_what_counts_is_within_reach_where_floats_end(network: Network, norm: str, true: float) -> None:
    """The greatest change of the input, added to it, is no float: rounded, it would be half of itself."""
    at = 2.0**53 - 1
    centre = Centre.of(network, np.array([at, at]), norm, 0, (int(at) - 2, int(at)))
    assert true <= centre.reach() <= true * (1 + 1e-15)
