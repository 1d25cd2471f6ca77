"""The affine operators of the registry: each against an exact reference, its intervals, its transpose, its error terms.

References compute with fractions, so that soundness under rounding is tested without any tolerance.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.graph import Builder
from bounds.ops import operators, readers, supported
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import Add, Div, Mul, Neg, Sub
from bounds.ops.base import Interval, Rewritten
from bounds.ops.comparison import Select
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.gemm import Gemm, MatMul
from bounds.ops.indexing import Concat, Expand, Gather, Pad, Slice
from bounds.ops.pooling import AveragePool
from bounds.ops.reduction import ReduceMean, ReduceSum
from bounds.ops.shaping import Reshape, Transpose
from bounds.rounding import Rounding

Exact = np.ndarray
"""An array of fractions, without N."""

Reference = Callable[..., Exact]


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """An operator on operands of ``shapes`` (without N); the ones in ``constants`` are given."""

    op: Affine
    shapes: tuple[tuple[int, ...], ...]
    reference: Reference
    constants: dict[int, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.op}-{'-'.join('x'.join(map(str, s)) for s in self.shapes)}-{'-'.join(map(str, self.constants))}"

    def variable(self) -> list[int]:
        return [k for k in range(len(self.shapes)) if k not in self.constants]

    def operands(self, values: dict[int, Tensor], dtype: torch.dtype) -> list[Tensor]:
        """As ``forward`` takes them: ``values`` ``[N, *shape]`` of the variable ones."""
        result = []
        for k in range(len(self.shapes)):
            value = values[k] if k in values else self.constants[k]
            value = value.to(dtype) if value.is_floating_point() else value
            result.append(value if k in values or k in self.op.parameters else value.unsqueeze(0))
        return result

    def exact(self, values: dict[int, Tensor]) -> Exact:
        """The reference at one point; ``values`` ``[*shape]``."""
        given = [values[k] if k in values else self.constants[k] for k in range(len(self.shapes))]
        return self.reference(*[fractions(v) if v.is_floating_point() else v.numpy() for v in given])


def fractions(value: Tensor) -> Exact:
    flat = [Fraction(v) for v in value.double().flatten().tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(value.shape)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Numbers that float32 holds, of different sizes, some of them zero."""
    rng = np.random.default_rng((seed, *shape))
    value = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 2, shape)
    return torch.from_numpy(np.where(rng.random(shape) < 0.15, 0.0, value).astype(np.float32)).double()


MASK = torch.tensor([[1, 0, 0], [0, 1, 1]])


def nonzero(*shape: int) -> Tensor:
    return (random(*shape) + 3.0 * random(*shape).sign() + 0.5).float().double()


def convolved(op: Conv) -> Reference:
    def reference(x: Exact, weight: Exact, bias: Exact | None = None) -> Exact:
        half = len(op.strides)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(op.pads[:half], op.pads[half:], strict=True)])
        span = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], op.dilations, strict=True)]
        counts = [(n - s) // t + 1 for n, s, t in zip(padded.shape[2:], span, op.strides, strict=True)]
        result = np.zeros((x.shape[0], weight.shape[0], *counts), dtype=object)
        channels, filters = weight.shape[1], weight.shape[0] // op.groups
        for m, c in itertools.product(range(x.shape[0]), range(weight.shape[0])):
            first = c // filters * channels
            for place in itertools.product(*map(range, counts)):
                window = tuple(
                    slice(p * t, p * t + s, d) for p, t, s, d in zip(place, op.strides, span, op.dilations, strict=True)
                )
                seen = padded[(m, slice(first, first + channels), *window)]
                result[(m, c, *place)] = (seen * weight[c]).sum() + (0 if bias is None else bias[c])
        return result

    return reference


def transposed(op: ConvTranspose) -> Reference:
    def reference(x: Exact, weight: Exact, bias: Exact | None = None) -> Exact:
        half = len(op.strides)
        size = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(x.shape[2:], op.strides, weight.shape[2:], op.dilations, strict=True)
        ]
        outputs = weight.shape[1] * op.groups
        margin = [max(0, -op.pads[half + k]) for k in range(half)]
        full = np.zeros((x.shape[0], outputs, *(s + e for s, e in zip(size, margin, strict=True))), dtype=object)
        inputs = weight.shape[0] // op.groups
        for m, c, k in itertools.product(range(x.shape[0]), range(weight.shape[0]), range(weight.shape[1])):
            target = c // inputs * weight.shape[1] + k
            for place in itertools.product(*map(range, x.shape[2:])):
                for tap in itertools.product(*map(range, weight.shape[2:])):
                    at = tuple(p * s + t * d for p, s, t, d in zip(place, op.strides, tap, op.dilations, strict=True))
                    full[(m, target, *at)] += x[(m, c, *place)] * weight[(c, k, *tap)]
        window = [slice(op.pads[k], size[k] - op.pads[half + k]) for k in range(half)]
        result = full[(slice(None), slice(None), *window)]
        return result if bias is None else result + bias.reshape(-1, *(1,) * half)

    return reference


