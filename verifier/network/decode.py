"""ONNX attributes and tensors as plain values: ints, floats, strings, lists of them, and torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, numpy_helper
from torch import Tensor

from verifier.errors import InputError, UnsupportedError

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_INTEGERS: Mapping[int, type[np.generic]] = MappingProxyType(
    {
        TensorProto.INT64: np.int64,
        TensorProto.INT32: np.int32,
        TensorProto.INT16: np.int16,
        TensorProto.INT8: np.int8,
        TensorProto.UINT8: np.uint8,
        TensorProto.BOOL: np.bool_,
        # torch does little arithmetic on wider unsigned types: their values are kept, in int64.
        TensorProto.UINT16: np.int64,
        TensorProto.UINT32: np.int64,
        TensorProto.UINT64: np.int64,
    }
)


def tensor(proto: TensorProto, where: str) -> Tensor:
    """The values: floating types in float64 (exact), integers and booleans as they are.

    ``where`` names the tensor in messages. Raises ``InputError`` for NaN, infinity or data that does not fit the
    declared shape, ``UnsupportedError`` for other element types.
    """
    if proto.data_type not in _FLOATS and proto.data_type not in _INTEGERS:
        raise UnsupportedError(f"{where}: element type {type_name(proto.data_type)} is not supported")
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: its data does not fit its shape {list(proto.dims)}: {error}") from error
    if proto.data_type in _INTEGERS:
        if proto.data_type == TensorProto.UINT64 and bool((array > np.iinfo(np.int64).max).any()):
            raise UnsupportedError(f"{where}: contains integers beyond 2^63 - 1")
        return torch.from_numpy(np.array(array, dtype=_INTEGERS[proto.data_type]))
    _refuse_infinite(array, where)
    return torch.from_numpy(np.array(array, dtype=np.float64))


def type_name(data_type: int) -> str:
    """Name of an ONNX element type as numpy spells it (``float32``), or the ONNX word where numpy has none."""
    try:
        return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)))
    except (KeyError, ValueError):
        return f"number {data_type}"


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """All attributes of a node, decoded; subgraphs raise ``UnsupportedError``."""
    result: dict[str, Any] = {}
    for attribute in node.attribute:
        decode = _DECODERS.get(attribute.type)
        if decode is None:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise UnsupportedError(f"attribute {attribute.name} of type {kind} is not supported")
        result[attribute.name] = decode(attribute)
    return result


def _refuse_infinite(array: np.ndarray, where: str) -> None:
    # One sum tells whether all is finite at a fraction of the cost; only a suspicious sum is looked into.
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return
    bad = ~np.isfinite(array.astype(np.float64))
    if bad.any():
        raise InputError(f"{where}: contains NaN or infinity ({int(bad.sum())} of {array.size} values)")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


_DECODERS: Mapping[int, Callable[[AttributeProto], Any]] = MappingProxyType(
    {
        AttributeProto.FLOAT: lambda a: float(a.f),
        AttributeProto.INT: lambda a: int(a.i),
        AttributeProto.STRING: lambda a: _text(a.s),
        AttributeProto.TENSOR: lambda a: tensor(a.t, f"attribute {a.name}"),
        AttributeProto.FLOATS: lambda a: [float(v) for v in a.floats],
        AttributeProto.INTS: lambda a: [int(v) for v in a.ints],
        AttributeProto.STRINGS: lambda a: [_text(v) for v in a.strings],
        AttributeProto.TENSORS: lambda a: [tensor(t, f"attribute {a.name}") for t in a.tensors],
    }
)
