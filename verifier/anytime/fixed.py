"""Inputs that do not vary, folded into the layer that reads them.

A first layer ``x W + b`` of which most inputs are fixed by the region is the layer of the others with another bias,
whose rounding the graph's builder notes. Bounds then walk back to the inputs that vary alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Box, Graph, LpBall
from bounds.graph import Builder, Constant
from bounds.ops.gemm import Gemm

FIXED_SHARE = 0.5
"""From this share of fixed inputs on they are folded."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """A function of the inputs ``kept`` ``[k]`` alone: its ``graph`` and ``region``. ``at`` ``[n]`` has the values of
    the others (None: all inputs are kept)."""

    graph: Graph
    region: Box | LpBall
    kept: Tensor | None = None
    at: Tensor | None = None

    @staticmethod
    def of(graph: Graph, region: Box | LpBall) -> Reduced:
        """Of one region; what it is given, where it is no box (or none of the graph's inputs), few inputs are fixed, no
        layer reads all of them, or what they add to it is too large for a float."""
        whole, reader = Reduced(graph, region), _reader(graph)
        if reader is None or not isinstance(region, Box):
            return whole
        if tuple(region.lower.shape) != (1, *graph.nodes[graph.inputs[0]].shape):
            return whole
        low, high = (end.flatten().to(torch.float64) for end in (region.lower, region.upper))
        moves = ~(low == high)
        kept, fixed = moves.nonzero().flatten(), (~moves).nonzero().flatten()
        if not kept.shape[0] or fixed.shape[0] < FIXED_SHARE * moves.shape[0] or not bool(low[fixed].isfinite().all()):
            return whole
        shape = (*graph.nodes[graph.inputs[0]].shape[:-1], kept.shape[0])
        box = Box(low[kept].reshape(1, *shape), high[kept].reshape(1, *shape))
        try:
            return Reduced(_folded(graph, reader, kept, fixed, low), box, kept, low)
        except ValueError:  # of the builder: a sum or its error overflows
            return whole

    def whole(self, point: Tensor | None) -> Tensor | None:
        """An input of the given graph, ``[*its input shape]``, from one ``[*input shape]`` of this."""
        if point is None or self.kept is None or self.at is None:
            return point
        found = self.at.index_copy(0, self.kept, point.flatten().to(self.at))
        return found.reshape(*point.shape[:-1], found.shape[0])


def _width(graph: Graph) -> int:
    return torch.Size(graph.nodes[graph.inputs[0]].shape).numel()


def _reader(graph: Graph) -> int | None:
    """The layer of constant weights that alone reads the input, which is a row."""
    if len(graph.inputs) != 1 or not (shape := graph.nodes[graph.inputs[0]].shape) or shape[-1] != _width(graph):
        return None
    readers = [node for node in graph.nodes if graph.inputs[0] in node.inputs]
    if len(readers) != 1 or not isinstance(readers[0].op, Gemm):
        return None
    source, *parameters = readers[0].inputs
    constant = source == graph.inputs[0] and all(i in graph.constants for i in parameters)
    return readers[0].id if constant else None


def _folded(graph: Graph, reader: int, kept: Tensor, fixed: Tensor, at: Tensor) -> Graph:
    build, layer = Builder(), graph.nodes[reader]
    x = build.input((*graph.nodes[graph.inputs[0]].shape[:-1], kept.shape[0]))
    weight, *bias = (graph.constants[i] for i in layer.inputs[1:])
    offsets = (_part(build, b) for b in bias)
    moved = build.add(Gemm(), build.constant(at[fixed]), _rows(build, weight, fixed), *offsets)
    first = build.add(Gemm(), x, _rows(build, weight, kept), moved, name=layer.name)
    return build.finish(build.embed(graph, [x], {reader: first}))


def _rows(build: Builder, weight: Constant, places: Tensor) -> int:
    error = None if weight.error is None else weight.error.expand(weight.value.shape)[places]
    return build.constant(weight.value[places].to(torch.float64), error)


def _part(build: Builder, bias: Constant) -> int:
    error = None if bias.error is None else bias.error.expand(bias.value.shape)
    return build.constant(bias.value.to(torch.float64), error)