def averaged(op: AveragePool) -> Reference:
    def reference(x: Exact) -> Exact:
        counts = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], op.kernel, op.strides, strict=True)]
        result = np.zeros((*x.shape[:2], *counts), dtype=object)
        for place in itertools.product(*map(range, counts)):
            window = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, op.strides, op.kernel, strict=True))
            part = x[(slice(None), slice(None), *window)].reshape(*x.shape[:2], -1)
            result[(slice(None), slice(None), *place)] = part.sum(-1) / Fraction(part.shape[-1])
        return result

    return reference


def convolution(shape: Sequence[int], weight: Sequence[int], bias: bool, *fields: Any) -> Example:
    op = Conv(*fields)
    constants = {1: random(*weight)} | ({2: random(weight[0], seed=1)} if bias else {})
    return Example(op, (tuple(shape), *(tuple(c.shape) for c in constants.values())), convolved(op), constants)


def deconvolution(shape: Sequence[int], weight: Sequence[int], bias: bool, *fields: Any) -> Example:
    op = ConvTranspose(*fields)
    constants = {1: random(*weight)} | ({2: random(weight[1] * op.groups, seed=1)} if bias else {})
    return Example(op, (tuple(shape), *(tuple(c.shape) for c in constants.values())), transposed(op), constants)


def binary(op: Affine, one: tuple[int, ...], two: tuple[int, ...], reference: Reference, *given: int) -> Example:
    return Example(op, (one, two), reference, {k: nonzero(*(one, two)[k]) for k in given})


