"""One box's network with nothing left in it but what can vary: dead neurons dropped, relaxed nodes joined by links.

On one box most neurons of a ReLU network are off for good; their columns drop out of every product. Between relaxed
nodes everything is affine, so a backward walk over the rest is, from the last relaxed node to the first,

    A_source += (A+ lower slope + A- upper slope) M,        bias += A+ lower offset + A- upper offset,

with an affine map M for each operand of a relaxed node (``links.py``). A walk is then a handful of products, which is
what an ascent over many rows wants. Numbers are those of ``backward`` up to the order of summation; nothing here
carries error terms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.links import DENSER, Link, Matrices, Network, Operators, Pull, Rays, Stage, operands_of
from bounds.ops.base import Freedom, Interval, Line, Nonlinear, Relaxation
from bounds.plan import Plan


@dataclass(slots=True)
class Condensed(Network):
    """The stages of one box (``state`` of one box), made as they are asked for.

    ``varying``: flat places of the inputs that are left, those that are not ``fixed`` (None: all are left).
    """

    plan: Plan
    state: State
    stages: dict[int, Stage] = field(default_factory=dict)
    varying: Tensor | None = field(init=False, default=None)
    fixed: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        low, high = flat(self.state.box.lower)[0], flat(self.state.box.upper)[0]
        free = high > low
        if self.state.ball is None and not bool(free.all()):
            self.varying, self.fixed = free.nonzero().flatten(), torch.where(free, 0.0, low)

    def ends(self) -> Interval:
        low, high = flat(self.state.box.lower), flat(self.state.box.upper)
        return (low, high) if self.varying is None else (low[:, self.varying], high[:, self.varying])

    @property
    def lines(self) -> int:
        return 1

    def take(self, rows: Tensor) -> Condensed:
        return self

    @staticmethod
    def fits(plan: Plan) -> bool:
        """Whether every relaxed node works element by element on operands of its own shape."""
        nodes = plan.graph.nodes
        return all(
            isinstance(op := nodes[k].op, Nonlinear)
            and op.elementwise
            and all(nodes[i].shape == nodes[k].shape for i, c in operands_of(plan, k) if c is None)
            for k in plan.relaxed
        )

    def stage(self, node: int) -> Stage:
        if node not in self.stages:
            self.stages[node] = self._make(node)
        return self.stages[node]

    def _make(self, node: int) -> Stage:
        plan, state = self.plan, self.state
        op, shape = plan.graph.nodes[node].op, plan.graph.nodes[node].shape
        assert isinstance(op, Nonlinear)
        ends = plan.ends(node, state.bounds)
        lines = state.relaxations[node].lower[0], state.relaxations[node].upper[0]
        free = op.freedom(ends)
        choice = torch.zeros((1, *shape), dtype=torch.bool, device=plan.device)
        for side in free:
            if side is not None:
                choice = choice | (side.greatest > side.least)
        kept = (matters(state.relaxations[node]) & ~choice).expand_as(choice)
        chosen, rest = flat(choice)[0].nonzero().flatten(), flat(kept)[0].nonzero().flatten()
        index = torch.cat([chosen, rest])
        one = torch.ones(index.shape[0], dtype=plan.dtype, device=plan.device)

        def at(values: Tensor, where: Tensor = chosen) -> Tensor:
            return flat(values.expand(1, *shape))[:, where]

        def both(where: Tensor) -> tuple[Line, Line]:
            below, above = (Line(tuple(at(s, where) for s in v.slopes), at(v.offset, where)) for v in lines)
            return below, above

        def narrowed(side: Freedom | None) -> Freedom | None:
            return None if side is None else Freedom(at(side.start), at(side.least), at(side.greatest))

        return Stage(
            node,
            op,
            index,
            chosen.shape[0],
            both(chosen),
            _unless_identity(both(rest)),
            tuple((at(low), at(high)) for low, high in ends),
            (narrowed(free[0]), narrowed(free[1])),
            tuple(self._link(i, Selection(index, one, shape)) for i, c in operands_of(plan, node) if c is None),
        )

    def _link(self, operand: int, units: Selection) -> Link:
        """Matrices where they need not many more products than the operators."""
        plan, left = self.plan, dict[int, Tensor | None]()
        reached, nodes, native = {operand}, list[int](), 0
        for node in range(operand, -1, -1):
            if node not in reached:
                continue
            if node == plan.input:
                left[node] = self.varying
            elif node in plan.relaxed:
                left[node] = self.stage(node).index
            else:
                nodes.append(node)
                reached.update(i for i, c in operands_of(plan, node) if c is None)
                native += plan.accumulation(plan.graph.nodes[node]) * math.prod(plan.graph.nodes[node].shape)
        every = math.prod(plan.graph.nodes[plan.input].shape)
        dense = units.index.shape[0] * sum(every if index is None else index.shape[0] for index in left.values())
        if dense <= DENSER * native or not nodes:
            return Matrices(self.rays(operand, units))
        return Operators(plan, operand, tuple(nodes), left, units.index, self.fixed)

    def rays(self, target: int, rows: Selection | Tensor) -> Rays:
        """Rows of a node (unit rows, or ``[R, *shape]``) as functions of what is relaxed before it."""
        plan = self.plan
        count = rows.index.shape[0] if isinstance(rows, Selection) else rows.shape[0]
        walk = Pull(plan, {}, torch.zeros(count, dtype=plan.dtype, device=plan.device))
        if not (isinstance(rows, Selection) and target in plan.affine and walk.start(target, rows)):
            walk.rows[target] = rows.dense() if isinstance(rows, Selection) else rows
        parts: dict[int, Tensor] = {}
        for node in range(target, -1, -1):
            if node not in walk.rows:
                continue
            if node == plan.input:
                parts[node] = self._of_varying(flat(walk.rows.pop(node)), walk)
            elif node in plan.relaxed:
                parts[node] = flat(walk.rows.pop(node))[:, self.stage(node).index]
            else:
                walk.over(node)
        return Rays(parts, walk.bias)

    def _of_varying(self, rows: Tensor, walk: Pull) -> Tensor:
        """The columns of the inputs that are left; the others go into the bias."""
        if self.varying is None or self.fixed is None:
            return rows.contiguous()
        walk.bias = torch.addmv(walk.bias, rows, self.fixed)
        return rows.index_select(1, self.varying)


def matters(relaxation: Relaxation) -> Tensor:
    """Which elements of a relaxed node are not 0 for certain: bool ``[N, *shape]``."""
    lines = relaxation.lower[0], relaxation.upper[0]
    return functools.reduce(torch.logical_or, [v != 0 for line in lines for v in (*line.slopes, line.offset)])


def _unless_identity(lines: tuple[Line, Line]) -> tuple[Line, Line] | None:
    """The lines, or None where both are ``x`` everywhere (a stable ReLU)."""
    plain = all(
        len(line.slopes) == 1 and bool((line.slopes[0] == 1).all()) and not bool(line.offset.any()) for line in lines
    )
    return None if plain else lines
