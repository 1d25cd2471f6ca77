"""What a model holds, without torch: for ``verifier info`` and ``verifier supports``."""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import onnx

from verifier.network import files

_OWN_DOMAINS = ("", "ai.onnx")


def supported_operators() -> dict[str, Any]:
    """The content of ``verifier/operators.json``: by ONNX name what is said about each supported operator."""
    text = resources.files("verifier").joinpath("operators.json").read_text(encoding="utf-8")
    operators: dict[str, Any] = json.loads(text)
    return operators


def summarise(path: str | Path, max_bytes: int = files.MAX_BYTES) -> dict[str, Any]:
    """Inputs and outputs (name, element type, declared shape), opset, operators with counts, number of parameters,
    and the operators that are not supported at all. A form of a supported operator may still be refused on reading.

    Symbolic dimensions are given by name, unknown ones as ``None``. Raises like ``files.load_model``.
    """
    model, name = files.load_model(path, max_bytes)
    graph = model.graph
    stored = {t.name for t in graph.initializer}
    counts = Counter(_title(n) for n in graph.node)
    known = supported_operators()
    return {
        "path": name,
        "opset": files.opset(model, name),
        "inputs": [_value(v) for v in graph.input if v.name not in stored],
        "outputs": [_value(v) for v in graph.output],
        "operators": dict(sorted(counts.items())),
        "parameters": sum(math.prod(t.dims) for t in graph.initializer)
        + sum(math.prod(a.t.dims) for n in graph.node if n.op_type == "Constant" for a in n.attribute),
        "unsupported": sorted(o for o in counts if o not in known),
    }


def _title(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in _OWN_DOMAINS else f"{node.domain}.{node.op_type}"


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.tensor_type
    shape = [d.dim_param or (d.dim_value if d.HasField("dim_value") else None) for d in kind.shape.dim]
    return {"name": value.name, "type": _type(kind.elem_type), "shape": shape if kind.HasField("shape") else None}


def _type(element: int) -> str:
    return str(onnx.TensorProto.DataType.Name(element)).lower() if element else "unknown"