def examples() -> list[Example]:
    pools = [AveragePool((2,), (2,)), AveragePool((3, 2), (1, 2))]
    return [
        *[binary(Add(), a, b, np.add, *c) for a, b in (((2, 3), (2, 3)), ((2, 3), (1, 3))) for c in ((), (1,), (0,))],
        *[binary(Sub(), a, b, np.subtract, *c) for a, b in (((2, 3), (2, 3)), ((1, 3), (2, 3)))
          for c in ((), (1,), (0,))],
        *[binary(Mul(), a, b, np.multiply, c) for a, b in (((2, 3), (2, 3)), ((1, 3), (2, 1))) for c in (0, 1)],
        *[binary(Div(), a, b, np.divide, 1) for a, b in (((2, 3), (2, 3)), ((1, 3), (2, 1)))],
        Example(Neg(), ((3,),), np.negative),
        *[Example(Select(), ((2, 3),) * 3, lambda m, x, y: np.where(m != 0, x, y), {0: MASK, **c})
          for c in ({}, {1: random(2, 3)}, {2: random(2, 3)})],
        Example(Gemm(), ((1, 4), (4, 3)), np.matmul, {1: random(4, 3)}),
        Example(Gemm(), ((2, 4), (4, 3), (3,)), lambda x, w, b: x @ w + b, {1: random(4, 3), 2: random(3)}),
        Example(Gemm(), ((4,), (4, 3), (3,)), lambda x, w, b: x @ w + b, {1: random(4, 3), 2: random(3)}),
        Example(MatMul(), ((3, 4), (4, 2)), np.matmul, {0: random(3, 4)}),
        Example(MatMul(), ((1, 3, 4), (2, 4, 2)), np.matmul, {0: random(1, 3, 4)}),
        Example(MatMul(), ((1, 3, 4), (2, 4, 2)), np.matmul, {1: random(2, 4, 2)}),
        convolution((1, 2, 5, 4), (3, 2, 2, 3), True, (1, 1), (1, 1), (1, 1, 1, 1)),
        convolution((2, 2, 6, 5), (2, 1, 2, 2), True, (2, 3), (2, 1), (1, 0, 0, 2), 2),
        convolution((1, 2, 6), (3, 2, 3), False, (2,), (1,), (1, 0)),
        convolution((1, 1, 7, 7), (2, 1, 1, 1), False, (3, 2), (1, 1), (0, 0, 0, 0)),
        deconvolution((1, 2, 3, 2), (2, 3, 2, 3), True, (2, 1), (1, 1), (0, 1, 1, 0)),
        deconvolution((2, 2, 3), (2, 2, 2), True, (2,), (2,), (1, -1), 2),
        deconvolution((1, 1, 3, 3), (1, 2, 2, 2), False, (2, 2), (1, 1), (0, 0, 0, 0)),
        Example(pools[0], ((1, 2, 5),), averaged(pools[0])),
        Example(pools[1], ((2, 1, 4, 5),), averaged(pools[1])),
        Example(ReduceSum((0, 2), True), ((2, 3, 2),), lambda x: x.sum((0, 2), keepdims=True)),
        Example(ReduceSum((1,), False), ((2, 3),), lambda x: x.sum(1)),
        Example(ReduceMean((1, 2), False), ((2, 3, 2),), lambda x: x.sum((1, 2)) / Fraction(6)),
        Example(ReduceMean((0,), True), ((3,),), lambda x: x.sum(0, keepdims=True) / Fraction(3)),
        Example(Reshape((3, 2)), ((2, 3),), lambda x: x.reshape(3, 2)),
        Example(Reshape(()), ((1, 1),), lambda x: x.reshape(())),
        Example(Transpose((2, 0, 1)), ((2, 3, 4),), lambda x: x.transpose(2, 0, 1)),
        Example(Slice((1, 4), (3, -1), (0, 1), (1, -2)), ((4, 5),), lambda x: x[1:3, 4::-2]),
        Example(Slice((0,), (100,), (1,), (3,)), ((2, 5),), lambda x: x[:, ::3]),
        Example(Gather(1), ((2, 4), (2, 2)), lambda x, i: x[:, i], {1: torch.tensor([[0, 3], [0, 0]])}),
        Example(Gather(0), ((3, 2), ()), lambda x, i: x[i], {1: torch.tensor(2)}),
        Example(Expand((2, 3, 2)), ((1, 3, 1),), lambda x: np.broadcast_to(x, (2, 3, 2))),
        Example(Concat(0), ((2, 3), (2, 3)), lambda x, y: np.concatenate([x, y])),
        Example(
            Concat(1, (2, 3, 1)), ((2, 2), (2, 3), (2, 1)), lambda *x: np.concatenate(x, 1), {1: random(2, 3)}
        ),
        Example(Pad((1, 0, 0, 2), 2.0), ((2, 2),), lambda x: np.pad(x, [(1, 0), (0, 2)], constant_values=Fraction(2))),
        Example(Pad((-1, 1), -3.0), ((4,),), lambda x: np.pad(x[1:], (0, 1), constant_values=Fraction(-3))),
    ]  # fmt: skip


