"""Joint ascent: parameters of inner rows and of the output's rows climb together, for the output's bounds.

The lines around a ReLU depend on the interval ``[l, u]`` of its operand, which comes from rows with parameters of their
own. So the output's bounds are a function of all parameters at once, and the gradient runs through the intervals. For
a row with coefficient A < 0 at an unstable ReLU and the value z of its operand on the way forward (``ascent.py``)

    d bound / d l = -A u (u - z) / (u - l)^2        d bound / d u = -A l (z - l) / (u - l)^2

These are the weights with which the rows of that operand's own bounds matter (zero where its interval bound is the
tighter one); so nodes are visited from the last to the first, and no tape is needed. Rows and parameters are dense, one
parameter for each pair of an unstable neuron and a neuron before it: this is for small networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.ascent import primal
from bounds.backward import LinearBounds, State
from bounds.climb import Pace, Slope, climb
from bounds.concretize import minimiser
from bounds.dual import Dual, Multipliers, Objective, Slopes, by_rows, evaluate, initial, recast, with_slopes
from bounds.layouts import Owner, Selection, flat
from bounds.ops.base import Interval
from bounds.ops.relu import Relu
from bounds.plan import Plan
from bounds.propagate import loose, propagate, relax
from bounds.views import of_box

TOGETHER = Pace(20, rate=0.4, decay=0.95)
"""How all parameters climb together."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Dense rows ``[R, *shape]`` of one node that are walked together; ``index`` ``[R / 2]``: of an inner node, the
    elements that they bound, from below and then from above (negated). ``first`` is the place of the first of their
    parameters, which follow each other by relaxed node (``before``), ``[R, *shape]`` each."""

    node: int
    rows: Tensor
    index: Tensor
    before: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class _Walked:
    """What a walk of a group leaves for the way forward."""

    state: State
    slopes: Slopes
    lines: LinearBounds
    bound: Tensor


@dataclass(slots=True)
class Joint(Slope):
    """The sum of the bounds of the last group's rows as one function of all parameters ``[1, P]``, over one box.

    ``state``: intervals of all nodes before any group's bounds; the last group is what is asked for.
    """

    plan: Plan
    state: State
    groups: tuple[Group, ...]
    walked: list[_Walked] = field(default_factory=list)
    ends: dict[int, Interval] = field(default_factory=dict)

    @staticmethod
    def of(plan: Plan, state: State, node: int, rows: Tensor) -> Joint:
        """Inner rows are those elements that ``state`` (of one box, no error terms) leaves open, from both sides."""
        _check(plan, node)
        rough, _ = propagate(plan, state.box, ball=state.ball)
        bounds, groups, first = dict(state.bounds), list[Group](), 0
        for watched in (*(w for w in plan.watched if w < node), node):
            before = tuple(k for k in sorted(state.relaxations) if k < watched)
            if watched == node:
                groups.append(Group(node, rows, torch.arange(0, device=plan.device), before, first))
                break
            low, high = state.bounds[watched]
            where = loose(plan, state.bounds, watched, (low, high))
            index = flat(where)[0].nonzero().flatten()
            if not before or not index.shape[0]:
                continue
            ends = zip(rough.bounds[watched], (low, high), strict=True)  # what rows bound starts at its interval
            below, above = (torch.where(where, wide, known) for wide, known in ends)
            bounds[watched] = below, above
            sign = torch.ones(2 * index.shape[0], dtype=plan.dtype, device=plan.device)
            sign[index.shape[0] :] = -1
            units = Selection(index.repeat(2), sign, plan.graph.nodes[watched].shape)
            groups.append(Group(watched, units.dense(), index, before, first))
            first += sign.shape[0] * sum(math.prod(plan.graph.nodes[k].shape) for k in before)
        return Joint(plan, replace(state, bounds=bounds), tuple(groups))

    def start(self) -> Tensor:
        """CROWN's parameters ``[1, P]``."""
        slopes = initial(self.plan, self.state)
        pieces = [
            flat(_lower(slopes, k).expand(g.rows.shape[0], *self._shape(k))) for g in self.groups for k in g.before
        ]
        return torch.cat([p.flatten() for p in pieces]).unsqueeze(0) if pieces else self.state.floor.new_zeros((1, 0))

    def slopes(self, point: Tensor, group: Group) -> dict[int, Tensor]:
        """The parameters of a group's rows by relaxed node, views of the point."""
        found, first, count = dict[int, Tensor](), group.first, group.rows.shape[0]
        for node in group.before:
            size = count * math.prod(self._shape(node))
            found[node] = point[0, first : first + size].reshape(count, *self._shape(node))
            first += size
        return found

    def _shape(self, node: int) -> tuple[int, ...]:
        return self.plan.graph.nodes[node].shape

    def value(self, point: Tensor) -> Tensor:
        """``[1]``: inner bounds, the lines that they give, and so on up to the rows that are asked for."""
        self.walked, self.ends = [], dict(self.state.bounds)
        for group in self.groups:
            found = walk(self.plan, replace(self.state, bounds=self.ends), group, self.slopes(point, group))
            self.walked.append(found)
            if group is not self.groups[-1]:
                self.ends[group.node] = tightened(self.ends[group.node], group, found.bound)
        return self.walked[-1].bound.sum().unsqueeze(0)

    def gradient(self) -> Tensor:
        """From one forward pass of each row's minimising corner, groups from the last to the first."""
        below = {n: torch.zeros_like(low) for n, (low, _) in self.ends.items()}
        above = {n: torch.zeros_like(low) for n, (low, _) in self.ends.items()}
        pieces = list[Tensor]()
        for group, found in zip(reversed(self.groups), reversed(self.walked), strict=True):
            weight = self._weight(group, found.bound, below, above)
            corner = minimiser(found.lines, found.state.box, found.state.ball)
            values = primal(self.plan, found.state, group.node, found.lines.trace, corner)
            mine = list[Tensor]()
            for node in group.before:
                rows, source = found.lines.trace.get(node), self.plan.graph.nodes[node].inputs[0]
                low, high = self.ends[source]
                if rows is None:
                    mine.append(
                        torch.zeros_like(group.rows[:, :0].new_zeros((group.rows.shape[0], *self._shape(node))))
                    )
                    continue
                rows = torch.where((low < 0) & (high > 0), rows * weight.reshape(-1, *[1] * (rows.ndim - 1)), 0.0)
                positive, z = found.lines.trace[node] > 0, values[source]
                mine.append(torch.where(positive, rows * z, 0.0))
                part = torch.where(positive, 0.0, -rows) / (high - low).clamp(min=torch.finfo(low.dtype).tiny) ** 2
                below[source] = below[source] + (part * (high - z)).sum(0) * high
                above[source] = above[source] + (part * (z - low)).sum(0) * low
            pieces = [p.flatten() for p in mine] + pieces
        return torch.cat(pieces).unsqueeze(0) if pieces else self.state.floor.new_zeros((1, 0))

    def _weight(self, group: Group, bound: Tensor, below: dict[int, Tensor], above: dict[int, Tensor]) -> Tensor:
        """How much the sum gains per unit that each row's bound rises, ``[R]``: 0 where an interval is tighter."""
        if group is self.groups[-1]:
            return torch.ones_like(bound)
        low, high = (flat(end)[0, group.index] for end in self.state.bounds[group.node])
        one, two = bound.chunk(2)
        lower, upper = (flat(g[group.node])[0, group.index] for g in (below, above))
        return torch.cat([torch.where(one > low, lower, 0.0), torch.where(-two < high, -upper, 0.0)])

    def project(self, point: Tensor) -> None:
        """To ``[0, 1]``."""
        point.clamp_(0, 1)

    def take(self, index: Tensor) -> Joint:
        """There is one function only, which never leaves."""
        return self


