"""A graph made ready for bounding in one dtype: what does not depend on the boxes, computed once.

For an affine node that is its constant part (``offset``, the value at zero variables), and beside its constants their
absolute values and error bounds. With them the error of a whole backward or forward step over the node is one more
evaluation of the same operator on the sizes of its operands (``affine_charge`` in ``interval.py``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.graph import Const, Graph, Input, Node
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, UnsupportedOperatorError
from bounds.rounding import Rounding

KEPT_MAGNITUDES = 1 << 23
"""Elements of constants up to which their absolute values are kept too."""

RETAINED = 31 << 20
"""Bytes of the largest block that the C library should keep for the next one when it is freed (``retain_blocks``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """``graph`` with constants in ``dtype`` on ``device``; all maps are keyed by node id.

    ``operands``: the constants of a node as ``forward`` takes them, None for variable operands. ``offset``: constant
    part ``[*shape]`` of an affine node, absent where it is zero. ``errors``: error bounds of its constants (same
    places as ``operands``), absent where all are exact. ``affine``: variable nodes that are affine in their variable
    operands; ``relaxed``: the other variable nodes; ``watched``: nodes whose bounds a relaxed node reads;
    ``direct``: watched nodes whose interval bounds cannot be improved by backward bounds (one mixing step above the
    input at most). ``machine``: the arithmetic whose results are bounded too (``machine.py``), None: exact arithmetic
    alone. ``memory``: bytes that coefficient rows may take at once (None: a usual amount); ``windows``: whether those
    over images may be held as windows. ``magnitudes``: absolute values of the constants of affine nodes that sum
    (None for variable operands and for what is only added), where they are small enough to be kept.
    """

    graph: Graph
    dtype: torch.dtype
    device: torch.device
    rounding: Rounding | None
    operands: Mapping[int, tuple[Tensor | None, ...]]
    offset: Mapping[int, Tensor]
    errors: Mapping[int, tuple[Tensor | None, ...]]
    affine: frozenset[int]
    relaxed: frozenset[int]
    watched: tuple[int, ...]
    direct: frozenset[int]
    consumers: Mapping[int, tuple[int, ...]]
    machine: Rounding | None = None
    memory: int | None = None
    windows: bool = True
    magnitudes: Mapping[int, tuple[Tensor | None, ...]] = field(default_factory=dict)

    @property
    def input(self) -> int:
        """Id of the input node."""
        return self.graph.inputs[0]

    @property
    def output(self) -> int:
        """Id of the output node."""
        return self.graph.outputs[0]

    @property
    def elements(self) -> int:
        """How many elements all nodes together have that depend on the input (which is not one of them)."""
        return sum(math.prod(self.graph.nodes[i].shape) for i in self.operands)

    def ends(self, node: int, bounds: Mapping[int, Interval]) -> list[Interval]:
        """Both ends of each operand of a variable node; constants as they are."""
        given = zip(self.graph.nodes[node].inputs, self.operands[node], strict=True)
        return [bounds[i] if c is None else (c, c) for i, c in given]

    def restricted(self, nodes: Collection[int], output: int) -> Plan:
        """The plan of what these nodes depend on alone, with ``output`` as the output; ids stay as they are."""
        if output == self.output and set(nodes) == {output} and output == max(self.operands, default=output):
            return self
        needed, stack = set[int](), list(nodes)
        while stack:
            index = stack.pop()
            if index not in needed:
                needed.add(index)
                stack.extend(self.graph.nodes[index].inputs)
        relaxed = self.relaxed & needed
        watched = {i for r in relaxed for i in self.graph.nodes[r].inputs} & set(self.watched)
        return replace(
            self,
            graph=replace(self.graph, outputs=(output,)),
            operands={i: o for i, o in self.operands.items() if i in needed},
            affine=self.affine & needed,
            relaxed=relaxed,
            watched=tuple(sorted(watched)),
            consumers={i: tuple(c for c in users if c in needed) for i, users in self.consumers.items() if i in needed},
        )

    def accumulation(self, node: Node) -> int:
        """``op.accumulation`` of an affine node."""
        assert isinstance(node.op, Affine)
        return node.op.accumulation(*(self.graph.nodes[i].shape for i in node.inputs))


def prepare(
    graph: Graph,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    rounding: Rounding | None = None,
) -> Plan:
    """Make a graph with one input and one output ready for bounding; raises ``ValueError`` for another count, and
    for an output that does not depend on the input; with ``rounding`` ``UnsupportedOperatorError`` (a ``ValueError``)
    for a nonlinear node that reads an inexact constant."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(f"bounds need one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}")
    if not graph.variable[graph.outputs[0]]:
        raise ValueError("the output does not depend on the input: it is a constant, which needs no bounds")
    retain_blocks()
    graph = graph.to(dtype, device)
    variable = graph.variable
    operands: dict[int, tuple[Tensor | None, ...]] = {}
    errors: dict[int, tuple[Tensor | None, ...]] = {}
    offset: dict[int, Tensor] = {}
    affine, relaxed = set[int](), set[int]()
    for node in graph.nodes:
        if isinstance(node.op, Input | Const) or not variable[node.id]:
            continue
        operands[node.id], node_errors = _constants(graph, node)
        if not node.op.is_affine([variable[i] for i in node.inputs]):
            if rounding is not None:
                _exact_enough(node, operands[node.id], node_errors, rounding)
            relaxed.add(node.id)
            continue
        affine.add(node.id)
        if any(e is not None for e in node_errors):
            errors[node.id] = node_errors
        constant = _constant_part(graph, node, operands[node.id], dtype, device)
        if bool((constant != 0).any()):
            offset[node.id] = constant
    watched = {i for r in relaxed for i in graph.nodes[r].inputs if variable[i]}
    magnitudes = {
        i: sizes for i in sorted(affine) if (sizes := _magnitudes(graph, graph.nodes[i], operands[i])) is not None
    }
    consumers = {i: tuple(n.id for n in graph.nodes if i in n.inputs) for i in range(len(graph.nodes)) if variable[i]}
    return Plan(
        graph,
        dtype,
        torch.device(device),
        rounding,
        operands,
        offset,
        errors,
        frozenset(affine),
        frozenset(relaxed),
        tuple(sorted(watched)),
        frozenset(_direct(graph, affine) & watched),
        consumers,
        magnitudes=magnitudes,
    )


def retain_blocks() -> None:
    """Allocate and free one large block, which nobody touches.

    Coefficient rows, and values of many points, come and go in blocks of megabytes. The GNU C library gives such blocks
    back to the system and takes new ones, whose pages are cleared one fault at a time: that took up to half of the time
    of a walk, or of an evaluation. What it does so with are blocks larger than any freed before (up to 32 MB), and free
    memory of twice that.
    """
    torch.empty(RETAINED, dtype=torch.uint8)


def _exact_enough(
    node: Node, constants: tuple[Tensor | None, ...], errors: tuple[Tensor | None, ...], rounding: Rounding
) -> None:
    """Refuse constants of a nonlinear node that are off by more than the dtype's rounding, which its lines cover."""
    for constant, error in zip(constants, errors, strict=True):
        if constant is None or error is None:
            continue
        if bool((error > constant.abs() * (2 * rounding.unit) + 2 * rounding.tiny).any()):
            raise UnsupportedOperatorError(
                f"node {node.id} ({type(node.op).__name__}) reads a constant that is not exact: its lines take "
                "constants as they are, so nothing can be proven"
            )


def _magnitudes(graph: Graph, node: Node, constants: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    op = node.op
    assert isinstance(op, Affine)
    elements = sum(c.numel() for c in constants if c is not None)
    if (
        op.elementwise
        or elements > KEPT_MAGNITUDES
        or not op.accumulation(*(graph.nodes[i].shape for i in node.inputs))
    ):
        return None
    return tuple(None if c is None or k in op.offsets else c.abs() for k, c in enumerate(constants))


def _constants(graph: Graph, node: Node) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    values: list[Tensor | None] = []
    errors: list[Tensor | None] = []
    for k, i in enumerate(node.inputs):
        constant = graph.constants.get(i)
        data = k not in node.op.parameters
        if constant is None:
            values.append(None)
            errors.append(None)
            continue
        values.append(constant.value.unsqueeze(0) if data else constant.value)
        error = constant.error
        errors.append(None if error is None else error.expand_as(constant.value).reshape(values[-1].shape))  # type: ignore[union-attr]
    return tuple(values), tuple(errors)


def _constant_part(
    graph: Graph, node: Node, constants: tuple[Tensor | None, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    operands = [
        torch.zeros((1, *graph.nodes[i].shape), dtype=dtype, device=device) if c is None else c
        for i, c in zip(node.inputs, constants, strict=True)
    ]
    return node.op.forward(*operands)[0]


def _direct(graph: Graph, affine: set[int]) -> set[int]:
    """Nodes that depend on the input through at most one mixing step (a sum of several variable terms)."""
    mixing = dict.fromkeys(graph.inputs, 0)
    for node in graph.nodes:
        if node.id not in affine:
            continue
        before = [mixing.get(i) for i in node.inputs if i not in graph.constants]
        if any(b is None for b in before):
            continue
        assert isinstance(node.op, Affine)
        terms = node.op.accumulation(*(graph.nodes[i].shape for i in node.inputs))
        single = node.op.elementwise and len(before) == 1
        mixing[node.id] = max(b for b in before if b is not None) + (terms > 0 and not single)
    return {i for i, count in mixing.items() if count <= 1}
