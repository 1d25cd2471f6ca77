"""Bounds of a graph's output, of any node, or of linear forms over them, in one call: the front door of this package.

A method is a frozen value that carries its own options: it says how the intervals of inner nodes are tightened, and how
lower bounds of the wanted rows are found once they are. Rows are coefficients at the target node; they go into the
walk as they are. Upper bounds are lower bounds of the negated rows.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bounds import machine
from bounds import plan as plans
from bounds.backward import State
from bounds.box import Box, LpBall
from bounds.graph import Graph
from bounds.layouts import flat
from bounds.methods import Alpha, Crown, Forward, Interval, Lines, Method, Start, Target
from bounds.ops.base import DomainError, Parameters
from bounds.plan import Plan
from bounds.rounding import Rounding, plain_products

__all__ = [
    "Alpha", "Bounds", "Crown", "DomainError", "Forward", "Interval", "Lines", "Method", "Prepared", "compute_bounds",
    "margins", "prepare",
]  # fmt: skip

Semantics = Literal["real", "float32"]
"""What a bound may hold for: ``real``, the stored weights as exact numbers in real arithmetic; ``float32``, also all
that the graph can return when it is computed in float32, in any order (``machine.py`` says what is assumed)."""

_SEMANTICS = ("real", "float32", None)
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A graph made ready for bounding under one semantics, on one device: for many calls of ``compute_bounds``."""

    graph: Graph
    plan: Plan
    semantics: Semantics | None
    search: Plan | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bounds:
    """``lower <= f(x) <= upper`` elementwise for every x in the box, where f is the target or the rows over it.

    ``lower, upper`` are ``[N, *target shape]``, with rows ``[N, R]``. ``semantics`` says what this holds for:
    ``"real"`` (proven, all rounding included), ``"float32"`` (also for what float32 returns; of rows, exact forms over
    what it returns) or None (computed without error terms: no claim). An end that is not
    finite carries no information. ``intervals`` are those of all nodes that the target depends on, by id. ``slopes``
    are the free parameters that the method has found (empty for methods without any): a start for ``Alpha``.
    ``target`` and ``method`` say what was bounded and how.
    """

    lower: Tensor
    upper: Tensor
    semantics: Semantics | None
    intervals: Mapping[int, tuple[Tensor, Tensor]]
    slopes: Mapping[int, Parameters]
    target: Target
    method: Method

    def at(self, node: int) -> tuple[Tensor, Tensor]:
        """``(lower, upper)``, each ``[N, *shape]``, of one node of the graph, under the same semantics.

        Those of nodes named in ``keep`` are tightened from both sides, like the target's own; elsewhere only what a
        nonlinear operator gains from. ``KeyError`` for a constant and for a node that the target does not depend on.
        """
        if node not in self.intervals:
            raise KeyError(f"node {node!r} has no bounds here: they are of the nodes {sorted(self.intervals)}")
        return self.intervals[node]

    @property
    def lines(self) -> Lines:
        """Affine functions of the input below and above f on each box, from one more walk (``Lines``)."""
        with _arithmetic(self.semantics, differentiable=self.lower.requires_grad):
            return self.method.lines(self.target)


def prepare(
    graph: Graph,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    semantics: Semantics | None = "real",
) -> Prepared:
    """Do once what does not depend on the boxes; ``compute_bounds`` takes the result in place of the graph.

    ``dtype`` is that of computations without a claim (``semantics=None``, and the search of ``Alpha``); proven bounds
    are computed in float64. ``ValueError`` for a graph without exactly one input and one output that depends on it,
    and for a constant that is not finite (it names the node).
    """
    check_graph(graph)
    _check_semantics(semantics)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype}: float32 or float64 is needed")
    prepared = _prepare(graph, dtype, torch.device(device), semantics)
    if semantics is None:
        return prepared
    return replace(prepared, search=plans.prepare(graph, dtype, device))


