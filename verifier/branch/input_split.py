"""Branch and bound over the input, for networks with few varying inputs.

Every subproblem is a box. A batch of boxes is bounded in one go (with error terms, so that what is refuted is
refuted in exact arithmetic); refuted clauses are dropped; what is left is cut by its own linear bounds, bisected and
put back. Boxes that only rounding keeps open are bounded again in float64. The points that bounding yields (the
minimising corners, the centres) are tried as counterexamples all along.

The split dimension maximises ``width / largest width + score / largest score``, where the score of a dimension is the
largest ``|A_i| width_i / 2`` over the lines of open literals: measured against either part alone, the sum decides
all of ACAS Xu where the parts lose instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bounds.backward import LinearBounds, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.layouts import Owner, flat
from bounds.ops.base import Interval
from bounds.plan import Plan
from bounds.propagate import crown, loose, propagate
from verifier.branch.clip import MORE_STEPS, STEPS, clip, combine, joint
from verifier.branch.frontier import Frontier, Subproblems
from verifier.branch.problem import Literals, Problem, Step, outward
from verifier.strategy import SplitPlan

INHERITED_ELEMENTS = 4096
"""Watched elements up to which subproblems carry their parents' bounds (32 kB each in float32)."""
CLIP_MARGIN = 1e-5
"""Inputs are cut away only where a literal fails by at least this much, so that the margin of a proof is known."""


@dataclass(frozen=True, slots=True, eq=False)
class _Bounded:
    """A batch after bounding: margins ``[N, C]``, per literal slack ``[N, C, L]`` and lines ``[N, S, f]`` of its
    columns (float64), ``near`` ``[N]``: open only because of rounding, bounds of watched nodes, the literals."""

    margins: Tensor
    slack: Tensor
    rows: Tensor
    near: Tensor
    watched: dict[int, Interval]
    literals: Literals

    def with_boxes(self, index: Tensor, finer: _Bounded) -> _Bounded:
        """The same with what ``finer`` knows of the boxes ``index``."""
        watched = dict(self.watched)
        for i, ends in finer.watched.items():
            low, high = (old.index_copy(0, index, new) for old, new in zip(watched[i], ends, strict=True))
            watched[i] = low, high
        return replace(
            self,
            margins=self.margins.index_copy(0, index, finer.margins),
            slack=self.slack.index_copy(0, index, finer.slack),
            rows=self.rows.index_copy(0, index, finer.rows),
            near=self.near.index_copy(0, index, finer.near),
            watched=watched,
        )


