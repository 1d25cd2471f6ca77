"""The nonlinear operators of the registry: values, intervals and lines against high-precision references.

Soundness has no tolerance. What is tested on which intervals, and how an operator enters, is said in
``tests/helpers/relaxations.py``; ``nonlinear_examples.py`` beside it is the list. The unmarked tests take the aimed
intervals and a few random ones; the slow one takes 10,000 random ones for each operator, dtype and choice of slopes.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.interval import finite_or_infinite
from bounds.ops import operators
from bounds.ops.affine import Affine
from bounds.ops.base import Line, Nonlinear
from bounds.ops.extremum import Max
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid, Tanh
from bounds.ops.univariate import PiecewiseLinear, Univariate
from bounds.rounding import Rounding

mpf = mpmath.mpf


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
EXAMPLES = listed.EXAMPLES
nonlinear = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
one_variable = pytest.mark.parametrize("example", [e for e in EXAMPLES if e.arity == 1], ids=lambda e: e.name)
continuous = pytest.mark.parametrize(
    "example", [e for e in EXAMPLES if e.arity == 1 and not e.jumps], ids=lambda e: e.name
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
FEW = 50
MANY = 10_000


def choices(example: Any, given: Any, seed: int) -> list[tuple[Tensor | None, Tensor | None]]:
    """Parameters to try: the operator's own, both ends of what is useful, random ones between and outside."""
    low = given[0][0]
    freedom = example.op.freedom(given)
    rng = np.random.default_rng(seed)
    found: list[list[Tensor | None]] = [[None, None] for _ in range(5)]
    for side, free in enumerate(freedom):
        if free is None:
            continue
        least, greatest = (torch.nan_to_num(e.expand_as(low)) for e in (free.least, free.greatest))
        share = torch.from_numpy(rng.uniform(-0.2, 1.2, tuple(low.shape))).to(low)
        wild = torch.from_numpy(rng.uniform(-0.5, 1.5, tuple(low.shape))).to(low)
        wild[::7] = 0.0
        for k, value in enumerate((None, least, greatest, least + share * (greatest - least), wild)):
            found[k][side] = None if value is None else torch.nan_to_num(value)  # a share of a huge range overflows
    return list(dict.fromkeys((a, b) for a, b in found))


def thin(variable: Any, start: int, step: int) -> Any:
    return [(low[start::step], high[start::step]) for low, high in variable]


def test_every_nonlinear_operator_has_an_example() -> None:
    found = {op for op in operators() if not issubclass(op, Affine) and op.__module__.startswith("bounds.ops")}
    assert found == {type(e.op) for e in EXAMPLES} | set(listed.ELSEWHERE)
    for op, file in listed.ELSEWHERE.items():
        assert op.__name__ in (Path(__file__).parent / file).read_text(encoding="utf-8")


@both_dtypes
@nonlinear
def test_intervals_are_sound(example: Any, dtype: torch.dtype) -> None:
    variable = thin(tools.variables(example, dtype), 0, 2)
    interval = example.op.interval(example.operands(variable), Rounding.of(dtype))
    tools.check_interval(example, variable, interval)
    # The interval is no wider than the values that were found, up to rounding.
    values = torch.nan_to_num(example.forward(tools.samples(example, variable)), nan=math.inf)
    size = values.abs().amax(1, keepdim=True)
    slack = (0.1 if example.arity == 1 else 0.3) * values.abs().amax(1, keepdim=True) + 64 * torch.finfo(dtype).eps
    for ours, found, sign in zip(interval, values.aminmax(dim=1, keepdim=True), (1, -1), strict=True):
        assert bool(((found - ours.double()) * sign <= slack)[size < 1e30].all())


@both_dtypes
@nonlinear
def test_lines_are_sound(example: Any, dtype: torch.dtype) -> None:
    variable = thin(tools.variables(example, dtype), 0, 2)
    tools.check_lines(example, variable, example.op.relaxation(example.operands(variable), Rounding.of(dtype)))


