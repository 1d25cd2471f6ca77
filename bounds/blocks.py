"""The linear block of each node of a graph: what ``constraints.py`` describes, for one box and proven intervals.

An affine node's rows hold its stored constants as they are; what they are off by (constants that were computed, sums
that an operator forms of them) is the node's charge, which ``interval.py`` knows. A nonlinear operator makes its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bounds.constraints import LinearBlock, Row, block
from bounds.graph import Node
from bounds.interval import node_interval
from bounds.ops.affine import Affine, Entries
from bounds.ops.base import Interval, Nonlinear, UnsupportedOperatorError
from bounds.plan import Plan


def node_block(plan: Plan, node: Node, bounds: Mapping[int, Interval], envelope: float | None = None) -> LinearBlock:
    """The block of a variable node, from proven finite intervals ``[1, *shape]`` of all variable nodes.

    ``plan``: prepared with a rounding model. A nonlinear operator without an exact form gives its ``envelope`` of that
    error; with None this raises ``UnsupportedOperatorError``, which names the node.
    """
    if node.id in plan.affine:
        return affine_block(plan, node, bounds)
    op, ends = node.op, plan.ends(node.id, bounds)
    assert isinstance(op, Nonlinear)
    where = f"node {node.name or node.id} ({type(op).__name__})"
    if any(c is not None and k not in op.parameters for k, c in enumerate(plan.operands[node.id])):
        why = "a constant where its rows need a variable"
        raise UnsupportedOperatorError(f"{where} reads {why}", why)
    try:
        return op.exact(ends)
    except UnsupportedOperatorError as problem:
        if envelope is not None:
            return op.envelope(ends, envelope)
        raise UnsupportedOperatorError(
            f"{where} has no exact form as linear rows and phases: say with 'envelope' how far results may be from "
            "the operator's own, and it is enclosed by lines on pieces of its interval",
            problem.why,
        ) from problem


def affine_block(plan: Plan, node: Node, bounds: Mapping[int, Interval]) -> LinearBlock:
    """``y - W x = b``, with the node's charge as error; elements that are only moved are the operand's own columns."""
    op = node.op
    assert isinstance(op, Affine)
    entries, count = _entries(plan, node, op)
    size = bounds[node.id][0].numel()
    same = torch.full((size,), -1)
    if op.selects:
        same[entries.row] = entries.column
        return block((), same)
    _, charge = node_interval(plan, node, bounds)
    offset = plan.offset[node.id].flatten() if node.id in plan.offset else torch.zeros(size, dtype=torch.float64)
    error = torch.zeros_like(offset) if charge is None else charge.flatten()
    elements = torch.arange(size)
    own = block([Row(((count + elements, 1.0),), offset, offset, error)], same)
    row, order = torch.cat([own.row, entries.row]).sort(stable=True)
    column, value = torch.cat([own.column, entries.column])[order], torch.cat([own.value, -entries.value])[order]
    return LinearBlock(
        row, column, value, own.lower, own.upper, own.error, same, own.own_lower, own.own_upper, own.integer
    )


def _entries(plan: Plan, node: Node, op: Affine) -> tuple[Entries, int]:
    """The coefficients by all variable operands, whose elements are numbered one after the other; and their number."""
    given = list(zip(node.inputs, plan.operands[node.id], strict=True))
    shapes = [plan.graph.nodes[i].shape for i in node.inputs]
    constants = [
        torch.zeros((1, *s), dtype=plan.dtype) if c is None else c for (_, c), s in zip(given, shapes, strict=True)
    ]
    parts, count = list[Entries](), 0
    for position, ((_, constant), shape) in enumerate(zip(given, shapes, strict=True)):
        if constant is None:
            found = op.entries(position, constants, shape, node.shape)
            parts.append(Entries(found.row, found.column + count, found.value))
            count += torch.Size(shape).numel()
    return Entries(*(torch.cat(part) for part in zip(*parts, strict=True))), count
