"""Affine maps between what is relaxed: how rows come down over them and how values go up.

Between relaxed nodes everything is affine. A ``Link`` is the map from what is relaxed before an operand to the
elements of it that are left: small dense matrices, where that is quicker, else the graph's own operators
(convolutions). A ``Stage`` is a relaxed node between such maps, and a ``Network`` knows the stages of some rows.
Nothing here carries error terms.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.ops.affine import Affine
from bounds.ops.base import Freedom, Interval, Line, Nonlinear
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
    """The U elements of a relaxed node that matter, those with a choice first (``choices`` of them).

    ``lines`` (lower, upper) of the choices as they stand and the operands' intervals there are ``[1 or R, choices]``,
    like the parameters ``free``; ``fixed`` are the lines of the rest (None: their value is that of the operand itself).
    ``sources`` say what each variable operand is made of. ``index`` ``[U]``: the flat places of the elements, where
    they are the same for all rows.
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


class Network(ABC):
    """What rows over one or more boxes go through: stages and the input."""

    __slots__ = ()
    plan: Plan
    state: State

    @property
    @abstractmethod
    def lines(self) -> int:
        """How many rows have lines of their own (1: the same lines for all)."""

    @abstractmethod
    def stage(self, node: int) -> Stage:
        """The stage of a relaxed node."""

    @abstractmethod
    def ends(self) -> Interval:
        """The box of the inputs that are left, ``[1 or R, inputs]``."""

    @abstractmethod
    def take(self, rows: Tensor) -> Network:
        """What some of the rows go through."""


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


def operands_of(plan: Plan, node: int) -> list[tuple[int, Tensor | None]]:
    """``(id, constant or None)`` of each operand of a node."""
    return list(zip(plan.graph.nodes[node].inputs, plan.operands[node], strict=True))
