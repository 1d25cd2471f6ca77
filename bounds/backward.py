"""Backward linear bounds: from coefficient rows at any node down to lines over the input.

Only lower bounds are propagated (an upper bound is minus the lower bound of the negated row). Rows walk the graph in
reverse: over an affine node by its transpose, over a nonlinear one by its lower line where the coefficient is
positive and its upper line where it is negative (Zhang et al., CROWN, NeurIPS 2018). The result is

    rows . x + bias <= target(x)        for every x in the row's box,

and, with a rounding model, this holds in exact arithmetic for ``bias`` as returned: the computed coefficients are
taken as they are and every residual is charged to the bias (``interval.py`` says how).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Node
from bounds.layouts import Owner, Rows, Selection, flat
from bounds.ops.base import Affine, Interval, Line, Nonlinear, Relaxation
from bounds.plan import Plan

if TYPE_CHECKING:
    from bounds.forward import Functions


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Half-spaces ``sign (node - point) >= 0`` with multipliers, one tensor ``[N or R, *shape]`` for a node.

    ``multiplier >= 0`` (0 where there is no split): a positive one moves ``-multiplier * sign`` into the
    coefficient and ``+ multiplier * sign * point`` into the bias (beta-CROWN, Wang et al., NeurIPS 2021).
    """

    signed: Tensor
    point: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Everything known about N boxes: intervals of nodes and lines around nonlinear nodes.

    With a rounding model also ``charges`` (``interval.py``), ``sizes`` (the largest absolute value of a node over all
    boxes) and ``floor``: what all underflows of one walk together can lose. ``splits`` are half-spaces that hold too.
    ``functions`` are forward linear bounds of the last nodes, where they were propagated.
    """

    box: Box
    bounds: Mapping[int, Interval]
    relaxations: Mapping[int, Relaxation]
    charges: Mapping[int, Tensor]
    sizes: Mapping[int, Tensor]
    floor: Tensor
    splits: Mapping[int, Split] = field(default_factory=dict)
    functions: Mapping[int, Functions] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LinearBounds:
    """``rows . input + bias <= target`` row by row; ``rows`` ``[R, *input shape]``, ``bias`` ``[R]``.

    ``error`` is what rounding may have added to the bias (zero without a rounding model; ``concretize`` subtracts
    it). ``trace`` holds the coefficient rows at each nonlinear node, before its line was chosen, where asked for.
    """

    rows: Tensor
    bias: Tensor
    error: Tensor
    owner: Owner
    trace: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class _Walk:
    """The rows under way: coefficients by node, running bias, running error (only with a rounding model)."""

    plan: Plan
    state: State
    owner: Owner
    bias: Tensor
    error: Tensor
    mass: Tensor
    rows: dict[int, Rows]

    def charge(self, node: int, rows: Rows) -> None:
        charge = self.state.charges.get(node)
        if charge is not None:
            self.error = self.error + _weigh(rows, charge)

    def contribute(self, amount: Tensor) -> None:
        self.bias = self.bias + amount
        if self.plan.rounding is not None:
            self.mass = self.mass + amount.abs()

    def receive(self, node: int, rows: Rows) -> None:
        """Add coefficient rows to a node; where two paths meet, the addition rounds."""
        present = self.rows.get(node)
        if present is None:
            self.rows[node] = rows
            return
        total = present.plus(rows, self.plan.graph.nodes[node].shape)
        self.rows[node] = total
        if self.plan.rounding is not None:
            self.error = self.error + _weigh(total, self.state.sizes[node]) * (2 * self.plan.rounding.unit)

    def spread(self) -> None:
        """Turn rows shared by all boxes into rows of each box."""
        boxes = self.state.box.size
        if self.owner.index is not None or self.owner.groups == boxes:
            return
        before = self.owner
        for node, rows in list(self.rows.items()):
            self.rows[node] = Rows(before.spread(rows.values, boxes)[0], rows.window)
        self.bias, self.owner = before.spread(self.bias, boxes)
        self.error, _ = before.spread(self.error, boxes)
        self.mass, _ = before.spread(self.mass, boxes)


def backward(
    plan: Plan,
    state: State,
    target: int,
    rows: Tensor | Selection,
    owner: Owner,
    *,
    trace: bool = False,
) -> LinearBounds:
    """Lines over the input below ``rows . target``.

    ``rows`` ``[R, *target shape]`` (or unit rows), ``owner`` their boxes. With ``trace`` the coefficient rows at
    nonlinear nodes are kept.
    """
    walk = _start(plan, state, target, rows, owner)
    kept: dict[int, Tensor] = {}
    for index in range(target, -1, -1):
        current = walk.rows.get(index)
        if current is None or index == plan.input:
            continue
        if index in state.splits:
            walk.spread()
            current = _apply_split(walk, state.splits[index], index)
        node = plan.graph.nodes[index]
        if index in plan.relaxed:
            walk.spread()
            current = walk.rows.pop(index)
            if trace:
                kept[index] = current.dense(node.shape)
            _over_relaxed(walk, node, current)
        elif index in plan.affine:
            _over_affine(walk, node, walk.rows.pop(index))
    walk.spread()
    shape = plan.graph.nodes[plan.input].shape
    last = walk.rows.get(plan.input)
    final = walk.bias.new_zeros((walk.bias.shape[0], *shape)) if last is None else last.dense(shape)
    return LinearBounds(final, walk.bias, _total_error(walk), walk.owner, kept)


def _weigh(rows: Rows, values: Tensor) -> Tensor:
    """``|rows| . values`` per row, for values over the node."""
    return flat(rows.values).abs() @ rows.crop(values).flatten()


def _start(plan: Plan, state: State, target: int, rows: Tensor | Selection, owner: Owner) -> _Walk:
    count = rows.index.shape[0] if isinstance(rows, Selection) else rows.shape[0]
    zero = torch.zeros(count, dtype=plan.dtype, device=plan.device)
    walk = _Walk(plan, state, owner, zero, zero, zero, {})
    if isinstance(rows, Selection):
        node = plan.graph.nodes[target]
        if rows.window is not None:
            walk.rows[target] = Rows(rows.inside(rows.window), rows.window)
            return walk
        if target in plan.affine and _start_with_units(walk, node, rows):
            return walk
        rows = rows.dense()
    walk.rows[target] = Rows(rows)
    return walk


def _start_with_units(walk: _Walk, node: Node, units: Selection) -> bool:
    """The first affine step of unit rows by gathering weights; False where the operator has no cheap way."""
    plan, op = walk.plan, node.op
    assert isinstance(op, Affine)
    variables = [k for k, c in enumerate(plan.operands[node.id]) if c is None]
    if len(variables) != 1:
        return False
    position = variables[0]
    source = node.inputs[position]
    rows = op.unit_rows(units.index, position, plan.operands[node.id], plan.graph.nodes[source].shape)
    if rows is None:
        return False
    walk.rows[source] = Rows(rows * units.sign.reshape(-1, *[1] * (rows.ndim - 1)))
    if node.id in plan.offset:
        walk.contribute(plan.offset[node.id].flatten()[units.index] * units.sign)
    charge = walk.state.charges.get(node.id)
    if charge is not None:
        walk.error = walk.error + charge.flatten()[units.index]
    return True


def _over_affine(walk: _Walk, node: Node, rows: Rows) -> None:
    plan, op = walk.plan, node.op
    assert isinstance(op, Affine)
    walk.charge(node.id, rows)
    if node.id in plan.offset:
        walk.contribute(flat(rows.values) @ rows.crop(plan.offset[node.id]).flatten())
    operands = plan.operands[node.id]
    for position, (source, constant) in enumerate(zip(node.inputs, operands, strict=True)):
        if constant is None:
            walk.receive(source, _pull(walk, node, rows, position))


def _pull(walk: _Walk, node: Node, rows: Rows, position: int) -> Rows:
    """The transposed step, on the window where the operator can, else dense."""
    op, operands = node.op, walk.plan.operands[node.id]
    assert isinstance(op, Affine)
    shape = walk.plan.graph.nodes[node.inputs[position]].shape
    if rows.window is not None:
        patch = op.pullback_window(rows.values, rows.window, position, operands, shape)
        if patch is not None:
            return Rows(*patch)
    return Rows(op.pullback(rows.dense(node.shape), position, operands, shape))


def _over_relaxed(walk: _Walk, node: Node, rows: Rows) -> None:
    plan = walk.plan
    walk.charge(node.id, rows)
    relaxation = walk.state.relaxations[node.id]
    assert isinstance(node.op, Nonlinear)
    if not node.op.elementwise:
        _over_coupled(walk, node, node.op, rows.dense(node.shape))
        return
    lower, upper = _cropped(rows, relaxation.lower[0]), _cropped(rows, relaxation.upper[0])
    walk.contribute(_offsets(walk.owner, rows.values, lower, upper))
    positive = rows.values > 0
    variables = [i for i, c in zip(node.inputs, plan.operands[node.id], strict=True) if c is None]
    for source, below, above in zip(variables, lower.slopes, upper.slopes, strict=True):
        walk.receive(source, Rows(_choose(walk.owner, rows.values, positive, below, above), rows.window))


def _over_coupled(walk: _Walk, node: Node, op: Nonlinear, rows: Tensor) -> None:
    """Over an operator whose lines read several elements of an operand: by the transpose of both sides' lines."""
    relaxation, owner = walk.state.relaxations[node.id], walk.owner
    lower, upper = relaxation.lower[0], relaxation.upper[0]
    walk.contribute(_offsets(owner, rows, lower, upper))

    def pulled(part: Tensor, line: Line) -> tuple[Tensor, ...]:
        viewed = owner.of(line.offset, part)[0]
        return op.across([owner.of(s, part)[1] for s in line.slopes], viewed)

    if all(a is b for a, b in zip(lower.slopes, upper.slopes, strict=True)):
        found = pulled(rows, lower)
    else:
        found = tuple(map(torch.add, pulled(rows.clamp(min=0), lower), pulled(rows.clamp(max=0), upper)))
    variables = [i for i, c in zip(node.inputs, walk.plan.operands[node.id], strict=True) if c is None]
    for source, part in zip(variables, found, strict=True):
        walk.receive(source, Rows(part.reshape(rows.shape[0], *walk.plan.graph.nodes[source].shape)))


