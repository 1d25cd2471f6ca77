"""The nested search encloses minima of functions with known constants, also where it stops early."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verifier.anytime.nested import nested_minimum
from verifier.errors import InputError


class Waves:
    """Sums of waves and tents of k inputs, with the largest slope by each: State: how often it was asked."""

    def __init__(self, seed: int, k: int, off: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.a, self.w, self.c, self.off = rng.normal(size=k), rng.uniform(1, 4, k), rng.uniform(-1, 1, k), off
        self.asked = 0

    def at(self, x: np.ndarray) -> np.ndarray:
        """``[..., k]`` to ``[...]``."""
        tents = np.abs(x - self.c).sum(-1)
        return (self.a * np.sin(self.w * x)).sum(-1) + 0.5 * tents + 0.3 * np.prod(np.cos(x), -1)

    def constants(self) -> list[float]:
        return (np.abs(self.a) * self.w + 0.5 + 0.3).tolist()

    def __call__(self, x: tuple[float, ...]) -> tuple[float, float]:
        self.asked += 1
        value = float(self.at(np.array(x)))
        return value - self.off, value + self.off


def least(function: Waves, ends: list[tuple[float, float]]) -> float:
    """On a fine grid."""
    axes = [np.linspace(low, high, 20001 if len(ends) == 1 else 301) for low, high in ends]
    return float(function.at(np.stack(np.meshgrid(*axes), -1)).min())


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("off", [0.0, 0.01])
def test_minima_are_enclosed_to_within_the_gap(k: int, off: float) -> None:
    for seed in range(6 if k == 1 else 2):
        function, ends = Waves(seed, k, off), [(-1.5, 2.0)] * k
        gap = 0.05 if k == 2 else 1e-3
        found = nested_minimum(function, ends, function.constants(), gap + 8 * off)
        truth = least(function, ends)
        assert found.lower <= truth + 1e-12 and found.upper - found.lower <= gap + 8 * off
        assert found.upper == pytest.approx(function(found.point)[1]) and found.evaluations == function.asked - 1
        assert truth <= found.upper + 1e-3


@pytest.mark.parametrize("most", [1, 2, 3, 5, 17, 60])
def test_a_search_that_stops_early_is_right(most: int) -> None:
    for seed in range(8):
        for k in (1, 2):
            function, ends = Waves(seed, k), [(-1.5, 2.0)] * k
            found = nested_minimum(function, ends, function.constants(), 1e-6, most)
            truth = least(function, ends)  # of a grid: a little above the minimum
            assert found.lower <= truth + 1e-12 and truth <= found.upper + 0.02
            assert found.evaluations <= most + 2 * 2**k


def test_larger_gaps_need_fewer_evaluations() -> None:
    function, ends = Waves(3, 1), [(-1.5, 2.0)]
    counts = [nested_minimum(function, ends, function.constants(), gap).evaluations for gap in (1e-4, 1e-2, 1)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2]


def test_intervals_of_no_width_and_flat_functions() -> None:
    assert nested_minimum(lambda x: (x[0], x[0]), [(2.0, 2.0)], [1.0], 0.1).upper == 2.0
    flat = nested_minimum(lambda _: (3.0, 3.0), [(0.0, 1.0)], [0.0], 1e-9)
    assert flat.lower <= 3.0 == flat.upper and flat.evaluations == 2


@pytest.mark.parametrize(
    ("ends", "constants"),
    [([], []), ([(0.0, 1.0)], [math.inf]), ([(0.0, 1.0)], [-1.0]), ([(0.0, 1.0)], [math.nan]), ([(1.0, 0.0)], [1.0]),
     ([(0.0, math.inf)], [1.0]), ([(math.nan, 1.0)], [1.0]), ([(0.0, 1.0)], [1.0, 1.0])],
)  # fmt: skip
def test_questions_without_an_answer(ends: list[tuple[float, float]], constants: list[float]) -> None:
    with pytest.raises(InputError):
        nested_minimum(lambda _: (0.0, 0.0), ends, constants, 0.1)
