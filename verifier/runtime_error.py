"""What a proof over the real numbers says of the network as it runs in float32: how far its forms can be off.

A proof whose least margin is larger than that error holds for what float32 returns too, in any order of evaluation.
The error is bounded over the least box around all boxes of the query, so where these are large (or far apart) it is
pessimistic; a smaller margin is labelled "real only" then, which says that nothing is known about float32.
"""

from __future__ import annotations

import math

import torch

from verifier.query import Query

MOST_ENTRIES = 3_000_000
"""Forms times elements of all nodes up to which the error is bounded at all: a walk for each form, held at once."""

MOST_NEURONS = 3000
"""Nonlinear elements up to which their bounds come from backward walks; above, from intervals."""

LEAST_SECONDS = 10.0
"""What must be left until the deadline: the bound takes up to a few seconds, and the proof is there already."""


def float32_error(query: Query, device: torch.device | str = "cpu") -> float:
    """A bound of ``|computed - exact|`` for every form of the query (on the left of its literals, as a graph in float32
    computes it) over its boxes; infinite where there is none (jumps, a network too large, no error model,
    a last activation that was left out)."""
    from bounds.box import Box
    from bounds.forward_error import forward_error
    from bounds.methods import Crown, Interval
    from bounds.ops.affine import Affine

    if query.order_only:  # a saturated activation makes outputs equal in float32 that are not
        return math.inf
    graph = query.graph
    variable = graph.variable
    elements = sum(torch.Size(n.shape).numel() for n in graph.nodes if variable[n.id])
    if graph.nodes[graph.outputs[0]].shape[0] * elements > MOST_ENTRIES:
        return math.inf
    lower, upper = (torch.from_numpy(e).to(device) for e in (query.cases.lower.min(0), query.cases.upper.max(0)))
    shape = graph.nodes[graph.inputs[0]].shape
    box = Box(lower.reshape(1, *shape), upper.reshape(1, *shape))
    neurons = sum(
        torch.Size(n.shape).numel() for n in graph.nodes if variable[n.id] and n.inputs and not isinstance(n.op, Affine)
    )
    try:
        found = forward_error(graph, box, Crown() if neurons <= MOST_NEURONS else Interval())
    except ValueError:  # an operator without a derivative, or without an error model
        return math.inf
    return float(found.max())
