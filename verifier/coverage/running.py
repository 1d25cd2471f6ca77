"""A network under test: its neurons' values at inputs, as the network computes them in its own element type.

A model file is run by onnxruntime, with its inner tensors as further outputs; a graph that was traced from a torch
module is evaluated by torch in the dtype that is asked for. The numbers are kept in float64, where both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor

from bounds import Graph
from verifier.coverage.neurons import Layer, find_layers
from verifier.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from verifier.network import Network

Values = Mapping[int, Tensor]
"""By layer (its node): the neurons' values at N inputs, ``[N, size]`` float64."""

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_BATCH = 256


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """``graph``: the network as stored, one input ``[*shape]`` and one output; ``layers``: its neurons; ``dtype``: its
    element type. ``network`` is None where there is no model file."""

    graph: Graph
    layers: tuple[Layer, ...]
    dtype: np.dtype[Any]
    network: Network | None
    session: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return self.graph.nodes[self.graph.inputs[0]].shape

    @property
    def total(self) -> int:
        """How many neurons there are."""
        return sum(layer.size for layer in self.layers)

    def name(self, layer: Layer) -> str:
        """What the model calls a layer."""
        return self.graph.nodes[layer.node].name or f"node {layer.node}"

    def fitting(self, inputs: np.ndarray, what: str = "the inputs") -> np.ndarray:
        """``[N, *shape]`` in the network's element type. Raises ``InputError`` for another shape, for numbers that are
        not finite, and for numbers that the element type does not have (they would be other inputs)."""
        array, shape = np.asarray(inputs), self.shape
        if array.dtype.kind not in "fiu":
            raise InputError(f"{what}: an array of numbers is needed, not of type {array.dtype}")
        if array.shape[1:] != shape or array.ndim != len(shape) + 1:
            hint = "; the number N of inputs goes in front, x[None] is one" if array.shape == shape else ""
            wanted = ", ".join(map(str, ("N", *shape)))
            raise InputError(f"{what} have the shape {list(array.shape)}, [{wanted}] is needed{hint}")
        if not np.isfinite(array).all():
            raise InputError(f"{what}: number {int(np.argwhere(~np.isfinite(array))[0][0])} has NaN or infinity")
        stored = array.astype(self.dtype)
        if not np.array_equal(stored.astype(np.float64), array.astype(np.float64)):
            raise InputError(f"{what} have numbers that {self.dtype} does not hold: give x.astype('{self.dtype}')")
        return stored

    def values(self, inputs: np.ndarray) -> Values:
        """The neurons' values at inputs ``[N, *shape]`` that ``fitting`` returned. Raises ``InputError`` where one of
        them is not finite."""
        parts = [self._part(inputs[k : k + _BATCH]) for k in range(0, max(1, len(inputs)), _BATCH)]
        values = {n.node: torch.cat([p[n.node] for p in parts]) for n in self.layers}
        for layer in self.layers:
            if not bool(values[layer.node].isfinite().all()):
                number = int((~values[layer.node].isfinite()).any(1).nonzero()[0])
                raise InputError(f"at input {number} the layer {self.name(layer)} has a value that is not finite")
        return values

    def _part(self, inputs: np.ndarray) -> dict[int, Tensor]:
        points = torch.from_numpy(np.array(inputs))
        if self.session is None or not len(inputs):
            with torch.no_grad():
                found = self.graph.values(points)
        else:
            found = self._replayed(inputs, points)
        return {n.node: found[n.node].reshape(len(inputs), n.size).double() for n in self.layers}

    def _replayed(self, inputs: np.ndarray, points: Tensor) -> dict[int, Tensor]:
        """Values of the layers; where the model has no tensor for one, from the tensors before it."""
        names = _tensors(self)
        feed = self.graph.nodes[self.graph.inputs[0]].name
        runs = [self.session.run(list(names.values()), {feed: x}) for x in inputs]
        known: dict[int, Tensor] = {self.graph.inputs[0]: points}
        for position, index in enumerate(names):
            shape = (len(inputs), *self.graph.nodes[index].shape)
            known[index] = torch.from_numpy(np.stack([np.asarray(r[position]) for r in runs])).reshape(shape)
        for index in sorted(_nodes(self)):
            node = self.graph.nodes[index]
            if index in self.graph.constants:
                value = self.graph.constants[index].value
                known[index] = value.to(points) if value.is_floating_point() else value
            elif index not in known:
                known[index] = node.op.forward(*self.graph.operands(node, known))
        return known


def subject(model: str | Path | bytes | Network | Graph, dtype: Any = np.float32) -> Subject:
    """The network to be tested: a model file (or a ``Network`` that was read with ``normalised=False``), which
    onnxruntime runs in its own element type, or a ``bounds.Graph``, which torch evaluates in ``dtype``.

    Raises ``InputError`` for a network without piecewise linear operators and steps, ``UnsupportedError`` for
    one with several inputs or outputs, and all that reading a model raises.
    """
    if isinstance(model, Graph):
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise UnsupportedError(
                f"coverage needs one input and one output; the graph has {len(model.inputs)} and {len(model.outputs)}"
            )
        if np.dtype(dtype) not in _DTYPES:
            raise InputError(f"dtype {np.dtype(dtype)}: float32 or float64 is needed")
        return Subject(model, find_layers(model), np.dtype(dtype), None)
    from verifier.ranges import single

    network = single(model, as_stored=True)
    kind = np.dtype(network.inputs[0].dtype)
    if kind not in _DTYPES:
        raise UnsupportedError(f"coverage of a model whose input is {kind}: float32 and float64 are supported")
    found = Subject(network.graph, find_layers(network.graph), kind, network)
    return Subject(found.graph, found.layers, kind, network, _session(network, tuple(_tensors(found).values())))


def _tensors(subject: Subject) -> dict[int, str]:
    """The model's tensors that are read off, by node: of layers, and where a layer has none, of what it depends on."""
    found, seen = dict[int, str](), set[int]()
    assert subject.network is not None
    computed, stack = set(subject.network.tensors), [layer.node for layer in subject.layers]
    while stack:
        node = subject.graph.nodes[stack.pop()]
        if node.id in seen:
            continue
        seen.add(node.id)
        if node.name in computed:
            found[node.id] = node.name
        else:
            stack.extend(node.inputs)
    return dict(sorted(found.items()))


def _nodes(subject: Subject) -> set[int]:
    """The nodes between the tensors that are read off and the layers."""
    named, found, stack = set(_tensors(subject)), set[int](), [layer.node for layer in subject.layers]
    while stack:
        index = stack.pop()
        if index not in named and index not in found and index not in subject.graph.inputs:
            found.add(index)
            stack.extend(subject.graph.nodes[index].inputs)
    return found


def _session(network: Network, names: tuple[str, ...]) -> Any:
    """An onnxruntime session as a replay uses it that returns inner tensors too."""
    from verifier.replay import open_session

    # Serialised protocol buffers that follow each other are merged: this adds outputs without another copy.
    extra, present = onnx.ModelProto(), {o.name for o in network.outputs}
    extra.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in present)
    try:
        return open_session(network.model + extra.SerializeToString())
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise UnsupportedError(f"{network.path}: onnxruntime does not return the inner tensors: {line}") from error
