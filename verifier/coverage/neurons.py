"""Which neurons a network has: the elements that piecewise linear nodes and steps read, found from the graph.

A layer is the operand of a node that is linear between finitely many places, its neurons are the operand's elements,
and a neuron's value is its pre-activation. Those places are the node's kinks, and 0 for a step (Sign), which jumps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Graph
from bounds.ops.base import Nonlinear, Op
from bounds.ops.jumps import Step
from bounds.ops.univariate import PiecewiseLinear
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Layer:
    """The ``node`` (id) whose ``size`` elements are the neurons, the ascending ``kinks`` (and jumps) of what reads
    them, and the ``before`` layers (their nodes) from which a path leads here that passes no other layer."""

    node: int
    size: int
    kinks: tuple[float, ...]
    before: tuple[int, ...]

    def phase(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The linear piece that each value lies on: its ends, like ``values`` (infinite where it has none). A value on
        a kink belongs to the piece above."""
        low, high = torch.full_like(values, -math.inf), torch.full_like(values, math.inf)
        for kink in self.kinks:
            low = torch.where(values >= kink, kink, low)
        for kink in reversed(self.kinks):
            high = torch.where(values < kink, kink, high)
        return low, high


def find_layers(graph: Graph) -> tuple[Layer, ...]:
    """The layers that a graph's output depends on, in topological order. Raises ``InputError`` where it has none (it
    names the nonlinear operators that there are)."""
    variable, used = graph.variable, needed(graph, graph.outputs[0])
    kinks = dict[int, set[float]]()
    for node in graph.nodes:
        if node.id in used and (places := _kinks(node.op)) and variable[node.inputs[0]]:
            kinks.setdefault(node.inputs[0], set()).update(places)
    if not kinks:
        others = {type(n.op).__name__ for n in graph.nodes if isinstance(n.op, Nonlinear)}
        raise InputError(
            "the network has no neurons that coverage knows: none of its operators is linear between kinks, or a step"
            + (f" (its nonlinear ones: {', '.join(sorted(others))})" if others else " (all are affine)")
        )
    return tuple(
        Layer(index, math.prod(graph.nodes[index].shape), tuple(sorted(found)), _before(graph, index, set(kinks)))
        for index, found in sorted(kinks.items())
    )


def _kinks(op: Op) -> tuple[float, ...]:
    """Where the pieces of an operator meet; none where it is not linear piece by piece."""
    if isinstance(op, PiecewiseLinear):
        return op.kinks()
    return (0.0,) if isinstance(op, Step) else ()


def needed(graph: Graph, node: int) -> frozenset[int]:
    """The ids of everything that a node depends on, itself included."""
    found, stack = set[int](), [node]
    while stack:
        index = stack.pop()
        if index not in found:
            found.add(index)
            stack.extend(graph.nodes[index].inputs)
    return frozenset(found)


def _before(graph: Graph, start: int, layers: set[int]) -> tuple[int, ...]:
    found, seen, stack = set[int](), set[int](), [start]
    while stack:
        node = graph.nodes[stack.pop()]
        if node.id in seen:
            continue
        seen.add(node.id)
        for operand in node.inputs:
            switches = bool(_kinks(node.op)) and operand in layers
            (found.add if switches else stack.append)(operand)
    return tuple(sorted(found))
