"""The nonlinear operators of the registry, each with its reference in ``mpmath``: see ``relaxations.py``.

One line for each operator (or form of it that differs). This is the one list that names them all; the registry test
compares it with the registry.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import mpmath
import torch

from bounds.ops.argmax import Greatest, Leading
from bounds.ops.base import Op
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.exponential import Cosh, Elu, Exp, Log, Sinh, Softplus
from bounds.ops.extremum import Max, Min
from bounds.ops.gates import Asinh, Atan, Erf, Gelu, GeluTanh, HardSwish, Mish, Softsign, Swish
from bounds.ops.jumps import Floor, Round, Step
from bounds.ops.periodic import Cos, Sin, Tan
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.powers import Power, RealPower, Reciprocal, Sqrt
from bounds.ops.relu import Relu
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.ops.sshape import Sigmoid, Tanh

Example = sys.modules["relaxations"].Example  # the file beside this one, loaded before it
mpf = mpmath.mpf

ELSEWHERE: MappingProxyType[type[Op], str] = MappingProxyType(
    {
        Greatest: "test_argmax.py",
        Leading: "test_argmax.py",
        LogSoftmax: "test_coupled.py",
        MatrixProduct: "test_coupled.py",
        Softmax: "test_coupled.py",
    }
)
"""Operators that are not elementwise, and the file in ``tests/bounds`` that holds their soundness test."""


def leaky(alpha: float) -> Callable[[Any], Any]:
    return lambda x: x if x >= 0 else x * mpf(alpha)


def clip(low: float | None, high: float | None) -> Callable[[Any], Any]:
    def reference(x: Any) -> Any:
        x = x if low is None else max(x, mpf(low))
        return x if high is None else min(x, mpf(high))

    return reference


def prelu(slope: float) -> Any:
    return Example(PRelu(), leaky(slope), parameters=(torch.tensor([slope], dtype=torch.float64),))


PIECEWISE = [
    Example(Relu(), lambda x: max(x, mpf(0))),
    Example(Abs(), abs),
    *[Example(LeakyRelu(a), leaky(a)) for a in (0.125, 0.01, 1.0, 3.0, -0.5, -1e6)],
    *[prelu(a) for a in (0.25, -2.0, 1.5)],
    Example(Clip(0.0, 6.0), clip(0.0, 6.0), (0.0, 6.0)),
    Example(Clip(-0.1, 0.3), clip(-0.1, 0.3), (-0.1, 0.3)),
    Example(Clip(None, 2.0), clip(None, 2.0), (2.0,)),
    Example(Clip(-1e-9, None), clip(-1e-9, None), (-1e-9,)),
    Example(Clip(1.0, 1.0), clip(1.0, 1.0), (1.0,)),
]

ABOVE = (1e-30, math.inf)
"""Intervals of functions that are not defined at 0."""


def elu(alpha: float, scale: float, width: float) -> Any:
    low = mpf(alpha) * mpf(scale)
    return Example(
        Elu(alpha, scale, width), lambda x: x * mpf(scale) if x > 0 else low * mpmath.expm1(x / mpf(width)), (0.0, -2.0)
    )


def gelu(x: Any) -> Any:
    return x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def gelu_tanh(x: Any) -> Any:
    u = 2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * x**3)
    return x / (1 + mpmath.exp(-u))


def root(p: float) -> Any:
    return Example(RealPower(p), lambda x: x ** mpf(p), (1.0, 1e-3), domain=ABOVE if p < 0 else (0.0, math.inf))


def mish(x: Any) -> Any:
    return x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))


def power(n: int) -> Any:
    kinks = (0.0, 1.0) if n > 0 else (1.0, -0.5)
    return Example(Power(n), lambda x: x**n, kinks, pole=n < 0)


SMOOTH = [
    Example(Sigmoid(), lambda x: 1 / (1 + mpmath.exp(-x)), (0.0, -3.0, 2.0)),
    Example(Tanh(), mpmath.tanh, (0.0, -1.5, 1.0)),
    Example(Exp(), mpmath.exp, (0.0, -20.0, 5.0)),
    Example(Log(), mpmath.log, (1.0, 1e-3), domain=ABOVE),
    Example(Softplus(), lambda x: mpmath.log1p(mpmath.exp(x)), (0.0, -5.0)),
    elu(1.0, 1.0, 1.0), elu(2.5, 1.0, 1.0), elu(-0.5, 1.0, 1.0), elu(1.6732631921768188, 1.0507010221481323, 1.0),
    elu(0.3, 1.0, 0.3), elu(0.0, 1.0, 1.0),
    Example(Sinh(), mpmath.sinh), Example(Cosh(), mpmath.cosh),
    Example(Erf(), mpmath.erf, (0.0, -2.0, 1.0)),
    Example(Softsign(), lambda x: x / (1 + abs(x))),
    Example(Atan(), mpmath.atan), Example(Asinh(), mpmath.asinh),
    Example(Gelu(), gelu, (0.0, 1.4142135623730951, -1.4142135623730951, -0.7517915)),
    Example(GeluTanh(), gelu_tanh, (0.0, 1.4185040087908284, -1.4185040087908284, -0.7524614220710162)),
    Example(Swish(), lambda x: x / (1 + mpmath.exp(-x)), (0.0, 2.3993572805154677, -2.3993572805154677, -1.2784645)),
    Example(Mish(), mish, (0.0, -2.2563763963607931, 1.49057117948542, -1.1924312)),
    Example(HardSwish(), lambda x: x * min(max(x + 3, mpf(0)), mpf(6)) / 6, (-3.0, 3.0, -1.5)),
    Example(Sin(), mpmath.sin, (0.0, math.pi / 2, -math.pi, 1e6)),
    Example(Cos(), mpmath.cos, (0.0, math.pi / 2, -math.pi, 1e6)),
    Example(Tan(), mpmath.tan, (0.0, -1.5, 1.57), domain=(-1.5707, 1.5707)),
    Example(Tan(), mpmath.tan, (math.pi, 2.0, 4.7), domain=(1.571, 4.712)),
    Example(Reciprocal(), lambda x: 1 / x, (1.0, -1e-3), pole=True),
    Example(Sqrt(), mpmath.sqrt, (0.0, 1.0), domain=(0.0, math.inf)),
    *[power(n) for n in (2, 3, 4, 7, -2, -3)],
    *[root(p) for p in (1.5, 0.3125, 3.75, -0.5)],
]  # fmt: skip


def step(left: float, at: float, right: float) -> Any:
    values = (mpf(at), mpf(right), mpf(left))
    return Example(Step(left, at, right), lambda x: values[(x > 0) - (x < 0)], jumps=True)


JUMPS = [
    *[step(*v) for v in ((-1.0, 0.0, 1.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))],
    Example(Floor(), mpmath.floor, (0.0, -1.0, 3.0), jumps=True),
    Example(Round(), mpmath.nint, (0.5, -1.5, 0.0), jumps=True),
]

SEVERAL = [
    Example(Max(), max, arity=2),
    Example(Min(), min, arity=2),
    Example(Product(), lambda x, y: x * y, arity=2),
]

EXAMPLES = [*PIECEWISE, *SMOOTH, *JUMPS, *SEVERAL]
