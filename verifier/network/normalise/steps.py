"""A step of a step is a step: binarised networks write ``sign(sign(x) + 0.1)`` to make the sign of 0 a 1.

A step takes three values, so whatever a shift and another step make of them can be worked out. One step
is relaxed far better than two in a row.
"""

from __future__ import annotations

from fractions import Fraction

from bounds.ops.arithmetic import Add
from bounds.ops.base import Op
from bounds.ops.jumps import Step
from verifier.network.normalise.draft import Draft


def merge_steps(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """Step of a step, also with one exact number added in between."""
    if not isinstance(op, Step):
        return None
    x, shift = _shifted(draft, inputs[0])
    inner, operands = draft.made.get(x, (None, ()))
    if not isinstance(inner, Step):
        return None
    left, at, right = (_value(op, Fraction(v) + shift) for v in (inner.left, inner.at, inner.right))
    return draft.add(Step(left, at, right), operands[0], name=name)


def _value(step: Step, x: Fraction) -> float:
    return step.right if x > 0 else step.left if x < 0 else step.at


def _shifted(draft: Draft, x: int) -> tuple[int, Fraction]:
    """``y`` and ``c`` where the node x is ``y + c`` with one exact number c; else x itself and 0."""
    op, operands = draft.made.get(x, (None, ()))
    if not isinstance(op, Add):
        return x, Fraction(0)
    for y, constant in (operands, operands[::-1]):
        value = draft.build.value(constant)
        if value is None or not value.numel() or draft.build.error(constant) is not None:
            continue
        first = value.flatten()[0]
        if draft.build.shape(y) == draft.build.shape(x) and bool((value == first).all()):
            return y, Fraction(float(first))
    return x, Fraction(0)
