"""Backward linear bounds: from coefficient rows at any node down to lines over the input.

Only lower bounds are propagated (an upper bound is minus the lower bound of the negated row). Rows walk the graph in
reverse: over an affine node by its transpose, over a nonlinear one by its lower line where the coefficient is
positive and its upper line where it is negative (Zhang et al., CROWN, NeurIPS 2018). The result is

    rows . x + bias <= target(x)        for every x in the row's box,

and, with a rounding model, this holds in exact arithmetic for ``bias`` as returned: the computed coefficients are
taken as they are and every residual is charged to the bias (``interval.py`` says how).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.alignment import cut, inner, sloped
from bounds.box import Box, LpBall
from bounds.graph import Node
from bounds.layouts import Dense, Owner, Places, Rows, Selection, Windows, flat, is_image, total
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Line, Nonlinear, Relaxation, sum_of
from bounds.ops.simplex import OnSimplex
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
    Where there is a ``ball``, the inputs lie in it as well as in the box. ``live`` ``[K]`` are the flat elements of a
    relaxed node that are not zero on every box, where that leaves out enough of them to matter.
    """

    box: Box
    bounds: Mapping[int, Interval]
    relaxations: Mapping[int, Relaxation]
    charges: Mapping[int, Tensor]
    sizes: Mapping[int, Tensor]
    floor: Tensor
    splits: Mapping[int, Split] = field(default_factory=dict)
    functions: Mapping[int, Functions] = field(default_factory=dict)
    ball: LpBall | None = None
    live: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LinearBounds:
    """``rows . input + bias <= target`` row by row; ``rows`` ``[R, *input shape]``, ``bias`` ``[R]``.

    ``error`` is what rounding may have added to the bias (zero without a rounding model; ``concretize.py`` subtracts
    it). ``trace`` holds the coefficient rows at each nonlinear node, before its line was chosen, where asked for.
    """

    rows: Tensor
    bias: Tensor
    error: Tensor
    owner: Owner
    trace: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Walk:
    """Rows under way: coefficients by node, running bias, running error (only with a rounding model).

    While ``mirrored``, each row also stands for its negative. Both walk alike over affine nodes, and over a nonlinear
    one whose two lines are parallel: then ``bias`` is the middle of what they add, and ``distance`` goes down from it.
    """

    plan: Plan
    state: State
    owner: Owner
    bias: Tensor
    error: Tensor
    mass: Tensor
    distance: Tensor
    rows: dict[int, Rows]
    mirrored: bool = False

    def charge(self, node: int, rows: Rows) -> None:
        """What a step over a node can be off by."""
        charge = self.state.charges.get(node)
        if charge is not None:
            self.error = self.error + weigh(rows, charge)

    def contribute(self, amount: Tensor) -> None:
        """Add to the bias."""
        self.bias = self.bias + amount
        if self.plan.rounding is not None:
            self.mass = self.mass + amount.abs()

    def receive(self, node: int, rows: Rows) -> None:
        """Add coefficient rows to a node; where two paths meet, the addition rounds."""
        shape = self.plan.graph.nodes[node].shape
        present = self.rows.get(node)
        if isinstance(rows, Dense) and self.plan.windows and is_image(shape):
            rows = Windows.of_whole(rows.values, Places.of_owner(self.owner, rows.values))
        if present is not None:
            rows = total(present, rows, shape)
        if isinstance(rows, Windows):
            rows = rows.grown(shape)
        self.rows[node] = rows
        if self.plan.rounding is not None and present is not None:
            self.error = self.error + weigh(rows, self.state.sizes[node]) * (2 * self.plan.rounding.unit)

    def spread(self) -> None:
        """Write out the negatives of mirrored rows, and rows shared by all boxes as rows of each box."""
        if self.mirrored:
            self.mirrored = False
            self.rows = {node: rows.mirrored() for node, rows in self.rows.items()}
            self.bias = torch.cat([self.bias - self.distance, -self.bias - self.distance])
            self.distance = torch.zeros_like(self.bias)
            self.error, self.mass = self.error.repeat(2), self.mass.repeat(2)
            self.owner = self.owner.repeated()
        boxes = self.state.box.size
        if self.owner.index is not None or self.owner.groups == boxes:
            return
        before = self.owner
        for node, rows in list(self.rows.items()):  # windows know a single box, or owners by index
            shape = self.plan.graph.nodes[node].shape
            held = rows if isinstance(rows, Dense) else Dense(rows.dense(shape))
            self.rows[node] = replace(held, values=before.spread(held.values, boxes)[0])
        self.bias, self.owner = before.spread(self.bias, boxes)
        self.error, _ = before.spread(self.error, boxes)
        self.mass, _ = before.spread(self.mass, boxes)
        self.distance, _ = before.spread(self.distance, boxes)

    def total_error(self) -> Tensor:
        """All charges, enlarged by what their own computation and the running sum of the bias can lose."""
        rounding, nodes = self.plan.rounding, self.plan.graph.nodes
        if rounding is None:
            return self.error
        widest = max(int(torch.Size(n.shape).numel()) for n in nodes)
        inflate = 1 + 2 * rounding.gamma(widest + len(nodes) + 16)
        return (self.error + self.mass * rounding.gamma(2 * len(nodes) + 8) + self.state.floor) * inflate


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
    walk = start(plan, state, target, rows, owner)
    kept: dict[int, Tensor] = {}
    for node in steps(walk, target, plan.input):
        if trace:
            walk.spread()
            kept[node.id] = walk.rows[node.id].dense(node.shape)
    return finish(walk, kept)