@both_dtypes
@nonlinear
def test_lines_are_sound_for_any_parameters(example: Any, dtype: torch.dtype) -> None:
    aimed = thin(tools.variables(example, dtype), 1, 9)
    scattered = tools.variables(example, dtype, FEW, seed=1)
    variable = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(aimed, scattered, strict=True)]
    given = example.operands(variable)
    for k, chosen in enumerate(choices(example, given, seed=3)):
        some = thin(variable, k % 2, 2)
        parameters = tuple(None if c is None else c[k % 2 :: 2] for c in chosen)
        lines = example.op.relaxation(example.operands(some), Rounding.of(dtype), parameters)
        tools.check_lines(example, some, lines)


@pytest.mark.slow
@both_dtypes
@nonlinear
def test_ten_thousand_intervals(example: Any, dtype: torch.dtype) -> None:
    variable = tools.variables(example, dtype, MANY, seed=11)
    given = example.operands(variable)
    tools.check_interval(example, variable, example.op.interval(given, Rounding.of(dtype)))
    for chosen in choices(example, given, seed=12):
        tools.check_lines(example, variable, example.op.relaxation(given, Rounding.of(dtype), chosen))


def single(example: Any, low: float, high: float) -> Any:
    ends = torch.tensor([[low], [high]]).double().clamp(*example.domain)
    return example.operands([(ends[:1], ends[1:])])


ORDINARY = ((-1.0, 2.0), (-3.0, 0.5), (-0.2, 0.1), (0.5, 4.0), (-5.0, -1.0), (-8.0, 9.0), (-40.0, 1.0))


def attained(example: Any, line: Line, sign: int, low: float, high: float) -> float:
    """The least gap between a line (one box) and the function over a fine grid, relative to the function's range."""
    x = np.unique(np.concatenate([np.linspace(low, high, 4001), [k for k in example.kinks if low <= k <= high]]))
    value = example.forward([torch.from_numpy(x).reshape(-1, 1)]).flatten().numpy()
    gap = sign * (value - float(line.slopes[0]) * x - float(line.offset))
    return float(gap.min() / max(1e-9, np.ptp(value), 1e-8 * abs(float(line.offset))))


@continuous
def test_lines_touch(example: Any) -> None:
    """The intercept is the best one for its slope: somewhere the line meets the function."""
    for low, high in ORDINARY:
        given = single(example, low, high)
        lines = example.op.relaxation(given, Rounding.of(torch.float64))
        low, high = float(given[0][0]), float(given[0][1])
        for line, sign in ((lines.lower[0], 1), (lines.upper[0], -1)):
            assert math.isinf(float(line.offset)) or attained(example, line, sign, low, high) < 2e-5


@both_dtypes
@nonlinear
def test_values_are_accurate(example: Any, dtype: torch.dtype) -> None:
    """``forward`` is off by a few units in the last place, or of an absolute grain where it has one."""
    variable = thin(tools.variables(example, dtype), 0, 5)
    points = [p[:, ::9].to(dtype) for p in tools.samples(example, variable)]
    points = [p.clamp(*example.domain) for p in points]
    computed = example.forward(points).double()
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    ulps, grain = (example.op.ulps, example.op.grain) if isinstance(example.op, Univariate) else (4, 0.0)
    for n, row in enumerate(torch.stack(points, 2).tolist()):
        for place, value in zip(row, computed[n].tolist(), strict=True):
            if math.isfinite(value) and abs(value) < torch.finfo(dtype).max / 2:
                exact = example.exact(place)
                assert abs(value - exact) <= max(2, ulps) * eps * abs(exact) + grain * eps + tiny, place


@both_dtypes
@continuous
def test_ends_without_information(example: Any, dtype: torch.dtype) -> None:
    """Infinite and huge ends give lines that are no NaN, and sound at the points that numbers can hold."""
    largest = torch.finfo(dtype).max
    ends = [
        (-math.inf, math.inf),
        (-math.inf, -1.0),
        (1.0, math.inf),
        (0.5, math.inf),
        (-largest, largest),
        (1.0, largest),
    ]
    low, high = (torch.tensor(e, dtype=dtype).clamp(*example.domain).unsqueeze(1) for e in zip(*ends, strict=True))
    variable = [(low, high)] * example.arity
    given = example.operands(variable)
    finite = [(low.clamp(-1e4, 1e4), high.clamp(-1e4, 1e4))] * example.arity
    interval = finite_or_infinite(*example.op.interval(given, Rounding.of(dtype)))
    tools.check_interval(example, finite, interval)
    half = torch.full_like(low, 0.5)
    free = tuple(None if f is None else half for f in example.op.freedom(given))
    for chosen in ((None, None), free):
        lines = example.op.relaxation(given, Rounding.of(dtype), chosen)
        for line in (*lines.lower, *lines.upper):
            assert not line.offset.isnan().any()
            assert all(s.isfinite().all() for s in line.slopes)
        tools.check_lines(example, finite, lines)


