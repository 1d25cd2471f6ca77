"""Clipping keeps every point that fulfils all literals; joint refutation never refutes where there is one."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from verifier.branch.clip import MORE_STEPS, clip, combine, joint

D = torch.float64


def fractions(values: Tensor) -> list[Fraction]:
    return [Fraction(float(v)) for v in values.flatten()]


def lines(
    rng: np.random.Generator, lower: Tensor, upper: Tensor, scale: float
) -> tuple[Tensor, Tensor, list[Fraction]]:
    """Three random lines, one possibly absent; a lower bound of (line minus threshold) on the box, rounded down; and
    the exact constants, so that (line minus threshold) is ``rows x + constant``. A point of the box fulfils them."""
    size = lower.shape[0]
    rows = torch.from_numpy(rng.normal(size=(3, size)) * scale * rng.choice([0.0, 1e-9, 1.0, 1e6], size=(3, size)))
    point = fractions(lower + (upper - lower) * torch.from_numpy(rng.choice([0.0, 1.0, 0.5, 0.123], size=size)))
    ends = [fractions(lower), fractions(upper)]
    point = [min(max(p, a), b) for p, a, b in zip(point, *ends, strict=True)]
    slack, constants = [], []
    for row in rows:
        exact = fractions(row)
        value = sum((a * x for a, x in zip(exact, point, strict=True)), Fraction(0))
        room = Fraction(float(rng.choice([0.0, 1e-12, 0.1]))) * Fraction(scale)
        constants.append(-value - room)
        least = sum((min(a * x, a * y) for a, x, y in zip(exact, *ends, strict=True)), constants[-1])
        down = float(least)
        slack.append(down if Fraction(down) <= least else float(np.nextafter(down, -np.inf)))
    if rng.random() < 0.3:
        slack[2] = -np.inf
    return rows, torch.tensor(slack, dtype=D), constants


def fulfils(x: list[Fraction], rows: Tensor, slack: Tensor, constants: list[Fraction]) -> bool:
    values = [
        sum((a * b for a, b in zip(fractions(r), x, strict=True)), c) for r, c in zip(rows, constants, strict=True)
    ]
    return all(v <= 0 or not np.isfinite(float(s)) for v, s in zip(values, slack, strict=True))


def boxes(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    middle = rng.normal(size=(count, 3)) * rng.choice([0.01, 1.0, 1e4], size=(count, 1))
    radius = rng.random((count, 3)) * rng.choice([0.0, 1e-6, 1.0], size=(count, 3))
    return torch.from_numpy(middle - radius), torch.from_numpy(middle + radius)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e9, 1e-300])
def test_no_point_that_fulfils_all_literals_is_cut_off(scale: float) -> None:
    rng = np.random.default_rng(int(abs(np.log10(scale))))
    lower, upper = boxes(rng, 80)
    drawn = [lines(rng, low, high, scale) for low, high in zip(lower, upper, strict=True)]
    rows, slack = torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn])
    further = combine(rows, slack, lower, upper)
    low, high = clip(torch.cat([rows, further[0]], 1), torch.cat([slack, further[1]], 1), lower, upper)
    value = joint(rows, slack, lower, upper)
    pairs = combine(rows[:, :2], slack[:, :2], lower, upper)
    assert torch.isfinite(pairs[1]).any()
    for some, least in ((low, clip(*pairs, lower, upper)[0]), (-high, -clip(*pairs, lower, upper)[1])):
        some.copy_(torch.maximum(some, least))
    assert bool((low <= high).all()) and bool((low >= lower).all()) and bool((high <= upper).all())
    assert bool((value <= 0).all()) and bool((pairs[1] <= 0).all())
    cut = checked = 0
    for k, (mine, gaps, constants) in enumerate(drawn):
        cut += int((low[k] > lower[k]).sum() + (high[k] < upper[k]).sum())
        ends = fractions(low[k]), fractions(high[k])
        for share in (*np.eye(3), *rng.integers(0, 2, (6, 3)), *rng.random((8, 3))):
            x = [
                a + (b - a) * s
                for a, b, s in zip(
                    fractions(lower[k]), fractions(upper[k]), fractions(torch.from_numpy(share)), strict=True
                )
            ]
            if fulfils(x, mine, gaps, constants):
                checked += 1
                assert all(a <= v <= b for v, a, b in zip(x, *ends, strict=True))
    assert checked > 50
    assert cut > 20 or scale == 1e-300


def test_what_is_cut_is_cut_for_a_reason() -> None:
    """``x + y <= 0.5`` on the unit square: x and y at most 0.5, up to a few units in the last place."""
    rows, slack = torch.ones((1, 1, 2), dtype=D), torch.full((1, 1), -0.5, dtype=D)
    zero, one = torch.zeros((1, 2), dtype=D), torch.ones((1, 2), dtype=D)
    low, high = clip(rows, slack, zero, one)
    assert torch.equal(low, zero)
    assert bool(((high >= 0.5) & (high < 0.5 + 1e-14)).all())
    contradiction = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]], dtype=D), torch.tensor([[-0.2, -0.2]], dtype=D)
    low, high = clip(*contradiction, zero + 0.0, one)
    assert bool((low > high).any()), "x + y <= 0.2 and x + y >= 1.8"


def test_opposite_literals_are_refuted_jointly_and_only_where_they_contradict() -> None:
    """``x <= t`` and ``x >= t + gap`` on [0, 1]: refuted for a positive gap, never for a gap of zero or below."""
    zero, one = torch.zeros((1, 1), dtype=D), torch.ones((1, 1), dtype=D)
    rows = torch.tensor([[[1.0], [-1.0]]], dtype=D)
    for gap in (1e-3, 1e-6, 0.0, -1e-9):
        slack = torch.tensor([[-0.5, 0.5 + gap - 1]], dtype=D)
        assert (float(joint(rows, slack, zero, one)) > 0) == (gap > 0)


def test_two_literals_cut_where_neither_does_alone() -> None:
    """``x + y <= 1`` and ``x - y <= 0`` on the unit square: x is at most a half."""
    rows = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]], dtype=D)
    slack, zero, one = torch.tensor([[-1.0, -1.0]], dtype=D), torch.zeros((1, 2), dtype=D), torch.ones((1, 2), dtype=D)
    low, high = clip(rows, slack, zero, one)
    assert torch.equal(low, zero) and torch.equal(high, one)
    low, high = clip(*combine(rows, slack, zero, one), zero, one)
    assert torch.equal(low, zero) and 0.5 <= float(high[0, 0]) < 0.5 + 1e-13 and float(high[0, 1]) == 1


@pytest.mark.parametrize(("literals", "short"), [(2, 1e-12), (3, 0.03), (5, 0.1)])
def test_joint_bounds_are_close_to_the_best_weights(literals: int, short: float) -> None:
    """Against a linear program: ``min t`` with ``line <= t`` on the box, on average 1.0 above the best literal. Of two
    literals they are exact; of more, nine tenths and with more steps about all of it is found."""
    rng = np.random.default_rng(literals)
    below, closer, none = [], [], 0
    for _ in range(40):
        rows, constant = rng.normal(size=(literals, 4)), rng.normal(size=literals)
        matrix = np.hstack([rows, -np.ones((literals, 1))])
        best = linprog([0] * 4 + [1], matrix, -constant, bounds=[(-1, 1)] * 4 + [(None, None)]).fun
        slack = torch.from_numpy(constant - np.abs(rows).sum(1))
        ends = -torch.ones((1, 4), dtype=D), torch.ones((1, 4), dtype=D)
        found = float(joint(torch.from_numpy(rows)[None], slack[None], *ends))
        alone = float(slack.max())
        none += best - alone < 1e-9
        below.append(best - max(found, alone))
        closer.append(best - max(float(joint(torch.from_numpy(rows)[None], slack[None], *ends, MORE_STEPS)), alone))
    assert min(*below, *closer) > -1e-9 and none < 20
    assert np.mean(below) <= short and np.mean(closer) <= short / 3


def test_tiny_coefficients_cut_nothing() -> None:
    """A quotient by a subnormal number may be anything; the box stays whole."""
    rows = torch.tensor([[[1e-309, -1e-310]]], dtype=D)
    zero, one = torch.zeros((1, 2), dtype=D), torch.ones((1, 2), dtype=D)
    low, high = clip(rows, torch.tensor([[-3e-310]], dtype=D), zero, one)
    assert torch.equal(low, zero) and torch.equal(high, one)


def test_nothing_known_refutes_nothing() -> None:
    zero, one = torch.zeros((2, 2), dtype=D), torch.ones((2, 2), dtype=D)
    rows = torch.ones((2, 2, 2), dtype=D)
    assert float(joint(rows, torch.full((2, 2), -torch.inf, dtype=D), zero, one).max()) == -torch.inf
    rows[1] = torch.nan
    assert bool((joint(rows, torch.full((2, 2), -1.0, dtype=D), zero, one) <= 0).all())


def test_a_line_that_overflowed_cuts_nothing() -> None:
    lower, upper = torch.zeros((1, 2), dtype=D), torch.ones((1, 2), dtype=D)
    rows = torch.tensor([[[torch.inf, 1.0], [-torch.inf, torch.nan]]], dtype=D)
    low, high = clip(rows, torch.full((1, 2), -torch.inf, dtype=D), lower, upper)
    assert torch.equal(low, lower) and torch.equal(high, upper)
