"""Operations on constants are folded with an error bound that holds in exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bounds.graph import Builder
from bounds.ops.arithmetic import Add, Mul
from bounds.ops.base import UnsupportedOperatorError
from bounds.ops.piecewise import PRelu
from bounds.ops.relu import Relu


def exact(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.flatten().tolist()]


def test_a_nonlinear_operator_on_inexact_constants_keeps_an_error_that_holds() -> None:
    build = Builder()
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(3))
    # Cancellation: the sum is near zero for many, where the sign of the true value is not known.
    product = build.add(Mul(), build.constant(a), build.constant(b))
    c[:20] = -(a * b)[:20]
    folded = build.add(Relu(), build.add(Add(), product, build.constant(c)))
    value, error = build.value(folded), build.error(folded)
    assert value is not None
    assert error is not None
    truth = [max(x * y + z, Fraction(0)) for x, y, z in zip(exact(a), exact(b), exact(c), strict=True)]
    assert any(truth[k] > 0 and value[k] == 0 for k in range(20))
    for t, v, e in zip(truth, exact(value), exact(error), strict=True):
        assert abs(t - v) <= e
        assert e < Fraction(1, 10**13)


def test_an_inexact_parameter_of_a_nonlinear_operator_is_refused() -> None:
    build = Builder()
    slope = build.constant(torch.ones(3), torch.full((3,), 1e-9, dtype=torch.float64))
    with pytest.raises(UnsupportedOperatorError, match="inexact"):
        build.add(PRelu(), build.constant(torch.ones(3)), slope)
