"""The linear blocks of nonlinear operators: exact forms leave the operator's values alone, envelopes hold them.

Rows are checked in rational arithmetic, with no tolerance but the blocks' own errors, on the dangerous intervals of
``relaxations.py``: points, kinks and jumps at ends and inside, widths from 1e-12 to 1e6. Linear relaxations are solved
and compared with the convex hull of the graph.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.constraints import LinearBlock
from bounds.ops import extremum, jumps, operators, pieces
from bounds.ops.argmax import Place
from bounds.ops.base import Interval, Nonlinear, UnsupportedOperatorError
from bounds.ops.bilinear import Bilinear
from bounds.ops.extremum import Max, Min
from bounds.ops.jumps import Jumping, Step
from bounds.ops.piecewise import Clip, LeakyRelu
from bounds.ops.powers import Power
from bounds.ops.relu import Relu
from bounds.ops.univariate import PiecewiseLinear, Univariate
from bounds.rounding import Rounding

D = torch.float64
ROUNDING = Rounding.of(D)
EXACT = (PiecewiseLinear, Jumping, Max, Min, Place)
"""Families with an exact form."""


def helper(name: str) -> ModuleType:
    """A file of ``tests/helpers``, which is no package."""
    if name not in sys.modules:
        path = Path(__file__).resolve().parents[1] / "helpers" / f"{name}.py"
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None and specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


tools = helper("relaxations")
listed = helper("nonlinear_examples")
linear = helper("linear_blocks")


class _Zigzag(PiecewiseLinear):
    """Four branches: the shape that no operator of the registry has."""

    def __repr__(self) -> str:
        return "Zigzag()"

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        return torch.where(x < -1, -x, torch.where(x < 0.5, 2 * x + 3, torch.where(x < 2, 4.5 - x, x + 0.5)))

    def kinks(self) -> tuple[float, ...]:
        return (-1.0, 0.5, 2.0)

    def branches(self, like: Tensor, *parameters: Tensor) -> Sequence[tuple[float, float]]:
        return (-1.0, 0.0), (2.0, 3.0), (-1.0, 4.5), (1.0, 0.5)

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        ((low, high),) = operands
        values = torch.stack(
            [
                self.forward(torch.minimum(torch.maximum(p, low), high))
                for p in (low, high, *(torch.full_like(low, k) for k in self.kinks()))
            ]
        )
        return self._outward(values.amin(0), values.amax(0), rounding)

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        return None, None


def zigzag(x: Any) -> Any:
    slope, offset = (-1, 0) if x < -1 else (2, 3) if x < 0.5 else (-1, 4.5) if x < 2 else (1, 0.5)
    return mpmath.fadd(slope * x, offset, exact=True)


ZIGZAG = tools.Example(_Zigzag(), zigzag, (-1.0, 0.5, 2.0))
del _Zigzag  # the registry finds operators by their name in their module, and this is none of them

WITH_EXACT = [e for e in (*listed.EXAMPLES, ZIGZAG) if isinstance(e.op, EXACT)]
CURVED = [e for e in listed.EXAMPLES if isinstance(e.op, Univariate) and not isinstance(e.op, PiecewiseLinear)]
with_exact = pytest.mark.parametrize("example", WITH_EXACT, ids=lambda e: e.name)


def intervals(example: Any, count: int = 80) -> list[Interval]:
    """``[1, n]`` for each variable operand: some of the aimed intervals, and random ones."""
    aimed, scattered = tools.variables(example, D), tools.variables(example, D, random=count)
    step = max(1, aimed[0][0].shape[0] // count)
    return [
        tuple(torch.cat([a[::step], b]).reshape(1, -1) for a, b in zip(one, two, strict=True))
        for one, two in zip(aimed, scattered, strict=True)
    ]


def points(example: Any, variable: Sequence[Interval], seed: int = 0) -> list[list[tuple[float, ...]]]:
    """For each element some points of its operands: ends, kinks, places next to them, random ones."""
    rng = np.random.default_rng(seed)
    found: list[list[tuple[float, ...]]] = []
    for ends in zip(*(torch.stack(pair).reshape(2, -1).T.tolist() for pair in variable), strict=True):
        axes = []
        for low, high in ends:
            kinks = [k for kink in example.kinks for k in (kink, np.nextafter(kink, 1e9), np.nextafter(kink, -1e9))]
            whole = [math.floor(low) + 1.0, math.floor(low) + 0.5, math.ceil(high) - 1.0] if example.jumps else []
            places = [low, high, *kinks, *whole, *(low + share * (high - low) for share in rng.uniform(0, 1, 3))]
            axes.append([float(x) for x in places if low <= x <= high])
        if len(axes) == 1:
            found.append([(x,) for x in dict.fromkeys(axes[0])])
            continue
        both = [x for x in (*axes[0], *axes[1]) if all(low <= x <= high for low, high in ends)][:3]
        corners = [(x, y) for x in ends[0] for y in ends[1]]
        mixed = list(zip(rng.permutation(axes[0]).tolist(), rng.permutation(axes[1]).tolist(), strict=False))
        found.append([*corners, *((x, x) for x in both), *mixed])
    return found


def limits(example: Any, point: Sequence[float], ends: Sequence[tuple[float, float]]) -> list[Fraction]:
    """The operator's value at a point, and the values that it comes close to inside the interval."""
    found = [linear.fraction(example.exact(point))]
    if example.jumps:
        x = torch.tensor([point[0]], dtype=D)
        for side, inside in zip(example.op.sides(x), (point[0] > ends[0][0], point[0] < ends[0][1]), strict=True):
            found += [Fraction(float(side))] if inside else []
    return found


