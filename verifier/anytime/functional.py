"""What is refined: one number made of a model's outputs, compiled into the graph.

A functional is a row of coefficients over the outputs, or a small expression in ``y``, their flat vector:

    y[0]    y[2] - max(y[:2], y[3:])    norm2(y)    softmax(y)[1]    abs(y[0] - 0.5) + 2 * y[1]

Numbers are taken exactly as they are written. ``+ - * /`` (by numbers), indices and slices as in Python, ``max``,
``min`` (of vectors, or of several numbers), ``sum``, ``abs``, ``relu``, ``norm1``, ``norm2``, ``norminf`` and
``softmax`` are known, nothing else is evaluated.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction

import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.arithmetic import Add, Neg, Sub
from bounds.ops.bilinear import multiply
from bounds.ops.extremum import Max, max_with_constant, tree
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import pick
from bounds.ops.piecewise import Abs
from bounds.ops.powers import Power, Reciprocal, Sqrt
from bounds.ops.reduction import ReduceSum
from bounds.ops.relu import Relu
from bounds.ops.shaping import reshape
from bounds.ops.softmax import Softmax
from verifier.errors import InputError
from verifier.property.numbers import exact

MOST_CHARACTERS, MOST_BRACKETS, MOST_ELEMENTS, MOST_NUMBER = 10_000, 50, 10_000, 10**300


def with_row(graph: Graph, row: Tensor) -> Graph:
    """The graph whose output ``[1]`` is ``row . output``, for a row of the output's shape (exact numbers).

    Raises ``InputError`` for another shape and for numbers that are not finite.
    """
    shape = graph.nodes[graph.outputs[0]].shape
    if not isinstance(row, Tensor):
        raise InputError(
            f"a functional of type {type(row).__name__}: an expression in y, such as 'y[0]', or a tensor of shape "
            f"{shape} is needed"
        )
    if tuple(row.shape) != shape:
        raise InputError(f"a functional of shape {tuple(row.shape)} for an output of shape {shape}: reshape it to that")
    if not bool(row.isfinite().all()):
        raise InputError("a row holds NaN or infinity")
    build, y = _embedded(graph)
    return build.finish([build.add(Gemm(), y, build.constant(row.reshape(-1, 1).double()))])


def with_expression(graph: Graph, text: str) -> Graph:
    """The graph whose output ``[1]`` is an expression of the outputs. Raises ``InputError``, which shows the place."""
    if len(text) > MOST_CHARACTERS or _depth(text) > MOST_BRACKETS:
        raise InputError(
            f"an expression has at most {MOST_CHARACTERS} characters and {MOST_BRACKETS} brackets in one another"
        )
    try:
        parsed = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"the expression {_short(text)} cannot be read: {_said(error)}") from error
    build, y = _embedded(graph)
    try:
        found = _Compiler(build, y, text).node(parsed)
    except RecursionError as error:
        raise InputError(f"the expression {_short(text)} has too many parts in one another") from error
    except ValueError as error:  # of the builder: numbers that are too large
        raise InputError(f"the expression {_short(text)}: {error}") from error
    if build.shape(found) != (1,):
        raise InputError(
            f"the expression {_short(text)} has {build.shape(found)[0]} values: one is needed, such as "
            "its max(...), sum(...) or norm2(...)"
        )
    if build.value(found) is not None:
        raise InputError(f"the expression {_short(text)} does not depend on the outputs y")
    return build.finish([found])


def margin(graph: Graph, label: int) -> str:
    """``y[label]`` less the largest of the others: above 0 where the label wins. Raises ``InputError``."""
    size = _size(graph)
    if not 0 <= label < size or size < 2:
        raise InputError(f"label {label}: the model has the classes 0 to {size - 1}")
    others = [f"y[{k}]" for k in range(size) if k != label]
    rest = f"max({', '.join(others)})" if len(others) > 1 else others[0]
    return f"y[{label}] - {rest}"


def _embedded(graph: Graph) -> tuple[Builder, int]:
    """A builder that holds the graph, and its output as one vector."""
    build = Builder()
    x = build.input(graph.nodes[graph.inputs[0]].shape, "input")
    (output,) = build.embed(graph, [x])
    return build, reshape(build, output, (_size(graph),))


def _size(graph: Graph) -> int:
    return torch.Size(graph.nodes[graph.outputs[0]].shape).numel()


def _depth(text: str) -> int:
    depth = most = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        most = max(most, depth)
    return most


def _said(error: Exception) -> str:
    """What the parser found, without the name of a file that there is not."""
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


class _Compiler:
    """Expressions as nodes ``[k]`` of a graph under construction."""

    def __init__(self, build: Builder, y: int, text: str) -> None:
        self.build, self.y, self.text, self.elements = build, y, text, 0
        self.functions: Mapping[str, Callable[[list[int]], int]] = {
            "max": self._max,
            "min": lambda parts: self._negated(self._max([self._negated(p) for p in parts])),
            "sum": lambda parts: self._sum(self._one(parts)),
            "abs": lambda parts: build.add(Abs(), self._one(parts)),
            "relu": lambda parts: build.add(Relu(), self._one(parts)),
            "norm1": lambda parts: self._sum(build.add(Abs(), self._one(parts))),
            "norm2": self._norm2,
            "norminf": lambda parts: self._max([build.add(Abs(), self._one(parts))]),
            "softmax": lambda parts: build.add(Softmax(-1), self._one(parts)),
        }

    def node(self, part: ast.expr) -> int:
        """The node of a part."""
        match part:
            case ast.Name("y"):
                return self.y
            case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
                return self._number(part)
            case ast.UnaryOp(ast.USub(), operand):
                return self._negated(self.node(operand))
            case ast.UnaryOp(ast.UAdd(), operand):
                return self.node(operand)
            case ast.BinOp(left, op, right):
                return self._binary(part, self.node(left), op, self.node(right))
            case ast.Subscript(value, index):
                return self._picked(part, self.node(value), index)
            case ast.Call(ast.Name(name), arguments, []) if name in self.functions:
                return self.functions[name]([self.node(a) for a in arguments])
        raise self._unknown(part, f"known are y, numbers, + - * / and {', '.join(self.functions)}")

    def _unknown(self, part: ast.expr, why: str) -> InputError:
        said = ast.get_source_segment(self.text.strip(), part) or "?"
        return InputError(f"the expression {_short(self.text)} has a part {_short(said)} that is not known: {why}")

    def _number(self, part: ast.Constant) -> int:
        value = exact((ast.get_source_segment(self.text.strip(), part) or str(part.value)).replace("_", ""), "a number")
        if abs(value) > MOST_NUMBER:
            raise self._unknown(part, "its numbers are too large")
        near = float(value)
        off = abs(value - Fraction(near))
        error = None if not off else torch.tensor([float(off) * (1 + 2**-50) + 5e-324], dtype=torch.float64)
        return self.build.constant(torch.tensor([near], dtype=torch.float64), error)

    def _binary(self, part: ast.expr, left: int, op: ast.operator, right: int) -> int:
        sizes = {self.build.shape(i)[0] for i in (left, right)} - {1}
        if len(sizes) > 1:
            raise self._unknown(part, f"vectors of {' and '.join(map(str, sorted(sizes)))} elements do not fit")
        constant = self.build.value(right)
        match op:
            case ast.Add():
                return self.build.add(Add(), left, right)
            case ast.Sub():
                return self.build.add(Sub(), left, right)
            case ast.Mult():
                return multiply(self.build, left, right)
            case ast.Div() if constant is not None and bool((constant != 0).all()):
                inverse = self.build.add(Reciprocal(), right)
                return multiply(self.build, left, inverse)
        raise self._unknown(part, "there are + - * and / by a number other than 0")

    def _picked(self, part: ast.expr, node: int, index: ast.expr) -> int:
        size = self.build.shape(node)[0]
        try:
            chosen = list(range(size))[_index(index)]
        except (ValueError, IndexError, TypeError):
            raise self._unknown(part, f"there are the elements 0 to {size - 1}, and slices of them") from None
        places = chosen if isinstance(chosen, list) else [chosen]
        if not places:
            raise self._unknown(part, "it has no elements")
        return pick(self.build, node, 0, places)

    def _one(self, parts: list[int]) -> int:
        if len(parts) != 1:
            raise InputError(f"the expression {_short(self.text)} gives a function {len(parts)} values: one is needed")
        return parts[0]

    def _max(self, parts: list[int]) -> int:
        if not parts:
            raise InputError(f"the expression {_short(self.text)} has an extremum of nothing")
        self.elements += sum(self.build.shape(p)[0] for p in parts)
        if self.elements > MOST_ELEMENTS:
            raise InputError(f"the expression {_short(self.text)} has extrema of more than {MOST_ELEMENTS} elements")
        elements = [pick(self.build, p, 0, [k]) for p in parts for k in range(self.build.shape(p)[0])]
        fixed = [e for e in elements if self.build.value(e) is not None]
        open_ = [e for e in elements if self.build.value(e) is None]
        if not open_ or not fixed:
            return tree(self.build, Max(), elements)
        return max_with_constant(self.build, tree(self.build, Max(), open_), tree(self.build, Max(), fixed))

    def _negated(self, node: int) -> int:
        return self.build.add(Neg(), node)

    def _sum(self, node: int) -> int:
        return self.build.add(ReduceSum((0,), True), node)

    def _norm2(self, parts: list[int]) -> int:
        total = self._sum(self.build.add(Power(2), self._one(parts)))
        return self.build.add(Sqrt(), self.build.add(Relu(), total))  # rounding may leave a sum of squares below 0


def _index(part: ast.expr) -> int | slice:
    """A whole number or a slice. Raises ``ValueError``."""
    if isinstance(part, ast.Slice):
        ends = [None if e is None else _index(e) for e in (part.lower, part.upper, part.step)]
        return slice(*ends)
    value = ast.literal_eval(part)
    if type(value) is not int:
        raise ValueError(value)
    return value
