"""Bounds of boxes, with error terms: the one thing that refutes a box, in a search and when its record is read again.

A batch is bounded in several passes from coarse to fine, each for fewer boxes: forward bounds, backward bounds of what
these leave open, and float64 for what only rounding keeps open. Every pass holds in exact arithmetic, so the best of
them counts. Which boxes a pass is worth is a guess, made from what the passes before found; the set of passes of each
box is part of what is found, and with it the same bounds are found again.

Error terms grow from layer to layer. Where they are most of the width of some layer, float32 is of no use at all, and
backward walks, one for every neuron that this keeps unstable, are the dearest way to find out. So where forward bounds
leave boxes open, one of them tries float64: if some layer is half as wide, the others follow, and walk in float64.
"""

from __future__ import annotations

import math
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
from verifier.branch.frontier import Subproblems
from verifier.branch.problem import Literals, Problem, outward
from verifier.strategy import SplitPlan

INHERITED_ELEMENTS = 4096
"""Watched elements up to which subproblems carry their parents' bounds (32 kB each in float32)."""

LEVELS = 64
"""Halvings to come from which backward bounds of a box are worth more than forward bounds of its parts alone."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundedBoxes:
    """A batch after bounding: margins ``[N, C]``, per literal slack ``[N, C, L]`` and lines ``[N, S, f]`` of its
    columns (float64), ``near`` ``[N]``: open only because of rounding, bounds of watched nodes, the literals.

    ``crossed`` ``[N]``: bounds contradicted each other there (with no margin to go by, it is +inf). ``passes`` ``[N]``:
    the passes that each box went through (bit k: ``BoxBounds.ladder[k]``)."""

    margins: Tensor
    slack: Tensor
    rows: Tensor
    near: Tensor
    watched: dict[int, Interval]
    literals: Literals
    crossed: Tensor
    passes: Tensor

    @property
    def open(self) -> Tensor:
        """``[N]``: whether some clause is not refuted."""
        return (self.margins <= 0).any(1)

    def with_boxes(self, index: Tensor, finer: BoundedBoxes) -> BoundedBoxes:
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
            crossed=self.crossed.index_copy(0, index, self.crossed[index] | finer.crossed),
            passes=self.passes.index_add(0, index, finer.passes),  # each pass once
        )

    def cut(self, where: tuple[Tensor, Tensor], ends: Interval, room: float) -> Interval:
        """What is left of P boxes ``ends`` ``[P, f]`` where the literals of one clause each (box and clause ``[P]`` in
        ``where``) hold, or fail by less than ``room``: ends that may have crossed (nothing is left)."""
        box, clause = where
        rows = self.rows[box.unsqueeze(1), self.literals.place[box, clause]]
        slack = self.slack[box, clause]
        if rows.shape[1] > 1:
            further = combine(rows, slack, *ends)
            rows, slack = torch.cat([rows, further[0]], 1), torch.cat([slack, further[1]], 1)
        return clip(rows, slack - room, *ends)


class BoxBounds:
    """Bounds of subproblems of ``problem`` by ``plans`` (from coarse to fine); after the time ``until`` nothing is
    tightened any more. ``free`` are the inputs that vary, ``inherited`` the shapes of the nodes whose bounds children
    take over (none where they would cost too much memory)."""

    def __init__(self, problem: Problem, plans: tuple[Plan, ...], options: SplitPlan, until: float = math.inf) -> None:
        self.tighten = partial(crown, until=until)
        self.problem = problem
        self.plans = plans
        self.options = options
        self.free = problem.varying.any(0).nonzero().flatten()
        shapes = {i: plans[0].graph.nodes[i].shape for i in plans[0].watched if i not in plans[0].direct}
        elements = sum(int(torch.Size(s).numel()) for s in shapes.values())
        self.inherited = shapes if elements <= INHERITED_ELEMENTS else {}
        both = [(plan, True) for plan in plans] if options.forward else []
        self.ladder = (*both, *((plan, False) for plan in plans))

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
            tasks,
            {},
        )

    def full(self, lower: Tensor, upper: Tensor, task: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes over all inputs ``[N, n]`` from those over the free ones."""
        box = self.problem.box[task]
        low, high = self.problem.lower[box].clone(), self.problem.upper[box].clone()
        low[:, self.free], high[:, self.free] = lower, upper
        return low, high

    def bound(self, batch: Subproblems, passes: Tensor | None = None) -> BoundedBoxes:
        """Bounds of a batch. ``passes`` ``[N]``: the passes of each box, as found before; without it, what is open
        after forward bounds goes on to backward ones, and what only rounding keeps open to the finer plans."""
        literals = Literals.of(self.problem, batch.task)
        ladder = _Ladder(self, batch, literals)
        for number in range(1, len(self.ladder)):
            ladder.step(number, None if passes is None else (passes >> number) % 2 > 0)
        return ladder.bounded

    def walk(self, number: int, batch: Subproblems, literals: Literals) -> BoundedBoxes:
        """One pass of ``ladder`` over a batch, with the bounds that it inherits."""
        plan, forward = self.ladder[number]
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
        once = torch.full_like(batch.task, 1 << number)
        bounded = BoundedBoxes(margins, slack, free, near, watched, literals, crossed, once)
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
        self, bounded: BoundedBoxes, batch: Subproblems, boxes: Tensor | None = None, steps: int = STEPS
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


