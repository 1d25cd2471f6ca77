"""A graph on a box as a mixed-integer program: its nodes' linear blocks side by side.

Elements of nodes become columns. What only moves or passes on a value (a reshape, a ReLU that is certainly active) has
the column of its operand, and what is certainly 0 has none: stable neurons cost nothing. No row is ever combined with
another, so the coefficients are the stored weights, and a bound of the program is one of the network as soon as the
rows are widened by their errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds import Bounds, Prepared
from bounds.blocks import node_block
from bounds.box import Box
from bounds.constraints import LinearBlock
from bounds.graph import Node
from bounds.interval import node_interval
from bounds.ops.base import Interval
from bounds.plan import Plan
from bounds.rounding import Rounding
from milp.model import Model


class UnboundedError(ValueError):
    """A program needs proven finite bounds of every neuron, and some neuron has none; the message names it."""


@dataclass(slots=True)
class _Build:
    """Columns and blocks so far, as parts that are joined at the end."""

    lower: list[Tensor] = field(default_factory=list)
    upper: list[Tensor] = field(default_factory=list)
    integer: list[Tensor] = field(default_factory=list)
    node: list[Tensor] = field(default_factory=list)
    element: list[Tensor] = field(default_factory=list)
    count: int = 0
    blocks: list[LinearBlock] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    columns: dict[int, Tensor] = field(default_factory=dict)

    def add(self, lower: Tensor, upper: Tensor, integer: Tensor, node: int, element: Tensor) -> Tensor:
        """The numbers of new columns."""
        for parts, part in zip(
            (self.lower, self.upper, self.integer, self.node, self.element),
            (lower, upper, integer, torch.full_like(element, node), element),
            strict=True,
        ):
            parts.append(part)
        self.count += lower.shape[0]
        return torch.arange(self.count - lower.shape[0], self.count)


def encode(prepared: Prepared, box: Box, bounds: Bounds, envelope: float | None = None) -> Model:
    """The program of a graph over one box; its cost is 0 (``with_cost`` gives it one).

    ``prepared`` with ``semantics="real"``; ``bounds`` are of its output over the same box, with the nodes kept that
    nonlinear operators read (``keep=prepared.plan.watched``): the tighter they are, the tighter the program. The model
    guarantees what ``Model`` states. A nonlinear operator without an exact form (a sigmoid, a product) is enclosed by
    lines on pieces of its operand's interval that leave results at most ``envelope`` from its own, as long as it is a
    function of one variable and few pieces do; the model then is not ``exact``. Raises ``UnsupportedOperatorError``
    for such an operator where ``envelope`` is None (it names the node), ``UnboundedError`` for a neuron without finite
    bounds, ``ValueError`` for more than one box, bounds of another box and an ``envelope`` that is no positive number.
    """
    plan, rounding = prepared.plan, prepared.plan.rounding
    if box.size != 1 or bounds.semantics != "real" or rounding is None:
        raise ValueError("a program needs one box, a graph prepared for semantics='real', and bounds proven for it")
    if envelope is not None and not envelope > 0:
        raise ValueError(f"an envelope has a positive error, not {envelope}")
    plan = plan.restricted((plan.output,), plan.output)
    intervals = _finite(plan, bounds.intervals)
    build = _Build()
    low, high = (end.flatten() for end in intervals[plan.input])
    if not bool(((low == box.lower.flatten()) & (high == box.upper.flatten())).all()):
        raise ValueError("bounds of another box: their input intervals are not its ends")
    elements = torch.arange(low.shape[0])
    build.columns[plan.input] = build.add(low, high, torch.zeros_like(elements, dtype=torch.bool), plan.input, elements)
    for node in plan.graph.nodes:
        if node.id in plan.operands:
            _enter(build, node, intervals, node_block(plan, node, intervals, envelope))
    return _joined(build, rounding)


def with_cost(model: Model, node: int, row: Tensor, offset: float = 0.0) -> Model:
    """The model that minimises ``row . node + offset`` for a row ``[*node shape]`` over a node that is in it.

    Where elements share a column, their coefficients are added up; what the sums may be off by comes off the offset.
    """
    columns, row = model.columns[node], row.flatten().double()
    if columns.shape != row.shape:
        raise ValueError(f"a row of {row.numel()} coefficients for a node of {columns.numel()} elements")
    row, columns = row[columns >= 0], columns[columns >= 0]
    cost = torch.zeros_like(model.lower).index_add_(0, columns, row)
    shared = torch.bincount(columns, minlength=cost.shape[0])
    if bool((shared > 1).any()):
        rounding = Rounding.of(torch.float64)
        sizes = torch.zeros_like(cost).index_add_(0, columns, row.abs())
        sizes = torch.where(shared > 1, sizes * torch.maximum(model.lower.abs(), model.upper.abs()), 0.0)
        error = rounding.affine(row.shape[0], sizes.sum())
        offset = float(rounding.down(offset - error))
    return replace(model, cost=cost, offset=offset)


def _finite(plan: Plan, intervals: Mapping[int, Interval]) -> dict[int, Interval]:
    """Intervals of the input and all variable nodes; those of nonlinear ones no wider than their operands' say, because
    where an operator has no choice (a ReLU below 0) its block leaves it to the ends. Raises where one is infinite."""
    found = {plan.input: intervals[plan.input]}
    for index in (plan.input, *sorted(plan.operands)):
        low, high = intervals[index]
        if index in plan.relaxed:
            (least, most), _ = node_interval(plan, plan.graph.nodes[index], found)
            low, high = torch.maximum(low, least), torch.minimum(high, most)
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            node = plan.graph.nodes[index]
            element = int((~(torch.isfinite(low) & torch.isfinite(high))).flatten().nonzero()[0])
            raise UnboundedError(
                f"element {element} of node {node.name or index} ({type(node.op).__name__}) has no finite bounds on "
                "this box, and a mixed-integer program needs them for every neuron: take a smaller box"
            )
        found[index] = low, high
    return found


def _enter(build: _Build, node: Node, intervals: Mapping[int, Interval], part: LinearBlock) -> None:
    """Add a node's columns and its block."""
    operands = [build.columns[i] for i in node.inputs if i in build.columns]
    low, high = (end.flatten() for end in intervals[node.id])
    moved, given = part.same >= 0, torch.cat([c.flatten() for c in operands])
    columns = torch.full_like(part.same, -1)
    columns[moved] = given[part.same[moved]]
    new = (~moved & ((low != 0) | (high != 0))).nonzero().flatten()
    columns[new] = build.add(low[new], high[new], torch.zeros_like(new, dtype=torch.bool), node.id, new)
    own = -1 - torch.arange(part.integer.shape[0])
    place = build.add(part.own_lower, part.own_upper, part.integer, node.id, own)
    build.columns[node.id] = columns
    build.blocks.append(part)
    build.places.append(torch.cat([given, columns, place])[part.column])