def check_exact(example: Any, block: LinearBlock, variable: Sequence[Interval]) -> int:
    """Everywhere the rows leave the operator's values, and nothing else. Returns how many elements have a phase."""
    operands = example.operands(variable)
    found = linear.parts(block, example.arity, example.op.interval(operands, ROUNDING))
    lines = example.op.relaxation(operands, ROUNDING)
    ends = list(zip(*(list(zip(*(end[0].tolist() for end in pair), strict=True)) for pair in variable), strict=True))
    for i, (part, places) in enumerate(zip(found, points(example, variable), strict=True)):
        tolerance = 4 * part.error
        for point in places:
            given = [Fraction(x) for x in point]
            left, wanted = part.results(given), limits(example, point, ends[i])
            for value in wanted:
                assert any(least <= value <= most for least, most in left), (example.name, ends[i], point, float(value))
            for end in (e for pair in left for e in pair):
                assert any(abs(end - value) <= tolerance for value in wanted), (
                    example.name,
                    ends[i],
                    point,
                    float(end),
                )
                for line, sign in ((lines.lower[0], 1), (lines.upper[0], -1)):
                    slopes = [Fraction(float(s.expand_as(variable[0][0])[0, i])) for s in line.slopes]
                    below = sum((s * x for s, x in zip(slopes, given, strict=True)), Fraction(float(line.offset[0, i])))
                    assert (end - below) * sign >= -tolerance, (example.name, ends[i], point)
    return sum(bool(part.own) for part in found)


@with_exact
def test_exact_blocks(example: Any) -> None:
    """At a jump the values on both sides and the one there, elsewhere the one value; inside the relaxation's lines."""
    variable = intervals(example)
    block = example.op.exact(example.operands(variable))
    assert block.exact
    phases = check_exact(example, block, variable)
    assert phases > 20 or example.name.startswith(("LeakyRelu(alpha=1.0)", "Clip(low=1.0, high=1.0)"))


def test_who_has_an_exact_form() -> None:
    for op in {type(e.op) for e in listed.EXAMPLES}:
        assert issubclass(op, EXACT) or issubclass(op, Univariate | Bilinear)
    assert all(
        op in {type(e.op) for e in listed.EXAMPLES} | set(listed.ELSEWHERE)
        for op in operators()
        if issubclass(op, Nonlinear)
        and op.__module__.startswith("bounds.ops")  # other tests make operators of their own
    )
    with pytest.raises(UnsupportedOperatorError, match="Sigmoid has no exact form"):
        next(e for e in listed.EXAMPLES if e.name.startswith("Sigmoid")).op.exact([])


