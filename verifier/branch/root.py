"""Bounds of whole boxes before any split: a first look at all of them, and better bounds for one that stays open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ascent import optimised
from bounds.backward import State, backward, concretize
from bounds.layouts import Owner
from bounds.plan import Plan
from bounds.propagate import crown, propagate
from verifier.branch.problem import Literals, Problem, outward
from verifier.strategy import AscentPlan

BATCH_ELEMENTS = 1 << 20
"""Elements of all nodes of a batch of boxes in the first look."""


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """Of one batch: ``open`` tasks with the mask ``[C]`` of their open clauses, the number of refuted tasks, the least
    margin of a refutation, and the least bound of what is open."""

    open: list[tuple[int, Tensor]]
    refuted: int
    least_margin: float
    bound: float


def screen(problem: Problem, plan: Plan) -> Iterator[tuple[int, Screened]]:
    """CROWN bounds of every task's box in batches: ``(tasks done, result)`` after each."""
    elements = sum(int(torch.Size(n.shape).numel()) for n in plan.graph.nodes if n.id in plan.operands)
    step = max(1, min(256, BATCH_ELEMENTS // max(1, elements)))
    tasks = torch.arange(problem.tasks, device=plan.device)
    for batch in tasks.split(step):
        yield int(batch[-1]) + 1, _screen(problem, plan, batch)


def _screen(problem: Problem, plan: Plan, task: Tensor) -> Screened:
    box = problem.box[task]
    boxes = outward(problem.lower[box], problem.upper[box], plan)
    state, crossed = propagate(plan, boxes, tighten=crown)
    literals = Literals.of(problem, task)
    rows = problem.rows(literals.columns, plan)
    lines = backward(plan, state, plan.output, rows, Owner.shared(rows.shape[0]))
    bounds = concretize(plan, lines, boxes).reshape(task.shape[0], -1)
    alive = (problem.clauses[task] >= 0) & ~crossed.unsqueeze(1)
    margins = literals.margins(literals.slack(bounds), alive)
    open_ = (margins <= 0).any(1)
    refuted = margins[~open_]
    return Screened(
        [(int(task[k]), (margins[k] <= 0)) for k in open_.nonzero().flatten()],
        int((~open_).sum()),
        float(refuted.amin()) if refuted.numel() else float("inf"),
        float(margins[open_].amin()) if bool(open_.any()) else float("inf"),
    )


def refine(problem: Problem, rough: Plan, exact: Plan, task: int, options: AscentPlan, seconds: float) -> State:
    """The proven state of one task's box: CROWN bounds, then each unstable neuron's own ascent as far as
    ``options.intermediate_share`` of the ``seconds`` left allows."""
    box = problem.box[task : task + 1] if isinstance(task, int) else problem.box[task]
    boxes = outward(problem.lower[box], problem.upper[box], exact)
    start = time.monotonic()
    state, _ = propagate(exact, boxes, tighten=crown)
    spent = time.monotonic() - start
    allowed = seconds * options.intermediate_share / max(spent, 1e-4) - 1
    steps = min(options.intermediate_steps, int(allowed))
    if steps < 1:
        return state
    inherited = {i: state.bounds[i] for i in exact.watched}
    state, _ = propagate(exact, boxes, inherited=inherited, tighten=optimised(rough, steps))
    return state