def _cropped(rows: Rows, line: Line) -> Line:
    if rows.window is None:
        return line
    return Line(tuple(rows.crop(s) for s in line.slopes), rows.crop(line.offset))


def _choose(owner: Owner, rows: Tensor, positive: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """``A+ below + A- above`` elementwise."""
    viewed, low = owner.of(below, rows)
    _, high = owner.of(above, rows)
    slope = torch.where(positive.reshape(viewed.shape), low, high)
    return (viewed * slope).reshape(rows.shape)


def _offsets(owner: Owner, rows: Tensor, lower: Line, upper: Line) -> Tensor:
    """``sum A+ lower.offset + A- upper.offset`` per row."""
    total = _dot(owner, rows.clamp(max=0), upper.offset)
    if bool(lower.offset.any()):
        total = total + _dot(owner, rows.clamp(min=0), lower.offset)
    return total


def _dot(owner: Owner, rows: Tensor, values: Tensor) -> Tensor:
    viewed, offsets = owner.of(values, rows)
    if owner.index is None:
        product = torch.matmul(flat(viewed, 2), flat(offsets, 2).transpose(1, 2))
        return product.reshape(-1)
    if offsets.shape[0] == 1:
        return flat(rows) @ offsets.flatten()
    return (flat(rows) * flat(offsets)).sum(1)


def _apply_split(walk: _Walk, split: Split, index: int) -> Rows:
    """Charge half-spaces of this node to its coefficient and to the bias."""
    rows = walk.rows[index].dense(walk.plan.graph.nodes[index].shape)
    viewed, signed = walk.owner.of(split.signed, rows)
    moved = Rows((viewed - signed).reshape(rows.shape))
    rounding = walk.plan.rounding
    if rounding is not None:
        walk.error = walk.error + _weigh(moved, walk.state.sizes[index]) * (2 * rounding.unit)
    if split.point is not None:
        product = flat((signed * walk.owner.of(split.point, rows)[1]).expand(viewed.shape).reshape(rows.shape))
        walk.contribute(product.sum(1))
        if rounding is not None:
            walk.error = walk.error + product.abs().sum(1) * rounding.gamma(product.shape[1] + 4)
    walk.rows[index] = moved
    return moved


def _total_error(walk: _Walk) -> Tensor:
    """The sum of all charges, enlarged by what its own computation and the running sum of the bias can lose."""
    rounding = walk.plan.rounding
    if rounding is None:
        return walk.error
    widest = max(int(torch.Size(n.shape).numel()) for n in walk.plan.graph.nodes)
    inflate = 1 + 2 * rounding.gamma(widest + len(walk.plan.graph.nodes) + 16)
    steps = rounding.gamma(2 * len(walk.plan.graph.nodes) + 8)
    return (walk.error + walk.mass * steps + walk.state.floor) * inflate


def concretize(plan: Plan, lines: LinearBounds, box: Box) -> Tensor:
    """``[R]``: the least value of each line on its owner's box; with a rounding model a true lower bound."""
    rows = lines.rows.flatten(1)
    low = _dot(lines.owner, rows.clamp(min=0), box.lower)
    high = _dot(lines.owner, rows.clamp(max=0), box.upper)
    value = low + high + lines.bias
    if plan.rounding is None:
        return value
    sizes = torch.maximum(box.lower.abs(), box.upper.abs()).amax(0).flatten()
    terms = rows.shape[1] + 8
    error = lines.error + (rows.abs() @ sizes) * (plan.rounding.gamma(terms) * (1 + 2 * plan.rounding.gamma(terms)))
    error = error + terms * 4 * plan.rounding.tiny
    # Overflow on the way (NaN, or a sum that became +inf) says nothing about the true value.
    result = plan.rounding.down(value - error * (1 + 8 * plan.rounding.unit))
    return torch.nan_to_num(result, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
