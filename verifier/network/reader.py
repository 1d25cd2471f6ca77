"""The ONNX reader: a model becomes a ``bounds.graph.Graph`` of static shapes in exact (float64) constants.

A node of the graph is named after the ONNX tensor that it computes; nodes without a counterpart have no name. That is
what the load check (``verifier.network.check``) goes by. Operators read themselves (``Op.from_onnx``); operations on
constants, so all shape arithmetic, are folded while building; nodes that no output needs are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import TensorProto
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops import readers
from bounds.ops.base import OnnxNode, Op, Shape, UnsupportedOperatorError
from verifier.errors import InputError, UnsupportedError, UnsupportedModelError
from verifier.network import decode, files
from verifier.network.check import check_network
from verifier.network.normalise import normalise
from verifier.paths import existing_file
from verifier.query import Variable

_OWN_DOMAINS = ("", "ai.onnx")
_MAX_ELEMENTS = 2**30
"""A tensor with more elements is refused: one evaluation in float64 would take 8 GiB for it alone."""
_INPUT_TYPES = MappingProxyType({TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"})


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network as read.

    ``graph`` has one input and one output node for each declared one, with their full ONNX shapes. ``model`` is the
    serialised model for onnxruntime: the same function with the input shapes fixed as read and external data inside.
    ``opset`` is the version of the default operator set, ``tensors`` the names that the model's nodes compute. ``path``
    is None for a model given as bytes.
    """

    graph: Graph
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    model: bytes
    opset: int
    tensors: tuple[str, ...]
    path: Path | None = None


def read_network(
    source: str | Path | bytes,
    *,
    dims: Mapping[str, int] | None = None,
    max_bytes: int = files.MAX_BYTES,
    normalised: bool = True,
    checked: bool = True,
) -> Network:
    """Read an ONNX model (``.onnx`` or gzip of it, by path or as bytes).

    ``dims`` gives sizes to symbolic dimensions by name; other symbolic or zero dimensions become 1. ``normalised``
    merges affine nodes (``verifier.network.normalise``); ``checked`` compares every node with onnxruntime.
    Raises ``InputError`` for a file that is not a valid model, ``UnsupportedModelError`` listing all operators that
    are not supported, ``InternalError`` where a node disagrees with onnxruntime.
    """
    model, name = files.load_model(source, max_bytes)
    translation = _Translation(model, name, dims or {})
    graph = translation.run()
    outputs = _outputs(model.graph, [graph.nodes[i].shape for i in graph.outputs], translation.inputs[0].dtype)
    path = None if isinstance(source, bytes) else existing_file(source, ".onnx")
    _fix_shapes(model.graph, (*translation.inputs, *outputs))
    if normalised:
        graph = normalise(graph)
    tensors = tuple(name for node in model.graph.node for name in node.output)
    network = Network(graph, translation.inputs, outputs, model.SerializeToString(), translation.opset, tensors, path)
    if checked:
        check_network(network)
    return network


class _Unnamed:
    """A builder that ignores the names operators give: the reader knows which node computes which tensor."""

    def __init__(self, build: Builder) -> None:
        self._build = build

    def shape(self, index: int) -> Shape:
        return self._build.shape(index)

    def value(self, index: int) -> Tensor | None:
        return self._build.value(index)

    def error(self, index: int) -> Tensor | None:
        return self._build.error(index)

    def constant(self, value: Tensor, error: Tensor | None = None, name: str = "") -> int:
        return self._build.constant(value, error)

    def add(self, op: Op, *inputs: int, name: str = "") -> int:
        return self._build.add(op, *inputs)


