"""The computation graph: the whole function as a frozen value.

A ``Graph`` is a list of nodes in topological order. Constants are nodes too; their tensors stand beside the nodes in
``constants``, in float64 (float32 weights are exact there), each with an elementwise error bound where the stored
value was itself computed. No bound is ever stored on a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Op, Shape, UnsupportedOperatorError
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True)
class Input(Op):
    """The graph's input."""

    def forward(self, *operands: Tensor) -> Tensor:
        raise ValueError("an input is not computed")

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return True

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        raise ValueError("an input has the interval of the box")


@dataclass(frozen=True, slots=True)
class Const(Op):
    """A constant; its tensor is ``graph.constants[node.id].value``, without N."""

    def forward(self, *operands: Tensor) -> Tensor:
        raise ValueError("a constant is not computed")

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return True

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        raise ValueError("a constant has its own value")


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A constant tensor (no N). The true value lies within ``error`` of it elementwise (None: it is exact)."""

    value: Tensor
    error: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. ``shape`` is its full shape without N; ``id`` is its place in ``graph.nodes``."""

    id: int
    op: Op
    inputs: tuple[int, ...]
    shape: Shape
    name: str = ""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Graph:
    """Nodes in topological order (``nodes[i].id == i``), ids of inputs and outputs, and the constants by id."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: Mapping[int, Constant]

    def __repr__(self) -> str:
        ends = (", ".join(str(self.nodes[i].shape) for i in ids) for ids in (self.inputs, self.outputs))
        return f"<Graph: {len(self.nodes)} nodes, {' -> '.join(ends)}>"

    @property
    def variable(self) -> tuple[bool, ...]:
        """For each node whether it depends on an input."""
        result: list[bool] = []
        for node in self.nodes:
            result.append(isinstance(node.op, Input) or any(result[i] for i in node.inputs))
        return tuple(result)

    def evaluate(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, each ``[N, *shape]``, for inputs ``[N, *shape]``; constants are cast to the input's dtype.

        ``ValueError`` for inputs of another number or shape, among them those without N.
        """
        values = self.values(*inputs)
        return tuple(values[i] for i in self.outputs)

    def values(self, *inputs: Tensor) -> dict[int, Tensor]:
        """The value of every node (constants without N)."""
        given = self._given(inputs)
        values: dict[int, Tensor] = {}
        for node in self.nodes:
            if node.id in given:
                values[node.id] = given[node.id]
            elif node.id in self.constants:
                value = self.constants[node.id].value
                values[node.id] = value.to(inputs[0]) if value.is_floating_point() else value.to(inputs[0].device)
            else:
                values[node.id] = node.op.forward(*self.operands(node, values))
        return values

    def _given(self, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
        """The inputs by node."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs for a graph of {len(self.inputs)}")
        for k, (index, x) in enumerate(zip(self.inputs, inputs, strict=True)):
            shape, found = self.nodes[index].shape, tuple(x.shape)
            if not found or found[1:] != shape:
                hint = "; the number N of points goes in front, x.unsqueeze(0) is one" if found == shape else ""
                wanted = ", ".join(map(str, ("N", *shape)))
                raise ValueError(f"input {k} takes the shape [{wanted}], not {list(found)}{hint}")
        return dict(zip(self.inputs, inputs, strict=True))

    def operands(self, node: Node, values: Mapping[int, Tensor]) -> list[Tensor]:
        """What ``node.op.forward`` takes: constants in data positions get their leading dimension of 1."""
        return [
            values[i].unsqueeze(0) if i in self.constants and k not in node.op.parameters else values[i]
            for k, i in enumerate(node.inputs)
        ]

    def with_constants(self, constants: Mapping[int, Constant]) -> Graph:
        """The same graph with other constants (all of them, by id). ``ValueError`` where one is missing."""
        if missing := sorted(self.constants.keys() - constants.keys()):
            raise ValueError(
                f"no constant for the nodes {missing}: all are given anew, graph.constants has the old ones"
            )
        return replace(self, constants=dict(constants))

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Graph:
        """The graph with floating constants in ``dtype``; what the conversion rounds away joins their errors."""
        return self.with_constants({i: _cast(c, dtype, device) for i, c in self.constants.items()})


def _cast(constant: Constant, dtype: torch.dtype, device: torch.device | str) -> Constant:
    if not constant.value.is_floating_point():
        return Constant(constant.value.to(device))
    value = constant.value.to(device=device, dtype=dtype)
    error = (value.to(torch.float64) - constant.value.to(device=device, dtype=torch.float64)).abs()
    if constant.error is not None:
        error = error + constant.error.to(device=device, dtype=torch.float64)
    if not bool((error > 0).any()):
        return Constant(value)
    return Constant(value, (error * (1 + 2**-20)).to(dtype) + torch.finfo(dtype).tiny)


class Builder:
    """Builds a graph node by node; operations on constants alone are folded at once, with an error bound."""

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._constants: dict[int, Constant] = {}
        self._inputs: list[int] = []

    def shape(self, index: int) -> Shape:
        """Shape (without N) of a node."""
        return self._nodes[index].shape

    def value(self, index: int) -> Tensor | None:
        """The tensor of a constant node, None for anything that depends on an input."""
        constant = self._constants.get(index)
        return None if constant is None else constant.value

    def error(self, index: int) -> Tensor | None:
        """The error bound of a constant node; None where it is exact."""
        constant = self._constants.get(index)
        return None if constant is None else constant.error

    def input(self, shape: Shape, name: str = "") -> int:
        """Declare an input and return its id."""
        self._inputs.append(self._append(Input(), (), tuple(shape), name))
        return self._inputs[-1]

    def constant(self, value: Tensor, error: Tensor | None = None, name: str = "") -> int:
        """Add a constant; floating values are kept in float64. Raises ``ValueError`` for NaN or infinity."""
        if value.is_floating_point():
            value = value.to(torch.float64)
            # One sum tells at a tenth of the cost; only where it is not finite every element is looked at.
            if not bool(torch.isfinite(value.sum())) and not bool(torch.isfinite(value).all()):
                raise ValueError(f"constant {name or '(unnamed)'} contains NaN or infinity")
        index = self._append(Const(), (), tuple(value.shape), name)
        self._constants[index] = Constant(value, error)
        return index

    def add(self, op: Op, *inputs: int, name: str = "") -> int:
        """Add an operation on earlier nodes and return its id; folds it where every operand is a constant."""
        if inputs and all(i in self._constants for i in inputs):
            value, error = self._fold(op, inputs)
            return self.constant(value, error, name)
        return self._append(op, inputs, op.shape(*(self.shape(i) for i in inputs)), name)

    def rename(self, index: int, name: str) -> None:
        """Give a node another name."""
        self._nodes[index] = replace(self._nodes[index], name=name)

    def embed(self, graph: Graph, inputs: Sequence[int], known: Mapping[int, int] | None = None) -> tuple[int, ...]:
        """Copy another graph in, its inputs replaced by the given nodes, and its nodes in ``known`` by those they are
        mapped to; returns the ids of its outputs here."""
        ids = dict(zip(graph.inputs, inputs, strict=True)) | dict(known or {})
        for node in graph.nodes:
            if node.id in ids:
                continue
            if node.id in graph.constants:
                constant = graph.constants[node.id]
                ids[node.id] = self.constant(constant.value, constant.error, node.name)
            else:
                ids[node.id] = self.add(node.op, *(ids[i] for i in node.inputs), name=node.name)
        return tuple(ids[i] for i in graph.outputs)

    def finish(self, outputs: Iterable[int]) -> Graph:
        """The graph of what the outputs need (inputs are always kept), ids renumbered without gaps."""
        outputs = tuple(outputs)
        needed, stack = set(self._inputs), list(outputs)
        while stack:
            index = stack.pop()
            if index not in needed or index in self._inputs:
                needed.add(index)
                stack.extend(i for i in self._nodes[index].inputs if i not in needed)
        order = sorted(needed)
        ids = {old: new for new, old in enumerate(order)}
        nodes = tuple(
            replace(self._nodes[old], id=ids[old], inputs=tuple(ids[i] for i in self._nodes[old].inputs))
            for old in order
        )
        return Graph(
            nodes,
            tuple(ids[i] for i in self._inputs),
            tuple(ids[i] for i in outputs),
            {ids[i]: c for i, c in self._constants.items() if i in needed},
        )

    def _append(self, op: Op, inputs: tuple[int, ...], shape: Shape, name: str) -> int:
        self._nodes.append(Node(len(self._nodes), op, inputs, shape, name))
        return len(self._nodes) - 1

    def _fold(self, op: Op, inputs: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Value and error bound of an operation on constants."""
        constants = [self._constants[i] for i in inputs]
        data = [k not in op.parameters for k in range(len(inputs))]
        values = [c.value.unsqueeze(0) if d else c.value for c, d in zip(constants, data, strict=True)]
        value = op.forward(*values)[0]
        exact = all(c.error is None for c in constants)
        moved = isinstance(op, Affine) and op.accumulation(*(tuple(c.value.shape) for c in constants)) == 0
        if not value.is_floating_point() or (exact and moved):
            return value, None
        rounding = Rounding.of(torch.float64)
        if isinstance(op, Affine):
            low, high = op.interval([(v, v) for v in values], rounding)
        else:
            low, high = op.interval(_widened(op, values, constants, rounding), rounding)
        if isinstance(op, Affine) and not exact:
            slack = _inherited_error(op, values, constants, rounding)
            low, high = low - slack, high + slack
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            raise ValueError("an operation on constants gives NaN or infinity")
        error = torch.maximum(high[0] - value, value - low[0]).clamp(min=0) * (1 + 2**-40)
        return value, error if bool((error > 0).any()) else None


def _widened(op: Op, values: list[Tensor], constants: list[Constant], rounding: Rounding) -> list[Interval]:
    """Where the operands of a nonlinear operator truly lie. An inexact parameter is more than ``interval`` takes."""
    result: list[Interval] = []
    for position, (value, constant) in enumerate(zip(values, constants, strict=True)):
        if constant.error is None:
            result.append((value, value))
            continue
        if position in op.parameters:
            raise UnsupportedOperatorError(f"{type(op).__name__} with a parameter that is an inexact computed constant")
        error = constant.error.reshape(value.shape)
        result.append((rounding.down(value - error), rounding.up(value + error)))
    return result


def _inherited_error(op: Affine, values: list[Tensor], constants: list[Constant], rounding: Rounding) -> Tensor:
    """How far inexact operands can move a folded result: ``|f|(|v| + e) - |f|(|v|)`` for a multilinear f."""
    count = op.accumulation(*(tuple(c.value.shape) for c in constants)) + 1
    sizes = [v.abs() for v in values]
    moved = [s if c.error is None else s + c.error.reshape(s.shape) for s, c in zip(sizes, constants, strict=True)]
    full = op.absolute(*moved)
    return rounding.up((full - op.absolute(*sizes)).clamp(min=0) + 2 * rounding.affine(count, full))
