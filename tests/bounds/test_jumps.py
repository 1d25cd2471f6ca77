"""Functions with jumps: values, intervals and lines against exact references, at jumps, beside them and between."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from bounds.ops.base import Freedom, Interval, Line, NoDerivativeError
from bounds.ops.jumps import Floor, Jumping, Round, Step
from bounds.rounding import Rounding

Value = Callable[[Fraction], Fraction]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An operator, its exact value, and where its jumps are: at every ``period`` from ``offset`` (None: one at 0)."""

    op: Jumping
    value: Value
    offset: Fraction = Fraction(0)
    period: Fraction | None = None

    def jumps(self, low: Fraction, high: Fraction) -> list[Fraction]:
        """The jumps in ``[low, high]``: all of a few, else the first and the last ones."""
        if self.period is None:
            return [Fraction(0)] if low <= 0 <= high else []
        first = -floor((self.offset - low) / self.period)
        last = floor((high - self.offset) / self.period)
        chosen = range(first, last + 1) if last - first < 8 else (first, first + 1, last - 1, last)
        return [self.offset + k * self.period for k in chosen]

    def samples(self, low: Fraction, high: Fraction) -> list[tuple[Fraction, Fraction]]:
        """Points of ``[low, high]`` and values there; the limits at a jump stand at the jump itself."""
        points = [low + (high - low) * Fraction(k, 16) for k in range(17)]
        found = [(x, self.value(x)) for x in points]
        for jump in self.jumps(low, high):
            found.append((jump, self.value(jump)))
            quarter = Fraction(1, 4) if self.period is None else self.period / 4
            if low < jump:
                found.append((jump, self.value(max(low, jump - quarter))))
            if jump < high:
                found.append((jump, self.value(min(high, jump + quarter))))
        return found


def step(left: float, at: float, right: float) -> Example:
    values = [Fraction(v) for v in (at, right, left)]
    return Example(Step(left, at, right), lambda x: values[(x > 0) - (x < 0)])


EXAMPLES = [
    step(-1.0, 0.0, 1.0),
    step(-1.0, 1.0, 1.0),
    step(0.0, 1.0, 0.0),
    step(1.0, 0.0, 1.0),
    step(0.0, 0.0, 1.0),
    step(2.0, -0.5, 1.0),
    Example(Floor(), lambda x: Fraction(floor(x)), period=Fraction(1)),
    Example(Round(), lambda x: Fraction(round(x)), Fraction(1, 2), Fraction(1)),
]
every = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: str(e.op))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def boxes(dtype: torch.dtype) -> Interval:
    """``[N, 1]``: points, tiny and huge intervals at, around and beside jumps, up to where integers are not numbers."""
    ends: list[tuple[float, float]] = []
    widths = (0.0, 1e-12, 1e-3, 0.3, 0.5, 1.0, 2.25, 40.0, 1e3, 1e6)
    for centre, width in itertools.product((0.0, -1.0, 2.0, 0.5, -0.5, 7.3, -2.5, 1e5, -3e7, 2.0**53), widths):
        ends += [(centre - share * width, centre + (1 - share) * width) for share in (0.0, 0.5, 1.0, 0.1)]
    ends += [(-1e-40, 1e-40), (0.0, 1e-40), (-1e-40, 0.0), (0.0, 5e-324), (-0.0, 0.0), (-1e-30, 1e20), (-0.49999997, 3)]
    tensor = torch.tensor(ends, dtype=torch.float64).to(dtype)
    beside = tensor[::3].clone()
    beside[:, 0] = torch.nextafter(beside[:, 0], beside[:, 0] + 1)
    beside[:, 1] = torch.maximum(beside[:, 0], torch.nextafter(beside[:, 1], beside[:, 1] - 1))
    tensor = torch.cat([tensor[::2], beside])
    return tensor[:, :1].clone(), tensor[:, 1:].clone()


def fraction(value: Tensor) -> Fraction:
    return Fraction(float(value))


def check(example: Example, ends: Interval, lower: Line, upper: Line) -> None:
    """Both lines on their side of all samples, exactly."""
    for n in range(ends[0].shape[0]):
        samples = example.samples(fraction(ends[0][n]), fraction(ends[1][n]))
        for line, sign in ((lower, 1), (upper, -1)):
            slope, offset = fraction(line.slopes[0][n]), fraction(line.offset[n])
            for x, value in samples:
                gap = (value - slope * x - offset) * sign
                assert gap >= 0, (example.op, float(ends[0][n]), float(ends[1][n]), float(x), float(gap), sign)


@both_dtypes
@every
def test_values_and_intervals_are_exact(example: Example, dtype: torch.dtype) -> None:
    low, high = boxes(dtype)
    least, most = example.op.interval([(low, high)], Rounding.of(dtype))
    computed = example.op.forward(low)
    for n in range(low.shape[0]):
        assert fraction(computed[n]) == example.value(fraction(low[n]))
        values = [v for _, v in example.samples(fraction(low[n]), fraction(high[n]))]
        assert fraction(least[n]) <= min(values)
        assert fraction(most[n]) >= max(values)
        if abs(float(high[n])) < 1e5 > abs(float(low[n])):
            assert (fraction(least[n]), fraction(most[n])) == (min(values), max(values))


@both_dtypes
@every
def test_lines_are_sound(example: Example, dtype: torch.dtype) -> None:
    ends = boxes(dtype)
    lines = example.op.relaxation([ends], Rounding.of(dtype))
    check(example, ends, lines.lower[0], lines.upper[0])


