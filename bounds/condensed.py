"""One box's network with nothing left in it but what can vary: matrices between relaxed nodes, dead neurons dropped.

On one box most neurons of a ReLU network are off for good; their columns drop out of every product. Between relaxed
nodes everything is affine, so a backward walk over the rest is, from the last relaxed node to the first,

    A_source += (A+ lower slope + A- upper slope) M,        bias += A+ lower offset + A- upper offset,

with one matrix M for each pair of relaxed nodes (or the input) that an affine path joins. A walk is then a handful of
products of small dense matrices, which is what an ascent over many rows wants. Numbers are those of ``backward`` up to
the order of summation; nothing here carries error terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.ops.base import Affine, Freedom, Interval, Line, Nonlinear, Relaxation
from bounds.plan import Plan

DENSER = 4.0
"""How many times the products of a walk over the graph one over condensed matrices may need: they are quicker."""


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """R affine functions of relaxed nodes and the input: ``[R, U]`` over what is left of each, and a bias ``[R]``."""

    parts: Mapping[int, Tensor]
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A relaxed node of one box: the flat places ``index`` ``[U]`` of the elements that matter, those with a choice
    first (``choices`` of them).

    ``lines`` (lower, upper) of the choices as they stand and the operands' intervals there are ``[1, choices]``, like
    the parameters ``free``; ``fixed`` are the lines of the rest (None: their value is that of the operand itself).
    ``sources`` say what each variable operand is made of.
    """

    node: int
    op: Nonlinear
    index: Tensor
    choices: int
    lines: tuple[Line, Line]
    fixed: tuple[Line, Line] | None
    operands: tuple[Interval, ...]
    free: tuple[Freedom | None, Freedom | None]
    sources: tuple[Rays, ...]


@dataclass(slots=True)
class Condensed:
    """The stages of one box (``state`` of one box), made as they are asked for."""

    plan: Plan
    state: State
    stages: dict[int, Stage] = field(default_factory=dict)

    @staticmethod
    def fits(plan: Plan, state: State, target: int) -> bool:
        """Whether a walk from the target over condensed matrices is possible and not dearer than one over the graph:
        every relaxed node works element by element on operands of its own shape, and little is left of it."""
        nodes = plan.graph.nodes
        dense, native = 0, 0
        sources: dict[int, set[int]] = {plan.input: {plan.input}}
        left = {plan.input: math.prod(nodes[plan.input].shape)}
        for node in nodes[: target + 1]:
            variables = [i for i, c in _operands(plan, node.id) if c is None] if node.id in plan.operands else []
            if not variables:
                continue
            if node.id in plan.affine:
                sources[node.id] = set[int]().union(*(sources[i] for i in variables))
                native += plan.accumulation(node) * math.prod(node.shape)
                continue
            op = node.op
            if (
                not isinstance(op, Nonlinear)
                or not op.elementwise
                or any(nodes[i].shape != node.shape for i in variables)
            ):
                return False
            left[node.id] = int(matters(state.relaxations[node.id]).sum())
            sources[node.id] = {node.id}
            dense += sum(left[node.id] * left[i] for v in variables for i in sources[v])
        return dense <= DENSER * native

    def stage(self, node: int) -> Stage:
        """The stage of a relaxed node."""
        if node not in self.stages:
            self.stages[node] = self._make(node)
        return self.stages[node]

    def _make(self, node: int) -> Stage:
        plan, state = self.plan, self.state
        op, shape = plan.graph.nodes[node].op, plan.graph.nodes[node].shape
        assert isinstance(op, Nonlinear)
        ends = [state.bounds[i] if c is None else (c, c) for i, c in _operands(plan, node)]
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
            tuple(self.rays(i, Selection(index, one, shape)) for i, c in _operands(plan, node) if c is None),
        )

    def rays(self, target: int, rows: Selection | Tensor) -> Rays:
        """Rows of a node (unit rows, or ``[R, *shape]``) as functions of what is relaxed before it."""
        plan = self.plan
        count = rows.index.shape[0] if isinstance(rows, Selection) else rows.shape[0]
        walk = _Pull(plan, {}, torch.zeros(count, dtype=plan.dtype, device=plan.device))
        if not (isinstance(rows, Selection) and target in plan.affine and walk.start(target, rows)):
            walk.rows[target] = rows.dense() if isinstance(rows, Selection) else rows
        parts: dict[int, Tensor] = {}
        for node in range(target, -1, -1):
            current = walk.rows.pop(node, None)
            if current is None:
                continue
            if node == plan.input:
                parts[node] = flat(current).contiguous()
            elif node in plan.relaxed:
                parts[node] = flat(current)[:, self.stage(node).index]
            else:
                walk.over(node, current)
        return Rays(parts, walk.bias)


@dataclass(slots=True)
class _Pull:
    """Dense rows on their way down through affine nodes alone."""

    plan: Plan
    rows: dict[int, Tensor]
    bias: Tensor

    def start(self, target: int, units: Selection) -> bool:
        """The first step of unit rows by gathering weights; False where the operator has no cheap way."""
        plan, node = self.plan, self.plan.graph.nodes[target]
        variables = [k for k, c in enumerate(plan.operands[target]) if c is None]
        if len(variables) != 1:
            return False
        source = node.inputs[variables[0]]
        assert isinstance(node.op, Affine)
        found = node.op.unit_rows(units.index, variables[0], plan.operands[target], plan.graph.nodes[source].shape)
        if found is None:
            return False
        self.rows[source] = found * units.sign.reshape(-1, *[1] * (found.ndim - 1))
        if target in plan.offset:
            self.bias = self.bias + plan.offset[target].flatten()[units.index] * units.sign
        return True

    def over(self, index: int, rows: Tensor) -> None:
        """One transposed step."""
        plan, node = self.plan, self.plan.graph.nodes[index]
        assert isinstance(node.op, Affine)
        if index in plan.offset:
            self.bias = self.bias + flat(rows) @ plan.offset[index].flatten()
        for position, (source, constant) in enumerate(_operands(plan, index)):
            if constant is None:
                pulled = node.op.pullback(rows, position, plan.operands[index], plan.graph.nodes[source].shape)
                self.rows[source] = self.rows[source] + pulled if source in self.rows else pulled


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


def _operands(plan: Plan, node: int) -> list[tuple[int, Tensor | None]]:
    """``(id, constant or None)`` of each operand."""
    return list(zip(plan.graph.nodes[node].inputs, plan.operands[node], strict=True))
