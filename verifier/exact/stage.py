"""The exact stage: what bounds leave open is decided clause by clause by programs, every leaf of which is proven.

It stands in for splits of inputs or activations where it is chosen. A clause's program has the clause's margin as its
minimum (``programs.py``); where the search over it (``milp.exact``) proves that to be above 0, no input of the box
fulfils the clause. Points of its linear programs are tried as counterexamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from bounds import Alpha
from bounds import prepare as prepare_graph
from milp.exact import Goal, Outcome, Search
from milp.simplex import Simplex
from verifier.activation_stage import screened
from verifier.exact.programs import EncodedBox, clause_program
from verifier.record import programs as entries
from verifier.run import Run
from verifier.strategy import ProgramPlan
from verifier.verdict import Verdict


def settle_programs(run: Run, plan: ProgramPlan) -> Verdict:
    """Decide a query: bounds of all boxes at once, then programs for the clauses that they leave open.

    Raises ``UnsupportedError`` for an operator without an exact form and for a neuron without finite bounds.
    """
    waiting = screened(run)
    if waiting is None:
        return run.undecided("")
    run.enter("programs")
    prepared, stuck, count = prepare_graph(run.query.graph), 0, len(waiting.tasks)
    for number, task in enumerate(waiting.tasks):
        box = int(run.problem.box[task.task])
        encoded = EncodedBox.of(run.query, prepared, box, Alpha(steps=plan.steps))
        clauses = run.problem.clauses[task.task][task.alive].tolist()
        for done, clause in enumerate(clauses):
            run.open_share = (count - number - done / len(clauses)) / run.problem.tasks
            # A clause without literals holds everywhere: no program refutes it.
            outcome = _settle(run, encoded, task.task, clause) if encoded.literals(clause) else Outcome.OPEN
            if run.expired() and outcome is not Outcome.PROVEN:
                return run.undecided("")
            stuck += outcome is not Outcome.PROVEN
    if stuck:
        return run.undecided(f"{stuck} clauses stay open: linear programs alone do not refute them")
    return run.verified()


def _settle(run: Run, encoded: EncodedBox, task: int, clause: int) -> Outcome:
    """Search one clause's program to its end or the deadline."""
    program = clause_program(encoded, clause)
    keep = None if run.write is None else entries.Keeping(run.write, task, clause)
    goal = Goal(threshold=0.0, evaluate=_replaying(run, program.model.columns[encoded.graph.inputs[0]], encoded.number))
    add = None if keep is None else keep.add
    search = Search(program.model, Simplex(program.model), goal, add, run.deadline)
    state, before = search.start(), run.refuted
    while not search.finished(state):
        state = search.step(state)
        run.bound, run.refuted = state.bound, before + state.closed
        run.progress(len(state.open) + len(state.stuck) + (state.next is not None))
        if run.expired():
            break
    answer = search.terminate(state)
    if answer.outcome is Outcome.PROVEN:
        run.margin = min(run.margin, answer.bound)
        if keep is not None:
            keep.flush()
    return answer.outcome


def _replaying(run: Run, columns: Tensor, box: int) -> Callable[[Tensor], float]:
    """What a program's point is worth: nothing, for where onnxruntime confirms it as a counterexample the run ends."""
    low, high = run.problem.inner_lower[box], run.problem.inner_upper[box]

    def evaluate(x: Tensor) -> float:
        run.replay(x[columns].to(low).clamp(low, high).unsqueeze(0))
        return math.inf

    return evaluate
