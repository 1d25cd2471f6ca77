"""Bounds of a graph's output, or of linear forms over it, in one call: the front door of this package.

A method is a frozen value that carries its own options. The rows of a specification become one more node of the
graph, so every method bounds an output, a margin or any other form in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bounds.ascent import optimised
from bounds.backward import State
from bounds.box import Box
from bounds.graph import Const, Constant, Graph, Node
from bounds.layouts import Selection
from bounds.ops.gemm import Gemm
from bounds.ops.shaping import Reshape
from bounds.plan import Plan, prepare
from bounds.propagate import Tighten, crown, propagate
from bounds.rounding import Rounding, plain_products

Semantics = Literal["real"]
"""What a bound may hold for: ``real``, the stored weights as exact numbers in real arithmetic."""


class Method(ABC):
    """How intervals are tightened: ``Interval``, ``Crown`` or ``Alpha``."""

    __slots__ = ()

    @abstractmethod
    def tighten(self, plan: Plan) -> Tighten | None:
        """What tightens single elements of a node in this plan; None where nothing does."""


@dataclass(frozen=True, slots=True)
class Interval(Method):
    """Interval propagation alone: one forward pass, cheap and loose."""

    def tighten(self, plan: Plan) -> Tighten | None:
        return None


@dataclass(frozen=True, slots=True)
class Crown(Method):
    """Backward linear bounds of every unstable neuron and of the output (Zhang et al., CROWN, NeurIPS 2018)."""

    def tighten(self, plan: Plan) -> Tighten | None:
        return crown


@dataclass(frozen=True, slots=True)
class Alpha(Method):
    """As ``Crown``, with ``steps`` ascent steps on the lower slopes of ReLUs for each neuron and each output by itself
    (Xu et al., alpha-CROWN, ICLR 2021). ``ValueError`` for fewer than one step."""

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Alpha takes at least one step, not {self.steps}: Crown() takes none")

    def tighten(self, plan: Plan) -> Tighten | None:
        search = plan if plan.rounding is None else prepare(plan.graph, torch.float32, plan.device)
        return optimised(search, self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """``lower <= f(x) <= upper`` elementwise for every x in the box, where f is the output or the rows over it.

    ``lower, upper`` are ``[N, *output shape]``, with rows ``[N, R]``. ``semantics`` says what this holds for:
    ``"real"`` (proven, all rounding included) or None (computed without error terms: no claim). An end that is not
    finite carries no information. ``intervals`` are those of all nodes that depend on the input, by id.
    """

    lower: Tensor
    upper: Tensor
    semantics: Semantics | None
    intervals: Mapping[int, tuple[Tensor, Tensor]]

    def at(self, node: int) -> tuple[Tensor, Tensor]:
        """``(lower, upper)``, each ``[N, *shape]``, of one node of the graph, under the same semantics.

        ``KeyError`` for a node that does not depend on the input.
        """
        return self.intervals[node]


def compute_bounds(
    graph: Graph,
    box: Box,
    method: Method = Crown(),
    *,
    rows: Tensor | None = None,
    semantics: Semantics | None = "real",
) -> Bounds:
    """Bounds of the graph's output over each of N boxes, on the box's device and without gradients.

    ``box`` ``[N, *input shape]`` in float32 or float64; its ends are taken as exact numbers. With ``rows``
    ``[R, *output shape]`` (exact numbers too) the forms ``sum rows[r] * output`` are bounded in place of the output.

    Guarantees ``lower <= f(x) <= upper`` for every x in the box; with ``semantics="real"`` (computed in float64 with
    error terms) in exact real arithmetic over the stored weights, with None (computed in the box's dtype) up to
    rounding. ``ValueError`` for shapes that do not fit, an empty box, another dtype, rows that are not finite, and a
    graph that has not exactly one input and one output that depends on it.
    """
    _check(graph, box)
    target = graph if rows is None else _with_rows(graph, rows)
    dtype = box.lower.dtype if semantics is None else torch.float64
    rounding = None if semantics is None else Rounding.of(dtype)
    with torch.no_grad(), nullcontext() if semantics is None else plain_products():
        plan = prepare(target, dtype, box.lower.device, rounding)
        tighten = method.tighten(plan)
        state, crossed = propagate(plan, box.to(dtype), tighten=tighten)
        if semantics is not None and bool(crossed.any()):
            raise RuntimeError("proven bounds cross each other: this is a fault of the bounds, not of the graph")
        lower, upper = _outputs(plan, state, tighten)
    return Bounds(lower, upper, semantics, {i: ends for i, ends in state.bounds.items() if i < len(graph.nodes)})


def margins(graph: Graph, label: int) -> Tensor:
    """Rows ``[C - 1, *output shape]`` for ``compute_bounds``: ``output[label] - output[c]`` for every other class c.

    The C classes are the elements of the output in order. Where every lower bound is positive, the graph has the class
    ``label`` everywhere in the box. ``ValueError`` for a label that the output does not have.
    """
    shape = _output(graph).shape
    classes = _elements(shape)
    if not 0 <= label < classes:
        raise ValueError(f"label {label}: the output has {classes} elements, 0 to {classes - 1}")
    rows = -torch.eye(classes, dtype=torch.float64)
    rows[:, label] = 1
    return torch.cat([rows[:label], rows[label + 1 :]]).reshape(-1, *shape)


def _output(graph: Graph) -> Node:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(f"bounds need one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}")
    return graph.nodes[graph.outputs[0]]


def _elements(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _check(graph: Graph, box: Box) -> None:
    """Raise ``ValueError`` where graph and box do not fit together."""
    if not graph.variable[_output(graph).id]:
        raise ValueError("the output does not depend on the input: evaluate the graph instead")
    wanted, given = graph.nodes[graph.inputs[0]].shape, tuple(box.lower.shape)
    if given[1:] != wanted:
        raise ValueError(f"boxes of shape {given} for an input of shape {wanted}: expected (N, {str(wanted)[1:]}")
    if box.lower.dtype not in (torch.float32, torch.float64) or box.upper.dtype != box.lower.dtype:
        raise ValueError(f"a box of {box.lower.dtype} and {box.upper.dtype}: both ends must be float32 or float64")
    empty = box.empty().nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"box {empty[0]} is empty (lower > upper), and {len(empty) - 1} more")


def _with_rows(graph: Graph, rows: Tensor) -> Graph:
    """The graph with ``rows`` as one more affine node behind its output (ids stay as they are)."""
    output = _output(graph)
    if tuple(rows.shape[1:]) != output.shape or not rows.shape[:1].numel():
        raise ValueError(f"rows of shape {tuple(rows.shape)} for an output of shape {output.shape}: R goes in front")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("rows contain NaN or infinity")
    first, flat = len(graph.nodes), _elements(output.shape)
    weights = rows.detach().to(torch.float64).reshape(rows.shape[0], flat).T.contiguous()
    added = (
        Node(first, Const(), (), (flat, rows.shape[0]), "rows"),
        Node(first + 1, Reshape((flat,)), (output.id,), (flat,), "flat output"),
        Node(first + 2, Gemm(), (first + 1, first), (rows.shape[0],), "forms"),
    )
    constants = {**graph.constants, first: Constant(weights)}
    return replace(graph, nodes=(*graph.nodes, *added), outputs=(first + 2,), constants=constants)


def _outputs(plan: Plan, state: State, tighten: Tighten | None) -> tuple[Tensor, Tensor]:
    """The output's interval, with both sides of every element tightened."""
    low, high = state.bounds[plan.output]
    if tighten is None:
        return low, high
    shape, boxes = plan.graph.nodes[plan.output].shape, state.box.size
    places = torch.arange(_elements(shape), device=plan.device).repeat_interleave(2).repeat(boxes)
    sign = torch.tensor([1.0, -1.0], dtype=plan.dtype, device=plan.device).repeat(places.shape[0] // 2)
    owner = torch.arange(boxes, device=plan.device).repeat_interleave(places.shape[0] // boxes)
    found = tighten(plan, state, plan.output, Selection(places, sign, shape), owner).reshape(boxes, *shape, 2)
    low, high = torch.maximum(low, found[..., 0]), torch.minimum(high, -found[..., 1])
    # Without error terms two bounds of one number may cross by rounding.
    return torch.minimum(low, high), torch.maximum(low, high)
