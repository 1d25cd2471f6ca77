"""Torch's layers in terms of the operators: products, attention, convolutions, pooling, normalisation, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bounds.aten_call import Call, Entry, Value


def linear(call: Call) -> Value:
    """``x W' + b``."""
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    if len(call.size("input")) == 2:
        return call.make("Gemm", x, weight, bias, transB=1)
    result = call.make("MatMul", x, call.make("Transpose", weight, perm=(1, 0)))
    return result if bias is None else call.make("Add", result, bias)


def addmm(call: Call) -> Value:
    """``beta self + alpha mat1 mat2``."""
    return call.make("Gemm", call["mat1"], call["mat2"], call["self"], alpha=call["alpha"], beta=call["beta"])


def matmul(call: Call) -> Value:
    """Products of matrices and vectors."""
    other = next(call[name] for name in ("other", "mat2", "vec") if name in call.arguments)
    return call.make("MatMul", call["self"], other)


def attention(call: Call) -> Value:
    """``softmax(q k' * scale) v``."""
    if call.get("attn_mask") is not None or call.get("is_causal") or call.get("dropout_p", 0.0):
        raise call.refuse("attention with a mask or dropout")
    query, key, value = call["query"], call["key"], call["value"]
    rank, width = len(call.size("query")), call.size("query")[-1]
    perm = (*range(rank - 2), rank - 1, rank - 2)
    scale = width**-0.5 if call.get("scale") is None else call["scale"]
    scores = call.make("MatMul", query, call.make("Transpose", key, perm=perm))
    weights = call.make("Softmax", call.make("Mul", scores, call.tensor(float(scale))), axis=rank - 1)
    return call.make("MatMul", weights, value)


def convolution(call: Call) -> Value:
    """A convolution or its transpose."""
    x, weight = call["input"], call["weight"]
    spatial = len(call.size("weight")) - 2
    if len(call.size("input")) != spatial + 2:
        raise call.refuse(f"a convolution of a tensor of shape {call.size('input')} without a leading batch dimension")
    attributes: dict[str, Any] = {
        "strides": _sizes(call["stride"], spatial),
        "dilations": _sizes(call["dilation"], spatial),
        "group": call["groups"],
    }
    padding = call["padding"]
    if isinstance(padding, str):
        extents = zip(call.size("weight")[2:], attributes["dilations"], strict=True)
        total = [(k - 1) * d if padding == "same" else 0 for k, d in extents]
        attributes["pads"] = [*(t // 2 for t in total), *(t - t // 2 for t in total)]
    else:
        attributes["pads"] = _sizes(padding, spatial) * 2
    operator = "Conv"
    if "output_padding" in call.arguments and call.get("transposed", True):
        operator, attributes["output_padding"] = "ConvTranspose", _sizes(call["output_padding"], spatial)
    return call.make(operator, x, weight, call.get("bias"), **attributes)


def _sizes(given: int | Sequence[int], count: int) -> list[int]:
    values = [given] if isinstance(given, int) else list(given)
    return values * count if len(values) == 1 else values


def pool(operator: str) -> Entry:
    """Maxima or means over windows."""

    def entry(call: Call) -> Value:
        kernel = list(call["kernel_size"])
        spatial = len(call.size("self")) - 2
        if spatial < 1:
            raise call.refuse(f"pooling of a tensor of shape {call.size('self')} without a leading batch dimension")
        if call.get("divisor_override") is not None:
            raise call.refuse("pooling with divisor_override")
        kernel = _sizes(kernel, spatial)
        attributes: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": _sizes(call["stride"] or kernel, spatial),
            "pads": _sizes(call["padding"], spatial) * 2,
            "ceil_mode": int(call["ceil_mode"]),
        }
        if operator == "AveragePool":
            attributes["count_include_pad"] = int(call["count_include_pad"])
        else:
            attributes["dilations"] = _sizes(call["dilation"], spatial)
        return call.make(operator, call["self"], **attributes)

    return entry


def adaptive(operator: str) -> Entry:
    """Windows of one size where the sizes divide."""

    def entry(call: Call) -> Value:
        wanted = list(call["output_size"])
        given = call.size("self")[-len(wanted) :]
        if len(call.size("self")) != len(wanted) + 2 or any(n % w for n, w in zip(given, wanted, strict=True)):
            raise call.refuse(f"adaptive pooling of {tuple(given)} to {tuple(wanted)}: windows of different sizes")
        kernel = [n // w for n, w in zip(given, wanted, strict=True)]
        found = call.make(operator, call["self"], kernel_shape=kernel, strides=kernel)
        return found if operator == "AveragePool" else (found, None)

    return entry


def batch_norm(call: Call) -> Value:
    """By the stored statistics."""
    if call.get("training"):
        raise call.refuse("batch normalisation in training mode: call module.eval() first")
    count = call.size("running_mean")[0]
    scale = call["weight"] or call.constant(torch.ones(count))
    shift = call["bias"] or call.constant(torch.zeros(count))
    operands = (call["input"], scale, shift, call["running_mean"], call["running_var"])
    found = call.make("BatchNormalization", *operands, epsilon=call["eps"])
    return found if "training" in call.arguments else (found, None, None)


def layer_norm(call: Call) -> Value:
    """Over the last axes."""
    shape = list(call["normalized_shape"])
    scale = call["weight"] or call.constant(torch.ones(shape))
    return call.make("LayerNormalization", call["input"], scale, call["bias"], axis=-len(shape), epsilon=call["eps"])


def nearest(call: Call) -> Value:
    """Each element repeated a whole number of times."""
    before, after = call.size("self") if "self" in call.arguments else call.size("input"), call.shape
    if any(b % a for a, b in zip(before, after, strict=True)):
        raise call.refuse(f"nearest resizing from {before} to {after}: only whole factors are supported")
    scales = call.constant(torch.tensor([b / a for a, b in zip(before, after, strict=True)]))
    rule = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}
    return call.make("Resize", (call["self"] if "self" in call.arguments else call["input"]), None, scales, **rule)
