"""The nonlinear operators of the registry, each with its reference in ``mpmath``: see ``relaxations.py``.

One line for each operator (or form of it that differs). This is the one list that names them all; the registry test
compares it with the registry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import mpmath
import torch

from bounds.ops.base import Op
from bounds.ops.extremum import Max, Min
from bounds.ops.jumps import Floor, Round, Step
from bounds.ops.piecewise import Abs, Clip, LeakyRelu, PRelu
from bounds.ops.bilinear import MatrixProduct, Product
from bounds.ops.relu import Relu
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.ops.sshape import Sigmoid, Tanh

Example = sys.modules["relaxations"].Example  # the file beside this one, loaded before it
mpf = mpmath.mpf

ELSEWHERE: MappingProxyType[type[Op], str] = MappingProxyType(
    {LogSoftmax: "test_coupled.py", MatrixProduct: "test_coupled.py", Softmax: "test_coupled.py"}
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

SMOOTH = [
    Example(Sigmoid(), lambda x: 1 / (1 + mpmath.exp(-x)), (0.0, -3.0, 2.0)),
    Example(Tanh(), mpmath.tanh, (0.0, -1.5, 1.0)),
]



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
