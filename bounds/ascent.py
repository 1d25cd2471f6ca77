"""Dual ascent without autograd: better lines, split multipliers and literal weights for a few forward passes.

A backward walk is a lower bound for any parameters of the lines around relaxed nodes, any multiplier ``beta >= 0`` of
a split and any weights ``lambda >= 0`` of a clause's literals. Its gradient needs no tape: run the minimising corner
of the box forward through the *selected* lines (lower where the coefficient A was positive, upper where it was
negative); with the values z of that pass

    d bound / d p = A+ (d lower line / d p at z)  or  A- (d upper line / d p at z)
    d bound / d beta_j = -sign_j (z_j - point_j)  d bound / d lambda_k = g_k - rhs_k

(the envelope theorem; for the lower slope of a ReLU the first is ``A+ z``). The same pass gives branching scores and a
point to try as a counterexample. The bound is not concave in the lines of several layers together, so the best iterate
is kept (``climb.py``). Nothing here carries error terms: what counts is one deciding pass afterwards with the
parameters, multipliers and weights found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import LinearBounds, State
from bounds.climb import Pace, Slope, climb
from bounds.concretize import minimiser
from bounds.condensed import Condensed
from bounds.condensed_walk import CAREFUL, CondensedRows
from bounds.dual import (
    Dual,
    Multipliers,
    Objective,
    Slopes,
    by_rows,
    each,
    evaluate,
    freedoms,
    initial,
    recast,
    with_slopes,
)
from bounds.kept import Chosen, Kept, Rows, patched
from bounds.layouts import Selection, flat
from bounds.ops.base import Interval, Nonlinear, Parameters
from bounds.ops.simplex import OnSimplex
from bounds.patch_ascent import climbed, rows_at_once
from bounds.patches import Geometry
from bounds.plan import Plan
from bounds.propagate import Tighten, Walked, chunk_rows, open_rows, walked
from bounds.work import Account, climbing

INNER = Pace(20, rate=0.4, decay=0.95, patience=4, least=0.04)
"""How inner neurons ascend: large steps, and no more once a neuron gains little."""
OUTER = Pace(20, rate=0.4, decay=0.95)
"""How what is asked for ascends."""


@dataclass(frozen=True, slots=True, eq=False)
class Ascended:
    """The best bound ``[R]`` of each row, the multipliers that give it, the corner ``[R, *input shape]`` that
    attains it, and the coefficient rows of its walk at nonlinear nodes."""

    bound: Tensor
    multipliers: Multipliers
    corner: Tensor
    trace: Mapping[int, Tensor]


def ascend(dual: Dual, start: Multipliers, steps: int, rate: float = 0.1) -> Ascended:
    """At most ``steps`` ascent steps from ``start``; 0 steps: one walk with ``start`` as it is.

    A row whose bound is positive stops. The bound is never below that of ``start``.
    """
    rows, point, scale = DualRows.of(dual, start)
    top = climb(rows, point, scale, Pace(steps, rate), 0.0).point if steps else point
    found = rows.multipliers(top)
    lines, bound = evaluate(dual, found)
    return Ascended(bound, found, minimiser(lines, dual.state.box, dual.state.ball), lines.trace)


@dataclass(frozen=True, slots=True)
class _Part:
    """Where some of the P numbers of a row stand: parameters of one side (0, 1) of a node's lines, or the betas (2) of
    a split node."""

    node: int
    kind: int
    columns: slice


@dataclass(slots=True)
class DualRows(Slope):
    """The rows of a ``Dual`` as functions of all its multipliers, side by side: parameters of lines, betas, weights.

    ``bounds``: least and greatest values ``[R, P]``; ``weights``: those of the start (where one is 0 it stays 0).
    """

    dual: Dual
    parts: tuple[_Part, ...]
    bounds: Interval
    weights: Tensor
    chosen: Multipliers
    lined: State | None = None
    lines: LinearBounds | None = None

    @staticmethod
    def of(dual: Dual, start: Multipliers) -> tuple[DualRows, Tensor, Tensor]:
        """The rows, their starting point ``[R, P]`` and the range of each number (1 where it has no end)."""
        parts, pieces, least, greatest = list[_Part](), list[Tensor](), list[Tensor](), list[Tensor]()
        first, free, count = 0, freedoms(dual.plan, dual.state), dual.state.box.size

        def add(node: int, kind: int, values: Tensor, low: Tensor, high: Tensor) -> None:
            nonlocal first
            shape = (count, *values.shape[1:])
            for pile, entry in zip((pieces, least, greatest), (values, low, high), strict=True):
                pile.append(flat(entry.expand(shape)))
            parts.append(_Part(node, kind, slice(first, first + pieces[-1].shape[1])))
            first = parts[-1].columns.stop

        for node, pair in start.slopes.items():
            for kind, (values, side) in enumerate(zip(pair, free[node], strict=True)):
                if values is not None and side is not None:
                    add(node, kind, values, side.least, side.greatest)
        for node, values in start.betas.items():
            add(node, 2, values, *dual.beta_range(node, values))
        ones = torch.ones_like(start.weights)
        low, high = torch.cat([*least, 0 * ones], 1), torch.cat([*greatest, ones], 1)
        point = torch.cat([*pieces, start.weights], 1)
        scale = torch.where(torch.isinf(high - low), 1.0, high - low).clamp(min=0)
        for part in parts:
            op = dual.plan.graph.nodes[part.node].op
            if part.kind < 2 and isinstance(op, Nonlinear) and not op.through_origin:
                scale[:, part.columns] *= CAREFUL
        return DualRows(dual, tuple(parts), (low, high), start.weights, start), point, scale

    def multipliers(self, point: Tensor) -> Multipliers:
        """The multipliers at a point (views of it)."""
        nodes = self.dual.plan.graph.nodes
        slopes, betas = dict[int, list[Tensor | None]](), dict[int, Tensor]()
        for part in self.parts:
            values = point[:, part.columns].reshape(-1, *nodes[part.node].shape)
            if part.kind == 2:
                betas[part.node] = values
            else:
                slopes.setdefault(part.node, [None, None])[part.kind] = values
        literals = self.dual.objective.rhs.shape[1]
        pairs: Slopes = {node: (below, above) for node, (below, above) in slopes.items()}
        return Multipliers(pairs, betas, point[:, point.shape[1] - literals :])

    def value(self, point: Tensor) -> Tensor:
        """The lower bounds: one backward walk."""
        self.chosen = self.multipliers(point)
        self.lined = with_slopes(self.dual.plan, self.dual.state, self.chosen.slopes)
        self.lines, bound = evaluate(self.dual, self.chosen, self.lined)
        return bound

    def gradient(self) -> Tensor:
        """From one forward pass of each row's minimising corner."""
        dual, plan, chosen, lines = self.dual, self.dual.plan, self.chosen, self.lines
        assert lines is not None and self.lined is not None
        corner = minimiser(lines, dual.state.box, dual.state.ball)
        values = primal(plan, self.lined, dual.target, lines.trace, corner)
        sides = {n: self._sides(n, pair, lines.trace.get(n), values) for n, pair in chosen.slopes.items()}
        found = []
        for part in self.parts:
            if part.kind == 2:
                found.append(flat(dual.rise(part.node, values[part.node], chosen.betas[part.node])))
                continue
            piece = sides[part.node][part.kind]
            assert piece is not None
            found.append(flat(piece))
        target = values[dual.target].unsqueeze(1)
        found.append((dual.objective.rows * target).flatten(2).sum(2) - dual.objective.rhs)
        return torch.cat(found, 1)

    def _sides(self, node: int, pair: Parameters, rows: Tensor | None, values: Mapping[int, Tensor]) -> Parameters:
        """The derivatives by the parameters of one node, zero where no row meets it."""
        plan, state = self.dual.plan, self.dual.state
        if rows is None:
            return tuple(None if p is None else torch.zeros_like(p) for p in pair)  # type: ignore[return-value]
        op, constants = plan.graph.nodes[node].op, plan.operands[node]
        assert isinstance(op, Nonlinear)
        variables = [values[i] for i, c in zip(plan.graph.nodes[node].inputs, constants, strict=True) if c is None]
        below, above = op.ascent(plan.ends(node, state.bounds), pair, variables)
        return (
            None if below is None else rows.clamp(min=0) * below,
            None if above is None else rows.clamp(max=0) * above,
        )

    def project(self, point: Tensor) -> None:
        """To useful parameters, betas >= 0 and, where there are several, weights on a simplex."""
        literals = self.weights.shape[1]
        weights = point[:, point.shape[1] - literals :]
        kept = self.weights
        if literals > 1:
            kept = weights.clamp(min=1e-4) * (kept > 0)
            kept.div_(kept.sum(1, keepdim=True).clamp(min=1e-30))
        torch.clamp(point, *self.bounds, out=point)
        weights.copy_(kept)

    def take(self, index: Tensor) -> DualRows:
        """Some of the rows."""
        low, high = self.bounds
        return replace(
            self,
            dual=self.dual.take(index),
            bounds=(low[index], high[index]),
            weights=self.weights[index],
            chosen=self.chosen.take(index, self.dual.plan.dtype),
            lined=None,
            lines=None,
        )


