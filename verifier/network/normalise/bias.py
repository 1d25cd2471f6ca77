"""A constant that is added to a layer's result becomes its bias.

``(x W) + c`` is ``x W + c`` exactly; where the layer has a bias already, the sum of the two is rounded and carries
its error bound.
"""

from __future__ import annotations

from bounds.ops.arithmetic import Add, Sub
from bounds.ops.base import Op
from verifier.network.normalise.draft import Draft


def merge_bias(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """Add (or Sub) of a constant with one value for each channel, right after Gemm, Conv or ConvTranspose."""
    if not isinstance(op, Add | Sub):
        return None
    x, constant = inputs
    if isinstance(op, Add) and draft.build.value(x) is not None:
        x, constant = constant, x
    found = draft.layer(x)
    if found is None or draft.build.value(constant) is None:
        return None
    layer, (data, weight, *bias) = found
    added = draft.per_channel(constant, x, layer)
    if added is None:
        return None
    if isinstance(op, Sub):
        value = draft.build.value(added)
        assert value is not None
        added = draft.build.constant(-value, draft.build.error(added))
    total = draft.build.add(Add(), bias[0], added) if bias else added
    return draft.add(layer, data, weight, total, name=name)
