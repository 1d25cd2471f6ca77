"""A constant that multiplies a layer's result goes into its weights and bias; so batch normalisation disappears.

``s (x W + b)`` is ``x (W s) + b s`` in real numbers; the computed products carry their error bounds.
"""

from __future__ import annotations

from bounds.ops.arithmetic import Mul
from bounds.ops.base import Op
from bounds.ops.conv import Conv, ConvTranspose
from verifier.network.normalise.draft import Draft, Layer


def merge_scale(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """Mul by a constant with one value for each channel, right after Gemm, Conv or ConvTranspose."""
    if not isinstance(op, Mul):
        return None
    x, constant = inputs
    if draft.build.value(x) is not None:
        x, constant = constant, x
    found = draft.layer(x)
    if found is None or draft.build.value(constant) is None:
        return None
    layer, (data, weight, *bias) = found
    factor = draft.per_channel(constant, x, layer)
    if factor is None:
        return None
    scaled = draft.build.add(Mul(), weight, _beside_weight(draft, layer, weight, factor))
    offset = [draft.build.add(Mul(), b, factor) for b in bias]
    return draft.add(layer, data, scaled, *offset, name=name)


def _beside_weight(draft: Draft, layer: Layer, weight: int, factor: int) -> int:
    """The factor of each output channel, in a shape that broadcasts against the layer's weight.

    Gemm ``[k, m]``, Conv ``[m, c/groups, ...]``, ConvTranspose ``[c, m/groups, ...]``, where input channel i belongs to
    group ``i // (c/groups)`` and a group's outputs are consecutive.
    """
    value, error = draft.build.value(factor), draft.build.error(factor)
    assert value is not None
    shape = draft.build.shape(weight)
    rest = (1,) * (len(shape) - 2)
    if isinstance(layer, ConvTranspose):
        groups = value.numel() // shape[1]
        spread = [
            None if v is None else v.reshape(groups, shape[1]).repeat_interleave(shape[0] // groups, 0)
            for v in (value, error)
        ]
        target = (shape[0], shape[1], *rest)
    else:
        spread = [value, error]
        target = (shape[0], 1, *rest) if isinstance(layer, Conv) else (1, shape[1])
    first, second = (None if v is None else v.reshape(target) for v in spread)
    assert first is not None
    return draft.build.constant(first, second)
