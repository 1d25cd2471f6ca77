"""Operators whose lines read several elements of an operand: MatrixProduct, Softmax, LogSoftmax.

Soundness has no tolerance: values and lines are evaluated with 60 digits, at corners, middles and random points of
boxes of all widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.ops.base import Interval, Line, Nonlinear
from bounds.ops.bilinear import MatrixProduct
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.rounding import Rounding

mpf = mpmath.mpf
mpmath.mp.prec = 200
Exact = np.ndarray[Any, Any]
WIDTHS = (0.0, 1e-40, 1e-12, 1e-5, 0.1, 1.0, 7.0, 60.0, 1e4, 1e6)
CENTRES = (0.0, 1e-3, -1.0, 30.0, 1e5)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def exact(values: Tensor) -> Exact:
    """A tensor as an array of exact numbers."""
    return np.vectorize(mpf, otypes=[object])(values.to(torch.float64).numpy())


def sums_along(x: Exact) -> Exact:
    return x.sum(-1, keepdims=True)


def softmax(x: Exact) -> Exact:
    powers = np.vectorize(mpmath.exp, otypes=[object])(x - np.max(x, -1, keepdims=True))
    return powers / sums_along(powers)


def log_softmax(x: Exact) -> Exact:
    """Without cancellation where one element is much greater than the others."""
    shift = np.max(x, -1, keepdims=True)
    powers = np.vectorize(mpmath.exp, otypes=[object])(x - shift)
    np.put_along_axis(powers, np.argmax(x, -1, keepdims=True), mpf(0), -1)
    return x - shift - np.vectorize(mpmath.log1p, otypes=[object])(sums_along(powers))


def normalised_line(slopes: list[Exact], values: list[Exact]) -> Exact:
    return slopes[0] * (values[0] + sums_along(slopes[1] * values[0]))


def matrix_line(slopes: list[Exact], values: list[Exact]) -> Exact:
    x, y = values
    total = x @ slopes[0] + slopes[1] @ y
    return total if len(slopes) == 2 else total + slopes[4] * (x @ slopes[2] + slopes[3] @ y)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    op: Nonlinear
    shapes: tuple[tuple[int, ...], ...]
    reference: Callable[..., Exact]
    line: Callable[[list[Exact], list[Exact]], Exact]


CASES = [
    Case(MatrixProduct(), ((2, 3), (3, 2)), lambda x, y: x @ y, matrix_line),
    Case(MatrixProduct(), ((1, 1), (1, 4)), lambda x, y: x @ y, matrix_line),
    Case(Softmax(-1), ((5,),), softmax, normalised_line),
    Case(Softmax(-1), ((2, 2),), softmax, normalised_line),
    Case(LogSoftmax(-1), ((4,),), log_softmax, normalised_line),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.op}{c.shapes}")


def boxes(case: Case, dtype: torch.dtype, seed: int) -> list[Interval]:
    """One box for each centre and width, with mixed widths inside a box."""
    rng = np.random.default_rng(seed)
    found = []
    for shape in case.shapes:
        scale = np.array([(c, w) for c in CENTRES for w in WIDTHS]).reshape(-1, 2, *[1] * len(shape))
        middle = scale[:, 0] + rng.normal(0, 1, (scale.shape[0], *shape)) * rng.choice([0.0, 1.0, 4.0])
        radius = scale[:, 1] * rng.choice([0.0, 0.01, 1.0, 1.0], (scale.shape[0], *shape))
        found.append((torch.from_numpy(middle - radius).to(dtype), torch.from_numpy(middle + radius).to(dtype)))
    return found


def points(operands: list[Interval], seed: int, count: int) -> list[list[Tensor]]:
    """Corners (more often) and inner points of every box."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in range(count):
        point = []
        for low, high in operands:
            share = torch.rand(low.shape, generator=generator, dtype=torch.float64)
            share = share if k % 3 == 2 else (share > 0.5).double()
            place = low.double() + share * (high.double() - low.double())
            point.append(place.to(low).clamp(low, high))
        found.append(point)
    return found


def check_line(case: Case, line: Line, sign: int, point: list[Tensor], value: Exact) -> None:
    found = case.line([exact(s) for s in line.slopes], [exact(p) for p in point]) + exact(line.offset)
    gap = (value - found) * sign
    assert (gap >= 0).all(), (case.op, sign, gap.min(), np.argwhere(gap < 0)[:3])


def choices(case: Case, operands: list[Interval]) -> list[tuple[Tensor | None, Tensor | None]]:
    freedom = case.op.freedom(operands)
    found: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
    if freedom[0] is not None and freedom[1] is not None:
        generator = torch.Generator().manual_seed(5)
        for low, high in ((0.0, 1.0), (-0.5, 1.5)):
            pair = []
            for free in freedom:
                assert free is not None
                share = low + torch.rand(free.start.shape, generator=generator).to(free.start) * (high - low)
                pair.append(free.least + share * (free.greatest - free.least))
            found.append((pair[0], pair[1]))
    return found