def primal(plan: Plan, state: State, target: int, trace: Mapping[int, Tensor], corner: Tensor) -> dict[int, Tensor]:
    """Values of all nodes up to ``target`` when the corner runs forward through the selected lines."""
    values: dict[int, Tensor] = {plan.input: corner}
    for node in plan.graph.nodes[: target + 1]:
        if node.id == plan.input or node.id not in plan.operands:
            continue
        constants = plan.operands[node.id]
        inputs = [values[i] if c is None else c for i, c in zip(node.inputs, constants, strict=True)]
        rows = trace.get(node.id)
        if node.id in plan.affine or rows is None:
            values[node.id] = node.op.forward(*inputs)
            continue
        relaxation = state.relaxations[node.id]
        lower, upper = relaxation.lower[0], relaxation.upper[0]
        assert isinstance(node.op, Nonlinear)
        variables = [o for o, c in zip(inputs, constants, strict=True) if c is None]
        below, above = (node.op.along(line.slopes, variables) + line.offset for line in (lower, upper))
        values[node.id] = torch.where(rows > 0, below, above)
        if isinstance(node.op, OnSimplex):
            values[node.id] = node.op.completed(values[node.id], rows)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Rows of a ``node`` (unit rows, or ``[R, *shape]``) to be bounded in a plan, row r over box ``owner[r]`` of the
    state."""

    plan: Plan
    state: State
    node: int
    rows: Selection | Tensor
    owner: Tensor

    def dense(self) -> Tensor:
        """The rows written out."""
        return self.rows.dense() if isinstance(self.rows, Selection) else self.rows

    @property
    def mirrored(self) -> bool:
        """Whether the second half of the rows are the negatives of the first half."""
        return isinstance(self.rows, Selection) and self.rows.mirrored

    def of_box(self, box: int) -> tuple[Tensor, Asked]:
        """The rows of one box (which ones, and themselves), with a state of that box alone."""
        mine, rows = (self.owner == box).nonzero().flatten(), self.rows
        chosen = (
            replace(rows, index=rows.index[mine], sign=rows.sign[mine]) if isinstance(rows, Selection) else rows[mine]
        )
        state = by_rows(self.plan, self.state, self.owner.new_tensor([box]))
        return mine, Asked(self.plan, state, self.node, chosen, torch.zeros_like(mine))


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Lower bounds ``[R]`` of rows, and the parameters that give them."""

    bound: Tensor
    slopes: Slopes


