"""The exact stage: what bounds leave open is decided clause by clause by programs, every leaf of which is proven.

It stands in for splits of inputs or activations where it is chosen. A clause's program has the clause's margin as its
minimum (``programs.py``); where the search over it (``milp.exact``) proves that to be above 0, no input of the box
fulfils the clause. Points of its linear programs are tried as counterexamples. A clause that one linear program leaves
open is searched with cuts (``milp.cuts``), which its record names.

Clauses that are not done after some linear programs are handed to the solver's own search, which is quicker at finding
counterexamples and proves nothing (``claims.py``); then the own search goes on where it stood.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds import Alpha
from bounds import prepare as prepare_graph
from milp.cuts import strengthened
from milp.exact import Goal, Outcome, Search, SearchState
from milp.simplex import Simplex
from verifier.activation_stage import screened
from verifier.branch.problem import OpenTask, Tally
from verifier.branch.waiting import Waiting
from verifier.errors import UnsupportedError
from verifier.exact.claims import Claim, Claims
from verifier.exact.programs import EncodedBox, Program, clause_program
from verifier.exact.tighter import tighter
from verifier.record import programs as entries
from verifier.run import Run
from verifier.strategy import AheadPlan, ProgramPlan
from verifier.verdict import TO_TOLERANCE, Verdict


def settle_programs(run: Run, plan: ProgramPlan) -> Verdict:
    """Decide a query: bounds of all boxes at once, then programs for the clauses that they leave open.

    Raises ``UnsupportedError`` for an operator without an exact form and for a neuron without finite bounds.
    """
    waiting = screened(run)
    if waiting is None:
        return run.undecided("")
    run.enter("programs")
    work = _Stage(run, plan, waiting)
    work.begin()
    if not run.expired() and work.open:
        work.ask()
    if not run.expired() and work.open:
        work.tighten()
    work.finish()
    return work.verdict()


def few_programs(run: Run, plan: AheadPlan, waiting: Waiting) -> Waiting:
    """``waiting`` without the clauses that a few linear programs with cuts refute; all of it where the network has no
    exact form."""
    run.enter("programs")
    until = run.share(plan.share)
    programs = ProgramPlan(plan.steps, plan.cuts, plan.share, plan.nodes)
    work = _Stage(run, programs, waiting, until=until, promise=plan.promise)
    try:
        work.begin()
    except UnsupportedError:
        return waiting
    run.refuted -= sum(clause.state.closed for clause in work.open)
    tasks = []
    for task in waiting.tasks:
        refuted = [clause for number, clause in work.refuted if number == task.task]
        clauses = run.problem.clauses[task.task]
        alive = task.alive & ~torch.isin(clauses, torch.tensor(refuted, dtype=clauses.dtype, device=clauses.device))
        if bool(alive.any()):
            tasks.append(replace(task, alive=alive))
    run.bound = min((task.bound for task in tasks), default=math.inf)
    return replace(waiting, tasks=tuple(tasks), tally=Tally(run.refuted, run.margin))


@dataclass(slots=True, eq=False)
class _Clause:
    """A clause's search. State: where it stands, and what the solver says of it."""

    encoded: EncodedBox
    task: OpenTask
    program: Program
    search: Search
    keep: entries.Keeping | None
    state: SearchState
    claim: Claim = field(default_factory=Claim)