@both_dtypes
@every
def test_lines_are_sound_for_any_slopes(example: Example, dtype: torch.dtype) -> None:
    low, high = (end[::2] for end in boxes(dtype))
    random = torch.Generator().manual_seed(2)
    width = (high - low).clamp(min=1e-3)
    for scale in (0.5, 3.0):
        chosen = [torch.randn(low.shape, generator=random).to(dtype) * scale / width for _ in range(2)]
        lines = example.op.relaxation([(low, high)], Rounding.of(dtype), (chosen[0], chosen[1]))
        assert torch.equal(lines.lower[0].slopes[0], chosen[0])
        check(example, (low, high), lines.lower[0], lines.upper[0])


@every
def test_lines_touch(example: Example) -> None:
    """With the initial slopes, and with the extreme useful ones, the function comes arbitrarily close to the line."""
    ends = [(-1.0, 2.0), (-3.0, 0.5), (-0.25, 0.125), (0.5, 4.0), (-5.25, -1.0), (0.0, 3.0), (-3.0, 0.0), (2.5, 2.75)]
    low, high = (torch.tensor([[e[k]] for e in ends], dtype=torch.float64) for k in (0, 1))
    free = example.op.freedom([(low, high)])
    assert free[0] is not None
    assert free[1] is not None
    for parts in ("start", "least", "greatest"):
        chosen = (_part(free[0], parts), _part(free[1], parts))
        lines = example.op.relaxation([(low, high)], None, chosen)
        for n in range(low.shape[0]):
            samples = example.samples(fraction(low[n]), fraction(high[n]))
            for line, sign in ((lines.lower[0], 1), (lines.upper[0], -1)):
                slope, offset = fraction(line.slopes[0][n]), fraction(line.offset[n])
                assert abs(min((v - slope * x - offset) * sign for x, v in samples)) < 1e-12


def _part(freedom: Freedom, name: str) -> Tensor:
    return {"start": freedom.start, "least": freedom.least, "greatest": freedom.greatest}[name]


@every
def test_start_is_the_best_in_the_middle(example: Example) -> None:
    """No slope gives a line that is higher (lower) there; the outermost useful ones are no exception."""
    low = torch.tensor([[-1.0], [-3.0], [-0.25], [0.0], [-2.0], [0.4], [-2.75]], dtype=torch.float64)
    high = torch.tensor([[2.0], [0.5], [0.125], [3.0], [0.0], [2.9], [-0.7]], dtype=torch.float64)
    middle = (low + high) / 2
    first = example.op.relaxation([(low, high)], None)
    for factor in torch.linspace(-3, 3, 61).tolist():
        slope = factor / (high - low)
        other = example.op.relaxation([(low, high)], None, (slope, slope))
        for sign, one, two in ((1, first.lower[0], other.lower[0]), (-1, first.upper[0], other.upper[0])):
            gain = ((two.slopes[0] - one.slopes[0]) * middle + two.offset - one.offset) * sign
            assert float(gain.max()) < 1e-12


@every
def test_ascent_is_the_derivative(example: Example) -> None:
    low, high = torch.tensor([[-1.3], [-0.7]]).double(), torch.tensor([[2.2], [0.9]]).double()
    z, width = torch.tensor([[0.3], [-0.2]]).double(), 1e-7
    slopes = (torch.tensor([[0.23], [0.11]]).double(), torch.tensor([[0.31], [0.07]]).double())
    found = example.op.ascent([(low, high)], slopes, [z])

    def value(shift: float) -> list[Tensor]:
        lines = example.op.relaxation([(low, high)], None, (slopes[0] + shift, slopes[1] + shift))
        return [line.slopes[0] * z + line.offset for line in (lines.lower[0], lines.upper[0])]

    for derivative, up, down in zip(found, value(width), value(-width), strict=True):
        assert derivative is not None
        torch.testing.assert_close(derivative, (up - down) / (2 * width), rtol=1e-6, atol=1e-6)


@every
def test_stable_steps_are_constants(example: Example) -> None:
    ends = torch.tensor([[0.6], [3.0]]), torch.tensor([[0.9], [3.0]])
    lines = example.op.relaxation([ends], Rounding.of(torch.float32))
    for line in (*lines.lower, *lines.upper):
        assert not line.slopes[0].any()
        assert torch.equal(line.offset, example.op.forward(ends[0]))
    assert not example.op.loose(*ends).any()
    assert example.op.loose(torch.tensor([-0.6]), torch.tensor([0.6])).all()
    with pytest.raises(NoDerivativeError, match="jumps"):
        example.op.derivatives([ends], None)


@every
@hypothesis_settings(max_examples=40)
@given(st.floats(-50, 50), st.floats(0, 30), st.floats(-2, 2), st.booleans())
def test_anywhere(example: Example, low: float, width: float, slope: float, single: bool) -> None:
    dtype = torch.float32 if single else torch.float64
    ends = torch.tensor([[low]], dtype=dtype), torch.tensor([[low + width]], dtype=dtype)
    slopes = torch.full_like(ends[0], slope)
    for chosen in ((None, None), (slopes, slopes)):
        lines = example.op.relaxation([ends], Rounding.of(dtype), chosen)
        check(example, ends, lines.lower[0], lines.upper[0])


def test_infinite_ends_say_nothing_wrong() -> None:
    inf = torch.tensor([[torch.inf]])
    least, most = Step(-1.0, 0.0, 1.0).interval([(-inf, inf)], Rounding.of(torch.float32))
    assert (float(least), float(most)) == (-1.0, 1.0)
    lines = Step(-1.0, 0.0, 1.0).relaxation([(-inf, inf)], Rounding.of(torch.float32))
    for line, limit in ((lines.lower[0], -1.0), (lines.upper[0], 1.0)):
        assert not line.slopes[0].any()
        assert float(line.offset) == limit