class InputSplit:
    """The search as a value: what it works on (problem, plans from coarse to fine) and how.

    After the time ``until`` bounding stops to tighten, so that the round under way ends soon.
    """

    def __init__(self, problem: Problem, plans: tuple[Plan, ...], options: SplitPlan, until: float = math.inf) -> None:
        self.tighten = partial(crown, until=until)
        self.problem = problem
        self.plans = plans
        self.options = options
        self.free = problem.varying.any(0).nonzero().flatten()
        shapes = {i: plans[0].graph.nodes[i].shape for i in plans[0].watched if i not in plans[0].direct}
        elements = sum(int(torch.Size(s).numel()) for s in shapes.values())
        self.inherited = shapes if elements <= INHERITED_ELEMENTS else {}

    def start(self) -> Subproblems:
        """One subproblem per task: its whole box, which inherits nothing yet."""
        problem = self.problem
        tasks = torch.arange(problem.tasks, device=problem.box.device)
        boxes = problem.box
        nothing = torch.full((problem.tasks,), -torch.inf, dtype=torch.float64, device=boxes.device)
        return Subproblems(
            problem.lower[boxes][:, self.free],
            problem.upper[boxes][:, self.free],
            tasks,
            problem.clauses >= 0,
            nothing,
            torch.full_like(nothing, 1 / max(1, problem.tasks)),
            {},
        )

    def run(self) -> Iterator[Step]:
        """Rounds until nothing is open; a step after each (stop iterating to stop)."""
        frontier = Frontier(self.start(), self.inherited, self.plans[0].dtype, self.options.memory)
        refuted, least, stuck = 0, float("inf"), list[Subproblems]()
        while frontier.size:
            batch = frontier.pop(self.options.batch)
            bounded = self._bound(batch)
            open_ = (bounded.margins <= 0).any(1)
            refuted += int((~open_).sum())
            positive = bounded.margins[bounded.margins > 0]
            if positive.numel():
                least = min(least, float(positive.amin()))
            if bool(open_.any()):  # they are clipped
                least = min(least, CLIP_MARGIN)
            points = self._points(batch, bounded, open_)
            children, immovable = self._children(batch, bounded, open_, frontier.size)
            if immovable.size:
                stuck.append(immovable)
            frontier.push(children)
            yield Step.of(frontier, stuck, refuted, least, points)

    def full(self, lower: Tensor, upper: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes over all inputs ``[N, n]`` from those over the free ones."""
        box = self.problem.box[task]
        low, high = self.problem.lower[box].clone(), self.problem.upper[box].clone()
        low[:, self.free], high[:, self.free] = lower, upper
        return low, high

    def _bound(self, batch: Subproblems) -> _Bounded:
        """Bound in the first plan (forward, then backward what stays open); what only rounding keeps open goes through
        the next ones."""
        literals = Literals.of(self.problem, batch.task)
        bounded = self._bound_with(self.plans[0], batch, literals, self.options.forward)
        if self.options.forward and self.options.backward:
            again = (bounded.margins <= 0).any(1).nonzero().flatten()
            if again.shape[0]:
                known = {i: (low[again], high[again]) for i, (low, high) in bounded.watched.items()}
                rest = replace(batch.take(again), inherited=known)
                finer = self._bound_with(self.plans[0], rest, literals.take(again))
                bounded = bounded.with_boxes(again, finer)
        for plan in self.plans[1:]:
            again = bounded.near.nonzero().flatten()
            if not again.shape[0]:
                break
            rest = replace(batch.take(again), inherited={})
            finer = self._bound_with(plan, rest, literals.take(again), not self.options.backward)
            bounded = bounded.with_boxes(again, replace(finer, watched={}))
        return bounded

    def _bound_with(self, plan: Plan, batch: Subproblems, literals: Literals, forward: bool = False) -> _Bounded:
        problem = self.problem
        lower, upper = self.full(batch.lower, batch.upper, batch.task)
        box = outward(lower, upper, plan)
        inherited = {i: (low.to(plan.dtype), high.to(plan.dtype)) for i, (low, high) in batch.inherited.items()}
        if forward:
            state, crossed = propagate(plan, box, inherited=inherited, variables=self.free)
        else:
            state, crossed = propagate(plan, box, inherited=inherited, tighten=self.tighten)
        rows = problem.rows(literals.columns, plan)
        lines = backward(plan, state, plan.output, rows, Owner.shared(rows.shape[0]))
        value = concretize(plan, lines, box).reshape(batch.size, -1)
        raw = self._raw(plan, lines, box).reshape(batch.size, -1)
        slack = literals.slack(value)
        alive = batch.alive & ~crossed.unsqueeze(1)
        ends = literals.slack(problem.ends(literals.columns, state.bounds[plan.output]))
        margins = torch.maximum(literals.margins(slack, alive), literals.margins(ends, alive))
        hopeful = literals.margins(literals.slack(raw), alive)
        free = lines.rows.reshape(batch.size, rows.shape[0], -1)[:, :, self.free].double()
        # Worth another try in a finer dtype: rounding alone keeps it open, or is a large part of what is missing.
        blurred = (margins <= 0) & (hopeful - margins > 0.2 * hopeful.abs())
        near = (margins <= 0).any(1) & ((hopeful > 0).all(1) | blurred.any(1))
        watched = {i: state.bounds[i] for i in (plan.watched if forward else self.inherited)}
        bounded = _Bounded(margins, slack, free, near, watched, literals)
        self._refute_jointly(bounded, batch)
        if literals.place.shape[2] > 2:
            affine = torch.ones_like(crossed)
            for i in plan.watched:
                affine &= ~flat(loose(plan, state.bounds, i, state.bounds[i])).any(1)
            self._refute_jointly(bounded, batch, affine, MORE_STEPS)
        return bounded

    def _raw(self, plan: Plan, lines: LinearBounds, box: Box) -> Tensor:
        """The bound without its error terms, to tell what a finer dtype could refute."""
        if plan is self.plans[-1]:
            return torch.full_like(lines.bias, -torch.inf)
        return concretize(replace(plan, rounding=None), lines, box)

    def _refute_jointly(
        self, bounded: _Bounded, batch: Subproblems, boxes: Tensor | None = None, steps: int = STEPS
    ) -> None:
        """Try combinations of literals on the clauses that are still open, of some boxes (in place in ``margins``)."""
        tried = (bounded.margins <= 0) & (torch.isfinite(bounded.literals.threshold).sum(2) > 1)
        where = (tried if boxes is None else tried & boxes.unsqueeze(1)).nonzero()
        if not where.shape[0]:
            return
        sub, clause = where[:, 0], where[:, 1]
        rows = bounded.rows[sub.unsqueeze(1), bounded.literals.place[sub, clause]]
        # Inputs that do not vary are part of the constants: slack already counts their least contribution.
        value = joint(rows, bounded.slack[sub, clause], batch.lower[sub], batch.upper[sub], steps)
        bounded.margins[sub, clause] = torch.maximum(bounded.margins[sub, clause], value)

    def _points(self, batch: Subproblems, bounded: _Bounded, open_: Tensor) -> Tensor | None:
        """Centres and minimising corners of open subproblems that violate a clause in the network's dtype."""
        index = open_.nonzero().flatten()
        if not index.shape[0]:
            return None
        problem, free = self.problem, self.free
        worst = torch.where(batch.alive[index], bounded.margins[index], torch.inf).argmin(1)
        literal = bounded.slack[index, worst].argmax(1)
        rows = bounded.rows[index, bounded.literals.place[index, worst, literal]]
        lower, upper = batch.lower[index], batch.upper[index]
        corner = torch.where(rows > 0, lower, upper)
        tries = torch.cat([corner, (lower + upper) / 2])
        owner = torch.cat([index, index])
        box = problem.box[batch.task[owner]]
        points = ((problem.inner_lower[box].double() + problem.inner_upper[box].double()) / 2).to(problem.inner_lower)
        points[:, free] = tries.to(points.dtype)
        points = torch.minimum(torch.maximum(points, problem.inner_lower[box]), problem.inner_upper[box])
        forms = self.plans[0].graph.evaluate(points.to(self.plans[0].dtype))[0]
        clause = bounded.literals.clause[owner, torch.cat([worst, worst])]
        good = problem.arrays.satisfied(forms, clause.clamp(min=0)) & (clause >= 0)
        return points[good] if bool(good.any()) else None

    def _children(
        self, batch: Subproblems, bounded: _Bounded, open_: Tensor, waiting: int
    ) -> tuple[Subproblems, Subproblems]:
        """``(children, immovable)``: what is open, clipped and bisected; boxes that cannot shrink stay as they are."""
        index = open_.nonzero().flatten()
        parents = batch.take(index)
        margins = bounded.margins[index]
        parents = replace(
            parents,
            alive=parents.alive & (margins <= 0),
            bound=torch.maximum(parents.bound, margins.amin(1)),
            inherited={i: (bounded.watched[i][0][index], bounded.watched[i][1][index]) for i in self.inherited},
        )
        if not parents.size:
            return parents, parents
        parents, scores = self._clip(parents, bounded, index)
        levels = 1
        while parents.size * 2**levels + waiting < self.options.fill and levels < min(4, self.free.shape[0]):
            levels += 1
        immovable: list[Subproblems] = []
        for _ in range(levels):
            parents, scores, still = self._bisect(parents, scores)
            if still.size:
                immovable.append(still)
            if not parents.size:
                break
        return parents, Subproblems.cat(immovable) if immovable else parents.take(parents.task[:0])

    def _clip(self, parents: Subproblems, bounded: _Bounded, index: Tensor) -> tuple[Subproblems, Tensor]:
        """Cut each parent's box by each open clause's lines and sums of them, take the hull over its clauses; also the
        split scores."""
        sub, clause = parents.alive.nonzero(as_tuple=True)
        place = bounded.literals.place[index[sub], clause]
        rows = bounded.rows[index[sub].unsqueeze(1), place]
        slack = bounded.slack[index[sub], clause]
        influence = (rows.abs() * torch.isfinite(slack).unsqueeze(-1)).amax(1)
        ends = parents.lower[sub], parents.upper[sub]
        if rows.shape[1] > 1:
            further = combine(rows, slack, *ends)
            rows, slack = torch.cat([rows, further[0]], 1), torch.cat([slack, further[1]], 1)
        low, high = clip(rows, slack - CLIP_MARGIN, *ends)
        empty = (low > high).any(1)
        alive = parents.alive.clone()
        alive[sub[empty], clause[empty]] = False
        low = torch.where(empty.unsqueeze(1), torch.inf, low)
        high = torch.where(empty.unsqueeze(1), -torch.inf, high)
        into = sub.unsqueeze(1).expand_as(low)
        hull_low = torch.full_like(parents.lower, torch.inf).scatter_reduce(0, into, low, "amin")
        hull_high = torch.full_like(parents.upper, -torch.inf).scatter_reduce(0, into, high, "amax")
        scores = torch.zeros_like(parents.lower).scatter_reduce(0, into, influence, "amax")
        keep = alive.any(1)
        clipped = replace(parents, lower=hull_low, upper=hull_high, alive=alive)
        return clipped.take(keep), scores[keep]

    def _bisect(self, parents: Subproblems, scores: Tensor) -> tuple[Subproblems, Tensor, Subproblems]:
        """Two children each, sharing the middle; third: those whose chosen width cannot be halved any more."""
        if not self.free.shape[0]:  # nothing varies: a point cannot be split
            nothing = parents.task[:0]
            return parents.take(nothing), scores[nothing], parents
        width = parents.upper - parents.lower
        middle = (parents.lower + parents.upper) / 2
        movable = (middle > parents.lower) & (middle < parents.upper)
        movable &= self.problem.varying[self.problem.box[parents.task]][:, self.free]
        reach = scores * width
        tiny = torch.finfo(width.dtype).tiny
        choice = width / width.amax(1, keepdim=True).clamp(min=tiny) + reach / reach.amax(1, keepdim=True).clamp(
            min=tiny
        )
        choice = torch.where(movable, choice, -1.0)
        best, dimension = choice.max(1)
        able = best > -1
        still = parents.take(~able)
        parents, scores = parents.take(able), scores[able]
        at = dimension[able].unsqueeze(1)
        cut = middle[able].gather(1, at)
        first = replace(parents, upper=parents.upper.scatter(1, at, cut), share=parents.share / 2)
        second = replace(parents, lower=parents.lower.scatter(1, at, cut), share=parents.share / 2)
        return Subproblems.cat([first, second]), torch.cat([scores, scores]), still