def compute_bounds(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph | Prepared,
    box: Box | LpBall,
    method: Method = Crown(),  # noqa: B008 - a frozen value
    *,
    rows: Tensor | None = None,
    node: int | None = None,
    semantics: Semantics | None = "real",
    memory: int | None = None,
    keep: Sequence[int] = (),
    known: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Bounds:
    """Bounds of the graph's output over each of N boxes, or N Lp balls, on the box's device.

    ``box`` ``[N, *input shape]`` in float32 or float64; its ends are taken as exact numbers (intervals and forward
    bounds see the box around a ball). ``node`` (an id) bounds that node in place of the output. With ``rows``
    ``[R, *shape]`` (exact numbers too) the forms ``sum rows[r] * output`` are bounded in place of the output. ``keep``
    names further nodes whose bounds are wanted as tight as the output's. ``memory`` limits the bytes that coefficient
    rows take at once; it changes the time, and with ``Alpha`` rows of a wide layer may have to share parameters.
    ``known``: intervals ``[N, *shape]`` of nodes that are proven on these boxes, such as ``Bounds.intervals`` after
    better ones were found of some: those of nodes that nonlinear operators read are intersected with what is found.
    What is returned rests on them; contradictions, and input intervals that leave out a part of a box, are noticed.

    Guarantees ``lower <= f(x) <= upper`` for every x in the box; with ``semantics="real"`` (computed in float64 with
    error terms) in exact real arithmetic over the stored weights, with None (computed in the box's dtype, or the
    prepared one) up to rounding. With None the bounds of all methods but ``Alpha`` are differentiable in the
    box and the graph's constants.

    ``ValueError`` for shapes that do not fit, an empty box, another dtype, rows that are not finite, ``known``
    intervals that are nan or of other boxes, an unknown method or semantics, a ``memory`` that is too small for one row
    (it says what that needs), and a graph that has not exactly one input and one output that depends on it;
    ``DomainError`` where a box reaches points at which an operator has no value (it names the node); ``TypeError`` for
    an argument of another kind.
    """
    _check_arguments(graph, box, rows, keep)
    _check_options(method, semantics, memory)
    differentiable = semantics is None and method.differentiable and torch.is_grad_enabled() and _recorded(graph, box)
    region, ball = (box.box(), box) if isinstance(box, LpBall) else (box, None)
    with _arithmetic(semantics, differentiable):
        ready = graph if isinstance(graph, Prepared) else None
        if ready is None:
            assert isinstance(graph, Graph)  # checked above
            wanted = graph if node is None else replace(graph, outputs=(_existing(graph, node),))
            ready = _prepare(wanted, region.lower.dtype, region.lower.device, semantics)
        elif ready.semantics != semantics:
            raise ValueError(f"the graph was prepared for semantics={ready.semantics!r}, not {semantics!r}")
        place = ready.plan.output if node is None else _existing(ready.graph, node)
        _check_box(ready, region)
        plan = ready.plan.restricted((place, *(_existing(ready.graph, k) for k in keep)), place)
        if memory is not None:
            plan = replace(plan, memory=memory)
        forms = None if rows is None else _check_rows(plan, rows)
        inside = region if region.lower.dtype == plan.dtype else region.to(plan.dtype)
        given = None if known is None else _check_known(plan, inside, known)
        start = Start(plan, ready.search, inside, None if ball is None else ball.to(plan.dtype), given)
        state, crossed = method.state(start)
        _check_result(plan, state, crossed, semantics, known is not None)
        intervals = dict(state.bounds)
        for kept in keep:
            state = replace(state, bounds=intervals)
            intervals[kept] = method.bound(Target(plan, ready.search, state, kept, None)).ends
        target = Target(plan, ready.search, replace(state, bounds=intervals), place, forms)
        found = method.bound(target)
        if rows is None:
            intervals[place] = found.ends
    return Bounds(*found.ends, semantics, intervals, found.slopes, target, method)


def margins(graph: Graph | Prepared, label: int) -> Tensor:
    """Rows ``[C - 1, *output shape]`` for ``compute_bounds``: ``output[label] - output[c]`` for every other class c.

    The C classes are the elements of the output in order. Where every lower bound is positive, the graph has the class
    ``label`` everywhere in the box. ``ValueError`` for a label that the output does not have.
    """
    graph = graph.graph if isinstance(graph, Prepared) else graph
    check_graph(graph)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(f"bounds need one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}")
    shape = graph.nodes[graph.outputs[0]].shape
    classes = int(torch.Size(shape).numel())
    label = operator.index(label)
    if not 0 <= label < classes:
        raise ValueError(f"label {label}: the output has {classes} elements, 0 to {classes - 1}")
    rows = -torch.eye(classes, dtype=torch.float64)
    rows[:, label] = 1
    return torch.cat([rows[:label], rows[label + 1 :]]).reshape(-1, *shape)


@contextmanager
def _arithmetic(semantics: Semantics | None, differentiable: bool) -> Iterator[None]:
    """Plain products where a claim is made, gradients where they are wanted."""
    with nullcontext() if differentiable else torch.no_grad(), nullcontext() if semantics is None else plain_products():
        yield


def _recorded(graph: Graph | Prepared, region: Box | LpBall) -> bool:
    """Whether a gradient may be asked for of anything that the bounds are a function of."""
    constants = (graph.plan.graph if isinstance(graph, Prepared) else graph).constants
    ends = (region.lower, region.upper) if isinstance(region, Box) else (region.centre, region.radius)
    return any(t.requires_grad for t in (*ends, *(c.value for c in constants.values())))


def _prepare(graph: Graph, dtype: torch.dtype, device: torch.device, semantics: Semantics | None) -> Prepared:
    for place, constant in graph.constants.items():
        value = constant.value
        if value.is_floating_point() and not bool(torch.isfinite(value.sum())) and not bool(value.isfinite().all()):
            raise ValueError(f"{_called(graph, place)} is a constant with NaN or infinity")
    if semantics is None:
        return Prepared(graph, plans.prepare(graph, dtype, device), None)
    given = machine.stored(graph) if semantics == "float32" else graph
    plan = plans.prepare(given, torch.float64, device, Rounding.of(torch.float64))
    return Prepared(graph, replace(plan, machine=machine.SINGLE) if semantics == "float32" else plan, semantics)


def _called(graph: Graph, place: int) -> str:
    node = graph.nodes[place]
    return f"node {place} ({type(node.op).__name__}{f', {node.name!r}' if node.name else ''})"


def check_graph(graph: object) -> None:
    """Raise ``TypeError``, which says how to get a graph, for anything else."""
    if not isinstance(graph, Graph):
        raise TypeError(
            f"bounds are computed of a Graph, not of a {type(graph).__name__}: bounds.trace(module, example) reads a "
            "torch module, verifier.load(path) an ONNX model"
        )


def _check_arguments(graph: object, box: object, rows: object, keep: object) -> None:
    """Raise ``TypeError`` for an argument of another kind, before it fails somewhere inside."""
    check_graph(graph.graph if isinstance(graph, Prepared) else graph)
    if not isinstance(box, Box | LpBall):
        raise TypeError(f"the region is a {type(box).__name__}: Box(lower, upper), Box.around(x, radius) or an LpBall")
    if rows is not None and not isinstance(rows, Tensor):
        raise TypeError(f"rows are a {type(rows).__name__}: a tensor [R, *output shape] is needed")
    if not isinstance(keep, Sequence) or isinstance(keep, str):
        raise TypeError(f"keep={keep!r}: a sequence of node ids is needed")


def _check_semantics(semantics: object) -> None:
    if semantics not in _SEMANTICS:
        raise ValueError(f"semantics {semantics!r}: the known ones are {', '.join(map(repr, _SEMANTICS))}")


def _check_options(method: Method, semantics: Semantics | None, memory: int | None) -> None:
    if not isinstance(method, Method):
        raise ValueError(f"method {method!r}: the known ones are Interval(), Forward(), Crown(), Alpha(steps=20)")
    _check_semantics(semantics)
    if memory is not None and (not isinstance(memory, int) or memory < 1):
        raise ValueError(f"memory {memory!r}: a whole number of bytes is needed")


def _existing(graph: Graph, node: int) -> int:
    if not isinstance(node, int):
        raise TypeError(f"node {node!r}: nodes are given by id, a whole number (graph.nodes[id].name is a name)")
    if not 0 <= node < len(graph.nodes):
        raise ValueError(f"node {node}: the graph has nodes 0 to {len(graph.nodes) - 1}")
    if not graph.variable[node]:
        raise ValueError(
            f"{_called(graph, node)} does not depend on the input: it is a constant, which needs no bounds"
        )
    return node


def _check_box(ready: Prepared, box: Box) -> None:
    """Raise ``ValueError`` where graph and box do not fit together."""
    plan = ready.plan
    wanted, given = plan.graph.nodes[plan.input].shape, tuple(box.lower.shape)
    if given[1:] != wanted:
        raise ValueError(f"boxes of shape {given} for an input of shape {wanted}: expected (N, {str(wanted)[1:]}")
    if box.lower.dtype not in _DTYPES or box.upper.dtype != box.lower.dtype:
        raise ValueError(f"a box of {box.lower.dtype} and {box.upper.dtype}: both ends must be float32 or float64")
    if box.lower.device.type != plan.device.type:
        raise ValueError(f"a box on {box.lower.device}, and a graph prepared on {plan.device}")
    if not box.size:
        raise ValueError("no boxes: N, their leading dimension, is 0")
    found = box.empty().nonzero().flatten().tolist()
    if found:
        more = f", and so are {len(found) - 1} more" if found[1:] else ""
        raise ValueError(f"box {found[0]} is empty (lower > upper){more}")


def _check_rows(plan: Plan, rows: Tensor) -> Tensor:
    """The rows in the plan's dtype."""
    shape = plan.graph.nodes[plan.output].shape
    if tuple(rows.shape[1:]) != shape or not rows.shape[:1].numel():
        raise ValueError(f"rows of shape {tuple(rows.shape)} for an output of shape {shape}: R goes in front")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("rows contain NaN or infinity")
    return rows.detach().to(device=plan.device, dtype=plan.dtype)


def _check_known(plan: Plan, box: Box, known: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
    """Known intervals of the watched nodes. Raises ``ValueError`` for ends of another shape or type, or that are nan,
    and where those of the input leave out a part of a box."""
    found = {node: known[node] for node in (plan.input, *plan.watched) if node in known}
    for node, ends in found.items():
        shape = (box.size, *plan.graph.nodes[node].shape)
        if any(tuple(end.shape) != shape or end.dtype != plan.dtype for end in ends):
            raise ValueError(f"known ends of {_called(plan.graph, node)}: {plan.dtype} {list(shape)} are needed")
        if any(bool(end.isnan().any()) for end in ends):
            raise ValueError(f"known ends of {_called(plan.graph, node)} that are not numbers")
    low, high = found.pop(plan.input, (box.lower, box.upper))
    if not bool(((low <= box.lower) & (high >= box.upper)).all()):
        raise ValueError("known intervals of other boxes: those of the input leave out a part of a box")
    return found


def _check_result(plan: Plan, state: State, crossed: Tensor, semantics: Semantics | None, given: bool) -> None:
    """Raise where an operator has no value somewhere, and where proven bounds cross (each other, or what was given)."""
    for place in sorted(plan.relaxed):
        node = plan.graph.nodes[place]
        operands = plan.ends(place, state.bounds)
        outside = node.op.outside(operands)
        if outside is not None and bool(outside.any()):
            first = int(flat(outside).any(1).nonzero()[0])
            ends = "; ".join(
                f"{float(low[k].min()):.6g} to {float(high[k].max()):.6g}"
                for low, high, k in ((*o, min(first, o[0].shape[0] - 1)) for o in operands)
            )
            raise DomainError(
                f"{_called(plan.graph, place)} has no value on part of box {first}: its operands reach {ends}; "
                "bounds need a smaller box, or a network without it"
            )
    if semantics is not None and bool(crossed.any()):
        if given:
            raise ValueError("known intervals contradict what is found: they do not hold on these boxes")
        raise RuntimeError("proven bounds cross each other: this is a fault of the bounds, not of the graph")