@one_variable
def test_ascent_is_the_derivative(example: Any) -> None:
    """``ascent`` against central differences of the line's value by its parameter."""
    rng = np.random.default_rng(8)
    low = torch.from_numpy(rng.uniform(-4, 3, (80, 1))).clamp(*example.domain)
    high = (low + torch.from_numpy(rng.uniform(0.5, 5, (80, 1)))).clamp(*example.domain)
    given = example.operands([(low, high)])
    z = low + torch.from_numpy(rng.uniform(0, 1, (80, 1))) * (high - low)
    step = 1e-6
    for side, free in enumerate(example.op.freedom(given)):
        if free is None:
            continue
        share = torch.from_numpy(rng.uniform(0.1, 0.9, (80, 1)))
        k = free.least + share * (free.greatest - free.least)
        inner = ((free.greatest - free.least) > 1e-3) & (k.abs() < 1e3)

        def value(k: Tensor, side: int = side) -> Tensor:
            chosen = (k, None) if side == 0 else (None, k)
            line = (lambda r: (r.lower, r.upper))(example.op.relaxation(given, None, chosen))[side][0]
            return line.slopes[0] * z + line.offset

        ours = example.op.ascent(given, (k, None) if side == 0 else (None, k), [z])[side]
        right, left = (value(k + step) - value(k)) / step, (value(k) - value(k - step)) / step
        # One-sided derivatives differ where the extreme value jumps from one place to another.
        usual = inner & ((right - left).abs() < 0.05 * (1 + right.abs()))
        assert bool(((ours - (right + left) / 2).abs() <= 2e-2 * (1 + right.abs()))[usual].all())
        assert not bool(inner.any()) or bool(usual.any())


@one_variable
def test_stable_pieces_are_exact(example: Any) -> None:
    """Where no kink is inside, a piecewise linear function is its own relaxation."""
    if not isinstance(example.op, PiecewiseLinear):
        return
    for low, high in ((7.0, 9.0), (-5.0, -2.0), (3.0, 3.0)):
        lines = example.op.relaxation(single(example, low, high), None)
        for x in (low, (low + high) / 2, high):
            value = float(example.exact([x]))
            for line in (*lines.lower, *lines.upper):
                assert float(line.slopes[0]) * x + float(line.offset) == pytest.approx(value, rel=1e-14)


def test_maximum_with_a_certain_winner_is_exact() -> None:
    x = (torch.tensor([[1.0], [-4.0], [2.0]]), torch.tensor([[2.0], [-3.0], [2.0]]))
    y = (torch.tensor([[-1.0], [-3.0], [1.0]]), torch.tensor([[1.0], [5.0], [2.0]]))
    lines = Max().relaxation([x, y], Rounding.of(torch.float32))
    for line in (*lines.lower, lines.upper[0]):
        assert line.slopes[0].tolist() == [[1.0], [0.0], [1.0]]
        assert line.slopes[1].tolist() == [[0.0], [1.0], [0.0]]
        assert not line.offset.any()


def test_maximum_is_relaxed_like_a_relu_of_the_difference() -> None:
    x = (torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double())
    y = (torch.tensor([[-2.0]]).double(), torch.tensor([[0.5]]).double())
    upper = Max().relaxation([x, y], None).upper[0]
    relu = Relu().relaxation([(x[0] - y[1], x[1] - y[0])], None).upper[0]
    torch.testing.assert_close(upper.slopes[0], relu.slopes[0])
    torch.testing.assert_close(upper.slopes[1], 1 - relu.slopes[0])
    torch.testing.assert_close(upper.offset, relu.offset)


