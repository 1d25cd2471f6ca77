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
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds import machine
from bounds.backward import State
from bounds.box import Box, LpBall
from bounds.forward import Functions, step
from bounds.graph import Node
from bounds.interval import node_interval, relaxed_charge, size
from bounds.layouts import Owner, Selection, flat
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Nonlinear, Relaxation
from bounds.ops.univariate import PiecewiseLinear
from bounds.plan import Plan
from bounds.units import enclosed, least, with_parallel_lines
from bounds.views import of_box

MEMORY = 1 << 26
"""Bytes for the rows of one walk, where no budget is given."""

COPIES = 12
"""How many times the rows at the widest node are held at once: before and after a step, their slopes, products, what a
convolution lays out for itself. (Measured on dense rows; windows take about two thirds of it.)"""

SAMPLE = 8
"""One of so many rows is screened first, and the others only if that settled most of them."""

SCREEN_FROM = 1 << 18
"""Rows of fewer coefficients than this at the widest node are not worth another walk that might settle them."""

ALONE_FROM = 1 << 18
"""Boxes whose rows have as many coefficients at the widest node are walked one after the other: then what belongs to
the node is the same for all rows, and nothing is gained from more of them."""

LIVE_FROM, LIVE_SHARE = 64, 0.8
"""Relaxed nodes of at least so many elements leave out those that are zero, where at most this share is left."""

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
    ball: LpBall | None
    live: dict[int, Tensor] = field(default_factory=dict)

    def state(self) -> State:
        return State(
            self.box,
            self.bounds,
            self.relaxations,
            self.charges,
            self.sizes,
            self.floor,
            ball=self.ball,
            live=self.live,
        )


def propagate(
    plan: Plan,
    box: Box,
    *,
    inherited: Mapping[int, Interval] | None = None,
    tighten: Tighten | None = None,
    variables: Tensor | None = None,
    ball: LpBall | None = None,
) -> tuple[State, Tensor]:
    """Bounds and lines of every node over N boxes, or over what they have in common with N balls.

    ``inherited`` are bounds of watched nodes that are known to hold on these boxes (of their parents, or with splits
    applied); ``tighten`` improves the loose elements of watched nodes (``crown`` is the usual one; None: intervals
    only); ``variables`` ``[k]`` are flat places of inputs: the forward linear bounds in them (``forward.py``) are
    intersected with the intervals of all nodes. Returns the state and ``[N]`` bool: boxes whose bounds crossed beyond
    rounding, that is, on which ``inherited`` and the network contradict each other (no such input exists).
    """
    zero = torch.zeros((), dtype=plan.dtype, device=plan.device)
    crossed = torch.zeros(box.size, dtype=torch.bool, device=plan.device)
    draft = _Draft(plan, box, {plan.input: (box.lower, box.upper)}, {}, {}, {}, zero, crossed, None, ball)
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
            _find_live(draft, node)
        if draft.functions is not None:
            _push(draft, node, draft.functions)
        if node.id in plan.watched:
            _watch(draft, node, inherited, tighten)
        _measure(draft, node.id)
        if plan.rounding is not None:
            draft.floor = draft.floor + _underflow(draft, node)
    return replace(draft.state(), functions=draft.functions or {}), draft.crossed


def _find_live(draft: _Draft, node: Node) -> None:
    """Which elements of a relaxed node are not zero on every box, where rows come to it from matrix products alone."""
    plan, size = draft.plan, int(torch.Size(node.shape).numel())
    if size < LIVE_FROM:
        return
    for consumer in plan.consumers[node.id]:
        op, operands = plan.graph.nodes[consumer].op, plan.operands.get(consumer)
        if operands is None or not isinstance(op, Affine) or op.matrix(operands, 0, node.shape) is None:
            return
    low, high = draft.bounds[node.id]
    live = flat((low != 0) | (high != 0)).any(0).nonzero().flatten()
    if live.shape[0] <= LIVE_SHARE * size:
        draft.live[node.id] = live


def _push(draft: _Draft, node: Node, functions: dict[int, Functions]) -> None:
    """Functions of a node; its bounds are intersected with theirs. Those that nobody reads any more are dropped."""
    functions[node.id] = step(draft.plan, node, functions, draft.relaxations)
    if draft.plan.machine is not None and (error := machine.roundoff(draft.plan, node, draft.bounds)) is not None:
        functions[node.id].distance[:, -1] += error
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
    operands = plan.ends(node.id, bounds)
    assert isinstance(node.op, Nonlinear)
    relaxation = node.op.relaxation(operands, plan.rounding, (slopes, None))
    relaxations[node.id] = relaxation
    if plan.rounding is not None:
        variables = [o for o, c in zip(operands, constants, strict=True) if c is None]
        charge = relaxed_charge(plan.rounding, node.op, relaxation, variables)
        charges[node.id] = machine.added(plan, node, bounds, charge)


@dataclass(frozen=True, slots=True, eq=False)
class Walked:
    """Which unit rows (of mirrored ones, places in their first half) CROWN walks have bounded, ``[K]`` int64 each: by
    parallel lines, and each by a line for every coefficient."""

    screened: Tensor
    walked: Tensor

    @staticmethod
    def of(screened: list[Tensor], walked: list[Tensor], like: Tensor) -> Walked:
        """From chunks of them, on the device of ``like``."""
        none = torch.zeros(0, dtype=torch.int64, device=like.device)
        return Walked(torch.cat([none, *screened]), torch.cat([none, *walked]))


def crown(plan: Plan, state: State, node: int, units: Selection, owner: Tensor, until: float = math.inf) -> Tensor:
    """Lower bounds of unit rows by one backward walk each, in chunks: the usual ``Tighten``.

    Of mirrored rows, those that parallel lines settle are not walked again (``units.py``). Rows whose turn comes after
    the time ``until`` (``time.monotonic()``) get -inf: nothing gained, nothing claimed.
    """
    return walked(plan, state, node, units, owner, until)[0]


def walked(
    plan: Plan, state: State, node: int, units: Selection, owner: Tensor, limit: float | Walked
) -> tuple[Tensor, Walked]:
    """``crown``, and which rows were walked: until the time ``limit``, or again those that it names and no others."""
    count = units.count()
    if not count:  # a node without elements
        return units.sign.to(plan.dtype), Walked.of([], [], owner)
    result, screened = _screened(plan, state, node, units, owner, limit)
    done = list[Tensor]()
    rows = limit.walked if isinstance(limit, Walked) else open_rows(plan, state, node, units, owner, result)
    for box, part in _parts(plan, node, rows, owner, max(1, chunk_rows(plan, node) * count // units.index.shape[0])):
        if _late(limit):
            break
        chosen, places = units.take(part), torch.cat([part, part + count]) if units.mirrored else part
        known, owners = _seen(state, owner[places], box)
        found = least(plan, known, node, chosen, owners)
        result[places] = torch.maximum(result[places], found)
        done.append(part)
    return result, Walked.of(screened, done, owner)


def _late(limit: float | Walked) -> bool:
    return not isinstance(limit, Walked) and time.monotonic() > limit


def _screened(
    plan: Plan, state: State, node: int, units: Selection, owner: Tensor, limit: float | Walked
) -> tuple[Tensor, list[Tensor]]:
    """``[R]``: lower bounds of mirrored rows by parallel lines, where they may settle something; else -inf. And the
    rows for which this was tried."""
    result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
    done = list[Tensor]()
    settling = any(isinstance(plan.graph.nodes[i].op, PiecewiseLinear) for i in plan.consumers[node])
    if not settling or not units.mirrored or units.count() * _widest(plan, node) < SCREEN_FROM:
        return result, done
    lines = with_parallel_lines(plan, state, node)
    if lines is None:
        return result, done
    first, count = units.half(), units.count()
    rows = torch.arange(count, device=plan.device)
    wanted = torch.isin(rows, limit.screened) if isinstance(limit, Walked) else rows >= 0
    sampled = rows % SAMPLE == 0 if count >= SAMPLE**2 else rows >= 0
    for some in (rows[sampled & wanted], rows[~sampled & wanted]):
        for box, part in _parts(plan, node, some, owner, chunk_rows(plan, node)):
            if _late(limit):
                break
            known, owners = _seen(lines, owner[part], box)
            low, high = enclosed(plan, known, node, first.take(part), owners)
            result[part], result[part + count] = low, -high
            done.append(part)
        settled = count - open_rows(plan, state, node, units, owner, result).shape[0]
        if not isinstance(limit, Walked) and settled < some.shape[0] / 2:  # the walks saved cost less than this one
            break
    return result, done


def open_rows(plan: Plan, state: State, node: int, units: Selection, owner: Tensor, found: Tensor) -> Tensor:
    """Places of the rows (of mirrored ones, in their first half) that some consumer still wants better bounds of."""
    count = units.count()
    if not units.mirrored or bool(torch.isinf(found).all()):
        return torch.arange(count, device=plan.device)
    low, high = (flat(b).clone() for b in state.bounds[node])
    place = (owner[:count], units.index[:count])
    low[place] = torch.maximum(low[place], found[:count])
    high[place] = torch.minimum(high[place], -found[count:])
    shape = (-1, *units.shape)
    wanted = loose(plan, state.bounds, node, (low.reshape(shape), high.reshape(shape)))
    return flat(wanted)[place].nonzero().flatten()


def _parts(plan: Plan, node: int, rows: Tensor, owner: Tensor, most: int) -> Iterator[tuple[int | None, Tensor]]:
    """Chunks of rows of a node (which stand box by box), with the box of all rows of a chunk where there is one."""
    boxes, counts = torch.unique_consecutive(owner[rows], return_counts=True)
    if rows.shape[0] * _widest(plan, node) < ALONE_FROM * boxes.shape[0]:
        yield from ((None, part) for part in rows.split(most) if part.shape[0])
        return
    for box, mine in zip(boxes.tolist(), rows.split(counts.tolist()), strict=True):
        yield from ((box, part) for part in mine.split(most))


def _seen(state: State, owner: Tensor, box: int | None) -> tuple[State, Owner]:
    """What rows are walked with, and whose they are there: of one box alone where nothing says otherwise."""
    if state.box.size == 1:
        return state, Owner.shared(owner.shape[0])
    if box is None or state.splits or state.ball is not None:
        return state, Owner.by_index(owner)
    return of_box(state, box), Owner.shared(owner.shape[0])


def chunk_rows(plan: Plan, target: int | None = None) -> int:
    """How many rows of ``target`` (None: the output) are walked at once within the plan's memory.

    Raises ``ValueError`` where that is less than what one row needs.
    """
    target = plan.output if target is None else target
    needed = COPIES * plan.dtype.itemsize * _widest(plan, target)
    memory = MEMORY if plan.memory is None else plan.memory
    if needed > memory and plan.memory is not None:
        name = plan.graph.nodes[target].name or str(target)
        raise ValueError(f"one row of bounds of node {name} needs {needed} bytes, and the budget is {memory}: raise it")
    return max(1, memory // needed)


def _widest(plan: Plan, target: int) -> int:
    """Elements of the widest node on the way from ``target`` to the input."""
    reached, widest = {target}, 1
    for node in reversed(plan.graph.nodes[: target + 1]):
        if node.id in reached and (node.id in plan.operands or node.id == plan.input):
            widest = max(widest, int(torch.Size(node.shape).numel()))
            reached.update(node.inputs)
    return widest


def _watch(draft: _Draft, node: Node, inherited: Mapping[int, Interval] | None, tighten: Tighten | None) -> None:
    """Intersect with what is inherited, then tighten the loose elements."""
    low, high = draft.bounds[node.id]
    if inherited is not None and node.id in inherited:
        low, high = torch.maximum(low, inherited[node.id][0]), torch.minimum(high, inherited[node.id][1])
    if tighten is not None and (node.id not in draft.plan.direct or draft.ball is not None):
        draft.bounds[node.id] = (low, high)
        where = flat(loose(draft.plan, draft.bounds, node.id, (low, high))).nonzero()
        if where.shape[0]:
            low, high = _tightened(draft, node, where, tighten)
    crossing = flat(low > high).any(1)
    draft.crossed |= crossing
    if bool(crossing.any()):  # keep the lines valid: the hull of both
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    draft.bounds[node.id] = (low, high)


def loose(plan: Plan, bounds: Mapping[int, Interval], node: int, interval: Interval) -> Tensor:
    """Which elements of a node in ``interval`` some consumer wants better bounds of, ``[N, *shape]``."""
    low, high = interval
    found = torch.zeros_like(low, dtype=torch.bool)
    for consumer in plan.consumers[node]:
        op = plan.graph.nodes[consumer].op
        if isinstance(op, Nonlinear):
            found |= op.loose(low, high, *_others(plan, bounds, consumer, node))
    return found


def _others(plan: Plan, bounds: Mapping[int, Interval], consumer: int, node: int) -> list[Tensor]:
    """What is known of the other operands of ``consumer``: constants as they are, both ends of a variable."""
    found: list[Tensor] = []
    for i, constant in zip(plan.graph.nodes[consumer].inputs, plan.operands[consumer], strict=True):
        if constant is not None:
            found.append(constant)
        elif i != node and i in bounds:
            found += bounds[i]
    return found


def _tightened(draft: _Draft, node: Node, where: Tensor, tighten: Tighten) -> Interval:
    """Backward bounds from both sides of the elements ``where`` ``[K, 2]`` (box, flat element)."""
    low, high = draft.bounds[node.id]
    owner, index = where[:, 0], where[:, 1]
    one = torch.ones(index.shape[0], dtype=low.dtype, device=low.device)
    units = Selection(torch.cat([index, index]), torch.cat([one, -one]), node.shape, mirrored=True)
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
    # Products with charges and offsets underflow too, whatever the sizes are: one for each element, a few times over.
    total = torch.full((), 2.0 * int(torch.Size(node.shape).numel()), dtype=plan.dtype, device=plan.device)
    for i, constant in zip(node.inputs, plan.operands[node.id], strict=True):
        if constant is None:
            total = total + draft.sizes[i].sum()
    return total * (plan.rounding.tiny * 4 * (terms + 4))
