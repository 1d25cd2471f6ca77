"""One box's network with nothing left in it but what can vary: dead neurons dropped, relaxed nodes joined by links.

On one box most neurons of a ReLU network are off for good; their columns drop out of every product. Between relaxed
nodes everything is affine, so a backward walk over the rest is, from the last relaxed node to the first,

    A_source += (A+ lower slope + A- upper slope) M,        bias += A+ lower offset + A- upper offset,

with an affine map M for each operand of a relaxed node. A ``Link`` is such a map: small dense matrices over what is
left, where that is quicker, else the graph's own operators (convolutions). A walk is then a handful of
products, which is what an ascent over many rows wants. Numbers are those of ``backward`` up to the order of summation;
nothing here carries error terms.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.ops.base import Affine, Freedom, Interval, Line, Nonlinear, Relaxation
from bounds.plan import Plan

DENSER = 2.0
"""How many times the products of the graph's own operators a dense matrix may need: it is that much quicker."""


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """R affine functions of relaxed nodes and the input: ``[R, U]`` over what is left of each, and a bias ``[R]``."""

    parts: Mapping[int, Tensor]
    bias: Tensor


class Link(ABC):
    """The affine map from what is relaxed before an operand (and the input) to the U elements of it that are left."""

    __slots__ = ()

    @property
    @abstractmethod
    def sources(self) -> Collection[int]:
        """The relaxed nodes, and the input where it is one, that the operand depends on."""

    @abstractmethod
    def down(self, rows: Tensor) -> Rays:
        """Coefficient rows ``[R, U]`` of the operand as functions of its sources."""

    @abstractmethod
    def up(self, values: Mapping[int, Tensor]) -> Tensor:
        """``[R, U]``: the operand, for values ``[R, U_source]`` of its sources."""


@dataclass(frozen=True, slots=True, eq=False)
class Matrices(Link):
    """A link written out."""

    rays: Rays

    @property
    def sources(self) -> Collection[int]:
        return self.rays.parts.keys()

    def down(self, rows: Tensor) -> Rays:
        return Rays({n: rows @ matrix for n, matrix in self.rays.parts.items()}, rows @ self.rays.bias)

    def up(self, values: Mapping[int, Tensor]) -> Tensor:
        total = self.rays.bias
        for source, matrix in self.rays.parts.items():
            total = torch.addmm(total, values[source], matrix.T)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Operators(Link):
    """A link by the operators themselves, over whole nodes: ``nodes`` from the operand down, ``left`` says for each end
    which flat elements are left (None: all); ``fixed`` are the flat inputs, 0 where they are left (None: all are)."""

    plan: Plan
    operand: int
    nodes: tuple[int, ...]
    left: Mapping[int, Tensor | None]
    index: Tensor
    fixed: Tensor | None

    @property
    def sources(self) -> Collection[int]:
        return self.left.keys()

    def down(self, rows: Tensor) -> Rays:
        plan = self.plan
        walk = Pull(plan, {self.operand: self._wide(rows, self.operand, self.index)}, rows.new_zeros(rows.shape[0]))
        for node in self.nodes:
            walk.over(node)
        if self.fixed is not None and plan.input in self.left:
            walk.bias = torch.addmv(walk.bias, flat(walk.rows[plan.input]), self.fixed)
        return Rays({n: self._narrow(walk.rows[n], index) for n, index in self.left.items()}, walk.bias)

    def up(self, values: Mapping[int, Tensor]) -> Tensor:
        plan, full = self.plan, {n: self._wide(values[n], n, index) for n, index in self.left.items()}
        if self.fixed is not None and plan.input in full:
            full[plan.input] = full[plan.input] + self.fixed.reshape(plan.graph.nodes[plan.input].shape)
        for node in reversed(self.nodes):
            inputs = [full[i] if c is None else c for i, c in operands_of(plan, node)]
            full[node] = plan.graph.nodes[node].op.forward(*inputs)
        return self._narrow(full[self.operand], self.index)

    def _wide(self, values: Tensor, node: int, index: Tensor | None) -> Tensor:
        shape = (values.shape[0], *self.plan.graph.nodes[node].shape)
        if index is None:
            return values.reshape(shape)
        wide = values.new_zeros((values.shape[0], math.prod(shape[1:])))
        return wide.index_copy_(1, index, values).reshape(shape)

    def _narrow(self, values: Tensor, index: Tensor | None) -> Tensor:
        return flat(values) if index is None else flat(values).index_select(1, index)


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
    sources: tuple[Link, ...]


@dataclass(slots=True)
class Condensed:
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
        """The box of the inputs that are left, ``[1, inputs]``."""
        low, high = flat(self.state.box.lower), flat(self.state.box.upper)
        return (low, high) if self.varying is None else (low[:, self.varying], high[:, self.varying])

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
        """The stage of a relaxed node."""
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


@dataclass(slots=True)
class Pull:
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

    def over(self, index: int) -> None:
        """The transposed step over a node."""
        plan, node, rows = self.plan, self.plan.graph.nodes[index], self.rows.pop(index)
        assert isinstance(node.op, Affine)
        if index in plan.offset:
            self.bias = torch.addmv(self.bias, flat(rows), plan.offset[index].flatten())
        for position, (source, constant) in enumerate(operands_of(plan, index)):
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


def operands_of(plan: Plan, node: int) -> list[tuple[int, Tensor | None]]:
    """``(id, constant or None)`` of each operand of a node."""
    return list(zip(plan.graph.nodes[node].inputs, plan.operands[node], strict=True))