def steps(walk: Walk, target: int, last: int) -> Iterator[Node]:
    """Walk rows from the target down to the node ``last``, pausing before every nonlinear node that is reached."""
    plan, splits = walk.plan, walk.state.splits
    for index in range(target, last, -1):
        if index not in walk.rows:
            continue
        if index in splits:
            walk.spread()
            _apply_split(walk, splits[index], index)
        node = plan.graph.nodes[index]
        if index in plan.relaxed:
            assert isinstance(node.op, Nonlinear)
            if not (walk.mirrored and parallel(walk.state.relaxations[index])):
                walk.spread()
            if isinstance(node.op, OnSimplex):
                _recentre(walk, node, node.op)
            yield node
            _over_relaxed(walk, node, walk.rows.pop(index))
        elif index in plan.affine:
            _over_affine(walk, node, walk.rows.pop(index))


def finish(walk: Walk, kept: Mapping[int, Tensor]) -> LinearBounds:
    """What a finished walk has found."""
    walk.spread()
    shape = walk.plan.graph.nodes[walk.plan.input].shape
    last = walk.rows.get(walk.plan.input)
    final = walk.bias.new_zeros((walk.bias.shape[0], *shape)) if last is None else last.dense(shape)
    return LinearBounds(final, walk.bias, walk.total_error(), walk.owner, kept)


def weigh(rows: Rows, values: Tensor) -> Tensor:
    """``|rows| . values`` per row, for values ``[*shape]`` over the node, the same for all boxes."""
    return rows.dot(Owner.shared(rows.values.shape[0]), rows.values.abs(), values.unsqueeze(0))


def start(plan: Plan, state: State, target: int, rows: Tensor | Selection, owner: Owner) -> Walk:
    """A walk of rows of ``target`` before its first step."""
    mirrored = isinstance(rows, Selection) and rows.mirrored
    if isinstance(rows, Selection) and rows.mirrored:
        rows, owner = rows.half(), owner.halved()
    count = rows.index.shape[0] if isinstance(rows, Selection) else rows.shape[0]
    zero = torch.zeros(count, dtype=plan.dtype, device=plan.device)
    walk = Walk(plan, state, owner, zero, zero, zero, zero, {}, mirrored)
    if isinstance(rows, Selection):
        node = plan.graph.nodes[target]
        if target in plan.affine and _start_with_units(walk, node, rows):
            return walk
        if plan.windows and is_image(node.shape):
            walk.rows[target] = rows.windows(Places.of_units(rows, owner))
        else:
            walk.rows[target] = Dense(rows.dense())
        return walk
    walk.rows[target] = Dense(rows)
    return walk


