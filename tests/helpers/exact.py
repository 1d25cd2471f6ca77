"""Graphs evaluated in exact rational arithmetic (S-shaped functions: to 90 digits).

Nothing here knows of bounds. Operators that move values are run on place numbers; linear ones are turned into a matrix
by their own ``forward`` on unit vectors without bias, which multiplies by 0 and 1 alone and so is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import floor, prod

import mpmath
import numpy as np
import torch

from bounds.graph import Graph, Node
from bounds.ops.arithmetic import Add, Div, Mul, Neg, Sub
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.comparison import Select
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.extremum import Max, Min
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat, Expand, Gather, Pad, Slice
from bounds.ops.jumps import Floor, Round, Step
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.pooling import AveragePool
from bounds.ops.reduction import ReduceMean, ReduceSum
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape, Transpose
from bounds.ops.sshape import Sigmoid, Tanh

Values = np.ndarray
"""Fractions, dtype object."""

_EXACT = np.vectorize(Fraction, otypes=[object])
_BINARY: dict[type[Op], Callable[[Values, Values], Values]] = {
    Add: lambda a, b: a + b,
    Sub: lambda a, b: a - b,
    Mul: lambda a, b: a * b,
    Div: lambda a, b: a / b,
    Max: np.maximum,
    Min: np.minimum,
    Product: lambda a, b: a * b,
    MatrixProduct: lambda a, b: a @ b,
}


def exact(values: torch.Tensor | np.ndarray) -> Values:
    """Floating numbers as fractions."""
    array = np.asarray(values, dtype=np.float64)
    return _EXACT(array) if array.size else array.astype(object)


def evaluate(graph: Graph, x: Values, rng: np.random.Generator | None = None) -> dict[int, Values]:
    """Every variable node's value (without N) at the flat input ``x`` of fractions.

    With ``rng`` each inexact constant is put somewhere within its error, at an end more often than not.
    """
    values: dict[int, Values] = {}
    for node in graph.nodes:
        if node.id in graph.inputs:
            values[node.id] = x.reshape(node.shape)
        elif node.id in graph.constants:
            constant = graph.constants[node.id]
            value = exact(constant.value) if constant.value.is_floating_point() else constant.value.numpy()
            if constant.error is not None and rng is not None:
                signs = rng.choice([-1.0, 1.0, 1.0, 0.5], size=value.shape)
                value = value + exact(signs) * exact(constant.error.expand(constant.value.shape))
            values[node.id] = value
        else:
            values[node.id] = _node(node, [values[i] for i in node.inputs]).reshape(node.shape)
    return values


def _node(node: Node, operands: list[Values]) -> Values:
    op = node.op
    if type(op) in _BINARY:
        return _BINARY[type(op)](*operands)
    if isinstance(op, Reshape | Transpose | Slice | Expand | Concat | Gather | Pad | Select):
        return _moved(op, operands)
    if isinstance(op, Gemm | Conv | ConvTranspose):
        x, weight, *bias = operands
        result = _linear(op, x, node.shape, weight)
        shape = (-1,) if isinstance(op, Gemm) else (1, -1, *(1,) * (len(node.shape) - 2))
        return result + bias[0].reshape(shape) if bias else result
    if isinstance(op, ReduceSum | ReduceMean | AveragePool):
        return _summed(op, operands[0], node.shape)
    return _elementwise(op, operands)


def _moved(op: Op, operands: list[Values]) -> Values:
    if isinstance(op, Select):
        return np.where(operands[0] != 0, operands[1], operands[2])
    if isinstance(op, Gather):
        return np.take(operands[0], operands[1], axis=op.axis)
    pool: list[Fraction] = [Fraction(op.value) if isinstance(op, Pad) else Fraction(0)]
    places = []
    for operand in operands:
        numbers = np.arange(len(pool), len(pool) + operand.size, dtype=np.float64).reshape(operand.shape)
        places.append(torch.from_numpy(numbers).unsqueeze(0))
        pool += list(operand.reshape(-1))
    plain = replace(op, value=0.0) if isinstance(op, Pad) else op
    return np.array(pool, dtype=object)[plain.forward(*places)[0].numpy().astype(np.int64)]


def _units(size: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.eye(size, dtype=torch.float64).reshape(size, *shape)


def _linear(op: Op, x: Values, shape: tuple[int, ...], weight: Values) -> Values:
    """The weights keep their places in the matrix; which weight stands where is found with place numbers."""
    numbers = torch.arange(1, weight.size + 1, dtype=torch.float64).reshape(weight.shape)
    matrix = op.forward(_units(x.size, x.shape), numbers).reshape(x.size, -1).numpy().astype(np.int64)
    pool = np.concatenate([np.array([Fraction(0)], dtype=object), weight.reshape(-1)])
    return _product(x, pool[matrix]).reshape(shape)


def _summed(op: Op, x: Values, shape: tuple[int, ...]) -> Values:
    matrix = op.forward(_units(x.size, x.shape)).reshape(x.size, -1).numpy() != 0
    count = 1
    if isinstance(op, AveragePool):
        count = prod(op.kernel)
    elif isinstance(op, ReduceMean):
        count = prod(x.shape[a] for a in op.axes)
    return (_product(x, matrix.astype(object)) / Fraction(count)).reshape(shape)


def _product(x: Values, matrix: Values) -> Values:
    flat = x.reshape(-1)
    used = [np.nonzero(matrix[:, j])[0] for j in range(matrix.shape[1])]
    return np.array(
        [sum((flat[i] * matrix[i, j] for i in rows), Fraction(0)) for j, rows in enumerate(used)], dtype=object
    )


def _elementwise(op: Op, operands: list[Values]) -> Values:
    x = operands[0]
    zero = Fraction(0)
    if isinstance(op, Relu):
        return np.maximum(x, zero)
    if isinstance(op, Neg):
        return -x
    if isinstance(op, Abs):
        return np.abs(x)
    if isinstance(op, LeakyRelu | PRelu):
        left = Fraction(op.alpha) if isinstance(op, LeakyRelu) else operands[1]
        return np.where(x >= 0, x, x * left)
    if isinstance(op, Clip):
        x = x if op.low is None else np.maximum(x, Fraction(op.low))
        return x if op.high is None else np.minimum(x, Fraction(op.high))
    if isinstance(op, Step):
        sides = Fraction(op.left), Fraction(op.right)
        return np.where(x > 0, sides[1], np.where(x < 0, sides[0], Fraction(op.at)))
    if isinstance(op, Floor | Round):
        whole = floor if isinstance(op, Floor) else round
        return np.vectorize(lambda v: Fraction(whole(v)), otypes=[object])(x)
    assert isinstance(op, Sigmoid | Tanh), type(op).__name__
    return np.vectorize(_tanh if isinstance(op, Tanh) else _sigmoid, otypes=[object])(x)


def _sigmoid(x: Fraction) -> Fraction:
    with mpmath.workdps(90):
        return _fraction(1 / (1 + mpmath.exp(-mpmath.mpf(x.numerator) / x.denominator)))


def _tanh(x: Fraction) -> Fraction:
    with mpmath.workdps(90):
        return _fraction(mpmath.tanh(mpmath.mpf(x.numerator) / x.denominator))


def _fraction(value: mpmath.mpf) -> Fraction:
    sign, mantissa, exponent, _ = value._mpf_
    return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent
