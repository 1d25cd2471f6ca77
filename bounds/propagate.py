"""From boxes to everything that backward bounds need: intervals and lines of all nodes, tightened on the way.

Nodes are visited in order. Every node gets its interval; a node that a nonlinear operator reads is then tightened by
backward bounds, but only those elements that gain from it (an unstable ReLU), box by box, and intersected with what
is inherited from a larger box. With a rounding model each of these bounds holds in exact arithmetic, so they may be
inherited, mixed and compared freely.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import State, backward, concretize
from bounds.box import Box
from bounds.forward import Functions, step
from bounds.graph import Node
from bounds.interval import node_interval, relaxed_charge, size
from bounds.layouts import Owner, Selection, Window, flat
from bounds.ops.base import Interval, Nonlinear, Relaxation
from bounds.plan import Plan

TILE = 4
"""Neurons of an image are bounded in tiles of this width and height, which share a window."""

ROW_ELEMENTS = 1 << 25
"""Coefficients of one chunk of rows at the widest node: 128 MB in float32, times a few copies."""

Tighten = Callable[[Plan, State, int, Selection, Tensor], Tensor]
"""``(plan, state, node, unit rows, owners) -> lower bounds [R]`` of unit rows of a node."""


@dataclass(slots=True)
class _Draft:
    """The state under construction."""

    plan: Plan
    box: Box
    bounds: dict[int, Interval]
    relaxations: dict[int, Relaxation]
    charges: dict[int, Tensor]
    sizes: dict[int, Tensor]
    floor: Tensor
    crossed: Tensor
    functions: dict[int, Functions] | None

    def state(self) -> State:
        return State(self.box, self.bounds, self.relaxations, self.charges, self.sizes, self.floor)


def propagate(
    plan: Plan,
    box: Box,
    *,
    inherited: Mapping[int, Interval] | None = None,
    tighten: Tighten | None = None,
    variables: Tensor | None = None,
) -> tuple[State, Tensor]:
    """Bounds and lines of every node over N boxes.

    ``inherited`` are bounds of watched nodes that are known to hold on these boxes (of their parents, or with splits
    applied); ``tighten`` improves the loose elements of watched nodes (``crown`` is the usual one; None: intervals
    only); ``variables`` ``[k]`` are flat places of inputs: the forward linear bounds in them (``forward.py``) are
    intersected with the intervals of all nodes. Returns the state and ``[N]`` bool: boxes whose bounds crossed beyond
    rounding, that is, on which ``inherited`` and the network contradict each other (no such input exists).
    """
    zero = torch.zeros((), dtype=plan.dtype, device=plan.device)
    crossed = torch.zeros(box.size, dtype=torch.bool, device=plan.device)
    draft = _Draft(plan, box, {plan.input: (box.lower, box.upper)}, {}, {}, {}, zero, crossed, None)
    if variables is not None:
        draft.functions = {plan.input: Functions.of_box(box, variables, plan.rounding)}
    _measure(draft, plan.input)
    for node in plan.graph.nodes:
        if node.id == plan.input or node.id not in plan.operands:
            continue
        interval, charge = node_interval(plan, node, draft.bounds)
        draft.bounds[node.id] = interval
        if charge is not None:
            draft.charges[node.id] = charge
        if node.id in plan.relaxed:  # first: what reads it directly tightens it through its own lines
            relax(plan, draft.bounds, node, draft.relaxations, draft.charges)
        if draft.functions is not None:
            _push(draft, node, draft.functions)
        if node.id in plan.watched:
            _watch(draft, node, inherited, tighten)
        _measure(draft, node.id)
        if plan.rounding is not None:
            draft.floor = draft.floor + _underflow(draft, node)
    return replace(draft.state(), functions=draft.functions or {}), draft.crossed


def _push(draft: _Draft, node: Node, functions: dict[int, Functions]) -> None:
    """Functions of a node; its bounds are intersected with theirs. Those that nobody reads any more are dropped."""
    functions[node.id] = step(draft.plan, node, functions, draft.relaxations)
    below, above = functions[node.id].interval(draft.plan.rounding)
    low, high = torch.maximum(draft.bounds[node.id][0], below), torch.minimum(draft.bounds[node.id][1], above)
    if draft.plan.rounding is None:  # without error terms the two may cross
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    draft.bounds[node.id] = low, high
    for i in node.inputs:
        if i in functions and max(draft.plan.consumers[i]) <= node.id:
            del functions[i]


def relax(
    plan: Plan,
    bounds: Mapping[int, Interval],
    node: Node,
    relaxations: dict[int, Relaxation],
    charges: dict[int, Tensor],
    slopes: Tensor | None = None,
) -> None:
    """Enter the lines (and their charge) of one nonlinear node for the given bounds of its operands."""
    constants = plan.operands[node.id]
    operands = [bounds[i] if c is None else (c, c) for i, c in zip(node.inputs, constants, strict=True)]
    assert isinstance(node.op, Nonlinear)
    relaxation = node.op.relaxation(operands, plan.rounding, (slopes, None))
    relaxations[node.id] = relaxation
    if plan.rounding is not None:
        variables = [o for o, c in zip(operands, constants, strict=True) if c is None]
        charges[node.id] = relaxed_charge(plan.rounding, node.op, relaxation, variables)


def crown(plan: Plan, state: State, node: int, units: Selection, owner: Tensor, until: float = math.inf) -> Tensor:
    """Lower bounds of unit rows by one backward walk each, in chunks: the usual ``Tighten``.

    Neurons of an image are walked tile by tile, on windows. Rows whose turn comes after the time ``until``
    (``time.monotonic()``) get -inf: nothing gained, nothing claimed.
    """
    result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
    for part, window in _chunks(plan, units):
        if time.monotonic() > until:
            break
        owners = Owner(None, 1, part.shape[0]) if state.box.size == 1 else Owner.by_index(owner[part])
        chosen = Selection(units.index[part], units.sign[part], units.shape, window)
        lines = backward(plan, state, node, chosen, owners)
        result[part] = concretize(plan, lines, state.box)
    return result


def _chunks(plan: Plan, units: Selection) -> Iterator[tuple[Tensor, Window | None]]:
    """Places of the unit rows that are walked together, with their window where the node is an image."""
    step, shape = chunk_rows(plan), units.shape
    places = torch.arange(units.index.shape[0], device=units.index.device)
    if len(shape) != 4 or min(shape[2:]) <= TILE:
        for part in places.split(step):
            yield part, None
        return
    height, width = shape[2:]
    across = -(-width // TILE)
    tile = (units.index // width % height) // TILE * across + (units.index % width) // TILE
    order = torch.argsort(tile)
    tiles, counts = torch.unique_consecutive(tile[order], return_counts=True)
    for k, group in zip(tiles.tolist(), order.split(counts.tolist()), strict=True):
        top, left = k // across * TILE, k % across * TILE
        window = Window(top, left, min(TILE, height - top), min(TILE, width - left))
        for part in group.split(step):
            yield part, window


def chunk_rows(plan: Plan) -> int:
    """How many dense rows are walked at once."""
    widest = max(int(torch.Size(n.shape).numel()) for n in plan.graph.nodes if n.id in plan.operands)
    return max(1, ROW_ELEMENTS // max(1, widest))


def _watch(draft: _Draft, node: Node, inherited: Mapping[int, Interval] | None, tighten: Tighten | None) -> None:
    """Intersect with what is inherited, then tighten the loose elements."""
    low, high = draft.bounds[node.id]
    if inherited is not None and node.id in inherited:
        low, high = torch.maximum(low, inherited[node.id][0]), torch.minimum(high, inherited[node.id][1])
    if tighten is not None and node.id not in draft.plan.direct:
        draft.bounds[node.id] = (low, high)
        loose = _loose(draft, node)
        where = flat(loose).nonzero()
        if where.shape[0]:
            low, high = _tightened(draft, node, where, tighten)
    crossing = flat(low > high).any(1)
    draft.crossed |= crossing
    if bool(crossing.any()):  # keep the lines valid: the hull of both
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    draft.bounds[node.id] = (low, high)


def _loose(draft: _Draft, node: Node) -> Tensor:
    """Which elements some consumer wants better bounds of, ``[N, *shape]``."""
    low, high = draft.bounds[node.id]
    loose = torch.zeros_like(low, dtype=torch.bool)
    for consumer in draft.plan.consumers[node.id]:
        op = draft.plan.graph.nodes[consumer].op
        if isinstance(op, Nonlinear):
            loose |= op.loose(low, high, *_others(draft, consumer, node.id))
    return loose


def _others(draft: _Draft, consumer: int, node: int) -> list[Tensor]:
    """What is known of the other operands of ``consumer``: constants as they are, both ends of a variable."""
    found: list[Tensor] = []
    for i, constant in zip(draft.plan.graph.nodes[consumer].inputs, draft.plan.operands[consumer], strict=True):
        if constant is not None:
            found.append(constant)
        elif i != node and i in draft.bounds:
            found += draft.bounds[i]
    return found


def _tightened(draft: _Draft, node: Node, where: Tensor, tighten: Tighten) -> Interval:
    """Backward bounds from both sides of the elements ``where`` ``[K, 2]`` (box, flat element)."""
    low, high = draft.bounds[node.id]
    owner, index = where[:, 0], where[:, 1]
    one = torch.ones(index.shape[0], dtype=low.dtype, device=low.device)
    units = Selection(torch.cat([index, index]), torch.cat([one, -one]), node.shape)
    found = tighten(draft.plan, draft.state(), node.id, units, torch.cat([owner, owner]))
    below, above = found.chunk(2)
    low, high = flat(low).clone(), flat(high).clone()
    low[owner, index] = torch.maximum(low[owner, index], _informative(below))
    high[owner, index] = torch.minimum(high[owner, index], -_informative(above))
    return low.reshape(-1, *node.shape), high.reshape(-1, *node.shape)


def _informative(lower: Tensor) -> Tensor:
    """Lower bounds, with -inf where they overflowed: no finite value lies above +inf."""
    return torch.nan_to_num(lower, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _measure(draft: _Draft, node: int) -> None:
    if draft.plan.rounding is not None:
        draft.sizes[node] = size(draft.bounds[node])[0]


def _underflow(draft: _Draft, node: Node) -> Tensor:
    """What underflowing products of one backward step can lose: ``tiny`` each, at the size of the operand."""
    plan = draft.plan
    assert plan.rounding is not None
    shapes = [plan.graph.nodes[i].shape for i in node.inputs]
    terms = node.op.terms(*shapes) if isinstance(node.op, Nonlinear) else plan.accumulation(node)
    total = torch.zeros((), dtype=plan.dtype, device=plan.device)
    for i, constant in zip(node.inputs, plan.operands[node.id], strict=True):
        if constant is None:
            total = total + draft.sizes[i].sum()
    return total * (plan.rounding.tiny * 4 * (terms + 4))