def _start_with_units(walk: Walk, node: Node, units: Selection) -> bool:
    """The first affine step of unit rows by gathering weights; False where the operator has no cheap way."""
    plan, op, constants = walk.plan, node.op, walk.plan.operands[node.id]
    assert isinstance(op, Affine)
    variables = [k for k, c in enumerate(constants) if c is None]
    if len(variables) != 1:
        return False
    source = node.inputs[variables[0]]
    shape = plan.graph.nodes[source].shape
    rows: Rows | None = None
    if plan.windows and is_image(node.shape) and is_image(shape):
        rows = op.unit_windows(units, Places.of_units(units, walk.owner), variables[0], constants, shape)
    live, matrix = walk.state.live.get(source), op.matrix(constants, variables[0], shape)
    if live is not None and matrix is not None:
        rows = Dense(cut(matrix, live, units.index) * units.sign.unsqueeze(1), live)
    if rows is None:
        dense = op.unit_rows(units.index, variables[0], constants, shape)
        if dense is None:
            return False
        rows = Dense(dense * units.sign.reshape(-1, *[1] * (dense.ndim - 1)))
    walk.receive(source, rows)
    if node.id in plan.offset:
        walk.contribute(plan.offset[node.id].flatten()[units.index] * units.sign)
    charge = walk.state.charges.get(node.id)
    if charge is not None:
        walk.error = walk.error + charge.flatten()[units.index]
    return True


def _over_affine(walk: Walk, node: Node, rows: Rows) -> None:
    plan, op = walk.plan, node.op
    assert isinstance(op, Affine)
    if isinstance(rows, Windows):
        rows = rows.inside(node.shape)
    walk.charge(node.id, rows)
    if node.id in plan.offset:
        offset = plan.offset[node.id].unsqueeze(0)
        walk.contribute(rows.dot(Owner.shared(rows.values.shape[0]), rows.values, offset))
    operands = plan.operands[node.id]
    for position, (source, constant) in enumerate(zip(node.inputs, operands, strict=True)):
        if constant is None:
            walk.receive(source, _pull(walk, node, rows, position))


def _pull(walk: Walk, node: Node, rows: Rows, position: int) -> Rows:
    """The transposed step, on windows where the operator can, else dense."""
    op, operands = node.op, walk.plan.operands[node.id]
    assert isinstance(op, Affine)
    shape = walk.plan.graph.nodes[node.inputs[position]].shape
    if isinstance(rows, Windows) and is_image(shape):
        found = op.pullback_windows(rows, position, operands, shape)
        if found is not None:
            return found
    live = walk.state.live.get(node.inputs[position])
    matrix = op.matrix(operands, position, shape) if isinstance(rows, Dense) else None
    if matrix is None or (live is None and rows.columns is None):  # type: ignore[union-attr]
        return Dense(op.pullback(rows.dense(node.shape), position, operands, shape))
    assert isinstance(rows, Dense)
    values = flat(rows.values) @ cut(matrix, live, rows.columns)
    return Dense(values.reshape(-1, *shape)) if live is None else Dense(values, live)


def _over_relaxed(walk: Walk, node: Node, rows: Rows) -> None:
    """By the lower line where a coefficient is positive, by the upper line where it is negative."""
    walk.charge(node.id, rows)
    relaxation = walk.state.relaxations[node.id]
    assert isinstance(node.op, Nonlinear)
    if not node.op.elementwise:
        _over_coupled(walk, node, node.op, rows.dense(node.shape))
        return
    lower, upper = relaxation.lower[0], relaxation.upper[0]
    variables = [i for i, c in zip(node.inputs, walk.plan.operands[node.id], strict=True) if c is None]
    offsets, slopes = _offsets(walk, lower, upper), (*lower.slopes, *upper.slopes)
    values, found = rows.aligned(walk.owner, *offsets, *(lower.slopes if walk.mirrored else slopes))
    parts = _shift(walk, values, found[: len(offsets)])
    if walk.mirrored:
        for source, slope in zip(variables, found[len(offsets) :], strict=True):
            walk.receive(source, rows.like(values * slope))
        return
    below, above = found[len(offsets) : len(offsets) + len(variables)], found[-len(variables) :]
    for source, low, high in zip(variables, below, above, strict=True):
        walk.receive(source, rows.like(sloped(values, parts, low, high)))