def _joined(build: _Build, rounding: Rounding) -> Model:
    """All blocks as one matrix by rows: entries on zeros fall away, entries on one column are added up."""
    lower, upper = torch.cat(build.lower), torch.cat(build.upper)
    blocks = build.blocks
    rows = [b.lower.shape[0] for b in blocks]
    first = torch.tensor([0, *rows]).cumsum(0)
    row = torch.cat([b.row + f for b, f in zip(blocks, first, strict=False)])
    column, value = torch.cat(build.places), torch.cat([b.value for b in blocks])
    there = column >= 0
    row, column, value = row[there], column[there], value[there]
    error = torch.cat([b.error for b in blocks])
    key, place = torch.unique(row * build.count + column, return_inverse=True)
    if key.shape[0] < row.shape[0]:
        sizes = torch.zeros_like(error).index_add_(
            0, row, value.abs() * torch.maximum(lower.abs(), upper.abs())[column]
        )
        repeated = torch.bincount(row, minlength=error.shape[0]) > torch.bincount(
            key // build.count, minlength=error.shape[0]
        )
        error = error + torch.where(repeated, rounding.affine(int(torch.bincount(place).max()), sizes), 0.0)
    value = torch.zeros(key.shape[0], dtype=torch.float64).index_add_(0, place, value)
    counts = torch.bincount(key // build.count, minlength=error.shape[0])
    return Model(
        cost=torch.zeros_like(lower),
        offset=0.0,
        start=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        index=key % build.count,
        value=value,
        row_lower=torch.cat([b.lower for b in blocks]),
        row_upper=torch.cat([b.upper for b in blocks]),
        row_error=error,
        lower=lower,
        upper=upper,
        integer=torch.cat(build.integer),
        node=torch.cat(build.node),
        element=torch.cat(build.element),
        columns=build.columns,
        exact=all(b.exact for b in blocks),
    )