@dataclass(slots=True)
class _Stage:
    """State: the clauses that are ``open``, the least bound of those that nobody has looked at (``outside``), how many
    have no literal (``always``), and those that the beginning ``refuted`` (task and number). The beginning ends at the
    time ``until``, and goes on with a clause only where cuts take away the part ``promise`` of what is missing."""

    run: Run
    plan: ProgramPlan
    waiting: Waiting
    open: list[_Clause] = field(default_factory=list)
    outside: float = math.inf
    always: int = 0
    refuted: list[tuple[int, int]] = field(default_factory=list)
    until: float = math.inf
    promise: float = -math.inf

    def begin(self) -> None:
        """A part of the search of every clause; most are decided by that."""
        run, tasks = self.run, self.waiting.tasks
        prepared = prepare_graph(run.query.graph)
        for number, task in enumerate(tasks):
            encoded = EncodedBox.of(run.query, prepared, int(run.problem.box[task.task]), Alpha(steps=self.plan.steps))
            clauses = run.problem.clauses[task.task][task.alive].tolist()
            self.outside = min(later.bound for later in tasks[number:])
            for done, clause in enumerate(clauses):
                if run.expired() or time.monotonic() >= self.until:
                    return
                run.open_share = (len(tasks) - number - done / len(clauses)) / run.problem.tasks
                if not encoded.literals(clause):  # it holds everywhere: no program refutes it
                    self.always += 1
                    continue
                work = self._started(encoded, task, clause)
                refuted = self._follow(work, 1)
                if not refuted:
                    missing = -work.state.bound
                    work = self._strengthened(work)
                    refuted = self._follow(work, 1)
                    hopeful = missing + work.state.bound >= self.promise * missing
                    refuted = refuted or (hopeful and self._follow(work, self.plan.nodes))
                if refuted:
                    self.refuted.append((task.task, clause))
                else:
                    self.open.append(work)
        self.outside = -math.inf if self.always else math.inf

    def ask(self) -> None:
        """What the solver says of each open clause, in equal parts of a share of the time left."""
        self.run.enter("solver")
        with Claims.of(self.run, self.plan) as claims:
            until = self.run.share(self.plan.share)
            for place, work in enumerate(self.open):
                left = (until - time.monotonic()) / (len(self.open) - place)
                work.claim = claims.of_program(work.program, left)
                if self.run.expired():
                    break
        self.run.enter("programs")

    def tighten(self) -> None:
        """Better bounds of neurons, box by box; where they gain, the searches of its clauses begin anew."""
        run, plan = self.run, self.plan.tighten
        if plan is None:
            return
        run.enter("tighten")
        prepared, until = prepare_graph(run.query.graph), run.share(plan.share)
        tasks = list({work.task.task: work.task for work in self.open}.values())
        for place, task in enumerate(tasks):
            mine = [work for work in self.open if work.task is task]
            worst = min(mine, key=lambda work: work.state.bound)
            now = time.monotonic()
            end = now + (until - now) / (len(tasks) - place)
            which = task.task, worst.program.clauses[0]
            better = tighter(prepared, worst.encoded, which, plan, end, run.write)
            for work in mine if better is not None else ():
                assert better is not None
                run.refuted -= work.state.closed
                again = self._started(better, task, work.program.clauses[0])
                self.open[self.open.index(work)] = replace(again, claim=work.claim)
            if run.expired():
                break
        run.enter("programs")

    def finish(self) -> None:
        """The rest of every search."""
        left = self.open
        self.open = []
        for place, work in enumerate(left):
            if self.run.expired():
                self.open += left[place:]
                return
            if not self._follow(work, math.inf, left[place + 1 :]):
                self.open.append(work)

    def verdict(self) -> Verdict:
        """What all of this amounts to."""
        run, count = self.run, len(self.open) + self.always
        if self.outside < math.inf and not self.always:
            return run.undecided("")  # the time was up before all had been looked at
        if not count:
            return run.verified()
        run.bound = min([self.outside, *(work.state.bound for work in self.open)])
        claimed = sum(work.claim.refuted for work in self.open)
        if claimed == count:
            return run.undecided(TO_TOLERANCE, late=True)
        reason = f"{count} clauses stay open: linear programs alone do not refute them"
        reason += f"; {claimed} are {TO_TOLERANCE}" if claimed else ""
        failed = [work.claim.failed for work in self.open if work.claim.failed]
        return run.undecided(reason + (f"; the solver failed: {failed[0]}" if failed else ""))

    def _started(self, encoded: EncodedBox, task: OpenTask, clause: int) -> _Clause:
        run, program = self.run, clause_program(encoded, clause)
        keep = None if run.write is None else entries.Keeping(run.write, task.task, clause)
        return self._searching(program, keep, encoded, task)

    def _strengthened(self, work: _Clause) -> _Clause:
        """The same clause with cuts, from the start; as it stands where there are none, or a leaf is closed already."""
        if self.run.expired() or work.state.closed:
            return work
        left = self.run.share(self.plan.cut_share) - time.monotonic()
        seconds = None if math.isinf(left) else max(left, 0.0)
        strong = strengthened(work.program.model, rounds=self.plan.cuts, enough=0.0, seconds=seconds)
        if not strong.cuts.phase.shape[0]:
            return work
        if work.keep is not None:
            work.keep.cut(strong.cuts)
        return self._searching(replace(work.program, model=strong.model), work.keep, work.encoded, work.task)

    def _searching(
        self, program: Program, keep: entries.Keeping | None, encoded: EncodedBox, task: OpenTask
    ) -> _Clause:
        run = self.run
        columns = program.model.columns[program.graph.inputs[0]]
        goal = Goal(threshold=0.0, evaluate=_replaying(run, columns, program.box))
        search = Search(program.model, Simplex(program.model), goal, None if keep is None else keep.add, run.deadline)
        return _Clause(encoded, task, program, search, keep, search.start())

    def _follow(self, work: _Clause, nodes: float, later: list[_Clause] | None = None) -> bool:
        """Search one clause's program to its end, to so many linear programs, or to the deadline: whether it is
        refuted. ``later``: clauses whose turn is still to come."""
        run, search, others = self.run, work.search, [*self.open, *(later or [])]
        outside = min([self.outside, *(other.state.bound for other in others)])
        before = run.refuted - work.state.closed
        while not search.finished(work.state) and work.state.nodes < nodes:
            work.state = search.step(work.state)
            run.bound, run.refuted = min(outside, work.state.bound), before + work.state.closed
            run.progress(len(work.state.open) + len(work.state.stuck) + (work.state.next is not None) + len(others))
            if run.expired():
                break
        answer = search.terminate(work.state)
        if answer.outcome is not Outcome.PROVEN:
            return False
        run.bound, run.margin = outside, min(run.margin, answer.bound)
        if work.keep is not None:
            work.keep.flush()
        return True


def _replaying(run: Run, columns: Tensor, box: int) -> Callable[[Tensor], float]:
    """What a program's point is worth: nothing, for where onnxruntime confirms it as a counterexample the run ends."""
    low, high = run.problem.inner_lower[box], run.problem.inner_upper[box]

    def evaluate(x: Tensor) -> float:
        run.replay(x[columns].to(low).clamp(low, high).unsqueeze(0))
        return math.inf

    return evaluate
