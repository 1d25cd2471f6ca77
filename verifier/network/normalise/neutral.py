"""Adding or subtracting exact zeros, and multiplying or dividing by exact ones, is no operation.

Exporters write such a step for an input normalisation that was switched off.
"""

from __future__ import annotations

from bounds.ops.arithmetic import Add, Div, Mul, Sub
from bounds.ops.base import Op
from verifier.network.normalise.draft import Draft


def drop_neutral(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """The other operand, where one is the neutral constant and the shape stays."""
    if not isinstance(op, Add | Sub | Mul | Div):
        return None
    neutral = 0.0 if isinstance(op, Add | Sub) else 1.0
    for x, constant in (inputs, inputs[::-1]) if isinstance(op, Add | Mul) else (inputs,):
        value = draft.build.value(constant)
        if value is None or draft.build.error(constant) is not None or not bool((value == neutral).all()):
            continue
        shapes = draft.build.shape(x), draft.build.shape(constant)
        if all(a == b or b == 1 for a, b in zip(*shapes, strict=True)):
            return x
    return None
