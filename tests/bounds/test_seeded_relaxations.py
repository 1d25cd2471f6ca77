"""Known ways to get a relaxation wrong, planted one at a time: the checks that the suite runs must fail.

The checks are those of ``test_relaxations.py`` and ``test_jacobian.py``, on the same intervals.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from bounds.ops.base import BuilderLike, Interval, Line, OnnxNode, Parameters, Relaxation
from bounds.ops.extremum import Max
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid, Tanh
from bounds.ops.univariate import Univariate
from bounds.rounding import Rounding

D = torch.float64
Patch = pytest.MonkeyPatch


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


class _Square(Univariate):
    """``x^2`` with the tangent in the middle below and the chord above, its intercepts exact."""

    @classmethod
    def from_onnx(cls, node: OnnxNode, build: BuilderLike) -> tuple[int, ...]:
        raise NotImplementedError

    def forward(self, *operands: Tensor) -> Tensor:
        return operands[0] * operands[0]

    def interval(self, operands: Any, rounding: Rounding | None) -> Interval:
        ((low, high),) = operands
        ends = low * low, high * high
        least = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(*ends))
        return self._outward(least, torch.maximum(*ends), rounding)

    def slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        return low + high, low + high

    def useful_slopes(self, low: Tensor, high: Tensor, *parameters: Tensor) -> tuple[Interval | None, Interval | None]:
        return (2 * low, 2 * high), None

    def valleys(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> list[Interval]:
        # (x - k/2)^2 is never negative: what a rounded k/2 is off by counts twice.
        return [(slope / 2, (slope / 2).square() * 2.0**-100 + torch.finfo(slope.dtype).tiny)]

    def hills(self, slope: Tensor, low: Tensor, high: Tensor, *parameters: Tensor) -> list[Interval]:
        return []

    def derivative_range(self, low: Tensor, high: Tensor, *parameters: Tensor, rounding: Rounding | None) -> Interval:
        return 2 * low, 2 * high


SQUARE = _Square
del _Square  # the registry finds operators by their name in their module, and this is none of them


def example(name: str) -> Any:
    if name == "Square":
        return tools.Example(SQUARE(), lambda x: x * x, (0.0, 1.0, -2.0))
    return next(e for e in listed.EXAMPLES if e.name == name)


def lines_hold(name: str, chosen: Callable[[Tensor, Tensor], Parameters] | None = None) -> None:
    """The suite's check of lines and intervals, in float64 and with all rounding."""
    one = example(name)
    variable = tools.variables(one, D)
    parameters = (None, None) if chosen is None else chosen(*variable[0])
    relaxation = one.op.relaxation(one.operands(variable), Rounding.of(D), parameters)
    tools.check_lines(one, variable, relaxation)
    tools.check_interval(one, variable, one.op.interval(one.operands(variable), Rounding.of(D)))


def at_an_end(low: Tensor, high: Tensor) -> Parameters:
    """Slopes as an ascent might choose them: not those of the middle."""
    return 2 * low, 2 * high


def intercept_in_the_middle(patch: Patch) -> None:
    """The tangent in the middle of ``x^2`` (and its like) kept as the intercept for whatever slope was chosen."""

    def least(self: Univariate, slope: Tensor, low: Tensor, high: Tensor, *rest: Tensor, rounding: Any) -> Interval:
        middle = (low + high) / 2
        return self.forward(middle, *rest) - slope * middle, middle

    patch.setattr(Univariate, "least", least)


def ends_alone(patch: Patch) -> None:
    """Only the ends are looked at, never a place where the function turns away from the line."""
    for op in (SQUARE, Sigmoid, Tanh):
        patch.setattr(op, "valleys", lambda self, *arguments: ())
        patch.setattr(op, "hills", lambda self, *arguments: ())


def not_outward(patch: Patch) -> None:
    """Intercepts and intervals as they were computed."""
    honest = Univariate._differences

    def change(self: Univariate, *arguments: Any, **named: Any) -> Any:
        return [(x, value, 0 * slack) for x, value, slack in honest(self, *arguments, **named)]

    patch.setattr(Univariate, "_differences", change)


def weights_swapped(patch: Patch) -> None:
    """The upper line of a maximum with its two weights exchanged."""
    honest = Max.relaxation

    def change(self: Max, *arguments: Any, **named: Any) -> Relaxation:
        found = honest(self, *arguments, **named)
        first = found.upper[0]
        return replace(found, upper=(Line(first.slopes[::-1], first.offset), *found.upper[1:]))

    patch.setattr(Max, "relaxation", change)


BUGS = [
    ("Square", intercept_in_the_middle, at_an_end),
    ("Sigmoid()", intercept_in_the_middle, None),
    ("Square", ends_alone, None),
    ("Tanh()", ends_alone, None),
    ("Tanh()", not_outward, None),
    ("Square", not_outward, None),
    ("Max()", weights_swapped, None),
]


@pytest.mark.parametrize(("name", "bug", "chosen"), BUGS, ids=[f"{n}-{b.__name__}" for n, b, _ in BUGS])
def test_a_seeded_bug_fails_the_check_of_lines(name: str, bug: Any, chosen: Any, monkeypatch: Patch) -> None:
    lines_hold(name, chosen)
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        lines_hold(name, chosen)


def derivatives_hold(name: str) -> None:
    """The suite's check of derivative ranges."""
    check_chords = helper("chords").check_chords
    one = example(name)
    variable = tools.variables(one, D)
    ranges = one.op.derivatives(one.operands(variable), Rounding.of(D))
    for n, (low, high) in enumerate(zip(*(end.flatten().tolist() for end in ranges[0]), strict=True)):
        check_chords(one, [(float(a[n]), float(b[n])) for a, b in variable], 0, (low, high), n)


def of_the_ends(self: Univariate, low: Tensor, high: Tensor, *rest: Tensor, rounding: Any) -> Interval:
    """The derivatives at the ends, whatever lies between."""
    one, two = self.derivative(low), self.derivative(high)  # type: ignore[attr-defined]
    return torch.minimum(one, two), torch.maximum(one, two)


def as_at_the_middle(self: Univariate, low: Tensor, high: Tensor, *rest: Tensor, rounding: Any) -> Interval:
    """One side of the kink."""
    on = ((low + high) > 0).to(low)
    return on, on


@pytest.mark.parametrize(
    ("name", "op", "bug"), [("Sigmoid()", Sigmoid, of_the_ends), ("Relu()", Relu, as_at_the_middle)]
)
def test_a_seeded_bug_fails_the_check_of_derivatives(name: str, op: type, bug: Any, monkeypatch: Patch) -> None:
    derivatives_hold(name)
    monkeypatch.setattr(op, "derivative_range", bug)
    with pytest.raises(AssertionError):
        derivatives_hold(name)


def test_the_reference_is_exact_enough() -> None:
    assert mpmath.mp.prec >= 200