@nonlinear
def test_boxes_are_independent(example: Any) -> None:
    variable = thin(tools.variables(example, torch.float64), 0, 3)
    whole = example.op.relaxation(example.operands(variable), None)
    for n in (3, 20):
        one = [(low[n : n + 1], high[n : n + 1]) for low, high in variable]
        alone = example.op.relaxation(example.operands(one), None)
        for a, b in zip((*whole.lower, *whole.upper), (*alone.lower, *alone.upper), strict=True):
            torch.testing.assert_close(a.offset[n : n + 1], b.offset, rtol=1e-12, atol=1e-12)
            for s, t in zip(a.slopes, b.slopes, strict=True):
                torch.testing.assert_close(s[n : n + 1], t, rtol=1e-12, atol=1e-12)


@continuous
def test_loose_means_a_gap(example: Any) -> None:
    """Where an operator does not ask for better bounds its lines leave no gap."""
    assert isinstance(example.op, Nonlinear)
    low, high = tools.aimed(example, torch.float64)
    parameters = example.parameters
    loose = example.op.loose(low, high, *parameters)
    lines = example.op.relaxation(example.operands([(low, high)]), None)
    middle = (low + high) / 2
    gap = (lines.upper[0].slopes[0] - lines.lower[0].slopes[0]) * middle + lines.upper[0].offset - lines.lower[0].offset
    assert bool((loose | ~gap.isfinite() | (gap <= 1e-9 * (1 + middle.abs() * 2))).all())


@dataclass(frozen=True, slots=True)
class Clumsy(Tanh):
    """Its stationary points are off by a lot: only the bound of the excess keeps its lines sound."""

    def stationary(self, slope: Tensor) -> Tensor:
        return Tanh.stationary(self, slope) + torch.linspace(-1.0, 1.5, slope.shape[0]).to(slope).unsqueeze(1)


def test_stationary_points_need_not_be_accurate() -> None:
    count = 60
    low = torch.linspace(-3.0, 0.3, count).double().unsqueeze(1)
    variable = [(low, low + torch.linspace(3.5, 0.1, count).double().unsqueeze(1))]
    slopes = torch.full_like(low, 0.3)
    lines = Clumsy().relaxation(variable, Rounding.of(torch.float64), (slopes, slopes))
    place = float(Tanh().stationary(slopes)[0])
    example = tools.Example(Clumsy(), mpmath.tanh, (place, -place))
    tools.check_lines(example, variable, lines)


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=str)
@hypothesis_settings(max_examples=50)
@given(st.floats(-60, 60), st.floats(0, 80), st.floats(0, 1), st.booleans())
def test_s_shapes_anywhere(op: Univariate, low: float, width: float, slope: float, single: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    ends = torch.tensor([[low], [low + width]], dtype=dtype)
    example = next(e for e in EXAMPLES if e.op == op)
    variable = [(ends[:1], ends[1:])]
    slopes = torch.full_like(ends[:1], slope)
    for given_slopes in ((None, None), (slopes, slopes)):
        lines = op.relaxation(variable, Rounding.of(dtype), given_slopes)
        tools.check_lines(example, variable, lines)


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=str)
def test_s_shapes_start_with_the_line_that_is_highest_in_the_middle(op: Univariate) -> None:
    low = torch.linspace(-9, -0.01, 60).double().repeat_interleave(60).unsqueeze(1)
    high = torch.linspace(0.02, 12, 60).double().repeat(60).unsqueeze(1)
    middle, (best,) = (low + high) / 2, op.relaxation([(low, high)], None).lower
    reached = best.slopes[0] * middle + best.offset
    for share in torch.linspace(0, 1, 401).tolist():
        slopes = torch.full_like(low, share)
        (line,) = op.relaxation([(low, high)], None, (slopes, slopes)).lower
        assert bool((slopes * middle + line.offset <= reached + 1e-12).all())


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=str)
def test_initial_slopes_of_s_shapes_are_continuous(op: Univariate) -> None:
    low = -torch.linspace(0.01, 30, 100).double().repeat_interleave(100).unsqueeze(1)
    high = torch.linspace(-0.005, 90, 100).double().repeat(100).unsqueeze(1)
    low, high = torch.minimum(low, high - 2e-3), high
    first, second = op.slopes(low, high), op.slopes(low - 1e-10, high + 1e-10)
    for one, two in zip(first, second, strict=True):
        assert float((one - two).abs().max()) < 1e-7
