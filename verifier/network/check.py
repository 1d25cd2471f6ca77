"""The load check: every node is compared with onnxruntime on onnxruntime's own intermediate values.

Each node that is named after an ONNX tensor is computed from *onnxruntime's* values of its operands, so that a
difference is the fault of this one step (or of the few steps merged into it) and nothing accumulates. Two fixed
pseudo-random points are used: uniform in [0, 1] and standard normal. Shapes must agree exactly.

How far apart the two may be: a float32 sum of n products errs by at most ``n 2^-24`` times the sum of the products'
absolute values, and that sum is what ``Affine.absolute`` gives (carried through nodes that have no counterpart in
the model); a misread weight, pad or axis moves a value by a sizeable part of it. So the limit is a share of that sum
(1e-4 in float32, where n up to 1,600 is covered even in the worst case, far more in practice), and for nonlinear
operators a share of the node's greatest absolute value; where such an error can cross a jump, the height of the jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from bounds.ops.affine import Affine
from bounds.ops.argmax import Place
from bounds.ops.jumps import Jumping
from verifier.errors import InternalError, UnsupportedError

if TYPE_CHECKING:
    from bounds.graph import Graph, Node
    from verifier.network.reader import Network

_SHARE = MappingProxyType({"float32": 1e-4, "float64": 1e-10})
_COMPUTED = 2**29 / _SHARE["float32"]
"""A float64 error bound as a share of a size: 2^29 times larger in float32."""
OUTPUTS_ONLY_FROM = 2**29
"""Models of at least this many bytes are compared at their outputs only: keeping every value would cost too much."""


def check_network(network: Network) -> None:
    """Compare a network with onnxruntime.

    Raises ``InternalError`` naming the first node that disagrees, ``UnsupportedError`` where onnxruntime cannot run
    the model (then no counterexample could be replayed).
    """
    names = [o.name for o in network.outputs]
    if len(network.model) < OUTPUTS_ONLY_FROM:
        names = _comparable(network)
    session = _session(network, names)
    points = _points(network)
    runs = []
    for point in zip(*points, strict=True):
        try:
            feed = {v.name: np.asarray(x) for v, x in zip(network.inputs, point, strict=True)}  # scalars too are arrays
            runs.append(session.run(names, feed))
        except Exception as error:  # onnxruntime raises classes of its own without a public base
            raise UnsupportedError(f"{network.path}: onnxruntime cannot run the model: {_line(error)}") from error
    theirs = {name: torch.stack([_tensor(a) for a in found]) for name, *found in zip(names, *runs, strict=True)}
    _compare(network, theirs, [torch.from_numpy(x).double() for x in points])


def _comparable(network: Network) -> list[str]:
    """Names of tensors that a node of the model computes and a node of our graph is named after."""
    wanted = {n.name for n in network.graph.nodes} | {o.name for o in network.outputs}
    return [name for name in network.tensors if name and name in wanted]


def _session(network: Network, names: list[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Serialised protocol buffers that follow each other are merged: this adds outputs without another copy.
    extra = onnx.ModelProto()
    present = {o.name for o in network.outputs}
    extra.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    try:
        return onnxruntime.InferenceSession(
            network.model + extra.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise UnsupportedError(f"{network.path}: onnxruntime cannot load the model: {_line(error)}") from error


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor of it; torch knows little of unsigned types, so that those become int64."""
    return torch.from_numpy(np.array(array, dtype=np.int64 if array.dtype.kind == "u" else array.dtype))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _points(network: Network) -> list[np.ndarray]:
    """For each input the values at both points, ``[2, *shape]``."""
    generator = np.random.default_rng(0)
    return [
        np.stack([generator.random(v.shape), generator.standard_normal(v.shape)]).astype(v.dtype)
        for v in network.inputs
    ]


