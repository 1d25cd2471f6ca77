"""The nonlinear operators of the registry: values, intervals and lines against high-precision references.

Soundness has no tolerance: piecewise linear functions are compared in fractions, smooth ones with 60 digits. The
intervals are the dangerous ones: points, widths from 1e-12 to 1e6, ends on a kink, saturation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.ops import operators
from bounds.ops.base import Affine, Interval, Line, Op, Relaxation
from bounds.ops.extremum import Max, Min
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid, Tanh
from bounds.ops.univariate import Univariate
from bounds.rounding import Rounding

mpf = mpmath.mpf
ctx = mpmath.mp
ctx.prec = 200


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A nonlinear operator with ``arity`` variable operands; ``kinks`` are where its intervals are aimed at."""

    op: Op
    reference: Callable[..., Any]
    kinks: tuple[float, ...] = (0.0,)
    arity: int = 1
    parameters: tuple[Tensor, ...] = field(default=())

    @property
    def name(self) -> str:
        return f"{self.op}{[p.tolist() for p in self.parameters] or ''}"


def leaky(alpha: float) -> Callable[[Any], Any]:
    return lambda x: x if x >= 0 else x * mpf(alpha)


def clip(low: float | None, high: float | None) -> Callable[[Any], Any]:
    def reference(x: Any) -> Any:
        x = x if low is None else max(x, mpf(low))
        return x if high is None else min(x, mpf(high))

    return reference


def prelu(slope: float) -> Example:
    return Example(PRelu(), leaky(slope), parameters=(torch.tensor([slope], dtype=torch.float64),))


