"""The stage of activation splits: bounds of all boxes at once, then a search over each box that they leave open.

Such a box first gets better bounds, by an ascent for each neuron. A search that lasts is interrupted once: for a longer
attack on all that is open, and for better bounds of inner neurons, with which it begins anew.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from verifier.branch.activation_split import ActivationSplit, SplitState
from verifier.branch.problem import OpenTask, Tally
from verifier.branch.root import recall, refine, refine_by_splits, screen, watched
from verifier.branch.waiting import Waiting, bounds_of
from verifier.checkpoint import Saved, identity, of_search
from verifier.lending import Loans, SharedSearch, SharedState
from verifier.record import inner
from verifier.record.roots import keeping
from verifier.run import Run
from verifier.verdict import Verdict


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A search over one box, and where it stands; ``task`` has the bounds that it works with."""

    task: OpenTask
    search: ActivationSplit
    state: SplitState


def split_activations(run: Run, saved: Saved | None) -> Verdict:
    """Decide a query box by box, from its beginning or from a checkpoint."""
    waiting = _begun(run) if saved is None else Waiting.restored(saved, run.exact.device)
    while waiting is not None and waiting.at < len(waiting.tasks):
        state = _split_task(run, waiting, saved)
        if run.expired() and not (state.finished and not state.stuck.size):
            return run.undecided("")
        waiting, saved = waiting.next(state.stuck, Tally(run.refuted, run.margin, run.upper)), None
    if waiting is None:
        return run.undecided("")
    stuck = waiting.stuck
    return run.undecided(f"{stuck} subproblems stay open with nothing left to split") if stuck else run.verified()


def _begun(run: Run) -> Waiting | None:
    """The tasks that are to be split; None where the time is up."""
    waiting = screened(run)
    if waiting is None or not waiting.tasks or not run.strategy.activation_split.ahead.nodes:
        return waiting
    from verifier.exact.stage import few_programs  # the solver takes its time to load

    waiting = few_programs(run, run.strategy.activation_split.ahead, waiting)
    return None if run.expired() else waiting


def screened(run: Run) -> Waiting | None:
    """The tasks that bounds alone leave open; None where the time is up."""
    run.enter("root bounds")
    problem = run.problem
    open_tasks: list[OpenTask] = []
    for done, part in screen(problem, run.exact, run.deadline):
        run.refuted += part.refuted
        run.margin = min(run.margin, part.least_margin)
        open_tasks += part.open
        run.open_share = (len(open_tasks) + problem.tasks - done) / problem.tasks
        run.progress(len(open_tasks))
        if run.expired():
            return None
    run.bound = min((task.bound for task in open_tasks), default=run.bound)  # of a part alone it would bound nothing
    return Waiting(tuple(open_tasks), Tally(run.refuted, run.margin))


def _split_task(run: Run, waiting: Waiting, saved: Saved | None) -> SplitState | SharedState:
    """Branch on the box at hand until it is done or the time is up."""
    run.enter("activation split")
    run.settled, run.margin, run.upper = waiting.tally.refuted, waiting.tally.least_margin, waiting.tally.upper_bound
    begun = _started(run, waiting.task) if saved is None else resumed(run, waiting.task, saved)
    if waiting.interrupted:
        return _followed(run, waiting, begun)
    state = _followed(run, waiting, begun, time.monotonic() + run.strategy.attack_after)
    if run.expired() or (state.finished and not state.stuck.size):
        return state
    if not waiting.at:  # one attack on all open tasks is enough
        _attack_longer(run, waiting.tasks)
    begun = _with_better_bounds(run, replace(begun, state=state))
    run.enter("activation split")
    waiting = replace(waiting, interrupted=True)
    if may_lend(run):
        return _shared(run, waiting, begun)
    return _followed(run, waiting, begun)


def may_lend(run: Run) -> bool:
    """Whether a second process may take part: what is written of a search is written by one."""
    alone = run.saver is not None or run.write is not None
    return run.lender is not None and run.strategy.workers > 1 and not alone and run.exact.device.type == "cpu"


def _shared(run: Run, waiting: Waiting, begun: Begun) -> SharedState:
    """As ``_followed`` to the end, with a second process on half of what is open."""
    assert run.lender is not None
    place = Waiting((begun.task,), interrupted=True).tensors(watched(run.exact, begun.task))
    loans = Loans(run.lender, run.strategy.lend, identity(run.query, run.strategy), place, run.deadline)
    outside = waiting.outside(run.problem.tasks)
    return run.follow(SharedSearch(begun.search, loans), SharedState(begun.state), 1 / run.problem.tasks, outside)


def _started(run: Run, task: OpenTask) -> Begun:
    """A search from its beginning, with bounds that ascended."""
    plan, plans = run.strategy.activation_split, (run.rough, run.exact)
    until, keep = run.share(plan.intermediate_share), keeping(run.write, task.task)
    refined = refine(run.problem, plans, task, plan.intermediate_steps, until, keep)
    search = ActivationSplit(run.problem, plans, refined, plan, run.write)
    return Begun(refined, search, search.start())


def resumed(run: Run, task: OpenTask, saved: Saved) -> Begun:
    """A search where a checkpoint left it."""
    known = recall(run.problem, run.exact, task, bounds_of(saved, run.exact.device))
    search = ActivationSplit(run.problem, (run.rough, run.exact), known, run.strategy.activation_split, run.write)
    return Begun(known, search, search.restore(of_search(saved)))


def _with_better_bounds(run: Run, begun: Begun) -> Begun:
    """A search with better bounds of inner neurons, from its beginning (what is open was bounded with worse lines); the
    same search where there are none."""
    run.enter("inner bounds")
    plan, plans = run.strategy.activation_split, (run.rough, run.exact)
    until, keep = run.share(plan.inner_share), inner.keeping(run.write, begun.task.task)
    better = refine_by_splits(run.problem, plans, begun.task, plan.inner, until, keep)
    if better is begun.task:
        return begun
    search = ActivationSplit(run.problem, plans, better, plan, run.write)
    return Begun(better, search, search.start())


def _followed(run: Run, waiting: Waiting, begun: Begun, until: float = math.inf) -> SplitState:
    """The state of a search when it is done, or the time ``until`` has come."""
    known, outside = watched(run.exact, begun.task), waiting.outside(run.problem.tasks)
    run.place = lambda: waiting.tensors(known)
    return run.follow(begun.search, begun.state, 1 / run.problem.tasks, outside, until)


def _attack_longer(run: Run, tasks: Sequence[OpenTask]) -> None:
    """A second attack, on the clauses that bounds left open, for a share of the time left."""
    strategy = run.strategy
    until = min(time.monotonic() + strategy.attack_seconds, run.share(strategy.attack_share))
    clauses = [run.problem.clauses[t.task][t.alive] for t in tasks]
    if clauses:
        run.enter("longer attack")
        plan = replace(strategy.attack, rounds=strategy.attack_rounds, seed=strategy.attack.seed + 1)
        run.attack(plan, until, torch.cat(clauses).cpu().numpy())