def test_linear_elements_cost_nothing() -> None:
    low, high = torch.tensor([[0.0, -3.0, 1.0, -2.0]], dtype=D), torch.tensor([[2.0, -1.0, 1.0, 0.0]], dtype=D)
    for op in (Relu(), Clip(0.0, 6.0), LeakyRelu(0.125), Clip(None, 2.0), LeakyRelu(1.0)):
        block = op.exact([(low, high)])
        assert block.integer.shape[0] == 0
        assert block.lower.shape[0] <= (2 if isinstance(op, LeakyRelu) and op.alpha != 1 else 0)
    assert LeakyRelu(0.125).exact([(low, high)]).same.tolist() == [0, -1, 2, -1]
    assert LeakyRelu(1.0).exact([(low, high)]).same.tolist() == [0, 1, 2, 3]
    x, y = (low, high), (low + 3, high + 4)
    assert Max().exact([x, y]).same.tolist() == [4, 5, 6, 7]
    assert Min().exact([x, y]).same.tolist() == [0, 1, 2, 3]
    assert Max().exact([y, x]).same.tolist() == [0, 1, 2, 3]


# Strength ----------------------------------------------------------------------------------------------------------


def corners(example: Any, variable: Sequence[Interval]) -> list[list[tuple[float, ...]]]:
    """Points of each element's graph, or its limits, whose convex hull is that of the graph."""
    found = []
    for ends in zip(*(torch.stack(pair).reshape(2, -1).T.tolist() for pair in variable), strict=True):
        if example.arity == 2:
            (a, b), (c, d) = ends
            places = [(x, y) for x in (a, b) for y in (c, d)] + [(v, v) for v in (a, b, c, d)]
            found.append([(x, y, float(example.exact((x, y)))) for x, y in places if a <= x <= b and c <= y <= d])
            continue
        ((low, high),) = ends
        places = [low, *(k for k in example.kinks if low < k < high), high]
        found.append([(x, float(v)) for x in places for v in limits(example, (x,), ends)])
    return found


@pytest.mark.parametrize(
    "example",
    [
        e
        for e in WITH_EXACT
        if isinstance(e.op, PiecewiseLinear | Step | Max | Min) and e.name != "LeakyRelu(alpha=-1000000.0)"
    ],
    ids=lambda e: e.name,
)
def test_relaxed_blocks_are_convex_hulls(example: Any) -> None:
    """In every direction the linear relaxation ends where the graph's convex hull does."""
    rng = np.random.default_rng(0)
    middle = rng.choice(np.array((*example.kinks, 0.0)), (example.arity, 60)) + rng.normal(size=(example.arity, 60))
    width = rng.uniform(0.1, 4.0, middle.shape)
    share = rng.uniform(0, 1, middle.shape)
    low, high = (torch.from_numpy(middle + part * width) for part in (-share, 1 - share))
    variable = [(a[None], b[None]) for a, b in zip(low, high, strict=True)]
    operands = example.operands(variable)
    block, ends = example.op.exact(operands), example.op.interval(operands, ROUNDING)
    hull = corners(example, variable)
    for _ in range(12):
        cost = rng.normal(size=(example.arity + 1, 60))
        found = linear.relaxed_minimum(block, variable, ends, cost)
        wanted = [min(np.dot(cost[:, i], p) for p in hull[i]) for i in range(60)]
        assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6)


# Envelopes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", CURVED, ids=lambda e: e.name)
def test_envelopes(example: Any) -> None:
    """They hold the operator's values, and leave no more than ``error`` around them wherever segments were left."""
    variable = intervals(example, 12)
    operands = example.operands(variable)
    low, high = example.op.interval(operands, ROUNDING)
    there = (torch.isfinite(low) & torch.isfinite(high) & (high - low < 1e6))[0]
    variable = [(a[:, there], b[:, there]) for a, b in variable]
    error = 0.04
    block = example.op.envelope(example.operands(variable), error)
    assert not block.exact
    found = linear.parts(block, 1, example.op.interval(example.operands(variable), ROUNDING))
    close = 0
    for part, places in zip(found, points(example, variable), strict=True):
        assert len(part.pieces) <= pieces.SEGMENTS
        for point in places:
            value = linear.fraction(example.exact(point))
            left = part.results([Fraction(point[0])])
            assert any(least <= value <= most for least, most in left), ("unsound", example.name, point)
            # Joining leaves fewer than there were when the cutting stopped: far fewer, and it did not have to stop.
            if len(part.pieces) < pieces.SEGMENTS // 4 and abs(value) < 1e6:
                close += 1
                assert all(abs(end - value) <= error for pair in left for end in pair), (example.name, point)
    assert close > 10


