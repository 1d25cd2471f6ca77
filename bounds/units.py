"""Bounds of single elements of a node: which of them a cheap walk settles already.

Most elements that intervals leave open turn out to need no good bound: a ReLU whose input is seen to be positive is
linear, and a better bound changes nothing. So each of them is first walked with *parallel* lines, the same slope below
and above a nonlinear node. Then the row of its upper bound is the negative of that of its lower bound all the way to
the input, one walk gives both, and no step asks for the sign of a coefficient. Only what is still open after that is
worth the two walks that choose a line for each coefficient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds.alignment import cut
from bounds.backward import State, Walk, backward, start, steps, weigh
from bounds.concretize import concretize
from bounds.graph import Node
from bounds.interval import relaxed_charge
from bounds.layouts import Dense, Owner, Selection, Windows, flat
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Line, Relaxation
from bounds.ops.univariate import Univariate
from bounds.plan import Plan

VARYING_SHARE = 0.8
"""Inputs that are fixed in every box are left out where at most this share of them is left."""


def with_parallel_lines(plan: Plan, state: State, target: int) -> State | None:
    """The same state with lower lines of the slopes of the upper ones; None where an operator before ``target`` has no
    such lines."""
    relaxations, charges = dict(state.relaxations), dict(state.charges)
    for node, relaxation in state.relaxations.items():
        if node > target:
            continue
        op = plan.graph.nodes[node].op
        if not isinstance(op, Univariate):
            return None
        operands = plan.ends(node, state.bounds)
        slope = relaxation.upper[0].slopes[0]
        found = op.relaxation(operands, plan.rounding, (slope, slope))
        lower, upper = found.lower[0], found.upper[0]
        if not torch.equal(lower.slopes[0], upper.slopes[0]):
            return None
        found = Relaxation((Line(upper.slopes, lower.offset),), (upper,))
        relaxations[node] = found
        if plan.rounding is not None:
            # Middle and half-distance of the offsets are two sums, and off by a few units themselves.
            charges[node] = charges[node] + 3 * relaxed_charge(plan.rounding, op, found, operands[:1])
    return replace(state, relaxations=relaxations, charges=charges)


def enclosed(plan: Plan, state: State, target: int, units: Selection, owner: Owner) -> Interval:
    """``(lower, upper)`` ``[R]`` of unit elements of ``target`` by one walk of a state with parallel lines.

    With a rounding model they hold in exact arithmetic. ``owner``: by index, or of one box.
    """
    walk = start(plan, state, target, units, owner)
    walk.mirrored = True
    return _reached(walk, target)


def least(plan: Plan, state: State, target: int, units: Selection, owner: Owner) -> Tensor:
    """``[R]``: lower bounds of unit rows of ``target`` by a walk that chooses a line for each coefficient.

    With a rounding model they hold in exact arithmetic. ``owner``: by index, or of one box.
    """
    if state.ball is not None:  # whose norm takes whole rows
        return concretize(plan, backward(plan, state, target, units, owner), state.box, state.ball)
    walk = start(plan, state, target, units, owner)
    low, high = _reached(walk, target)
    return torch.cat([low, -high]) if walk.mirrored else low


def _reached(walk: Walk, target: int) -> Interval:
    """``[R]``: what rows and their negatives reach on their boxes, walked down to where nothing is left but the input.

    Rows that are written out have an upper end that means nothing.
    """
    plan, state, entry = walk.plan, walk.state, _entry(walk.plan)
    first = _first_step(plan, entry) if plan.rounding is None else None
    if first is not None:
        for _ in steps(walk, target, first.id):
            pass
        _over_first(walk, first, entry)
    for _ in steps(walk, target, entry):
        pass
    middle, away, size = walk.bias, walk.distance, torch.zeros_like(walk.bias)
    terms = 8
    for node, rows in walk.rows.items():
        low, high = state.bounds[node]
        radius = (high - low) / 2
        middle = middle + rows.dot(walk.owner, rows.values, low + radius)
        away = away + rows.dot(walk.owner, rows.values.abs(), radius)
        terms += 2 * low[0].numel()
        if plan.rounding is not None:
            size = size + weigh(rows, state.sizes[node])
    if plan.rounding is not None:
        # Two sums of terms of at most twice the size; centre and radius are off by units of it themselves.
        error = size * (8 * plan.rounding.gamma(terms)) + terms * 16 * plan.rounding.tiny
        error = (error + walk.total_error()) * (1 + 8 * plan.rounding.unit)
        away = plan.rounding.up(away + error)
        return _known(plan.rounding.down(middle - away)), -_known(-plan.rounding.up(middle + away))
    return _known(middle - away), -_known(-(middle + away))


def _first_step(plan: Plan, entry: int) -> Node | None:
    """The affine node that alone reads the input, and reads nothing else that varies."""
    if len(plan.consumers[entry]) != 1 or plan.consumers[entry][0] not in plan.affine:
        return None
    node = plan.graph.nodes[plan.consumers[entry][0]]
    varying = [i for i, c in zip(node.inputs, plan.operands[node.id], strict=True) if c is None]
    return node if varying == [entry] else None


def _over_first(walk: Walk, first: Node, entry: int) -> None:
    """What rows at the first step reach, without writing them out at the input: the middle as the middle of the node,
    the distance from sizes alone. Rows stay where they are if the operator has no such way."""
    rows, op, constants = walk.rows.get(first.id), first.op, walk.plan.operands[first.id]
    if rows is None or walk.state.splits.keys() & {first.id, entry}:
        return
    assert isinstance(op, Affine)
    low, high = walk.state.bounds[entry]
    radius, position = (high - low) / 2, next(k for k, c in enumerate(constants) if c is None)
    if isinstance(rows, Windows):
        rows = rows.inside(first.shape)
        away = op.spans(rows, position, constants, radius)
    else:
        away = _matrix_spans(walk, rows, op.matrix(constants, position, radius.shape[1:]), radius)
    if away is None:
        return
    centre = op.forward(*(low + radius if c is None else c for c in constants))
    walk.bias = walk.bias + rows.dot(walk.owner, rows.values, centre)
    walk.distance = walk.distance + away
    del walk.rows[first.id]


def _matrix_spans(walk: Walk, rows: Dense, matrix: Tensor | None, radius: Tensor) -> Tensor | None:
    """``[R]``: ``|rows matrix^T| . radius`` over the inputs that vary in some box; None without a matrix."""
    if matrix is None:
        return None
    varying = flat(radius).any(0).nonzero().flatten()
    live = varying if varying.shape[0] <= VARYING_SHARE * matrix.shape[0] else None
    reached = Dense(flat(rows.values) @ cut(matrix, live, rows.columns), live)
    return reached.dot(walk.owner, reached.values.abs_(), radius)


def _entry(plan: Plan) -> int:
    """The last node that is a mere rearrangement of the input: its bounds are the box."""
    entry = plan.input
    for node in plan.graph.nodes[entry + 1 :]:
        if entry not in node.inputs:
            continue
        if plan.consumers[entry] != (node.id,) or not isinstance(node.op, Affine) or plan.accumulation(node):
            break
        entry = node.id
    return entry


def _known(lower: Tensor) -> Tensor:
    """Lower bounds, with -inf where they overflowed."""
    return torch.nan_to_num(lower, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
