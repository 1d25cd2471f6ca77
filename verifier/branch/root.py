"""Bounds without any split: a first look at all boxes, better bounds for one that stays open, and one point alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bounds.ascent import optimised
from bounds.backward import State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.kept import Kept, crowned, reproved
from bounds.layouts import Owner
from bounds.ops.base import Interval
from bounds.plan import Plan
from bounds.propagate import Tighten, crown, propagate
from bounds.reach import reached, within
from verifier.branch.inner import splits_apply, splitting
from verifier.branch.problem import Literals, Misfit, OpenTask, Problem, outward
from verifier.errors import InternalError
from verifier.query import Query
from verifier.record.inner import Keep
from verifier.strategy import InnerPlan

BATCH_ELEMENTS = 1 << 20
"""Elements of all nodes of a batch of boxes in the first look."""


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """Of one batch: the ``open`` tasks (with their state, where the batch is a single box), the number of refuted ones,
    and the least margin of a refuted clause."""

    open: list[OpenTask]
    refuted: int
    least_margin: float


def screen(problem: Problem, plan: Plan, until: float = math.inf) -> Iterator[tuple[int, Screened]]:
    """CROWN bounds of every task's box in batches, of what its clauses can depend on: ``(tasks done, result)`` after
    each; intervals after ``until``."""
    step = max(1, min(256, BATCH_ELEMENTS // max(1, plan.elements)))
    tasks = torch.arange(problem.tasks, device=plan.device)
    for batch in tasks.split(step):
        yield int(batch[-1]) + 1, _screen(problem, plan, batch, until)


def _screen(problem: Problem, plan: Plan, task: Tensor, until: float) -> Screened:
    boxes = _boxes(problem, plan, task)
    literals = Literals.of(problem, task)
    rows = problem.rows(literals.columns, plan)
    tighten = within(partial(crown, until=until), reached(plan, rows))
    state, crossed = propagate(plan, boxes, tighten=tighten)
    lines = backward(plan, state, plan.output, rows, Owner.shared(rows.shape[0]))
    bounds = concretize(plan, lines, boxes).reshape(task.shape[0], -1)
    bounds = torch.maximum(bounds, problem.ends(literals.columns, state.bounds[plan.output]))
    if bool(crossed.any()):  # nothing is assumed of these boxes, so no contradiction refutes them
        raise InternalError("bounds of a whole box contradict each other: please report the model and the property")
    margins = literals.margins(literals.slack(bounds), problem.clauses[task] >= 0)
    open_ = (margins <= 0).any(1)
    positive = margins[margins > 0]
    known = state if task.shape[0] == 1 else None
    return Screened(
        [OpenTask(int(task[k]), margins[k] <= 0, float(margins[k].amin()), known) for k in open_.nonzero().flatten()],
        int((~open_).sum()),
        float(positive.amin()) if positive.numel() else float("inf"),
    )


def _boxes(problem: Problem, plan: Plan, task: Tensor) -> Box:
    box = problem.box[task]
    return outward(problem.lower[box], problem.upper[box], plan)


def refine(
    problem: Problem,
    plans: tuple[Plan, Plan],
    open_: OpenTask,
    steps: int,
    until: float,
    keep: Callable[[int, int, Kept], None] | None = None,
) -> OpenTask:
    """The task with the proven state of its box: CROWN bounds (where they are not known yet), then ``steps`` of ascent
    for each unstable neuron, layer by layer, until the time ``until``; neurons that no clause of the box can depend on
    keep their intervals. ``plans``: for search and for proof.

    ``keep`` is told ``(pass, node, how its bounds came about)``, pass 0 (CROWN) and 1 (ascent): ``refined`` proves them
    again."""
    rough, exact = plans
    state = open_.state
    boxes, reach = _reach(problem, exact, open_.task)
    if state is None:
        first = crowned(until, keep and partial(keep, 0))
        state, _ = propagate(exact, boxes, tighten=within(first, reach))
    if steps > 0 and time.monotonic() < until:
        inherited = {i: state.bounds[i] for i in exact.watched}
        better = optimised(rough, steps, until, keep=keep and partial(keep, 1))
        state, _ = propagate(exact, boxes, inherited=inherited, tighten=within(better, reach))
    return replace(open_, state=state)


def _reach(problem: Problem, exact: Plan, task: int) -> tuple[Box, dict[int, Tensor]]:
    """A task's box, and what its clauses can depend on."""
    one = torch.tensor([task], device=exact.device)
    return _boxes(problem, exact, one), reached(exact, problem.rows(Literals.of(problem, one).columns, exact))