def optimise(
    asked: Asked,
    pace: Pace,
    goal: float | None = None,
    start: Slopes | None = None,
    known: dict[int, Condensed] | None = None,
    keep: bool = True,
) -> Found:
    """The best bounds that at most ``pace.steps`` steps find in a plan without error terms, each row by itself.

    A row above ``goal`` stops (None: no row does), of mirrored rows its mate with it. With ``start`` no bound is below
    that at these parameters (up to rounding). ``known`` keeps condensed boxes from one call to the next, as long as
    nothing changes in what the state says of earlier nodes. Without ``keep`` the parameters may be left out.
    """
    plan = asked.plan
    condensed, slopes = Condensed.fits(plan), dict[int, Parameters]()
    spread = by_rows(plan, asked.state, asked.owner)
    if keep or start or not condensed:
        slopes = initial(plan, spread)
    for node, pair in (start or {}).items():
        slopes[node] = each(pair, lambda s: s.to(plan.dtype, copy=True))
    if condensed:
        return _condensed(asked, (pace, goal), slopes, {} if known is None else known)
    dual = Dual(plan, spread, asked.node, Objective.single(asked.dense()), {})
    found, point, scale = DualRows.of(dual, Multipliers(slopes, {}, dual.objective.weights))
    top = climb(found, point, scale, pace, goal, asked.mirrored)
    return Found(top.value, found.multipliers(top.point).slopes)


def _condensed(asked: Asked, how: tuple[Pace, float | None], slopes: Slopes, known: dict[int, Condensed]) -> Found:
    """Box by box, since each has dead neurons of its own; ``slopes`` are read as the start and overwritten."""
    bound = torch.empty(asked.owner.shape[0], dtype=asked.plan.dtype, device=asked.plan.device)
    for box in torch.unique(asked.owner).tolist():
        mine, part = asked.of_box(box)
        known[box] = Condensed(part.plan, part.state, known[box].stages if box in known else {})
        rows = CondensedRows.of(known[box], known[box].rays(part.node, part.rows))
        top = climb(rows, rows.read(slopes, mine), rows.scale(), *how, part.mirrored)
        bound[mine] = top.value
        rows.write(top.point, slopes, mine)
    return Found(bound, slopes)


