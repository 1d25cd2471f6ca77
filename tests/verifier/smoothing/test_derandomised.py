"""Splitting noise against its definition in fractions, and its certificates against every input that they speak of."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.errors import InputError
from verifier.smoothing.base import Base
from verifier.smoothing.counting import Scores
from verifier.smoothing.derandomised import Derandomised, Splitting, derandomise

HALF = Fraction(1, 2)


def split(  # noqa: PLR0913 - the numbers of a test
    scores: Scores,
    classes: int,
    size: int,
    cells: int,
    levels: int = 255,
    seed: int = 0,
    rows: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Splitting:  # fmt: skip
    return Splitting(Base(scores, classes, (size,), rows, dtype, torch.device("cpu")), cells, levels, seed)


def hashed(classes: int, seed: int, broken: int = 0) -> Scores:
    """A classifier that is as discontinuous as can be; scores of one point in ``broken`` are NaN."""
    at = np.random.default_rng(seed).uniform(1e3, 1e5, 64)

    def scores(x: Tensor) -> Tensor:
        bits = (torch.sin(x.double() @ torch.tensor(at[: x.shape[1]])) * 1e6).floor().long()
        found = torch.nn.functional.one_hot(bits % classes, classes).double()
        if broken:
            found[bits % broken == 0] = torch.nan
        return found

    return scores


def below(threshold: float) -> Scores:
    """Class 0 where the first element is below the threshold, else class 1."""
    return lambda x: torch.stack([(x[:, 0] < threshold).double(), (x[:, 0] >= threshold).double()], 1)


def offsets(made: Splitting) -> list[int]:
    """The fixed offsets, seen from outside: of an input of zeros, the middle tells the threshold above 0."""
    wide = Splitting(replace(made.base, dtype=torch.float64), made.cells, 10_000, made.seed)
    (points,) = wide.points(torch.zeros(made.base.shape))
    return [round(float(middle) * 20_000 - HALF) % made.cells for middle in points[0]]


def paper(x: Fraction, s: Fraction, width: Fraction) -> Fraction:
    """Equation 10 of the paper for any width: the middle of the cell of thresholds s + 2 width m, cut to [0, 1]."""
    above = ceil((x - s) / (2 * width))
    high, low = min(2 * width * above + s, Fraction(1)), max(2 * width * (above - 1) + s, Fraction(0))
    return (high + low) / 2


@pytest.mark.parametrize(("levels", "cells"), [(4, 1), (4, 3), (4, 4), (4, 8), (4, 21), (255, 128), (255, 700)])
def test_points_are_those_of_the_definition(levels: int, cells: int) -> None:
    random = np.random.default_rng(cells)
    size, width = 3, Fraction(cells, 2 * levels)
    whole = random.integers(0, levels + 1, size).tolist()
    for dtype in (torch.float32, torch.float64):
        made = split(below(0.5), 2, size, cells, levels, 5, 1000, dtype)
        (points,) = made.points(torch.tensor([k / levels for k in whole]))
        shifts = offsets(made)
        assert points.dtype == dtype
        for s in range(cells):
            thresholds = [((Fraction(s) + HALF) / levels + Fraction(v, levels)) % (2 * width) for v in shifts]
            exact = [paper(Fraction(k, levels), t, width) for k, t in zip(whole, thresholds, strict=True)]
            as_type = np.float32 if dtype == torch.float32 else np.float64
            assert points[s].tolist() == [float(as_type(e.numerator) / as_type(e.denominator)) for e in exact]


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_counts_are_those_of_all_points(rows: int) -> None:
    scores, made = hashed(3, 1, broken=5), split(hashed(3, 1, broken=5), 3, 4, 90, 20, 2, rows)
    x = torch.tensor([0, 3, 20, 11]) / 20
    points = torch.cat(list(made.points(x)))
    assert [len(batch) for batch in made.points(x)] == [rows] * (90 // rows) + [90 % rows] * (90 % rows > 0)
    found = [int(row.argmax()) for row in scores(points) if not row.isnan().any()]
    assert made.counts(x) == tuple(found.count(k) for k in range(3))
    assert 0 < sum(made.counts(x)) < 90


def test_thresholds_separate_two_values_as_often_as_they_are_apart() -> None:
    """The statement that all rests on: d steps apart, min(d, cells) of the values of s make different points."""
    for levels, cells in product((1, 2, 5, 9), (1, 2, 3, 9, 10, 18, 25)):
        for seed in range(3):
            made = split(below(0.5), 2, 1, cells, levels, seed, dtype=torch.float64)
            rows = [torch.cat(list(made.points(torch.tensor([k / levels])))) for k in range(levels + 1)]
            for a, b in product(range(levels + 1), repeat=2):
                assert int((rows[a] != rows[b]).sum()) == min(abs(a - b), cells)


@pytest.mark.parametrize("seed", range(20))
def test_counts_change_by_no_more_than_the_distance(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, classes = int(random.integers(1, 6)), int(random.integers(2, 5))
    made = split(hashed(classes, seed, broken=seed % 3), classes, size, int(random.integers(1, 60)), 12, seed)
    for _ in range(40):
        a = random.integers(0, 13, size)
        b = np.clip(a + random.integers(-2, 3, size) * (random.random(size) < 0.6), 0, 12)
        counts = [made.counts(torch.from_numpy(k) / 12) for k in (a, b)]
        assert max(abs(p - q) for p, q in zip(*counts, strict=True)) <= np.abs(a - b).sum()


@pytest.mark.parametrize("seed", range(24))
def test_no_input_of_the_grid_breaks_a_certificate(seed: int) -> None:
    """Every input of the grid, against every certificate."""
    random = np.random.default_rng(seed)
    size, levels = ((1, 12), (2, 7), (3, 4), (4, 3))[seed % 4]
    cells, classes = int(random.integers(1, 5 * levels)), int(random.integers(2, 4))
    if seed % 3:
        scores = hashed(classes, seed, broken=(0, 4)[seed % 2])
    else:
        weight = torch.from_numpy(random.normal(size=(size, classes)))
        scores = lambda x: (x.double() - 0.5) @ weight  # noqa: E731
    made = split(scores, classes, size, cells, levels, seed)
    grid = np.array(list(product(range(levels + 1), repeat=size)))
    found = [made.certified(torch.from_numpy(point) / levels) for point in grid]
    labels = np.array([-1 if one.label is None else one.label for one in found])
    for point, one in zip(grid, found, strict=True):
        if one.label is not None:
            near = np.abs(grid - point).sum(1) <= one.steps
            assert (labels[near] == one.label).all()
            assert one.label == int(np.argmax(one.counts))


@pytest.mark.parametrize("cells", [5, 8, 13])
def test_radii_are_attained(cells: int) -> None:
    """Of a threshold on one element that ``hits`` points are below (or from), none could be a step longer."""
    levels, k = 60, 30
    for hits in range(cells // 2 + 1, cells + 1):
        for label in (0, 1):
            below_it = hits if label == 0 else cells - hits
            threshold = (k + below_it - cells / 2) / levels  # between two middles
            made = split(below(threshold), 2, 1, cells, levels, hits, dtype=torch.float64)
            found = made.certified(torch.tensor([k / levels]))
            assert (found.label, found.counts[0], found.steps) == (label, below_it, (2 * hits - cells - label) // 2)
            way = 1 if label == 0 else -1
            ends = [made.certified(torch.tensor([(k + way * (found.steps + n)) / levels])).label for n in (0, 1)]
            assert ends == [label, 1 - label]


def test_ties_are_the_lowest_class() -> None:
    """10 to 10: class 0, and one step up it is class 1; with 11 to 9 at the step below, for one step up."""
    made = split(below(0.5), 2, 1, 20, 20, 0)
    found = [made.certified(torch.tensor([k / 20])) for k in (9, 10, 11)]
    assert [(one.counts, one.label, one.steps) for one in found] == [((11, 9), 0, 1), ((10, 10), 0, 0), ((9, 11), 1, 0)]


def test_all_points_of_one_class_are_certified_for_the_width() -> None:
    made = split(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), 2, 5, 510)
    found = made.certified(torch.zeros(5))
    assert (found.counts, found.label, found.steps, found.width) == ((0, 510), 1, 254, 1)
    made = split(lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2), 2, 5, 510)
    found = made.certified(torch.ones(5))
    assert (found.label, found.steps, found.radius, found.norm) == (0, 255, 1.0, "1")
    assert str(found) == (
        "class 0 within 255/255 (norm 1): deterministic, of the smoothed classifier, inputs on the grid of 1/255, "
        "510 points"
    )


def test_radii_are_rounded_down() -> None:
    for levels in (3, 10, 255):
        for steps in range(levels + 1):
            radius = Derandomised(0, steps, levels, 10, (10, 0)).radius
            assert Fraction(radius) <= Fraction(steps, levels) <= Fraction(float(np.nextafter(radius, 2)))


def test_without_finite_scores_nothing_is_claimed() -> None:
    found = split(lambda x: torch.full((len(x), 2), torch.nan), 2, 1, 30).certified(torch.zeros(1))
    assert (found.label, found.steps, found.counts) == (None, 0, (0, 0))
    assert "no class" in str(found)


def test_a_model_is_certified_alike_in_every_run(checkout: Path) -> None:
    path = checkout / "benchmarks" / "digits" / "digits.onnx"
    made = derandomise(path, 2, levels=16)
    random = np.random.default_rng(0)
    x = (random.integers(0, 17, (3, 1, 8, 8)) / 16).astype(np.float32)
    found = made.certify(x)
    assert [one.points for one in found] == [64] * 3
    assert found == derandomise(path, Fraction(2), levels=16).certify(x.reshape(3, 64))
    assert found != derandomise(path, 2, levels=16, seed=1).certify(x)
    assert derandomise(path, 0.1, levels=16).certify(x[:1] * 0)[0].width == Fraction(3, 32)


def test_other_inputs_are_refused() -> None:
    made = split(below(0.5), 2, 2, 10)
    for k in range(256):
        for value in (np.float32(k) / np.float32(255), np.float32(k) * np.float32(1 / 255)):
            assert made.counts(np.array([value, 0], dtype=np.float32)) == made.counts(np.array([k / 255, 0]))
    for value, why in ((0.5, "no multiple of 1/255"), (255.0, "outside [0, 1]"), (-1 / 255, "outside"), (2.0, "divide"),
                       (float("nan"), "outside"), (1 / 255 + 1e-6, "no multiple")):  # fmt: skip
        with pytest.raises(InputError, match=re.escape(why)):
            made.certified(torch.tensor([0.0, value]))
    with pytest.raises(InputError, match="element 1"):
        made.certified(torch.tensor([0.0, 0.5]))
    with pytest.raises(InputError, match="shape"):
        made.certified(torch.zeros(3))
    for numbers in ((0, 255, 1), (10, 0, 1), (10, 255, 0), (10, 10**6, 1)):
        with pytest.raises(InputError, match="at least one"):
            split(below(0.5), 2, 2, numbers[0], numbers[1], rows=numbers[2])
    with pytest.raises(InputError, match="width"):
        derandomise(torch.nn.Linear(2, 2).eval(), -1, shape=(2,))