def refined(
    problem: Problem, exact: Plan, task: int, kept: Mapping[tuple[int, int], Kept], known: State | None = None
) -> State:
    """The state that ``refine`` found for a task, from what it kept by (pass, node): proving walks and no search.

    Where nothing was kept of pass 0 it was the whole of CROWN's bounds: those of ``screen``, which may be ``known``.
    Raises ``ValueError`` where what was kept does not fit the problem."""
    boxes, reach = _reach(problem, exact, task)
    first, second = ({node: k for (number, node), k in kept.items() if number == of} for of in (0, 1))
    state = known
    if state is None or first:
        state, _ = propagate(exact, boxes, tighten=within(reproved(first) if first else crown, reach))
    if second:
        inherited = {i: state.bounds[i] for i in exact.watched}
        state, _ = propagate(exact, boxes, inherited=inherited, tighten=within(reproved(second), reach))
    return state


def watched(plan: Plan, task: OpenTask) -> dict[int, Interval]:
    """The proven bounds of a task that ``recall`` needs."""
    assert task.state is not None
    return {node: task.state.bounds[node] for node in plan.watched}


def recall(problem: Problem, exact: Plan, open_: OpenTask, bounds: Mapping[int, Interval]) -> OpenTask:
    """The task with the state of its box that proven ``bounds`` of watched nodes give. Raises ``Misfit`` where they
    are of another shape, or other neurons are unstable than by these bounds alone."""
    for node in exact.watched:
        if {end.shape for end in bounds.get(node, ())} != {(1, *exact.graph.nodes[node].shape)}:
            raise Misfit(f"there are no bounds of node {node} of its shape")
    if open_.task not in range(problem.tasks) or open_.alive.shape != problem.clauses.shape[1:]:
        raise Misfit(f"there is no task {open_.task} of so many clauses")
    boxes = _boxes(problem, exact, torch.tensor([open_.task], device=exact.device))
    state, _ = propagate(exact, boxes, inherited=bounds)
    for node in exact.watched:
        ends = (state.bounds[node], bounds[node])
        if not torch.equal(*((low < 0) & (high > 0) for low, high in ends)):
            raise Misfit(f"other neurons of node {node} are unstable here")
    return replace(open_, state=state)


def refine_by_splits(
    problem: Problem,
    plans: tuple[Plan, Plan],
    open_: OpenTask,
    options: InnerPlan,
    until: float,
    keep: Keep | None = None,
) -> OpenTask:
    """A refined task with better intervals of inner neurons, by splits of what comes before each (``inner.py``): the
    same task where that is not possible or nothing was found by the time ``until``. ``refined_by_splits`` proves again
    what ``keep`` was told."""
    rough, exact = plans
    state = open_.state
    if state is None or not splits_apply(rough):
        return open_
    _, reach = _reach(problem, exact, open_.task)
    inherited = {i: state.bounds[i] for i in exact.watched}
    tighten = within(splitting(rough, options, until, keep), reach)
    found, _ = propagate(exact, state.box, inherited=inherited, tighten=tighten)
    return replace(open_, state=found) if _tighter(found, inherited) else open_


def refined_by_splits(problem: Problem, exact: Plan, task: int, state: State, found: Tighten) -> State:
    """The state that ``refine_by_splits`` found from another one, with a ``Tighten`` that gives bounds that were found
    then (``verifier.record.inner.proved``)."""
    _, reach = _reach(problem, exact, task)
    inherited = {i: state.bounds[i] for i in exact.watched}
    return propagate(exact, state.box, inherited=inherited, tighten=within(found, reach))[0]


def _tighter(state: State, old: Mapping[int, Interval]) -> bool:
    return any(
        bool((state.bounds[n][0] > low).any() | (state.bounds[n][1] < high).any()) for n, (low, high) in old.items()
    )


def real_status(query: Query, exact: Plan, point: np.ndarray, clause: int) -> Literal["violated", "holds", "open"]:
    """Whether a clause is true at a point in exact real arithmetic, from a rigorous enclosure of the forms there."""
    x = torch.from_numpy(point.astype(np.float64)).to(exact.device).unsqueeze(0)
    state, _ = propagate(exact, Box(x, x))
    low, high = (end[0].tolist() for end in state.bounds[exact.output])
    specification = query.specification
    first, last = specification.literals_of[clause], specification.literals_of[clause + 1]
    certain = True
    for k in range(first, last):
        form, sign = specification.form[k], int(specification.sign[k])
        rhs = sign * specification.constants[specification.rhs[k]]
        ends = sorted((sign * low[form], sign * high[form]))
        if not all(math.isfinite(e) for e in ends):
            return "open"
        least, most = Fraction(ends[0]), Fraction(ends[1])
        strict = bool(specification.strict[k])
        if least > rhs or (strict and least >= rhs):
            return "holds"
        certain &= most < rhs or (not strict and most <= rhs)
    return "violated" if certain else "open"