def decide(asked: Asked, found: Found) -> tuple[LinearBounds, Tensor]:
    """One walk with the parameters that were found: lines and lower bounds ``[R]``, proven where the plan has a
    rounding model."""
    plan, rows = asked.plan, asked.dense()
    dual = Dual(plan, by_rows(plan, asked.state, asked.owner), asked.node, Objective.single(rows), {})
    chosen = {node: each(pair, lambda s: s.to(plan.dtype)) for node, pair in found.slopes.items()}
    return evaluate(dual, Multipliers(chosen, {}, dual.objective.weights))


def optimised(
    search: Plan,
    steps: int,
    until: float = math.inf,
    account: Account | None = None,
    keep: Callable[[int, Kept], None] | None = None,
) -> Tighten:
    """A ``Tighten`` that lets every row ascend for itself in the plan ``search`` (no error terms), then decides with
    one walk of the given plan. Elements whose sign is all that matters stop when it is known; those that a usual walk
    of the given plan settles do not ascend, and nor do those of a layer for which too little is left on the ``account``
    (None: a usual one): then CROWN's bounds stay.

    Rows whose turn comes after ``until`` (``time.monotonic()``) are left as they are (-inf: nothing gained).
    ``keep`` is told of each node how its bounds came about: ``reproved`` gives them again.
    """
    pace = replace(INNER, steps=steps, until=until)
    known, seen = dict[int, Condensed](), list[object]()
    account = Account() if account is None else account

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        if not seen or seen[0] is not state.bounds:  # another propagation
            known.clear()
            seen[:] = [state.bounds]
        rough = state if plan is search else recast(search, state)
        goal, count = (0.0 if sign_decides(search, node) else None), units.count()
        rows, chunks = torch.arange(count, device=plan.device), list[Chosen]()
        result, walks = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device), None
        if goal is not None and units.mirrored:  # most signs are known by walks that are cheaper than those below
            result, walks = walked(plan, state, node, units, owner, until)
            rows = open_rows(plan, state, node, units, owner, result)
        patches, exact = patched(search, state, node), patched(plan, state, node)
        patches = None if exact is None else patches
        if not account.grants(state, climbing(search, node, patches, rows.shape[0] * owner.shape[0] // count, steps)):
            result, walks = (result, walks) if walks else walked(plan, state, node, units, owner, until)
            rows = rows[:0]
        size = chunk_rows(plan, node) if patches is None else rows_at_once(plan, patches)
        for chosen in rows.split(max(1, size // (2 if units.mirrored else 1))):
            if time.monotonic() > until or not chosen.shape[0]:
                break
            part, some = torch.cat([chosen, chosen + count]) if units.mirrored else chosen, units.take(chosen)
            wish = Asked(search, rough, node, replace(some, sign=some.sign.to(search.dtype)), owner[part])
            bound, slopes = _searched(wish, patches, pace, goal, known, plan is not search)
            if plan is not search:
                proof = Rows.of(plan, state, node, some, owner[part], exact)
                chunks.append(Chosen(chosen, proof.kept(slopes)))
                bound = proof.bound(chunks[-1].values)
            result[part] = torch.maximum(result[part], bound)
        if keep is not None:
            keep(node, Kept(walks or Walked.of([], [], owner), tuple(chunks)))
        return result

    return tighten


def _searched(
    wish: Asked, patches: Geometry | None, pace: Pace, goal: float | None, known: dict[int, Condensed], keep: bool
) -> tuple[Tensor, Slopes]:
    """What an ascent finds, over patches or whole nodes: bounds, and parameters there."""
    if patches is not None:
        assert isinstance(wish.rows, Selection)
        seen = climbed(patches, wish.state, (wish.rows, wish.owner), pace, goal)
        return seen.bound, seen.parameters
    found = optimise(wish, pace, goal, known=known, keep=keep)
    return found.bound, found.slopes


def sign_decides(plan: Plan, node: int) -> bool:
    """Whether nothing is gained from better bounds of a node's elements once their sign is known."""
    readers = [op for k in plan.consumers[node] if isinstance(op := plan.graph.nodes[k].op, Nonlinear)]
    return bool(readers) and node != plan.output and all(op.through_origin for op in readers)
