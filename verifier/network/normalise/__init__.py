"""Normalisation of a graph: the same function in fewer nodes.

Each rule is a file of its own; ``normalise`` applies all of them in one walk. What a rule computes from constants
(a scaled weight, a sum of biases) carries an elementwise error bound, which bounding charges like a rounding error.
Two weight matrices are never multiplied. A merged node keeps the name of the last node in it. ``merge_neurons`` drops
names and is therefore applied to a query's graph only, after the load check.
"""

from __future__ import annotations

from bounds.graph import Graph
from verifier.network.normalise.bias import merge_bias
from verifier.network.normalise.draft import Rule, rewrite
from verifier.network.normalise.gates import fuse_swish
from verifier.network.normalise.neurons import merge_neurons
from verifier.network.normalise.neutral import drop_neutral
from verifier.network.normalise.order import without_increasing_end
from verifier.network.normalise.reshapes import merge_reshapes
from verifier.network.normalise.scale import merge_scale
from verifier.network.normalise.steps import merge_steps

__all__ = [
    "Rule",
    "drop_neutral",
    "fuse_swish",
    "merge_bias",
    "merge_neurons",
    "merge_reshapes",
    "merge_scale",
    "merge_steps",
    "normalise",
    "rewrite",
    "without_increasing_end",
]


def normalise(graph: Graph) -> Graph:
    """The graph with constant additions and scalings merged into the layer before, chained reshapes and
    chained steps merged, ``x sigmoid(x)`` as one function, and operations that change nothing dropped.

    Nodes that no output needs are dropped. The values of the remaining named nodes are the same real numbers, up to
    the error bounds that computed constants carry.
    """
    return rewrite(graph, (drop_neutral, merge_bias, merge_scale, merge_reshapes, merge_steps, fuse_swish))
