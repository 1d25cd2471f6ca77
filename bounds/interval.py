"""Forward interval propagation, node by node, with the error that each step can make.

``charge`` of a node is the coin in which rounding is paid: a tensor ``[*shape]`` such that one step over the node,
forward for an element or backward for a coefficient row A, is off by at most ``charge`` or ``|A| . charge`` (the
maximum over the batch's boxes: one matrix-vector product a step, whatever the owners of the rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds import machine
from bounds.graph import Node
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Line, Nonlinear, Relaxation
from bounds.ops.shaping import Reshape
from bounds.ops.univariate import PiecewiseLinear
from bounds.plan import Plan
from bounds.rounding import Rounding

if TYPE_CHECKING:
    from bounds.backward import State
    from bounds.box import Box


def node_interval(plan: Plan, node: Node, bounds: Mapping[int, Interval]) -> tuple[Interval, Tensor | None]:
    """Interval ``[N, *shape]`` of one variable node from those of its operands, and its affine charge.

    Guarantees (with a rounding model) ``lower <= node(x) <= upper`` in exact arithmetic for every x in the box.
    Ends that are not finite become infinite: no information.
    """
    if plan.rounding is None and node.id in plan.magnitudes:
        return finite_or_infinite(*_around(plan, node, bounds)), None
    low, high = node.op.interval(plan.ends(node.id, bounds), plan.rounding)
    charge = None
    if plan.rounding is not None and node.id in plan.affine:
        charge = _interval_charge(plan, plan.rounding, node, bounds)
        if charge is not None and node.id in plan.errors:
            low, high = plan.rounding.down(low - charge), plan.rounding.up(high + charge)
    if plan.machine is not None:
        error = machine.roundoff(plan, node, bounds)
        low, high = machine.widened(plan, (low, high), error)
        if error is not None and node.id in plan.affine:
            charge = error if charge is None else charge + error
    return finite_or_infinite(low, high), charge


def search_intervals(plan: Plan, box: Box) -> dict[int, Interval]:
    """Intervals of all nodes without error terms, by id, and nothing else: the quick way where no lines are wanted."""
    bounds: dict[int, Interval] = {plan.input: (box.lower, box.upper)}
    for node in plan.graph.nodes:
        if node.id not in plan.operands:
            continue
        if node.id in plan.magnitudes:
            low, high = _around(plan, node, bounds)
        else:
            low, high = node.op.interval(plan.ends(node.id, bounds), None)
            if isinstance(node.op, PiecewiseLinear | Reshape):  # NaN does not arise
                bounds[node.id] = low, high
                continue
        bounds[node.id] = finite_or_infinite(low, high)
    return bounds


def _around(plan: Plan, node: Node, bounds: Mapping[int, Interval]) -> Interval:
    """Middle and radius of an affine node from those of its operands, with the absolute constants at hand."""
    op, centres, radii = node.op, list[Tensor](), list[Tensor]()
    assert isinstance(op, Affine)
    sizes = plan.magnitudes[node.id]
    for k, (source, constant) in enumerate(zip(node.inputs, plan.operands[node.id], strict=True)):
        if constant is None:
            low, high = bounds[source]
            centres.append(torch.lerp(low, high, 0.5))
            radii.append(high - centres[-1])
        else:
            centres.append(constant)
            if sizes[k] is not None:
                radii.append(sizes[k])  # type: ignore[arg-type]
    centre, radius = op.forward(*centres), op.absolute(*radii)
    return centre - radius, centre + radius


def finite_or_infinite(low: Tensor, high: Tensor) -> Interval:
    """Ends that overflowed (NaN, or beyond the dtype on their own side) carry no information: infinities instead."""
    inf = torch.inf
    return torch.nan_to_num(low, nan=-inf, posinf=-inf, neginf=-inf), torch.nan_to_num(high, inf, inf, inf)


def _interval_charge(plan: Plan, rounding: Rounding, node: Node, bounds: Mapping[int, Interval]) -> Tensor | None:
    if not rounds(plan, node):
        return None
    constants = plan.operands[node.id]
    known = plan.magnitudes.get(node.id, (None,) * len(constants))
    sizes = [
        size(bounds[i]) if c is None else c.abs() if kept is None else kept
        for i, c, kept in zip(node.inputs, constants, known, strict=True)
    ]
    return affine_charge(plan, rounding, node, sizes)


def rounds(plan: Plan, node: Node) -> bool:
    """Whether a step over an affine node can be off at all (moving exact values cannot)."""
    return plan.accumulation(node) > 0 or node.id in plan.errors or node.id in plan.offset


def affine_charge(plan: Plan, rounding: Rounding, node: Node, sizes: list[Tensor]) -> Tensor:
    """``gamma (|W| m + |b|) + (dW m + db)`` for operands of sizes ``m`` ``[1, *shape]`` (of constants: as they are)."""
    op = node.op
    assert isinstance(op, Affine)
    count = plan.accumulation(node)
    charge = torch.zeros(node.shape, dtype=plan.dtype, device=plan.device)
    if count:
        charge = rounding.affine(count, op.absolute(*sizes))[0]
    if node.id in plan.errors:
        errors = plan.errors[node.id]
        moved = [s if e is None else s + e for s, e in zip(sizes, errors, strict=True)]
        # |f|(m, |W| + dW) - |f|(m, |W|), without the cancellation: each inexact constant in turn.
        for k, error in enumerate(errors):
            if error is not None:
                charge = charge + rounding.up(_only(op, moved, k, error))
        charge = charge + rounding.affine(count, op.absolute(*moved))[0]
    if node.id in plan.offset:
        terms = plan.offset[node.id].numel()
        charge = charge + rounding.affine(terms, plan.offset[node.id].abs())
    return charge


def _only(op: Affine, sizes: list[Tensor], position: int, error: Tensor) -> Tensor:
    """The part of ``|f|`` that goes through one inexact constant: a factor meets the others, a summand stands alone."""
    others = [torch.zeros_like(s) if k in op.offsets else s for k, s in enumerate(sizes)]

    def through(constant: Tensor, rest: list[Tensor]) -> Tensor:
        return op.absolute(*rest[:position], constant, *rest[position + 1 :])[0]

    alone = through(error, [torch.zeros_like(s) for s in sizes])
    # What is there without the constant shows that it is a summand of this element, not a factor of it.
    return torch.where(through(torch.zeros_like(error), others) == 0, through(error, others), alone)


def rows_interval(plan: Plan, state: State, node: int, rows: Tensor) -> Interval:
    """Bounds ``[N, R]`` of ``rows . node`` for rows ``[R, *node shape]``: over an affine node with one variable operand
    from the bounds of that operand (rows and weights are multiplied first), else from its own."""
    source, bias, error, mass = node, None, None, None
    variables = [k for k, c in enumerate(plan.operands.get(node, ())) if c is None]
    if node in plan.affine and len(variables) == 1:
        op, shape = plan.graph.nodes[node].op, plan.graph.nodes[node].shape
        assert isinstance(op, Affine)
        if node in plan.offset:
            bias = _against(rows, plan.offset[node])
        if node in state.charges:
            error = _against(rows.abs(), state.charges[node].reshape(shape))
            mass = None if bias is None else bias.abs()
        source = plan.graph.nodes[node].inputs[variables[0]]
        rows = op.pullback(rows, variables[0], plan.operands[node], plan.graph.nodes[source].shape)
    low, high = state.bounds[source]
    flat = rows.unsqueeze(-1).flatten(1)
    middle, radius = _halves(plan.rounding, low, high)
    centre, reach = middle.unsqueeze(-1).flatten(1) @ flat.T, radius.unsqueeze(-1).flatten(1) @ flat.abs().T
    if bias is not None:
        centre = centre + bias
    if plan.rounding is not None:
        sizes = torch.maximum(low.abs(), high.abs()).unsqueeze(-1).flatten(1) @ flat.abs().T
        slack = plan.rounding.affine(flat.shape[1] + 2, sizes if mass is None else sizes + mass) + state.floor
        slack = slack if error is None else slack + error * (1 + 2 * plan.rounding.gamma(flat.shape[1] + error.numel()))
        reach = plan.rounding.up(reach + plan.rounding.up(slack))
        return finite_or_infinite(plan.rounding.down(centre - reach), plan.rounding.up(centre + reach))
    return finite_or_infinite(centre - reach, centre + reach)


def _against(rows: Tensor, values: Tensor) -> Tensor:
    """``[R]``: rows times values over the same node."""
    return rows.unsqueeze(-1).flatten(1) @ values.flatten()


def _halves(rounding: Rounding | None, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Middle, and a radius that reaches both ends from it."""
    middle = (low + high) / 2
    if rounding is None:
        return middle, (high - low) / 2
    return middle, rounding.up(torch.maximum(high - middle, middle - low))