@both_dtypes
@every_case
def test_intervals_and_lines_are_sound(case: Case, dtype: torch.dtype) -> None:
    operands = boxes(case, dtype, seed=2)
    rounding = Rounding.of(dtype)
    low, high = (exact(end) for end in case.op.interval(operands, rounding))
    lines = [case.op.relaxation(operands, rounding, chosen) for chosen in choices(case, operands)]
    for point in points(operands, 3, 6):
        value = case.reference(*(exact(p) for p in point))
        assert (low <= value).all(), (low - value).max()
        assert (value <= high).all(), (value - high).max()
        for relaxation in lines:
            check_line(case, relaxation.lower[0], 1, point, value)
            check_line(case, relaxation.upper[0], -1, point, value)


@every_case
def test_intervals_are_tight(case: Case) -> None:
    """Softmax and its logarithm attain their ends at corners; so do the single terms of a matrix product."""
    operands = boxes(case, torch.float64, seed=4)
    low, high = case.op.interval(operands, Rounding.of(torch.float64))
    if isinstance(case.op, MatrixProduct):
        (a, b), (c, d) = operands
        inner = torch.zeros_like(low)
        for k in range(a.shape[-1]):
            ends = [x[..., :, k : k + 1] * y[..., k : k + 1, :] for x in (a, b) for y in (c, d)]
            inner = inner + torch.stack(ends).amin(0)
        torch.testing.assert_close(low, inner, rtol=1e-12, atol=1e-12)
        return
    ((a, b),) = operands
    for k in range(a.shape[-1]):
        first, last = b.clone(), a.clone()
        first[..., k], last[..., k] = a[..., k], b[..., k]
        torch.testing.assert_close(low[..., k], case.op.forward(first)[..., k], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(high[..., k], case.op.forward(last)[..., k], rtol=1e-7, atol=1e-7)


@every_case
def test_across_is_the_transpose_of_along(case: Case) -> None:
    operands = boxes(case, torch.float64, seed=6)
    for chosen in choices(case, operands):
        line = case.op.relaxation(operands, None, chosen).lower[0]
        values = [torch.randn_like(low) for low, _ in operands]
        forward = case.op.along(line.slopes, values)
        rows = torch.randn_like(forward)
        back = case.op.across(line.slopes, rows)
        left = (rows * forward).flatten(1).sum(1)
        right = torch.stack([(b * v).flatten(1).sum(1) for b, v in zip(back, values, strict=True)]).sum(0)
        torch.testing.assert_close(left, right)
        # Several rows for each box.
        stacked = case.op.across([s.unsqueeze(1) for s in line.slopes], torch.stack([rows, 2 * rows], 1))
        for one, two in zip(back, stacked, strict=True):
            torch.testing.assert_close(torch.stack([one, 2 * one], 1), two)


@every_case
def test_ascent_is_the_derivative(case: Case) -> None:
    operands = [(low[5:8], high[5:8]) for low, high in boxes(case, torch.float64, seed=7)]
    freedom = case.op.freedom(operands)
    if freedom[0] is None or freedom[1] is None:
        return
    chosen = [free.least + 0.4 * (free.greatest - free.least) for free in freedom if free is not None]
    values = [low - 0.3 * (high - low) for low, high in operands]
    derivatives = case.op.ascent(operands, (chosen[0], chosen[1]), values)
    for side, derivative in enumerate(derivatives):
        assert derivative is not None
        wide = (freedom[side].greatest - freedom[side].least) > 1e-6  # type: ignore[union-attr]
        found = []
        for step in (1e-6, -1e-6):
            moved = list(chosen)
            moved[side] = chosen[side] * (1 + step)
            relaxation = case.op.relaxation(operands, None, (moved[0], moved[1]))
            line = (relaxation.lower, relaxation.upper)[side][0]
            found.append(case.op.along(line.slopes, values) + line.offset)
        numeric = (found[0] - found[1]) / (2e-6 * chosen[side])
        torch.testing.assert_close(numeric[wide], derivative[wide], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", [Softmax(-1), LogSoftmax(-1)], ids=str)
def test_an_operand_without_bounds_leaves_what_is_known(op: Nonlinear) -> None:
    low, high = torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([[1.0, torch.inf, 1.0]])
    lower, upper = op.interval([(low, high)], Rounding.of(torch.float32))
    if isinstance(op, Softmax):
        assert bool((lower >= 0).all() and (upper <= 1).all())
        lines = op.relaxation([(low, high)], Rounding.of(torch.float32))
        assert not lines.lower[0].slopes[0].any() and not lines.lower[0].offset.any()
        assert not lines.upper[0].slopes[0].any() and bool((lines.upper[0].offset == 1).all())
    else:
        assert bool((torch.nan_to_num(upper, nan=torch.inf) >= 0)[0, 1])