def _compare(network: Network, theirs: dict[str, Tensor], points: list[Tensor]) -> None:
    """Walk the graph; a named node's value is replaced by onnxruntime's once it has been compared.

    ``theirs`` and ``points`` are ``[2, *shape]``; constants are the same at both points.
    """
    graph, where = network.graph, str(network.path or "model")
    values = dict(zip(graph.inputs, points, strict=True))
    # An output that is an input or an initialiser is computed by no node.
    outputs = [
        (graph.nodes[i], v.name) for i, v in zip(graph.outputs, network.outputs, strict=True) if v.name in theirs
    ]
    # An output may be computed by a node that bears another tensor's name.
    aliases = {node.id: theirs[name] for node, name in outputs}
    sizes: dict[int, Tensor] = {}
    undefined: set[int] = set()  # behind an operator that has no value at these points, here and there
    for node in graph.nodes:
        if node.id in values:
            continue
        operands = [] if node.id in graph.constants else graph.operands(node, values)
        ours = node.op.forward(*operands) if operands else graph.constants[node.id].value
        scale = _scale(graph, node, operands, ours, sizes)
        values[node.id] = ours
        reference = theirs.get(node.name) if node.name else None
        reference = aliases.get(node.id) if reference is None else reference
        if reference is not None:
            reference = reference if operands else reference[0]
            behind = not undefined.isdisjoint(node.inputs)
            # A runtime's comparison makes a number of NaN, ours never does.
            _compare_node(node, torch.where(ours.isnan(), reference, ours) if behind else ours, reference, scale, where)
            values[node.id] = reference.to(ours.dtype)
        elif operands:
            sizes[node.id] = scale
        if not undefined.isdisjoint(node.inputs) if reference is None else bool(reference.isnan().any()):
            undefined.add(node.id)
    for node, name in outputs:
        reference = theirs[name][0] if node.id in graph.constants else theirs[name]
        ours = values[node.id]
        _compare_node(replace(node, name=name), ours, reference, _magnitude(ours), where)


def _compare_node(node: Node, ours: Tensor, theirs: Tensor, scale: Tensor, where: str) -> None:
    what = f"{where}: node {node.name!r} ({type(node.op).__name__})"
    if ours.shape != theirs.shape:
        raise InternalError(
            f"{what} was read with shape {list(ours.shape)}, onnxruntime computes {list(theirs.shape)}; "
            "please report it (no verdict is given)"
        )
    if ours.numel() == 0:
        return
    wrong = _beyond(ours, theirs, scale)
    if bool(wrong.any()):
        at = tuple(int(i) for i in wrong.nonzero()[0])
        place = list(at[ours.dim() - len(node.shape) :])
        raise InternalError(
            f"{what} disagrees with onnxruntime at index {place}: {float(ours[at])!r} here, "
            f"{float(theirs[at])!r} there; please report it (no verdict is given)"
        )


def _scale(graph: Graph, node: Node, operands: list[Tensor], ours: Tensor, sizes: Mapping[int, Tensor]) -> Tensor:
    """What rounding errors of this step are proportional to.

    ``sizes`` holds it for the nodes without a counterpart in the model, whose errors this step inherits. A constant
    that was computed here (a folded normalisation, say) is computed in float32 there: its recorded float64 error says
    how much that may differ, in spite of any cancellation.
    """
    if isinstance(node.op, Jumping | Place) and operands and node.inputs[0] in sizes:
        slack = _SHARE["float32"] * sizes[node.inputs[0]]
        low, high = node.op.interval([(operands[0] - slack, operands[0] + slack)], None)
        return (high - low) / _SHARE["float32"] + _magnitude(ours)
    if not isinstance(node.op, Affine) or not operands:
        inherited = [sizes[i].max() for i in node.inputs if i in sizes]
        return torch.stack([_magnitude(ours), *inherited]).max().expand(ours.shape)
    absolute = []
    for i, operand in zip(node.inputs, operands, strict=True):
        size = sizes.get(i, operand.abs() if operand.is_floating_point() else operand)
        error = graph.constants[i].error if i in graph.constants else None
        absolute.append(size if error is None else size + error.reshape(size.shape) * _COMPUTED)
    return node.op.absolute(*absolute)


def _magnitude(values: Tensor) -> Tensor:
    """The greatest finite absolute value (a logarithm has none at some places)."""
    finite = torch.nan_to_num(values.double(), 0.0, 0.0, 0.0)
    return finite.abs().max() if values.numel() else torch.zeros((), dtype=torch.float64)


def _beyond(ours: Tensor, theirs: Tensor, scale: Tensor) -> Tensor:
    """Elementwise: whether the two differ by more than rounding explains."""
    if not theirs.is_floating_point():
        return ours.to(torch.int64) != theirs.to(torch.int64)
    share = _SHARE["float64" if theirs.dtype == torch.float64 else "float32"]
    mine, reference = ours.double(), theirs.double()
    # Where float32 overflows there is nothing to compare.
    return (~((mine - reference).abs() <= share * scale + 1e-30)) & torch.isfinite(reference)
