"""The ascent of neurons over the patches that they see, and the walk that decides with what it found.

The search runs in a plan without error terms (``patches.py``, ``condensed_walk.py``). The deciding walk is that of
``backward.py``, over windows; only at relaxed nodes each row steps over lines of its own, which its parameters give.
Its charges are those of any step over lines (``interval.py``), for these lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import machine
from bounds.backward import State, Walk, finish, start, steps
from bounds.climb import Pace, climb
from bounds.concretize import concretize
from bounds.condensed_walk import CondensedRows
from bounds.interval import lines_charge
from bounds.layouts import Dense, Owner, Places, Rows, Selection, Windows, flat
from bounds.ops.base import Interval, Line, Nonlinear, Parameters, Relaxation
from bounds.patches import Geometry, Patches
from bounds.plan import Plan
from bounds.propagate import MEMORY

HELD = 24
"""Numbers that an ascent holds for each element of a row: lines, ranges, parameters and their moments, a walk."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Lower bounds ``[R]`` of rows, and by relaxed node the parameters at their patches, ``[R, C h w]``."""

    bound: Tensor
    patches: Patches
    parameters: Mapping[int, Parameters]


def rows_at_once(plan: Plan, geometry: Geometry) -> int:
    """How many rows climb together within the plan's memory."""
    memory = MEMORY if plan.memory is None else plan.memory
    return max(1, memory // (HELD * plan.dtype.itemsize * geometry.elements()))


def climbed(geometry: Geometry, state: State, rows: tuple[Selection, Tensor], pace: Pace, goal: float | None) -> Seen:
    """The best bounds that at most ``pace.steps`` steps find for unit rows (with their owners), each row by itself."""
    patches = Patches.of(geometry, state, *rows)
    found = CondensedRows.of(patches, patches.rays(rows[0]))
    top = climb(found, found.point, found.scale(), pace, goal, rows[0].mirrored)

    def at(place: slice | None) -> Tensor | None:
        return None if place is None else top.point[:, place]

    return Seen(top.value, patches, {n: (at(c.lower), at(c.upper)) for n, c in found.columns.items()})


def decided(plan: Plan, state: State, rows: tuple[Selection, Tensor], seen: Seen) -> Tensor:
    """``[R]``: lower bounds by one walk of the given plan with the parameters that were found, proven where it has a
    rounding model."""
    (units, owner), node = rows, seen.patches.ground.geometry.target
    boxes = Owner.shared(owner.shape[0]) if state.box.size == 1 else Owner.by_index(owner)
    walk = start(plan, state, node, Selection(units.index, units.sign, units.shape), boxes)
    for relaxed in sorted(seen.parameters, reverse=True):
        for _ in steps(walk, node, relaxed):
            raise AssertionError("patches know every relaxed node on the way")
        if relaxed in walk.rows:
            _step(walk, relaxed, seen, owner)
        node = relaxed
    for _ in steps(walk, node, plan.input):
        raise AssertionError("patches know every relaxed node on the way")
    return concretize(plan, finish(walk, {}), state.box)


def _step(walk: Walk, index: int, seen: Seen, owner: Tensor) -> None:
    """Rows over a relaxed node, each by lines of its own."""
    plan, node = walk.plan, walk.plan.graph.nodes[index]
    assert isinstance(node.op, Nonlinear)
    rows = walk.rows.pop(index)
    rows = rows.inside(node.shape) if isinstance(rows, Windows) else rows
    places = _Places(seen.patches, index, owner, rows)
    rows = rows if places.alike else Dense(rows.dense(node.shape))
    ends = [(places.at(low), places.at(high)) for low, high in plan.ends(index, walk.state.bounds)]
    below, above = (None if p is None else places.laid(p).to(plan.dtype) for p in seen.parameters[index])
    relaxation = node.op.relaxation(ends, plan.rounding, (below, above))
    _charge(walk, index, (rows, places), relaxation, ends)
    positive, negative = rows.values.clamp(min=0), rows.values.clamp(max=0)
    lower, upper = relaxation.lower[0], relaxation.upper[0]
    walk.contribute(flat(positive * lower.offset).sum(1) + flat(negative * upper.offset).sum(1))
    variables = [i for i, c in zip(node.inputs, plan.operands[index], strict=True) if c is None]
    for source, under, over in zip(variables, lower.slopes, upper.slopes, strict=True):
        walk.receive(source, replace(rows, values=rows.values * torch.where(rows.values > 0, under, over)))


class _Places:
    """Where the rows of a deciding walk are at a relaxed node: on windows that are the patches, else over the image."""

    def __init__(self, patches: Patches, node: int, owner: Tensor, rows: Rows) -> None:
        self.patches, self.owner, ground = patches, owner, patches.ground
        frame = ground.geometry.frames[node]
        factor, shift = (ground.place.new_tensor(v) for v in (frame.factor, frame.shift))
        self.node, self.shape = node, patches.plan.graph.nodes[node].shape
        self.windows = Places(patches.where, ground.place * factor - shift, ground.owner)
        self.alike = isinstance(rows, Windows) and not rows.places.whole and rows.size == frame.size
        if self.alike and isinstance(rows, Windows):
            mine, theirs = self.windows, rows.places
            self.alike = torch.equal(mine.origin[mine.place], theirs.origin[theirs.of_rows(rows.values.shape[0])])

    def laid(self, values: Tensor) -> Tensor:
        """Numbers at the patches ``[R, C h w]`` as the rows lie."""
        geometry = self.patches.ground.geometry
        found = Windows.of_whole(values.reshape(-1, *geometry.shape(self.node)), self.windows)
        return found.values if self.alike else found.dense(self.shape)

    def at(self, values: Tensor) -> Tensor:
        """Values ``[N or 1, *shape]`` of boxes where the rows have coefficients, row by row."""
        values = values.expand(values.shape[0], *self.shape)
        if self.alike:
            return self.laid(self.patches.ground.at(self.node, values).index_select(0, self.patches.where))
        return values.expand(self.owner.shape[0], *self.shape) if values.shape[0] == 1 else values[self.owner]


def _charge(walk: Walk, index: int, where: tuple[Rows, _Places], relaxation: Relaxation, ends: list[Interval]) -> None:
    """What the step can be off by, where there is a rounding model."""
    plan, node, (rows, places) = walk.plan, walk.plan.graph.nodes[index], where
    if plan.rounding is None:
        return
    assert isinstance(node.op, Nonlinear)
    sizes = [
        torch.maximum(low.abs(), high.abs())
        for (low, high), c in zip(ends, plan.operands[index], strict=True)
        if c is None
    ]
    lines = [Line(tuple(s.abs() for s in v.slopes), v.offset.abs()) for v in (relaxation.lower[0], relaxation.upper[0])]
    charge = lines_charge(plan.rounding, node.op, lines, sizes)
    error = None if plan.machine is None else machine.roundoff(plan, node, walk.state.bounds)
    if error is not None:
        charge = charge + places.at(error.unsqueeze(0))
    walk.error = walk.error + flat(rows.values.abs() * charge).sum(1)
