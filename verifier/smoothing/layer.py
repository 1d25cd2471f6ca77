"""Noise after the first layer (Lecuyer et al., S&P 2019, section 4): a classifier cut into an affine map and the rest.

For f(x) = after(W x + b) the smoothed classifier gives x the class that ``after(W x + b + noise)`` has most often. A
change of x by r in the norm p moves what the noise is added to by at most ``Delta_{p,q} r`` in the norm q, so that a
radius R certified for that vector in the norm q is one of ``R / Delta_{p,q}`` for x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bounds.graph import Builder, Graph
from bounds.ops.affine import Affine
from verifier.attacks.oracle import GraphOracle
from verifier.errors import UnsupportedError
from verifier.smoothing.counting import Scores
from verifier.smoothing.sensitivity import Norms, sensitivities


@dataclass(frozen=True, slots=True, eq=False)
class NoiseLayer:
    """``after(before(x))`` are the scores of a classifier, up to rounding; ``before`` takes ``[P, n]`` to ``[P, size]``
    and is affine, ``after`` takes ``[P, size]`` to ``[P, classes]``. ``name``: of the node whose values are between
    them. ``sensitivities``: see ``sensitivity.sensitivities``."""

    before: Scores
    after: Scores
    size: int
    name: str
    sensitivities: Mapping[Norms, float]


def noise_layer(graph: Graph, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NoiseLayer:
    """The classifier cut where ``cut`` says, to be run in ``dtype`` on ``device``.

    The smoothed classifier is that of the graph as it is: ``verifier.load(path, normalised=False)`` has the layers of
    the file, with other graphs neurons may have been merged. Raises ``UnsupportedError`` as ``cut`` and
    ``sensitivities``.
    """
    first, second, name = cut(graph)
    found = sensitivities(first)
    before, after = (GraphOracle.of(part, dtype, device) for part in (first, second))
    size = math.prod(second.nodes[second.inputs[0]].shape)
    return NoiseLayer(before.outputs, after.outputs, size, name, found)


def cut(graph: Graph) -> tuple[Graph, Graph, str]:
    """``(before, after, name)``: two graphs, one after the other the same function, and the node between them.

    That node is the last that is affine in the input and that every way from the input to the output goes through:
    the first layer with what stands in front of it and is affine (a normalisation, a reshape), and what follows it if
    that is affine too; in front of branches, as residual networks have them. Raises ``UnsupportedError`` where no layer
    is in front of the first nonlinear operator and the first branch, and for several inputs or outputs.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedError(
            f"noise after the first layer is for models with one input and one output; this one has "
            f"{len(graph.inputs)} and {len(graph.outputs)}"
        )
    if not graph.variable[graph.outputs[0]]:
        raise UnsupportedError("the output does not depend on the input: there is no layer to add noise after")
    start, end = graph.inputs[0], graph.outputs[0]
    found = _place(graph)
    name = graph.nodes[found].name or f"node {found}"
    return _part(graph, start, found), _part(graph, found, end), name


def _place(graph: Graph) -> int:
    """The last node that is affine, behind a layer, and passed by no edge."""
    between, found, layer, furthest = _between(graph), -1, False, 0
    readers = {i: node.id for node in graph.nodes if node.id in between for i in node.inputs}  # the last of each
    for node in graph.nodes:
        if node.id not in between:
            continue
        given = [i in between for i in node.inputs]
        if not node.op.is_affine(given):
            break
        shapes = [graph.nodes[i].shape for i in node.inputs]
        op = node.op
        layer = layer or (isinstance(op, Affine) and not op.elementwise and op.accumulation(*shapes) > 0)
        if layer and furthest <= node.id:
            found = node.id
        furthest = max(furthest, readers.get(node.id, 0))
    if found < 0:
        what = f"{type(node.op).__name__}{f' {node.name!r}' if node.name else ''}"
        raise UnsupportedError(
            f"the model has no layer that all of it is behind: before {what} (node {node.id}) the values are those of "
            "the input, or branches have begun; add the noise to the input instead"
        )
    return found


def _between(graph: Graph) -> set[int]:
    """The nodes that depend on the input and that the output depends on."""
    variable, found, stack = graph.variable, set[int](), [graph.outputs[0]]
    while stack:
        index = stack.pop()
        if index not in found and variable[index]:
            found.add(index)
            stack.extend(graph.nodes[index].inputs)
    return found


def _part(graph: Graph, start: int, end: int) -> Graph:
    """The graph from one node, now its input, to another."""
    build, first = Builder(), graph.nodes[start]
    ids = {start: build.input(first.shape, first.name)}
    needed, stack = set[int](), [end]
    while stack:
        index = stack.pop()
        if index not in needed and index != start:
            needed.add(index)
            stack.extend(graph.nodes[index].inputs)
    for index in sorted(needed):
        node = graph.nodes[index]
        if index in graph.constants:
            constant = graph.constants[index]
            ids[index] = build.constant(constant.value, constant.error, node.name)
        else:
            ids[index] = build.add(node.op, *(ids[i] for i in node.inputs), name=node.name)
    return build.finish((ids[end],))
