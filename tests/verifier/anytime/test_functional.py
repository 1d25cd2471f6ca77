"""Expressions of outputs: what they are worth against numpy, and hostile text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bounds import Box, Graph
from bounds.graph import Builder
from verifier.anytime.bounding import Function
from verifier.anytime.domain import Domain
from verifier.anytime.functional import margin, with_expression, with_row
from verifier.errors import InputError


def identity(size: int = 4) -> Graph:
    build = Builder()
    return build.finish([build.input((size,))])


def softmax(y: np.ndarray) -> np.ndarray:
    found = np.exp(y - y.max())
    return found / found.sum()


NAMES = {
    "max": lambda *parts: np.max(np.concatenate([np.atleast_1d(p) for p in parts])),
    "min": lambda *parts: np.min(np.concatenate([np.atleast_1d(p) for p in parts])),
    "sum": np.sum, "abs": np.abs, "relu": lambda y: np.maximum(y, 0), "norm1": lambda y: np.abs(y).sum(),
    "norm2": lambda y: np.sqrt((y * y).sum()), "norminf": lambda y: np.abs(y).max(), "softmax": softmax,
}  # fmt: skip

EXPRESSIONS = [
    "y[0]", "y[-1]", "+y[1]", "-y[1]", "--y[1]", "y[2] - max(y[:2], y[3:])", "norm2(y)", "norm1(y - 0.5)",
    "norminf(-y)",
    "softmax(y)[1]", "abs(y[0] - 0.5) + 2 * y[1]", "min(y)", "min(y, 0.25)", "max(0.1, 2, y[0])", "max(y[0], -y[0])",
    "sum(y[::2])", "sum(y[::-1] * y)", "y[0] * y[1] / 3", "y[0] / -4e-1", "relu(y[0]) - relu(-y[1])",
    "softmax(2 * y)[3] * y[0]", "y[1] / (1 / 3)", "1_000 * y[0]", "sum(softmax(y)) - 1 + y[0]", "sum(y[1:3] + y[0])",
    "y[3] * (2 - y[3])", "norm2(y[:2] - y[2:])", "sum(abs(y))", "max(y) - min(y)", "1e-300 * y[0] + y[1]", "y[1][0]",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_have_their_value(text: str) -> None:
    point = torch.zeros(1, 4, dtype=torch.float64)
    graph = with_expression(identity(), text)
    function = Function.of(graph, Domain.of(Box(point - 1, point + 1)))
    points = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = function.enclosed(points)
    for k, y in enumerate(points.numpy()):
        wanted = float(np.squeeze(eval(text.replace("y[1][0]", "y[1]"), {"__builtins__": {}}, {**NAMES, "y": y})))
        assert float(function.values(points[k : k + 1])) == pytest.approx(wanted, rel=1e-12, abs=1e-12)
        assert low[k] <= wanted + 1e-12 and wanted - 1e-12 <= high[k] and high[k] - low[k] < 1e-9


def test_numbers_are_meant_as_they_are_written() -> None:
    """A tenth is no float: the ends hold it."""
    build = Builder()
    graph = with_expression(build.finish([build.input((1,))]), "0.1 * y[0] * 10 / 3")
    one = torch.ones(1, 1, dtype=torch.float64)
    low, high = Function.of(graph, Domain.of(Box(one, one * 3))).enclosed(one * 3)
    assert low < 1 < high and high - low < 1e-13


HOSTILE = [
    "", " ", "y", "y[0", "y[0]+", "-" * 9999 + "y[0]", "~y", "not y", "y[0]" + "+y[0]" * 1999,
    "(" * 60 + "y[0]" + ")" * 60,
    "max(" * 49 + "y" + ")" * 48, "y.__class__", "y.__class__.__mro__[1]", "__import__('os').system('true')",
    "max(y, key=y)", "max(*y)", "max(**y)", "y[0] if 1 else 2", "lambda: y", "[y]", "(y,)", "{y}", "f'{y}'",
    "y[0] ** 99999999", "2**99999**9999", "y @ y", "y // 2", "y < 1", "y and y", "(y := 3)", "yield", "await y", "x",
    "\x00", "y[0]\x00", "y\n[0]", "y[0]; y", "1", "max(1, 2)", "1e400 * y[0]", "-1e400", "y[0] / 1e-320", "y[0] / 0",
    "y[0] / y[1]", "1 / y[0]", "1e999999999 * y[0]", "9" * 4000 + "*y[0]", "9" * 9999, "1e308 * 1e308 * y[0]",
    "y[0] * (1e299 * 1e299)", "True * y[0]", "None", "...", "y[...]", "y[None]", "y[True]", "y[1.0]", "y['a']", "y[y]",
    "y[0][1]", "y[0:0]", "y[-5]", "y[4]", "y[99999999999999999999]", "sum(y[::0])", "y[0, 1]", "y[1 + 1]", "3j * y[0]",
    "max()", "sum()", "sum(y, y)", "softmax(y)[9]", "max(y)(y)", "max", "exec('1')", "print(y)", "'a' * y",
    "y[:2] + y[:3]",
    "max(" + "y," * 3000 + "y)", "\ud800", "y[0]\\", "'''", "#", "y[0] y[0]", "inf * y[0]", "nan", "y[0]" * 3000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=[str(k) for k in range(len(HOSTILE))])
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_hostile_text_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        with_expression(identity(), text)


def test_rows_and_labels_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="shape"):
        with_row(identity(), torch.ones(3))
    for other in (5, [1.0] * 4):
        with pytest.raises(InputError, match=f"a functional of type {type(other).__name__}: an expression in y"):
            with_row(identity(), other)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NaN"):
        with_row(identity(2), torch.tensor([1.0, float("nan")]))
    for label in (-1, 4):
        with pytest.raises(InputError, match="0 to 3"):
            margin(identity(), label)
    assert margin(identity(2), 1) == "y[1] - y[0]"


def test_the_parser_speaks_of_no_file() -> None:
    with pytest.raises(InputError, match=r"'y\[' cannot be read: '\[' was never closed$"):
        with_expression(identity(), "y[")