class _Translation:
    """One run over the nodes of a model; collects everything unsupported before it complains."""

    def __init__(self, model: onnx.ModelProto, name: str, dims: Mapping[str, int]) -> None:
        self.opset = files.opset(model, name)
        self._name = name
        self._graph = model.graph
        self._initialisers = {t.name: t for t in model.graph.initializer}
        self._readers = readers()
        self._build = Builder()
        self._ids: dict[str, int] = {}
        self._named: set[int] = set()
        self._unsupported: dict[str, list[str]] = {}  # by operator: why, for each node that is not covered
        self._used = {n for node in model.graph.node for n in node.input} | {o.name for o in model.graph.output}
        if model.graph.sparse_initializer:
            raise UnsupportedError(f"{name}: sparse initialisers are not supported")
        self.inputs = _inputs(model.graph, name, dims)

    def run(self) -> Graph:
        for variable in self.inputs:
            self._publish(variable.name, self._build.input(variable.shape, variable.name))
        for node in self._graph.node:
            self._read(node)
        if self._unsupported:
            raise self._complaint()
        return self._build.finish(self._operand(o.name, "the graph's outputs") for o in self._graph.output)

    def _publish(self, tensor: str, index: int) -> None:
        self._ids[tensor] = index
        if index not in self._named:
            self._named.add(index)
            self._build.rename(index, tensor)

    def _operand(self, tensor: str, reader: str) -> int:
        """Id of a tensor by name; initialisers become constants when they are first read."""
        if tensor not in self._ids:
            proto = self._initialisers.get(tensor)
            if proto is None:
                raise InputError(f"{self._name}: {reader} reads tensor {tensor!r}, which nothing computes")
            where = f"{self._name}: initialiser {tensor!r}"
            self._publish(tensor, self._build.constant(decode.tensor(proto, where)))
        return self._ids[tensor]

    def _read(self, node: onnx.NodeProto) -> None:
        title = f"node {_title(node)!r} ({node.op_type})"
        known = self._reader(node)
        missing = any(name and name not in self._ids and name not in self._initialisers for name in node.input)
        if known is None or missing:
            return
        operands = tuple(self._operand(n, title) if n else None for n in node.input)
        try:
            plain = OnnxNode(
                node.op_type, _title(node), decode.attributes(node), operands, len(node.output), self.opset
            )
            results = known.from_onnx(plain, _Unnamed(self._build))
        except UnsupportedOperatorError as error:
            self._refuse(node, error.why)
            return
        except UnsupportedError as error:
            self._refuse(node, str(error))
            return
        except (ValueError, RuntimeError, IndexError, ArithmeticError, MemoryError) as error:
            shapes = [list(self._build.shape(i)) for i in operands if i is not None]
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self._name}: {title} does not fit its operands of shapes {shapes}: {reason}") from error
        for tensor, index in zip(node.output, results, strict=False):
            _limit(self._build.shape(index), f"{self._name}: {title}")
            if tensor:
                self._publish(tensor, index)
        for position, tensor in enumerate(node.output):
            if position >= len(results) and tensor in self._used:
                self._refuse(node, f"output number {position + 1} is not supported")

    def _reader(self, node: onnx.NodeProto) -> type[Op] | None:
        """The class that reads a node; None after noting that there is none."""
        if node.domain not in _OWN_DOMAINS:
            self._refuse(node, f"operator set {node.domain!r}")
            return None
        known = self._readers.get(node.op_type)
        if known is None:
            self._refuse(node, "")
            return None
        since = min(o.since for o in known.onnx if o.name == node.op_type)
        if since > self.opset:
            self._refuse(node, f"operator set {self.opset}; supported since {since}")
            return None
        return known

    def _refuse(self, node: onnx.NodeProto, why: str) -> None:
        self._unsupported.setdefault(node.op_type, []).append(f"{_title(node)!r}{why and ': '}{why}")

    def _complaint(self) -> UnsupportedModelError:
        operators = tuple(
            f"{operator} ({len(nodes)} node{'s' if len(nodes) > 1 else ''}, first {nodes[0]})"
            for operator, nodes in self._unsupported.items()
        )
        return UnsupportedModelError(f"{self._name}: operators not supported: {'; '.join(operators)}", operators)


def _title(node: onnx.NodeProto) -> str:
    """A node's name, or else the first tensor that it computes."""
    return str(node.name or (node.output[0] if node.output else ""))


def _inputs(graph: onnx.GraphProto, name: str, dims: Mapping[str, int]) -> tuple[Variable, ...]:
    """The inputs that are not initialisers, with static shapes."""
    stored = {t.name for t in graph.initializer}
    symbols: set[str] = set()
    result: list[Variable] = []
    start = 0
    for value in graph.input:
        if value.name in stored:
            continue
        kind = value.type.tensor_type
        dtype = _INPUT_TYPES.get(kind.elem_type)
        if not value.type.HasField("tensor_type") or dtype is None:
            raise UnsupportedError(f"{name}: input {value.name!r} is not a tensor of float32 or float64")
        if not kind.HasField("shape"):
            raise UnsupportedError(f"{name}: input {value.name!r} declares no shape; export the model with one")
        shape = tuple(dims.get(d.dim_param, 1) if d.dim_value <= 0 else int(d.dim_value) for d in kind.shape.dim)
        _limit(shape, f"{name}: input {value.name!r}")
        symbols.update(d.dim_param for d in kind.shape.dim if d.dim_param)
        result.append(Variable(value.name, dtype, shape, start))
        start += result[-1].size
    if not result:
        raise InputError(f"{name}: the model has no input")
    _check_dims(dims, symbols, name)
    return tuple(result)


def _limit(shape: Shape, where: str) -> None:
    if math.prod(shape) > _MAX_ELEMENTS:
        raise UnsupportedError(f"{where} has shape {list(shape)}: more than {_MAX_ELEMENTS} elements")


def _check_dims(dims: Mapping[str, int], symbols: set[str], name: str) -> None:
    for symbol, size in dims.items():
        if symbol not in symbols:
            known = ", ".join(sorted(symbols)) or "none"
            raise InputError(f"{name}: no input has a symbolic dimension {symbol!r} (there are: {known})")
        if size < 1:
            raise InputError(f"{name}: dimension {symbol!r} must be at least 1, not {size}")


def _outputs(graph: onnx.GraphProto, shapes: list[Shape], default: str) -> tuple[Variable, ...]:
    result: list[Variable] = []
    start = 0
    for value, shape in zip(graph.output, shapes, strict=True):
        element = value.type.tensor_type.elem_type
        result.append(Variable(value.name, decode.type_name(element) if element else default, shape, start))
        start += result[-1].size
    return tuple(result)


def _fix_shapes(graph: onnx.GraphProto, variables: tuple[Variable, ...]) -> None:
    """Write the static shapes into the model; stale shapes of inner tensors are dropped."""
    shapes = {v.name: v.shape for v in variables}
    for value in (*graph.input, *graph.output):
        if value.name in shapes:
            declared = value.type.tensor_type.shape
            del declared.dim[:]
            for size in shapes[value.name]:
                declared.dim.add().dim_value = size
            declared.SetInParent()
    del graph.value_info[:]
