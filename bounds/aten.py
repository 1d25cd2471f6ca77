"""What each operation of torch (``aten``) is in terms of the operators: one table, read by ``bounds.tracing``.

An entry turns one call into one or more operators, by the same ``from_onnx`` that reads ONNX files: an operator that
is added for one is there for the other. Shapes are static, so everything that only renames places is a reshape to the
shape that the export recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from bounds import aten_layers as layers
from bounds.aten_call import Call, Entry, Ref, Value
from bounds.ops import readers

_LEAST_THRESHOLD = 20
"""Of softplus: from here on its distance from the identity is lost in float32."""


def _same(call: Call) -> Value:
    value = call["self"] if "self" in call.arguments else call["input"]
    assert isinstance(value, Ref)
    return value


def _cast(call: Call) -> Value:
    """Between floating types only to wider ones; the others round."""
    wider = (torch.float32, torch.float64)
    if call.dtype not in wider:
        raise call.refuse(f"a conversion to {call.dtype}")
    return _same(call)


def _dropout(call: Call) -> Value:
    if call["train"]:
        raise call.refuse("dropout in training mode: call module.eval() first")
    return _same(call)


def _reshape(call: Call) -> Value:
    return call.reshaped(call["self"], call.shape)


def _unary(operator: str, **attributes: Any) -> Entry:
    return lambda call: call.make(operator, call["self"], **attributes)


def _round(call: Call) -> Value:
    if call.get("decimals", 0):
        raise call.refuse(f"rounding to {call['decimals']} decimals")
    return call.make("Round", call["self"])


def _scaled_sum(operator: str) -> Entry:
    def entry(call: Call) -> Value:
        if call.dtype == torch.bool:
            raise call.refuse("a sum of booleans, which is their disjunction: convert them to numbers first")
        other = call.tensor(call["other"])
        if call.get("alpha", 1) != 1:
            other = call.make("Mul", call.tensor(call["alpha"]), other)
        return call.make(operator, call.tensor(call["self"]), other)

    return entry


def _reversed_sub(call: Call) -> Value:
    one = call["self"] if call.get("alpha", 1) == 1 else call.make("Mul", call.tensor(call["alpha"]), call["self"])
    return call.make("Sub", call.tensor(call["other"]), one)


def _binary(operator: str) -> Entry:
    return lambda call: call.make(operator, call.tensor(call["self"]), call.tensor(call["other"]))


def _divide(call: Call) -> Value:
    if call.get("rounding_mode") is not None:
        raise call.refuse(f"division with rounding_mode={call['rounding_mode']!r}")
    return call.make("Div", call.tensor(call["self"]), call.tensor(call["other"]))


def _power(call: Call) -> Value:
    return call.make("Pow", call.tensor(call["self"]), call.tensor(call["exponent"]))


def _clamp(call: Call) -> Value:
    low, high = (call.get(name) for name in ("min", "max"))
    if isinstance(low, Ref) or isinstance(high, Ref):
        result = call["self"]
        for limit, operator in ((low, "Max"), (high, "Min")):
            result = result if limit is None else call.make(operator, result, limit)
        return result
    return call.make("Clip", call["self"], *(None if v is None else call.tensor(float(v)) for v in (low, high)))


def _hardtanh(call: Call) -> Value:
    return call.make("Clip", call["self"], *(call.tensor(float(call[name])) for name in ("min_val", "max_val")))


def _leaky(call: Call) -> Value:
    return call.make("LeakyRelu", call["self"], alpha=_stored(call["negative_slope"], call.dtype))


def _stored(value: float, dtype: torch.dtype) -> float:
    """A number as the module computes with it."""
    return float(torch.tensor(value, dtype=dtype).item())


def _prelu(call: Call) -> Value:
    weight, rank = call["weight"], len(call.size("self"))
    count = call.size("weight")
    shape = (1,) * rank if count in ((), (1,)) else (1, *count, *(1,) * (rank - 2))
    return call.make("PRelu", call["self"], call.reshaped(weight, shape))


def _elu(call: Call) -> Value:
    if call["scale"] != 1 or call["input_scale"] != 1:
        raise call.refuse("elu with a scale")
    return call.make("Elu", call["self"], alpha=_stored(call["alpha"], call.dtype))


def _gelu(call: Call) -> Value:
    return call.make("Gelu", call["self"], approximate=call.get("approximate", "none"))


def _silu(call: Call) -> Value:
    if "Swish" in readers():
        return call.make("Swish", call["self"])
    return call.make("Mul", call["self"], call.make("Sigmoid", call["self"]))


def _softplus(call: Call) -> Value:
    """Beyond its threshold torch returns x, which differs by less than half a unit in the last place of float32."""
    beta, threshold = call.get("beta", 1), call.get("threshold", 20)
    if threshold < _LEAST_THRESHOLD:
        raise call.refuse(f"softplus with threshold {threshold}, a function with a jump: {_LEAST_THRESHOLD} is usual")
    if beta == 1:
        return call.make("Softplus", call["self"])
    factor = call.tensor(float(beta))
    return call.make("Div", call.make("Softplus", call.make("Mul", call["self"], factor)), factor)


def _softmax(operator: str) -> Entry:
    return lambda call: call.make(operator, call["self"], axis=call.axis())


def _transpose(call: Call) -> Value:
    perm = list(range(len(call.size("self"))))
    one, two = (call.axis("dim0"), call.axis("dim1")) if "dim0" in call.arguments else (0, len(perm) - 1)
    perm[one], perm[two] = perm[two], perm[one]
    return call.make("Transpose", call["self"], perm=perm)


def _permute(call: Call) -> Value:
    rank = len(call["dims"])
    return call.make("Transpose", call["self"], perm=[d % rank for d in call["dims"]])


def _cat(call: Call) -> Value:
    # An empty vector may stand among the operands, whatever their rank.
    operands = [o for o in call["tensors"] if call.build.shape(o.index) != (0,)]
    rank = len(call.build.shape(operands[0].index))
    return call.make("Concat", *operands, axis=call.get("dim", 0) % rank)


def _stack(call: Call) -> Value:
    rank, axis = len(call.shape), call.get("dim", 0) % len(call.shape)
    shape = [1 if k == axis else n for k, n in enumerate(call.shape)]
    assert len(shape) == rank
    return call.make("Concat", *(call.reshaped(o, shape) for o in call["tensors"]), axis=axis)


def _slice(call: Call) -> Value:
    limit = 2**62
    start, end = call.get("start"), call.get("end")
    places = (start or 0, limit if end is None else min(end, limit), call.axis(), call.get("step", 1))
    return call.make("Slice", call["self"], *(call.integers(p) for p in places))


def _select(call: Call) -> Value:
    index = call["index"] % call.size("self")[call.axis()]
    return call.make("Gather", call["self"], call.constant(torch.tensor(index)), axis=call.axis())


def _index_select(call: Call) -> Value:
    return call.make("Gather", call["self"], call["index"], axis=call.axis())


def _expand(call: Call) -> Value:
    return call.make("Expand", call["self"], call.integers(*call.shape))


def _repeat(call: Call) -> Value:
    result, given = call["self"], call.size("self")
    counts = list(call["repeats"])
    result = call.reshaped(result, (1,) * (len(counts) - len(given)) + given)
    for axis, count in enumerate(counts):
        if count < 1:
            raise call.refuse("repeating 0 times")
        result = call.make("Concat", *[result] * count, axis=axis) if count > 1 else result
    return result


def _split(call: Call) -> Value:
    axis, given = call.axis(), call.get("split_size", call.get("split_sizes"))
    size = call.size("self")[axis]
    if "chunks" in call.arguments:
        given = -(-size // call["chunks"])
    sizes = [min(given, size - k) for k in range(0, size, given)] if isinstance(given, int) else list(given)
    return call.several("Split", call["self"], call.integers(*sizes), outputs=len(sizes), axis=axis)


def _unbind(call: Call) -> Value:
    axis = call.axis()
    places = range(call.size("self")[axis])
    return tuple(call.make("Gather", call["self"], call.constant(torch.tensor(k)), axis=axis) for k in places)


def _pad(call: Call) -> Value:
    if call.get("mode", "constant") != "constant":
        raise call.refuse(f"padding in mode {call['mode']!r}")
    rank, pad = len(call.size("self")), list(call["pad"])
    begin, end = [0] * rank, [0] * rank
    for k in range(len(pad) // 2):
        begin[rank - 1 - k], end[rank - 1 - k] = pad[2 * k], pad[2 * k + 1]
    return call.make("Pad", call["self"], call.integers(*begin, *end), call.tensor(float(call.get("value") or 0.0)))


def _where(call: Call) -> Value:
    return call.make("Where", call["condition"], call.tensor(call["self"]), call.tensor(call["other"]))


def _reduction(operator: str) -> Entry:
    def entry(call: Call) -> Value:
        rank, dims = len(call.size("self")), call.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        if call.input_dtype.is_floating_point and not call.dtype.is_floating_point:
            raise call.refuse(f"a reduction of numbers converted to {call.dtype}")
        axes = sorted({d % rank for d in dims}) if dims else list(range(rank))
        return call.make(operator, call["self"], call.integers(*axes), keepdims=int(call.get("keepdim", False)))

    return entry


def _place(operator: str) -> Entry:
    """Of the first extreme element of an axis, or of everything."""

    def entry(call: Call) -> Value:
        if call.get("dim") is not None:
            return call.make(operator, call["self"], axis=call.axis(), keepdims=int(call["keepdim"]))
        return call.reshaped(call.make(operator, call.reshaped(call["self"], (-1,)), axis=0), call.shape)

    return entry


def _extremum(operator: str) -> Entry:
    """Of an axis, of everything, or of two tensors; the places of the extremum are not supported."""

    def entry(call: Call) -> Value:
        if "other" in call.arguments:
            return call.make(operator, call["self"], call["other"])
        found = _reduction(f"Reduce{operator}")(call)
        assert isinstance(found, Ref)
        return (found, None) if call.get("dim") is not None else found

    return entry


_UNARY = MappingProxyType(
    {
        "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "abs": "Abs", "neg": "Neg", "exp": "Exp", "log": "Log",
        "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tan": "Tan", "erf": "Erf", "sign": "Sign", "floor": "Floor",
        "reciprocal": "Reciprocal", "ceil": "Ceil", "hardswish": "HardSwish", "selu": "Selu", "mish": "Mish",
    }
)  # fmt: skip

_COMPARISONS = MappingProxyType(
    {"gt": "Greater", "lt": "Less", "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal"}
)


def _compare(operator: str) -> Entry:
    """With a tensor, or with a number in the type in which torch compares the two."""

    def entry(call: Call) -> Value:
        other = call["other"]
        if not isinstance(other, Ref):
            kind = torch.result_type(torch.empty(1, dtype=call.input_dtype), other)
            other = call.constant(torch.tensor(other, dtype=kind))
        return call.make(operator, call["self"], other)

    return entry


TABLE: Mapping[str, Entry] = MappingProxyType(
    {f"aten.{name}": _unary(operator) for name, operator in _UNARY.items()}
    | {f"aten.{name}": _compare(operator) for name, operator in _COMPARISONS.items()}
    | {f"aten.{name}": _same for name in ("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "identity")}
    | {f"aten.{name}": _cast for name in ("to", "_to_copy")}
    | {
        f"aten.{name}": _reshape
        for name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
    }
    | {f"aten.{name}": layers.convolution for name in ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")}
    | {f"aten.{name}": layers.matmul for name in ("matmul", "mm", "bmm", "mv")}
    | {f"aten.{name}": _split for name in ("split", "split_with_sizes", "chunk")}
    | {f"aten.max_pool{n}d": layers.pool("MaxPool") for n in (1, 2)}
    | {f"aten.avg_pool{n}d": layers.pool("AveragePool") for n in (1, 2)}
    | {f"aten.adaptive_avg_pool{n}d": layers.adaptive("AveragePool") for n in (1, 2)}
    | {f"aten.adaptive_max_pool{n}d": layers.adaptive("MaxPool") for n in (1, 2)}
    | {f"aten.upsample_nearest{n}d": layers.nearest for n in (1, 2)}
    | {
        "aten.dropout": _dropout,
        "aten.native_dropout": _dropout,
        "aten.add": _scaled_sum("Add"),
        "aten.sub": _scaled_sum("Sub"),
        "aten.rsub": _reversed_sub,
        "aten.mul": _binary("Mul"),
        "aten.div": _divide,
        "aten.pow": _power,
        "aten.maximum": _binary("Max"),
        "aten.minimum": _binary("Min"),
        "aten.clamp": _clamp,
        "aten.clamp_min": _clamp,
        "aten.clamp_max": _clamp,
        "aten.hardtanh": _hardtanh,
        "aten.relu6": _unary("Clip", min=0.0, max=6.0),
        "aten.leaky_relu": _leaky,
        "aten.prelu": _prelu,
        "aten.elu": _elu,
        "aten.gelu": _gelu,
        "aten.silu": _silu,
        "aten.softplus": _softplus,
        "aten.round": _round,
        "aten.hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
        "aten.softmax": _softmax("Softmax"),
        "aten._softmax": _softmax("Softmax"),
        "aten.log_softmax": _softmax("LogSoftmax"),
        "aten._log_softmax": _softmax("LogSoftmax"),
        "aten.linear": layers.linear,
        "aten.addmm": layers.addmm,
        "aten.scaled_dot_product_attention": layers.attention,
        "aten.t": _transpose,
        "aten.transpose": _transpose,
        "aten.permute": _permute,
        "aten.cat": _cat,
        "aten.stack": _stack,
        "aten.slice": _slice,
        "aten.select": _select,
        "aten.index_select": _index_select,
        "aten.expand": _expand,
        "aten.repeat": _repeat,
        "aten.unbind": _unbind,
        "aten.pad": _pad,
        "aten.constant_pad_nd": _pad,
        "aten.where": _where,
        "aten.sum": _reduction("ReduceSum"),
        "aten.mean": _reduction("ReduceMean"),
        "aten.amax": _reduction("ReduceMax"),
        "aten.amin": _reduction("ReduceMin"),
        "aten.max": _extremum("Max"),
        "aten.min": _extremum("Min"),
        "aten.argmax": _place("ArgMax"),
        "aten.argmin": _place("ArgMin"),
        "aten.einsum": lambda call: call.make("Einsum", *call["tensors"], equation=call["equation"]),
        "aten.batch_norm": layers.batch_norm,
        "aten._native_batch_norm_legit_no_training": layers.batch_norm,
        "aten.layer_norm": layers.layer_norm,
    }
)
"""The entry of each operation, by its name without the overload."""