class _Ladder:
    """The passes over one batch: which boxes take the next one, and what is known of them so far."""

    def __init__(self, bounds: BoxBounds, batch: Subproblems, literals: Literals) -> None:
        self.bounds, self.batch, self.literals = bounds, batch, literals
        self.bounded = bounds.walk(0, batch, literals)
        self.fine: dict[int, Interval] = {}

    def step(self, number: int, given: Tensor | None) -> None:
        """One pass of the boxes ``given`` ``[N]``, or of those that look worth it."""
        options, bounded = self.bounds.options, self.bounded
        plan, forward = self.bounds.ladder[number]
        rough = plan is self.bounds.plans[0]
        if forward and options.backward:
            self._try(number, bounded.open if given is None else given, given)
        elif given is not None:
            self._take(number, given)
        elif forward or not options.forward:
            self._take(number, bounded.near)
        elif not options.backward:
            self._take(number, bounded.open & self._slow() & rough)
        elif self.fine:
            self._take(number, bounded.open & (not rough))
        else:
            self._take(number, bounded.open if rough else bounded.near)

    def _try(self, number: int, wanted: Tensor, given: Tensor | None) -> None:
        """A finer plan's forward bounds of one box first; of the others only where some layer is half as wide there
        (or they are ``given``)."""
        one = wanted & (wanted.cumsum(0) == 1)
        self._take(number, one)
        for i, (low, high) in self.fine.items():
            first = self.bounded.watched[i]
            if not bool((high - low)[one].mean() * 2 > (first[1] - first[0])[one].mean()):
                self._take(number, wanted & ~one)
                return
        self.fine = {}
        if given is not None:
            self._take(number, wanted & ~one)

    def _take(self, number: int, wanted: Tensor) -> None:
        """A pass for some boxes, which inherit what the passes before found in its dtype."""
        index = wanted.nonzero().flatten()
        if not index.shape[0]:
            return
        plan, forward = self.bounds.ladder[number]
        rough = plan is self.bounds.plans[0]
        known = self.bounded.watched if rough else self.fine
        rest = replace(
            self.batch.take(index), inherited={i: (low[index], high[index]) for i, (low, high) in known.items()}
        )
        found = self.bounds.walk(number, rest, self.literals.take(index))
        if forward:
            for i, new in found.watched.items():
                free = torch.full_like(new[0][:1], torch.inf).expand(self.batch.size, *new[0].shape[1:])
                low, high = self.fine.get(i, (-free, free))
                self.fine[i] = low.index_copy(0, index, new[0]), high.index_copy(0, index, new[1])
        self.bounded = self.bounded.with_boxes(index, found if rough else replace(found, watched={}))

    def _slow(self) -> Tensor:
        """``[N]``: boxes that take more than ``LEVELS`` halvings if each gains what the last one did."""
        missing = -self.bounded.margins.amin(1)
        gained = -missing - self.batch.bound
        return torch.isfinite(gained) & (missing > gained * LEVELS)


def halves(parents: Subproblems, dimension: Tensor, middle: Tensor) -> Subproblems:
    """Both sides of each of K boxes, cut at ``middle`` ``[K, 1]`` across ``dimension`` ``[K, 1]``: all first ones,
    then all second ones."""
    first = replace(parents, upper=parents.upper.scatter(1, dimension, middle), share=parents.share / 2)
    second = replace(parents, lower=parents.lower.scatter(1, dimension, middle), share=parents.share / 2)
    return Subproblems.cat([first, second])
