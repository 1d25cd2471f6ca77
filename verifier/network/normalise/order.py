"""Outputs that are only compared with each other may be any increasing function of themselves.

Where a property says no more than which of two outputs is the larger, a last Softmax, LogSoftmax, Sigmoid or Tanh
changes nothing: ``f(a) <= f(b)`` where ``a <= b``, and ``<`` where ``<``. Leaving it out spares a relaxation, and gives
the search for counterexamples gradients where the function is saturated.
"""

from __future__ import annotations

from dataclasses import replace

from bounds.graph import Graph
from bounds.ops.shaping import Reshape
from bounds.ops.softmax import LogSoftmax, Softmax
from bounds.ops.sshape import Sigmoid, Tanh


def without_increasing_end(graph: Graph) -> Graph:
    """A graph whose outputs have the same order as those of ``graph`` (with one output node), and the same sizes."""
    (end,) = graph.outputs
    while True:
        node = graph.nodes[end]
        if not isinstance(node.op, Reshape | Softmax | LogSoftmax | Sigmoid | Tanh):
            break
        if isinstance(node.op, Softmax | LogSoftmax) and node.shape[node.op.axis] != _size(node.shape):
            break
        end = node.inputs[0]
    return replace(graph, outputs=(end,))


def _size(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