def _lower(slopes: Slopes, node: int) -> Tensor:
    found = slopes[node][0]
    assert found is not None
    return found


def _check(plan: Plan, node: int) -> None:
    for k in sorted(plan.relaxed):
        given = plan.graph.nodes[k]
        if k < node and not isinstance(given.op, Relu):
            name = f", {given.name!r}" if given.name else ""
            raise ValueError(
                f"Alpha(joint=True) knows the gradient through the intervals of ReLU alone, and node {k} is "
                f"{type(given.op).__name__}{name}: use Alpha() without joint"
            )


def walk(plan: Plan, state: State, group: Group, slopes: dict[int, Tensor]) -> _Walked:
    """A group's rows over the lines that the intervals of ``state`` give; a parameter counts where the ReLU is
    unstable."""
    relaxations, charges = dict(state.relaxations), dict(state.charges)
    for node in group.before:
        relax(plan, state.bounds, plan.graph.nodes[node], relaxations, charges)
    ready = replace(state, relaxations=relaxations, charges=charges)
    spread = by_rows(plan, ready, torch.zeros(group.rows.shape[0], dtype=torch.int64, device=plan.device))
    chosen: dict[int, tuple[Tensor | None, Tensor | None]] = {}
    for node, values in slopes.items():
        low, high = state.bounds[plan.graph.nodes[node].inputs[0]]
        chosen[node] = torch.where((low < 0) & (high > 0), values, relaxations[node].lower[0].slopes[0]), None
    dual = Dual(plan, spread, group.node, Objective.single(group.rows), {})
    lines, bound = evaluate(dual, Multipliers(chosen, {}, dual.objective.weights))
    return _Walked(with_slopes(plan, spread, chosen), chosen, lines, bound)


