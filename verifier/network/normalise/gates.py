"""``x sigmoid(x)``, as SiLU is exported, is one function of one variable, and ``x sigmoid(a x)`` nearly so.

As a product of two variables it forgets that both are the same x. ``Swish(a x) / a`` is ``x sigmoid(a x)`` for every
number a besides 0, also for one that varies between elements; nothing is computed from constants.
"""

from __future__ import annotations

from bounds.ops.arithmetic import Div, Mul
from bounds.ops.base import Op
from bounds.ops.bilinear import Product
from bounds.ops.gates import Swish
from bounds.ops.sshape import Sigmoid
from verifier.network.normalise.draft import Draft


def fuse_swish(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """Product of x with the sigmoid of x, or of x times exact constants without a zero."""
    if not isinstance(op, Product):
        return None
    for x, gate in (inputs, inputs[::-1]):
        made, operands = draft.made.get(gate, (None, ()))
        if not isinstance(made, Sigmoid):
            continue
        if operands[0] == x:
            return draft.add(Swish(), x, name=name)
        factor = _factor(draft, operands[0], x)
        if factor is not None:
            return draft.add(Div(), draft.add(Swish(), operands[0]), factor, name=name)
    return None


def _factor(draft: Draft, product: int, x: int) -> int | None:
    """The constant a where a node is ``a x`` and may be divided by it."""
    op, operands = draft.made.get(product, (None, ()))
    if not isinstance(op, Mul) or draft.build.shape(product) != draft.build.shape(x):
        return None
    for one, constant in (operands, operands[::-1]):
        value = draft.build.value(constant)
        if one == x and value is not None and draft.build.error(constant) is None and bool((value != 0).all()):
            return constant
    return None
