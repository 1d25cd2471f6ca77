"""One walk over a graph that copies it node by node and lets rules put something simpler in a node's place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bounds.graph import Builder, Graph
from bounds.ops.base import Op, Shape
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.gemm import Gemm

Layer = Gemm | Conv | ConvTranspose


@dataclass(slots=True)
class Draft:
    """The graph that is being written: what each new node is, and which of them have more than one reader."""

    build: Builder = field(default_factory=Builder)
    made: dict[int, tuple[Op, tuple[int, ...]]] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)

    def add(self, op: Op, *inputs: int, name: str = "") -> int:
        """Add an operation and remember what it is."""
        index = self.build.add(op, *inputs, name=name)
        self.made[index] = (op, inputs)
        return index

    def layer(self, index: int) -> tuple[Layer, tuple[int, ...]] | None:
        """The layer with constant weights at ``index`` and its operands, where the caller is its only reader."""
        op, inputs = self.made.get(index, (None, ()))
        if index in self.shared or not isinstance(op, Gemm | Conv | ConvTranspose):
            return None
        return (op, inputs) if all(self.build.value(i) is not None for i in inputs[1:]) else None

    def per_channel(self, constant: int, layer: int, op: Layer) -> int | None:
        """A constant that is added to (or multiplies) a layer's result, as a vector with one entry for each channel.

        ``op`` is the layer's operator: its channels are the last axis after Gemm, axis 1 after a convolution. None
        where the constant varies along another axis or would enlarge the result.
        """
        shape, result = self.build.shape(constant), self.build.shape(layer)
        axis = len(result) - 1 if isinstance(op, Gemm) else 1
        if not _fits(shape, result, axis):
            return None
        value, error = self.build.value(constant), self.build.error(constant)
        assert value is not None
        count = result[axis]
        return self.build.constant(
            value.reshape(-1).expand(count), None if error is None else error.reshape(-1).expand(count)
        )


class Rule(Protocol):
    """Writes ``op`` on the new nodes ``inputs`` in a simpler way, or returns None. ``name`` is the node's name."""

    def __call__(self, draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None: ...


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """The graph with the first rule that applies used at each node; what becomes unused is dropped."""
    draft = Draft()
    readers = Counter(i for node in graph.nodes for i in node.inputs)
    readers.update(graph.outputs)
    ids: dict[int, int] = {}
    for node in graph.nodes:
        if node.id in graph.inputs:
            index = draft.build.input(node.shape, node.name)
        elif node.id in graph.constants:
            constant = graph.constants[node.id]
            index = draft.build.constant(constant.value, constant.error, node.name)
        else:
            index = _write(draft, rules, node.op, tuple(ids[i] for i in node.inputs), node.name)
        ids[node.id] = index
        if readers[node.id] > 1 or node.id in graph.outputs:
            draft.shared.add(index)
    return draft.build.finish(ids[i] for i in graph.outputs)


def _write(draft: Draft, rules: Sequence[Rule], op: Op, inputs: tuple[int, ...], name: str) -> int:
    for rule in rules:
        index = rule(draft, op, inputs, name)
        if index is not None:
            return index
    return draft.add(op, *inputs, name=name)


def _fits(shape: Shape, result: Shape, axis: int) -> bool:
    if len(shape) != len(result):
        return False
    return all(size == 1 or (k == axis and size == result[k]) for k, size in enumerate(shape))