EXAMPLES = [
    Example(Relu(), lambda x: max(x, mpf(0))),
    Example(Abs(), abs),
    *[Example(LeakyRelu(a), leaky(a)) for a in (0.125, 0.01, 1.0, 3.0, -0.5, -1e6)],
    *[prelu(a) for a in (0.25, -2.0, 1.5)],
    Example(Clip(0.0, 6.0), clip(0.0, 6.0), (0.0, 6.0)),
    Example(Clip(-0.1, 0.3), clip(-0.1, 0.3), (-0.1, 0.3)),
    Example(Clip(None, 2.0), clip(None, 2.0), (2.0,)),
    Example(Clip(-1e-9, None), clip(-1e-9, None), (-1e-9,)),
    Example(Clip(1.0, 1.0), clip(1.0, 1.0), (1.0,)),
    Example(Sigmoid(), lambda x: 1 / (1 + mpmath.exp(-x)), (0.0, -3.0, 2.0)),
    Example(Tanh(), mpmath.tanh, (0.0, -1.5, 1.0)),
    Example(Max(), max, arity=2),
    Example(Min(), min, arity=2),
]
nonlinear = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
one_variable = pytest.mark.parametrize("example", [e for e in EXAMPLES if e.arity == 1], ids=lambda e: e.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def aimed(kinks: Sequence[float], dtype: torch.dtype) -> Interval:
    """``[N, 1]``: points and intervals of all widths at, around, left and right of each kink, and far away."""
    ends: list[tuple[float, float]] = []
    widths = (0.0, 1e-12, 1e-7, 1e-3, 0.3, 2.0, 15.0, 1e3, 1e6)
    for centre, width in itertools.product((*kinks, 1e-3, -30.0, 90.0, -1e4, 1e5), widths):
        for share in (0.0, 0.5, 1.0, 0.1):
            ends.append((centre - share * width, centre + (1 - share) * width))
    ends += [(-1e-40, 1e-40), (0.0, 1e-40), (-1e-40, 0.0), (0.0, 5e-324), (1e-45, 1e-40), (-0.0, 0.0)]
    ends += [(-1e-300, 1e-310), (-750.0, -740.0), (-104.0, 18.0), (-1e6, 3.0), (-2.0, 1e6)]
    both = torch.tensor(ends, dtype=torch.float64).to(dtype)
    return both[:, :1].clone(), both[:, 1:].clone()


def operands(example: Example, dtype: torch.dtype) -> list[Interval]:
    low, high = aimed(example.kinks, dtype)
    if example.arity == 1:
        return [(low, high)]
    shuffle = torch.randperm(low.shape[0], generator=torch.Generator().manual_seed(1))
    near = shuffle % 2 == 0
    other_low = torch.where(near[:, None], low[shuffle], low - (high - low) / 3)
    other_high = torch.where(near[:, None], high[shuffle], high - (high - low) / 4)
    return [(low, high), (other_low, torch.maximum(other_low, other_high))]


def with_parameters(example: Example, variable: Sequence[Interval]) -> list[Interval]:
    return [*variable, *[(p, p) for p in (p.to(variable[0][0]) for p in example.parameters)]]


def inside(low: float, high: float, kinks: Sequence[float]) -> list[float]:
    """Points of ``[low, high]``: the ends, the kinks, shares of the width, and the neighbourhood of zero."""
    found = [low + share * (high - low) for share in (0.01, 0.25, 0.5, 0.7, 0.99)]
    found += [*kinks, -17.0, -6.0, -2.0, -1.0, -0.3, 0.1, 0.6, 1.2, 4.0, 11.0, 36.0]
    return [low, high, *(x for x in found if low < x < high)]


def grid(example: Example, variable: Sequence[Interval], n: int) -> list[tuple[float, ...]]:
    ends = [(float(low[n, 0]), float(high[n, 0])) for low, high in variable]
    if example.arity == 1:
        return [(x,) for x in inside(*ends[0], example.kinks)]
    corners = list(itertools.product(*ends))
    shared = [x for x in (*ends[0], *ends[1]) if all(low <= x <= high for low, high in ends)]
    middle = tuple((low + high) / 2 for low, high in ends)
    found = [*corners, *[(x, x) for x in shared], middle]
    return [p for p in found if all(low <= x <= high for x, (low, high) in zip(p, ends, strict=True))]


def test_every_nonlinear_operator_has_an_example() -> None:
    found = {op for op in operators() if not issubclass(op, Affine) and op.__module__.startswith("bounds.ops")}
    assert found == {type(e.op) for e in EXAMPLES}


@both_dtypes
@nonlinear
def test_value_and_interval(example: Example, dtype: torch.dtype) -> None:
    variable = operands(example, dtype)
    low, high = example.op.interval(with_parameters(example, variable), Rounding.of(dtype))
    eps = torch.finfo(dtype).eps
    for n in range(low.shape[0]):
        values = []
        for point in grid(example, variable, n):
            exact = example.reference(*map(mpf, point))
            assert mpf(float(low[n, 0])) <= exact <= mpf(float(high[n, 0])), (point, float(low[n]), float(high[n]))
            given = [torch.tensor([[x]], dtype=torch.float64).to(dtype) for x in point]
            computed = example.op.forward(*given, *[p.to(dtype) for p in example.parameters])
            if all(float(g) == x for g, x in zip(given, point, strict=True)):
                error = abs(float(computed) - exact)
                assert error <= 4 * eps * abs(exact) + torch.finfo(dtype).tiny, point
            values.append(exact)
        # The interval is no wider than the values that were found, up to rounding.
        slack = 16 * eps * (abs(max(values)) + abs(min(values))) + 4 * torch.finfo(dtype).tiny
        assert float(low[n, 0]) >= min(values) - slack
        assert float(high[n, 0]) <= max(values) + slack


def check_lines(example: Example, variable: Sequence[Interval], relaxation: Relaxation) -> None:
    """All lines on their side of the function at all test points."""
    sides = [(line, 1) for line in relaxation.lower] + [(line, -1) for line in relaxation.upper]
    count = variable[0][0].shape[0]
    for n in range(count):
        exact = [(p, example.reference(*map(mpf, p))) for p in grid(example, variable, n)]
        for line, sign in sides:
            slopes = [mpf(float(s.expand(count, 1)[n, 0])) for s in line.slopes]
            offset = mpf(float(line.offset.expand(count, 1)[n, 0]))
            for point, value in exact:
                below = sum((s * mpf(x) for s, x in zip(slopes, point, strict=True)), offset)
                gap = (value - below) * sign
                assert gap >= 0, (point, [(float(a[n]), float(b[n])) for a, b in variable], sign, float(gap))


@both_dtypes
@nonlinear
def test_lines_are_sound(example: Example, dtype: torch.dtype) -> None:
    variable = operands(example, dtype)
    given = with_parameters(example, variable)
    check_lines(example, variable, example.op.relaxation(given, Rounding.of(dtype)))


@both_dtypes
@nonlinear
def test_lines_are_sound_for_any_slopes(example: Example, dtype: torch.dtype) -> None:
    every = 3  # the slopes are what varies here
    variable = [(low[::every], high[::every]) for low, high in operands(example, dtype)]
    given = with_parameters(example, variable)
    low = variable[0][0]
    rng = np.random.default_rng(3)
    for scale in (1.0, 0.01):
        slopes = [torch.from_numpy(rng.uniform(-0.3, 1.3, tuple(low.shape)) * scale).to(dtype) for _ in range(2)]
        slopes[0][::7] = 0.0
        slopes[1][::5] = 0.25
        lines = example.op.relaxation(given, Rounding.of(dtype), tuple(slopes))
        check_lines(example, variable, lines)


def attained(example: Example, line: Line, sign: int, low: float, high: float) -> float:
    """The least gap between a line (one box) and the function over a fine grid, relative to the function's range."""
    x = np.unique(np.concatenate([np.linspace(low, high, 4001), [k for k in example.kinks if low <= k <= high]]))
    given = torch.from_numpy(x).reshape(-1, 1)
    value = example.op.forward(given, *example.parameters).flatten().numpy()
    gap = sign * (value - float(line.slopes[0]) * x - float(line.offset))
    return float(gap.min() / max(1e-9, np.ptp(value)))


@one_variable
def test_lines_touch(example: Example) -> None:
    """The intercept is the best one for its slope: somewhere the line meets the function."""
    for low, high in ((-1.0, 2.0), (-3.0, 0.5), (-0.2, 0.1), (0.5, 4.0), (-5.0, -1.0), (-8.0, 9.0), (-40.0, 1.0)):
        given = with_parameters(example, [(torch.tensor([[low]]).double(), torch.tensor([[high]]).double())])
        lines = example.op.relaxation(given, Rounding.of(torch.float64))
        assert attained(example, lines.lower[0], 1, low, high) < 2e-5
        assert attained(example, lines.upper[0], -1, low, high) < 2e-5


@one_variable
def test_stable_pieces_are_exact(example: Example) -> None:
    """Where no kink is inside, a piecewise linear function is its own relaxation."""
    if isinstance(example.op, Sigmoid | Tanh):
        return
    for low, high in ((7.0, 9.0), (-5.0, -2.0), (3.0, 3.0)):
        given = with_parameters(example, [(torch.tensor([[low]]).double(), torch.tensor([[high]]).double())])
        lines = example.op.relaxation(given, None)
        for x in (low, (low + high) / 2, high):
            value = float(example.reference(mpf(x)))
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
def test_boxes_are_independent(example: Example) -> None:
    variable = operands(example, torch.float64)
    whole = example.op.relaxation(with_parameters(example, variable), None)
    for n in (3, 40):
        one = [(low[n : n + 1], high[n : n + 1]) for low, high in variable]
        alone = example.op.relaxation(with_parameters(example, one), None)
        for a, b in zip((*whole.lower, *whole.upper), (*alone.lower, *alone.upper), strict=True):
            torch.testing.assert_close(a.offset[n : n + 1], b.offset, rtol=1e-12, atol=1e-12)
            for s, t in zip(a.slopes, b.slopes, strict=True):
                torch.testing.assert_close(s[n : n + 1], t, rtol=1e-12, atol=1e-12)


@one_variable
def test_loose_means_a_gap(example: Example) -> None:
    """Where an operator does not ask for better bounds its lines leave no gap."""
    assert isinstance(example.op, Univariate)
    low, high = aimed(example.kinks, torch.float64)
    parameters = example.parameters
    loose = example.op.loose(low, high, *parameters)
    lines = example.op.relaxation(with_parameters(example, [(low, high)]), None)
    middle = (low + high) / 2
    gap = (lines.upper[0].slopes[0] - lines.lower[0].slopes[0]) * middle + lines.upper[0].offset - lines.lower[0].offset
    assert bool((loose | (gap <= 1e-9 * (1 + middle.abs() * 2))).all())


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
    example = Example(Clumsy(), mpmath.tanh, (place, -place))
    check_lines(example, variable, lines)


@pytest.mark.parametrize("op", [Sigmoid(), Tanh()], ids=str)
@hypothesis_settings(max_examples=50)
@given(st.floats(-60, 60), st.floats(0, 80), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_s_shapes_anywhere(op: Univariate, low: float, width: float, share: float, slope: float, single: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    ends = torch.tensor([[low], [low + width]], dtype=dtype)
    example = next(e for e in EXAMPLES if e.op == op)
    variable = [(ends[:1], ends[1:])]
    slopes = torch.full_like(ends[:1], slope)
    for given_slopes in ((None, None), (slopes, slopes)):
        lines = op.relaxation(variable, Rounding.of(dtype), given_slopes)
        check_lines(example, variable, lines)
        x = float(ends[0]) + share * (float(ends[1]) - float(ends[0]))
        value = example.reference(mpf(x))
        for line, sign in ((lines.lower[0], 1), (lines.upper[0], -1)):
            assert (value - mpf(float(line.slopes[0])) * mpf(x) - mpf(float(line.offset))) * sign >= 0
