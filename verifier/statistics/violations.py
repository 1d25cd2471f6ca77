"""When a point is a violation, as a score: the least row over the outputs, less a threshold; at most 0 is a violation.

This is the polarity of ``bounds.margins``: with ``label`` the rows are the margins of a class, and a violation is a
point where some other class scores at least as much.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds import Graph, margins
from bounds.layouts import flat
from verifier.errors import InputError

MOST_ELEMENTS = 2**24
"""Elements of all nodes together that one evaluation holds at once, about: points are evaluated in chunks."""


@dataclass(frozen=True, slots=True, eq=False)
class Violations:
    """x is a violation where ``min over r of rows[r] . output(x) <= threshold``; ``rows`` ``[R, outputs]`` float64."""

    graph: Graph
    rows: Tensor
    threshold: float

    def scores(self, points: Tensor) -> Tensor:
        """``[N]``: the least row less the threshold at ``points`` ``[N, *input shape]``, in float64.

        Raises ``InputError`` where the network's output is not finite.
        """
        with torch.no_grad():
            outputs = torch.cat([flat(self.graph.evaluate(part)[0]) for part in points.split(chunk(self.graph))])
        found = (outputs @ self.rows.T).amin(1) - self.threshold
        broken = ~torch.isfinite(found)
        if bool(broken.any()):
            raise InputError(
                f"at {int(broken.sum())} of {len(found)} sampled points the network's output is not finite, the first "
                f"one being {points[broken][0].flatten()[:8].tolist()}: choose a region on which the network has values"
            )
        return found


def violations(graph: Graph, label: int | None, rows: Tensor | None, threshold: float) -> Violations:
    """The condition that is asked for by ``label`` or by ``rows`` ``[R, *output shape]``. Raises ``InputError``."""
    check_graph(graph)
    if (label is None) == (rows is None):
        raise InputError("what is a violation? Give label=N (another class scores at least as much), or rows=")
    shape = graph.nodes[graph.outputs[0]].shape
    if rows is None:
        assert label is not None
        rows = margins_of(graph, label)
    elif not isinstance(rows, Tensor) or tuple(rows.shape[1:]) != shape or not rows.shape[:1].numel():
        given = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise InputError(f"rows {given} for an output of shape {shape}: a tensor [R, *output shape] is needed")
    forms = flat(rows.detach().to(torch.float64))
    if not bool(torch.isfinite(forms).all()) or not torch.isfinite(torch.tensor(float(threshold))):
        raise InputError("rows and threshold must be finite numbers")
    return Violations(graph, forms, float(threshold))


def margins_of(graph: Graph, label: int) -> Tensor:
    """``bounds.margins``; raises ``InputError`` for a label that the output does not have."""
    try:
        found = margins(graph, label)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    if not len(found):
        raise InputError("label: the network has one output, so that there is no other class; give rows= instead")
    return found


def check_graph(graph: object) -> None:
    """Raise ``InputError`` for what is no graph with one input and one output."""
    if not isinstance(graph, Graph):
        raise InputError(
            f"a Graph is needed, not a {type(graph).__name__}: verifier.load(path) reads an ONNX model, "
            "bounds.trace(module, example) a torch module"
        )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise InputError(f"one input and one output are needed, not {len(graph.inputs)} and {len(graph.outputs)}")


def chunk(graph: Graph) -> int:
    """How many points are evaluated at once."""
    return max(1, MOST_ELEMENTS // sum(torch.Size(node.shape).numel() for node in graph.nodes))
