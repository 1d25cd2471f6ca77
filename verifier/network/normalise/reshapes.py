"""Only the last of chained reshapes matters, and one that changes nothing does not matter at all."""

from __future__ import annotations

from bounds.ops.base import Op
from bounds.ops.shaping import Reshape
from verifier.network.normalise.draft import Draft


def merge_reshapes(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """Reshape of a reshape, and a reshape to the operand's own shape."""
    if not isinstance(op, Reshape):
        return None
    (x,) = inputs
    inner, operands = draft.made.get(x, (None, ()))
    if isinstance(inner, Reshape):
        x = operands[0]
    if draft.build.shape(x) == op.target:
        return x
    return draft.add(op, x, name=name) if x != inputs[0] else None