def size(interval: Interval) -> Tensor:
    """``[1, *shape]``: the largest absolute value over all boxes."""
    low, high = interval
    return torch.maximum(low.abs(), high.abs()).amax(0, keepdim=True)


def relaxed_charge(rounding: Rounding, op: Nonlinear, relaxation: Relaxation, operands: list[Interval]) -> Tensor:
    """What a backward step over a nonlinear node can be off by, per unit of coefficient: ``[*shape]``.

    The step multiplies each coefficient by a slope (one rounding, seen at the operand's size) and sums the
    intercepts (a dot product over the node's elements).
    """
    lower, upper = relaxation.lower[0], relaxation.upper[0]
    greatest = [
        Line(tuple(s.abs().amax(0, keepdim=True) for s in line.slopes), line.offset.abs().amax(0, keepdim=True))
        for line in (lower, upper)
    ]
    return lines_charge(rounding, op, greatest, [size(operand) for operand in operands])[0]


def lines_charge(rounding: Rounding, op: Nonlinear, lines: list[Line], sizes: list[Tensor]) -> Tensor:
    """The same for lines (absolute values) and operands of given ``sizes``, ``[N, *shape]``."""
    products = op.terms(*(tuple(m.shape[1:]) for m in sizes))
    total: Tensor | None = None
    for line in lines:
        part = rounding.affine(line.offset[0].numel(), line.offset)
        part = part + len(sizes) * rounding.affine(products, op.along(line.slopes, sizes))
        total = part if total is None else torch.maximum(total, part)
    assert total is not None
    return total