EXAMPLES = examples()
affine = pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def boxes(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Interval:
    """N boxes of dangerous widths: points, tiny ones, huge ones, ends at zero, mixed elementwise."""
    rng = np.random.default_rng((seed, 17))
    widths = np.array([0.0, 1e-12, 1e-6, 1e-3, 1.0, 10.0, 1e6])
    whole = (8, *shape)
    centre = rng.standard_normal(whole) * 10.0 ** rng.integers(-3, 4, whole)
    width = widths[rng.integers(0, len(widths), whole)]
    low = torch.from_numpy(np.where(rng.random(whole) < 0.2, 0.0, centre - width * rng.random(whole))).to(dtype)
    high = low + torch.from_numpy(width).to(dtype)
    return low, high


def points(low: Tensor, high: Tensor, seed: int) -> list[Tensor]:
    """Points of one box: ends, random corners, random interior points."""
    generator = torch.Generator().manual_seed(seed)
    result = [low, high]
    for k in range(4):
        share = torch.rand(low.shape, generator=generator, dtype=low.dtype)
        share = share.round() if k < 2 else share
        result.append(
            torch.where(share == 1, high, torch.minimum(torch.maximum(low + share * (high - low), low), high))
        )
    return result


def intervals(example: Example, values: dict[int, Interval], dtype: torch.dtype) -> list[Interval]:
    lows = example.operands({k: v[0] for k, v in values.items()}, dtype)
    highs = example.operands({k: v[1] for k, v in values.items()}, dtype)
    return [(lo, hi if k in values else lo) for k, (lo, hi) in enumerate(zip(lows, highs, strict=True))]


def test_every_affine_operator_has_an_example() -> None:
    affine_operators = {op for op in operators() if issubclass(op, Affine) and op.__module__.startswith("bounds.")}
    assert affine_operators == {type(e.op) for e in EXAMPLES}


@affine
def test_shape_and_value(example: Example) -> None:
    values = {k: random(2, *example.shapes[k], seed=k) for k in example.variable()}
    result = example.op.forward(*example.operands(values, torch.float64))
    expected = np.stack([example.exact({k: v[n] for k, v in values.items()}) for n in range(2)]).astype(np.float64)
    assert result.shape[1:] == example.op.shape(*example.shapes) == expected.shape[1:]
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


@both_dtypes
@affine
def test_interval_encloses_the_exact_values(example: Example, dtype: torch.dtype) -> None:
    values = {k: boxes(example.shapes[k], dtype, k) for k in example.variable()}
    low, high = example.op.interval(intervals(example, values, dtype), Rounding.of(dtype))
    plain = example.op.interval(intervals(example, values, dtype), None)
    for n in range(low.shape[0]):
        inside = {k: points(v[0][n], v[1][n], n) for k, v in values.items()}
        for choice in zip(*inside.values(), strict=True):
            exact = example.exact(dict(zip(inside, choice, strict=True)))
            assert (fractions(low[n]) <= exact).all() and (exact <= fractions(high[n])).all()
    scale = 1e-4 if dtype == torch.float32 else 1e-12
    for rounded, searched in zip((low, high), plain, strict=True):
        torch.testing.assert_close(rounded, searched, rtol=scale, atol=scale * float(high.abs().max()))


@affine
def test_boxes_are_independent(example: Example) -> None:
    values = {k: boxes(example.shapes[k], torch.float64, k) for k in example.variable()}
    whole = example.op.interval(intervals(example, values, torch.float64), None)
    size = float(whole[1].abs().max())
    for n in (0, 5):
        one = {k: (v[0][n : n + 1], v[1][n : n + 1]) for k, v in values.items()}
        alone = example.op.interval(intervals(example, one, torch.float64), None)
        for a, b in zip(whole, alone, strict=True):
            torch.testing.assert_close(a[n : n + 1], b, rtol=1e-12, atol=1e-14 * size)


def matrix(example: Example, position: int) -> Tensor:
    """``[out, in]``: the linear part in one operand, others zero, by unit vectors."""
    shape = example.shapes[position]
    count = int(np.prod(shape))
    values = {k: torch.zeros(count, *example.shapes[k], dtype=torch.float64) for k in example.variable()}
    origin = example.op.forward(*example.operands(values, torch.float64))
    values[position] = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
    return (example.op.forward(*example.operands(values, torch.float64)) - origin).reshape(count, -1).T


@affine
def test_pullback_is_the_transpose(example: Example) -> None:
    outputs = int(np.prod(example.op.shape(*example.shapes)))
    rows = random(3, *example.op.shape(*example.shapes), seed=5)
    given = [None if k in example.variable() else c for k, c in enumerate(_constants(example))]
    for position in example.variable():
        linear = matrix(example, position)
        back = example.op.pullback(rows, position, given, example.shapes[position])
        assert back.shape == (3, *example.shapes[position])
        torch.testing.assert_close(back.reshape(3, -1), rows.reshape(3, -1) @ linear, rtol=1e-12, atol=1e-12)
        assert not back.requires_grad
        if len(example.variable()) == 1:  # what an operator without a transpose of its own would do
            default = Affine.pullback(example.op, rows, position, given, example.shapes[position])
            torch.testing.assert_close(default, back, rtol=1e-12, atol=1e-12)
        units = example.op.unit_rows(torch.arange(outputs), position, given, example.shapes[position])
        if units is not None:
            torch.testing.assert_close(units.reshape(outputs, -1), linear, rtol=1e-12, atol=1e-12)


@affine
def test_entries_are_the_coefficients(example: Example) -> None:
    result = example.op.shape(*example.shapes)
    for position in example.variable():
        linear = matrix(example, position)
        found = example.op.entries(position, _constants(example), example.shapes[position], result)
        assert found.value.dtype == torch.float64 and bool((found.value != 0).all())
        places = found.row * linear.shape[1] + found.column
        assert places.unique().shape == places.shape  # each pair once
        dense = torch.zeros_like(linear)
        dense[found.row, found.column] = found.value
        torch.testing.assert_close(dense, linear, rtol=1e-12, atol=1e-12)


def _constants(example: Example) -> list[Tensor]:
    return example.operands({k: torch.zeros(1, *example.shapes[k]) for k in example.variable()}, torch.float64)


@affine
def test_error_terms_cover_the_operator(example: Example) -> None:
    """``absolute`` is ``|W| m + |b|`` and ``accumulation`` counts the terms, forward and transposed."""
    count = example.op.accumulation(*example.shapes)
    values = {k: random(2, *example.shapes[k], seed=k).abs() for k in example.variable()}
    zero = {k: torch.zeros_like(v) for k, v in values.items()}
    expected = example.op.forward(*example.operands(zero, torch.float64)).abs()
    for k in example.variable():
        linear = matrix(example, k)
        terms = max(int((linear != 0).sum(0).max()), int((linear != 0).sum(1).max()))
        assert terms <= max(1, count)
        assert count or bool(((linear == 0) | (linear == 1)).all())
        expected = expected + (values[k].reshape(2, -1) @ linear.abs().T).reshape(expected.shape)
    sizes = [c.abs() for c in example.operands(values, torch.float64)]
    torch.testing.assert_close(example.op.absolute(*sizes), expected, rtol=1e-12, atol=1e-12)


@affine
def test_folded_constants_keep_their_errors(example: Example) -> None:
    """Whatever the inexact operands really are, the folded value is within its error bound."""
    if isinstance(example.op, Div):
        return  # an inexact divisor never reaches Div: see test_reading
    rng = np.random.default_rng(2)
    values = [example.constants.get(k, random(*s, seed=k)) for k, s in enumerate(example.shapes)]
    errors = [(v.abs() * 1e-9 + 1e-12) if v.is_floating_point() else None for v in values]
    for given in (errors, [None] * len(values)):
        build = Builder()
        ids = [build.constant(v, e) for v, e in zip(values, given, strict=True)]
        folded = build.add(example.op, *ids)
        value, error = build.value(folded), build.error(folded)
        assert value is not None
        bound = fractions(torch.zeros_like(value) if error is None else error)
        for _ in range(5):
            true = [fractions(v) if v.is_floating_point() else v.numpy() for v in values]
            for k, e in enumerate(given):
                if e is not None:
                    share = rng.integers(-8, 9, tuple(e.shape))
                    true[k] = true[k] + fractions(e) * fractions(torch.from_numpy(share).double()) / 8
            exact = example.reference(*true)
            assert (abs(exact - fractions(value)) <= bound).all()
        assert float(bound.max()) <= (1e-6 if given is errors else 1e-13) * (10 + float(value.abs().max()))


def test_registry_is_told_to_the_light_commands() -> None:
    assert json.loads(resources.files("verifier").joinpath("operators.json").read_text()) == supported(), (
        "run: python -m bounds.ops > verifier/operators.json"
    )


def test_readers_are_the_classes_that_graphs_hold() -> None:
    for name, reader in readers().items():
        module = sys.modules[reader.__module__]
        assert getattr(module, reader.__name__) is reader, name
        assert issubclass(reader, Rewritten) or reader in operators()