def test_segments_are_as_few_as_the_error_asks() -> None:
    """For x^2 on [0, 1] the lines of a segment of width w are w^2 / 4 apart: 1 / (2 sqrt(error)) segments."""
    square = next(e for e in listed.EXAMPLES if e.op == Power(2))
    ends = torch.zeros((1, 1), dtype=D), torch.ones((1, 1), dtype=D)
    counts = [square.op.envelope([ends], error).integer.sum() for error in (1.0, 1e-1, 1e-2, 1e-3, 1e-9)]
    assert counts[0] == 0
    assert counts[1] == 2
    assert 5 <= counts[2] <= 8
    assert 16 <= counts[3] <= 24
    assert counts[4] == pieces.SEGMENTS


@pytest.mark.parametrize("example", [e for e in listed.EXAMPLES if isinstance(e.op, Bilinear)], ids=lambda e: e.name)
def test_products_have_their_hull(example: Any) -> None:
    variable = intervals(example)
    block = example.op.envelope(variable, 0.0)
    found = linear.parts(block, 2, example.op.interval(variable, ROUNDING))
    for part, places in zip(found, points(example, variable), strict=True):
        assert len(part.rows) == 4
        for point in places:
            value = linear.fraction(example.exact(point))
            assert any(least <= value <= most for least, most in part.results([Fraction(x) for x in point]))


# Seeded faults -----------------------------------------------------------------------------------------------------


def red(name: str) -> None:
    example = next(e for e in WITH_EXACT if e.name.startswith(name))
    variable = intervals(example)
    with pytest.raises(AssertionError):
        check_exact(example, example.op.exact(example.operands(variable)), variable)


def test_a_distance_on_the_wrong_side_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """``y <= z + l (1 - d)``."""
    monkeypatch.setattr(pieces, "_product_above", lambda a, b: -a * b)
    for name in ("Relu", "Abs", "Clip(low=None"):
        red(name)


def test_a_distance_that_is_too_short_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a unit in the last place."""
    monkeypatch.setattr(pieces, "_product_above", lambda a, b: a * b * (1 - 2**-50))
    red("LeakyRelu(alpha=0.125)")
    monkeypatch.setattr(extremum, "difference_above", lambda a, b: (a - b) * (1 - 2**-50))
    red("Max")
    red("Min")


def test_an_open_side_of_a_jump_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value at the jump, or the one next to it, left out."""
    sound = jumps.two_levels

    def shifted(x: Tensor, y: Tensor, ends: Any, step: Any, own: Any) -> Any:
        jump, before, after = step
        rows = sound(x, y, ends, (jump, before, after), own)
        closed = rows[1]
        return [rows[0], type(closed)(closed.terms, upper=closed.upper - (closed.upper - ends[0]) * 2**-30), rows[2]]

    monkeypatch.setattr(jumps, "two_levels", shifted)
    for name in ("Step(left=-1.0, at=1.0", "Step(left=0.0, at=0.0", "Floor", "Round"):
        red(name)


def test_a_third_value_that_is_left_out_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(self: Step, operands: Any) -> LinearBlock:
        return Step(self.left, self.right, self.right).exact(operands)

    example = next(e for e in WITH_EXACT if e.name.startswith("Step(left=-1.0, at=0.0"))
    variable = intervals(example)
    with pytest.raises(AssertionError):
        check_exact(example, two(example.op, variable), variable)


def test_an_envelope_without_error_terms_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of Exp on segments, computed without rounding in mind."""
    exponential = next(e for e in CURVED if e.name.startswith("Exp"))
    sound = type(exponential.op).relaxation

    def careless(self: Any, operands: Any, rounding: Any, chosen: Any = (None, None)) -> Any:
        return sound(self, operands, None, chosen)

    monkeypatch.setattr(type(exponential.op), "relaxation", careless)
    low = torch.linspace(-3, 3, 60, dtype=D)[None]
    variable = [(low, low + 1)]
    found = linear.parts(exponential.op.envelope(variable, 0.1), 1, exponential.op.interval(variable, ROUNDING))
    values = [
        (linear.fraction(exponential.exact((x,))), part.results([Fraction(x)]))
        for part, x in zip(found, low[0].tolist(), strict=True)
    ]
    assert not all(any(least <= v <= most for least, most in left) for v, left in values)