def _recentre(walk: Walk, node: Node, op: OnSimplex) -> None:
    """Take a number from the coefficients of results that sum to 1, by the gaps of their lines at the middle."""
    (low, high), relaxation = walk.state.bounds[node.inputs[0]], walk.state.relaxations[node.id]
    middle = [low / 2 + high / 2]
    below, above = (op.along(x.slopes, middle) + x.offset for x in (relaxation.lower[0], relaxation.upper[0]))
    rows = walk.rows[node.id].dense(node.shape)
    if walk.plan.machine is not None:  # the machine's results do not sum to 1: what they are off by counts as it was
        walk.charge(node.id, Dense(rows))
    gaps = torch.nan_to_num((above - below).clamp(min=0), nan=1.0, posinf=1.0)
    moved, mu = (v.reshape(rows.shape[0], -1) for v in op.recentred(*walk.owner.of(rows=rows, values=gaps)))
    walk.rows[node.id] = Dense(moved.reshape(rows.shape))
    walk.contribute(mu.sum(1))
    if walk.plan.rounding is not None:
        walk.error = walk.error + op.recentring_error(moved.reshape(rows.shape), mu, walk.plan.rounding)


def parallel(relaxation: Relaxation) -> bool:
    """Whether the lower and the upper line have the same slopes."""
    return all(a is b for a, b in zip(relaxation.lower[0].slopes, relaxation.upper[0].slopes, strict=True))


def _over_coupled(walk: Walk, node: Node, op: Nonlinear, rows: Tensor) -> None:
    """Over an operator whose lines read several elements of an operand: by the transpose of both sides' lines."""
    relaxation, owner = walk.state.relaxations[node.id], walk.owner
    lower, upper = relaxation.lower[0], relaxation.upper[0]
    _shift(walk, *Dense(rows).aligned(owner, *_offsets(walk, lower, upper)))

    def pulled(part: Tensor, line: Line) -> tuple[Tensor, ...]:
        viewed = owner.of(line.offset, part)[0]
        return op.across([owner.of(s, part)[1] for s in line.slopes], viewed)

    if parallel(relaxation):
        found = pulled(rows, lower)
    else:
        found = tuple(map(torch.add, pulled(rows.clamp(min=0), lower), pulled(rows.clamp(max=0), upper)))
    variables = [i for i, c in zip(node.inputs, walk.plan.operands[node.id], strict=True) if c is None]
    for source, part in zip(variables, found, strict=True):
        walk.receive(source, Dense(part.reshape(rows.shape[0], *walk.plan.graph.nodes[source].shape)))


def _offsets(walk: Walk, lower: Line, upper: Line) -> list[Tensor]:
    """What the parts of rows (``_shift``) are multiplied with; a lower offset of zero is left out."""
    if walk.mirrored:
        return [(lower.offset + upper.offset) / 2, (upper.offset - lower.offset) / 2]
    return [upper.offset, lower.offset] if bool(lower.offset.any()) else [upper.offset]


def _shift(walk: Walk, rows: Tensor, offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Add ``sum A+ lower.offset + A- upper.offset`` to each row's bias and return (A-, A+).

    Of mirrored rows: the middle, and to the distance what both are away from it; (A, |A|).
    """
    parts = (rows, rows.abs()) if walk.mirrored else (rows.clamp(max=0), rows.clamp(min=0))
    amounts = [inner(part, offset) for part, offset in zip(parts, offsets, strict=False)]
    if walk.mirrored:
        walk.distance, walk.mass = walk.distance + amounts[1], walk.mass + amounts[1]
    walk.contribute(amounts[0] if walk.mirrored else sum_of(amounts))
    return parts


def _apply_split(walk: Walk, split: Split, index: int) -> None:
    """Charge half-spaces of this node to its coefficient and to the bias."""
    rows = walk.rows[index].dense(walk.plan.graph.nodes[index].shape)
    viewed, signed = walk.owner.of(split.signed, rows)
    moved = Dense((viewed - signed).reshape(rows.shape))
    rounding = walk.plan.rounding
    if rounding is not None:
        walk.error = walk.error + weigh(moved, walk.state.sizes[index]) * (2 * rounding.unit)
    if split.point is not None:
        product = flat((signed * walk.owner.of(split.point, rows)[1]).expand(viewed.shape).reshape(rows.shape))
        walk.contribute(product.sum(1))
        if rounding is not None:
            walk.error = walk.error + product.abs().sum(1) * rounding.gamma(product.shape[1] + 4)
    walk.rows[index] = moved