def tightened(ends: Interval, group: Group, bound: Tensor) -> Interval:
    """Intervals ``[1, *shape]`` with the bounds ``[R]`` of an inner group's rows, where these are tighter."""
    low, high = ends
    one, two = bound.chunk(2)
    old = flat(low)[0, group.index], flat(high)[0, group.index]
    place = torch.zeros_like(group.index), group.index
    below = flat(low).index_put(place, torch.where(one > old[0], one, old[0]))
    above = flat(high).index_put(place, torch.where(-two < old[1], -two, old[1]))
    return below.reshape(low.shape), above.reshape(high.shape)


def together(
    search: Plan, plan: Plan, state: State, asked: tuple[int, Tensor], steps: int
) -> tuple[LinearBounds, Tensor, Slopes]:
    """Lines ``[N * 2 * R]`` and bounds ``[N, 2, R]`` of rows ``[R, *shape]`` of a node and of their negatives over a
    state with CROWN bounds, after at most ``steps`` steps in the plan ``search``, by walks of the given plan; and no
    parameters.

    A row is never below what the state's own lines give. ``ValueError`` for an operator other than ReLU (it names the
    node).
    """
    node, rows = asked
    both, rough, parts = torch.cat([rows, -rows]), recast(search, state), list[tuple[LinearBounds, Tensor]]()
    for box in range(state.box.size):
        problem = Joint.of(search, of_box(rough, box), node, both.to(search.dtype))
        start = problem.start()
        top = climb(problem, start, torch.ones_like(start), replace(TOGETHER, steps=steps), None).point
        parts.append(_decided(problem, plan, of_box(state, box), both, top))
    lines = [part for part, _ in parts]
    whole = LinearBounds(
        torch.cat([part.rows for part in lines]),
        torch.cat([part.bias for part in lines]),
        torch.cat([part.error for part in lines]),
        Owner(None, len(lines), both.shape[0]),
    )
    return whole, torch.stack([bound.reshape(2, -1) for _, bound in parts]), {}


def _decided(problem: Joint, plan: Plan, state: State, rows: Tensor, point: Tensor) -> tuple[LinearBounds, Tensor]:
    """Walks of another plan with the parameters found, each on top of what the ones before have shown."""
    ends, last = dict(state.bounds), problem.groups[-1]

    def cast(group: Group) -> dict[int, Tensor]:
        return {n: s.to(plan.dtype) for n, s in problem.slopes(point, group).items()}

    for group in problem.groups[:-1]:
        group = replace(group, rows=group.rows.to(plan.dtype))
        found = walk(plan, replace(state, bounds=ends), group, cast(group))
        known = torch.nan_to_num(found.bound, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        low, high = tightened(ends[group.node], group, known)
        if plan.rounding is None:  # without error terms the two may cross
            low, high = torch.minimum(low, high), torch.maximum(low, high)
        ends[group.node] = low, high
    last = replace(last, rows=rows)
    found = walk(plan, replace(state, bounds=ends), last, cast(last))
    plain = walk(plan, state, last, {n: s.to(plan.dtype) for n, s in problem.slopes(problem.start(), last).items()})
    better = found.bound > plain.bound

    def best(one: Tensor, two: Tensor) -> Tensor:
        return torch.where(better.reshape(-1, *[1] * (one.ndim - 1)), one, two)

    one, two = found.lines, plain.lines
    lines = LinearBounds(
        best(one.rows, two.rows), best(one.bias, two.bias), best(one.error, two.error), Owner.shared(rows.shape[0])
    )
    return lines, best(found.bound, plain.bound)
