"""The engines of ``planted.py``: everything that refutes, each in the ways that it can be run.

An engine is a function of a query and a budget; to add one, write it and name it in ``ENGINES``.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

import bounds
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from milp.cuts import strengthened
from milp.exact import Goal, Outcome, search
from milp.model import Model
from milp.recheck import Leaf
from milp.simplex import Simplex
from verifier import checkpoint
from verifier.activation_stage import screened as screened_tasks
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem, S, Search, Step
from verifier.branch.root import refine, refine_by_splits, screen
from verifier.errors import InputError, UnsupportedError
from verifier.exact.programs import EncodedBox, clause_program
from verifier.exact.stage import few_programs
from verifier.exact.tighter import tighter
from verifier.query import Query
from verifier.record.program_walk import ProgramWalk
from verifier.record.programs import Keeping
from verifier.record.recheck import recheck
from verifier.record.report import Checks
from verifier.record.writer import Recorder, about
from verifier.run import Run
from verifier.strategy import AheadPlan, AscentPlan, InnerPlan, SplitPlan, TightenPlan, choose, features

_STEPS = 1
"""Of ascent, for the bounds that recorded programs rest on."""


class UnprovedError(AssertionError):
    """An engine refuted a query, and the proof that it left behind is none."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one engine on one query (rounds alone give the same result whatever else the machine does)."""

    rounds: int = 20
    seconds: float = 1.0


Engine = Callable[[Query, Budget], bool]
"""Whether a query was refuted within a budget."""


def _exact(query: Query, dtype: torch.dtype = torch.float64) -> Plan:
    return prepare(query.graph, dtype, rounding=Rounding.of(dtype))


def _limited(steps: Iterable[Step], budget: Budget) -> bool:
    """Whether the last step within the budget has nothing open."""
    end, left = time.monotonic() + budget.seconds, 0
    for step in itertools.islice(steps, budget.rounds):
        left = step.open_subproblems
        if time.monotonic() > end:
            break
    return left == 0


def screened(query: Query, budget: Budget) -> bool:
    """Bounds of whole boxes."""
    return not [task for _, part in screen(Problem.of(query), _exact(query)) for task in part.open]


def input_split(query: Query, budget: Budget) -> bool:
    """Input splits in float32, then float64 where rounding alone keeps a box open."""
    plans = (_exact(query, torch.float32), _exact(query))
    return _limited(InputSplit(Problem.of(query), plans, SplitPlan(batch=64, fill=16)).run(), budget)


def input_split_float64(query: Query, budget: Budget) -> bool:
    """Input splits in float64 alone."""
    return _limited(InputSplit(Problem.of(query), (_exact(query),), SplitPlan(batch=64, fill=16)).run(), budget)


def input_split_forward(query: Query, budget: Budget) -> bool:
    """Input splits with forward linear bounds before backward ones."""
    plans = (_exact(query, torch.float32), _exact(query))
    return _limited(InputSplit(Problem.of(query), plans, SplitPlan(batch=64, fill=16, forward=True)).run(), budget)


def input_split_forward_alone(query: Query, budget: Budget) -> bool:
    """Input splits with forward linear bounds alone."""
    plans = (_exact(query, torch.float32), _exact(query))
    options = SplitPlan(batch=64, fill=16, forward=True, backward=False)
    return _limited(InputSplit(Problem.of(query), plans, options).run(), budget)


def input_split_short_of_memory(query: Query, budget: Budget) -> bool:
    """Input splits whose frontier holds the bounds of few subproblems, and forgets those of the others."""
    plans = (_exact(query, torch.float32), _exact(query))
    return _limited(InputSplit(Problem.of(query), plans, SplitPlan(batch=8, fill=4, memory=1 << 12)).run(), budget)


def input_split_recorded(query: Query, budget: Budget) -> bool:
    """Input splits that are recorded; what they refute is proved again from the record alone."""
    options = SplitPlan(batch=64, fill=16)
    plans = (_exact(query, torch.float32), _exact(query))
    strategy = replace(choose(features(query)), split_inputs=True, input_split=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        with Recorder(path, about(query, strategy)) as recorder:
            search = InputSplit(Problem.of(query), plans, options, write=recorder.write)
            refuted = _limited(search.run(), budget)
            recorder.finish()
        if not refuted:
            return False
        report = recheck(query, path)
        if not report.proved:
            raise UnprovedError(f"a refutation that its record does not prove: {'; '.join(report.failures)}")
        return True


def _resumed(make: Callable[[], Search[S]], budget: Budget) -> bool:
    """Like ``_limited``, with a search made anew each round that goes on from the last one's checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        path, state, step = Path(folder) / "state.npz", make().start(), None
        for _ in range(budget.rounds):
            if state.finished:
                break
            search = make()
            checkpoint.write(path, {}, {name: values.numpy() for name, values in state.tensors().items()})
            saved = checkpoint.read(path)[1]
            state, step = search.step(search.restore({name: torch.from_numpy(a.copy()) for name, a in saved.items()}))
        return step is None or step.open_subproblems == 0


def input_split_resumed(query: Query, budget: Budget) -> bool:
    """Input splits that are stopped and go on from a file after every round."""
    plans, problem = (_exact(query, torch.float32), _exact(query)), Problem.of(query)
    return _resumed(lambda: InputSplit(problem, plans, SplitPlan(batch=16, fill=8)), budget)


def activation_split_resumed(query: Query, budget: Budget) -> bool:
    """Activation splits that are stopped and go on from a file after every round."""
    options = AscentPlan(root_steps=8, steps=4, last_steps=20, batch=32, candidates=0)
    problem, plans = Problem.of(query), (prepare(query.graph, torch.float32), _exact(query))
    for task in [found for _, part in screen(problem, plans[1]) for found in part.open]:
        refined = refine(problem, plans, task, 0, float("inf"))
        if not _resumed(partial(ActivationSplit, problem, plans, refined, options), budget):
            return False
    return True


def _activations(query: Query, budget: Budget, refinement: int, inner: int = 0, **changed: int) -> bool:
    options = replace(AscentPlan(root_steps=8, steps=4, last_steps=20, batch=32, candidates=3), **changed)
    problem, plans = Problem.of(query), (prepare(query.graph, torch.float32), _exact(query))
    for task in [found for _, part in screen(problem, plans[1]) for found in part.open]:
        refined = refine(problem, plans, task, refinement, float("inf"))
        if inner:
            splits = InnerPlan(rounds=inner, steps=4, batch=32)
            refined = refine_by_splits(problem, plans, refined, splits, float("inf"))
        if not _limited(ActivationSplit(problem, plans, refined, options).run(), budget):
            return False
    return True


def activation_split(query: Query, budget: Budget) -> bool:
    """Activation splits over plain root bounds."""
    return _activations(query, budget, 0)


def activation_split_refined(query: Query, budget: Budget) -> bool:
    """Activation splits over ascended root bounds."""
    return _activations(query, budget, 3)


def activation_split_inner(query: Query, budget: Budget) -> bool:
    """Activation splits over root bounds from splits of what comes before each neuron."""
    return _activations(query, budget, 0, inner=6)


def activation_split_half_spaces(query: Query, budget: Budget) -> bool:
    """Activation splits that cut the box for first-layer neurons."""
    return _activations(query, budget, 0, half_space_steps=6)


def activation_split_by_score(query: Query, budget: Budget) -> bool:
    """Activation splits chosen by the intercept score alone."""
    return _activations(query, budget, 0, candidates=0)


Proof = tuple[int, int, list[Leaf]]
"""Of a task's clause."""

Better = Callable[[bounds.Prepared, EncodedBox, tuple[int, int]], EncodedBox]


def _programs(
    query: Query, budget: Budget, better: Better | None = None, stronger: Callable[[Model], Model] | None = None
) -> list[Proof] | None:
    """A program for every clause that bounds leave open, and the leaves that refute it; None where one stays open.
    ``better``: of a box and one of its (task, clause), ``stronger``: of a clause's program."""
    problem, prepared, proofs = Problem.of(query), bounds.prepare(query.graph), list[Proof]()
    goal = Goal(threshold=0.0, evaluate=lambda _: math.inf)  # nothing searches for the point
    for task in [found for _, part in screen(problem, _exact(query)) for found in part.open]:
        method = bounds.Crown() if better is None else bounds.Alpha(steps=_STEPS)
        try:
            encoded = EncodedBox.of(query, prepared, int(problem.box[task.task]), method)
        except (UnsupportedError, InputError):
            return None
        clauses = problem.clauses[task.task][task.alive].tolist()
        if not all(encoded.literals(clause) for clause in clauses):
            return None
        encoded = encoded if better is None else better(prepared, encoded, (task.task, clauses[0]))
        for clause in clauses:
            model, leaves = clause_program(encoded, clause).model, list[Leaf]()
            model = model if stronger is None else stronger(model)
            nodes = 8 * budget.rounds
            found = search(model, Simplex(model), goal, nodes=nodes, seconds=budget.seconds, keep=leaves.append)
            if found.outcome is not Outcome.PROVEN:
                return None
            proofs.append((task.task, clause, leaves))
    return proofs


def programs(query: Query, budget: Budget) -> bool:
    """A mixed-integer program for every clause, each leaf proven from multipliers."""
    return _programs(query, budget) is not None


def programs_with_cuts(query: Query, budget: Budget) -> bool:
    """Programs with all cuts that the optima of their relaxations violate, however little is gained."""

    def cut(model: Model) -> Model:
        return strengthened(model, rounds=budget.rounds, gain=-1.0, seconds=budget.seconds).model

    return _programs(query, budget, stronger=cut) is not None


def programs_ahead(query: Query, budget: Budget) -> bool:
    """The few programs with cuts that come before activation splits, of all clauses that bounds leave open."""
    start, strategy = time.monotonic(), choose(features(query))
    plans = prepare(query.graph, torch.float32), _exact(query)
    run = Run(query, Problem.of(query), *plans, strategy, _Nothing(), start, start + budget.seconds)  # type: ignore[arg-type]
    with torch.no_grad():
        waiting = screened_tasks(run)
        return waiting is not None and not few_programs(run, AheadPlan(40, share=1.0), waiting).tasks


class _Nothing:
    """A replayer that confirms no point: queries here have no file that could be run."""

    def replay(self, points: object) -> None:
        """As ``Replayer.replay``."""


def programs_recorded(query: Query, budget: Budget) -> bool:
    """Programs over better bounds of neurons; what they refute is proved again from the entries of a record alone."""
    entries, checks = list[tuple[str, Mapping[str, torch.Tensor]]](), Checks()

    def write(kind: str, arrays: Mapping[str, torch.Tensor]) -> None:
        entries.append((kind, arrays))

    def better(prepared: bounds.Prepared, encoded: EncodedBox, place: tuple[int, int]) -> EncodedBox:
        plan = TightenPlan(nodes=budget.rounds, most=8)
        return tighter(prepared, encoded, place, plan, time.monotonic() + budget.seconds, write) or encoded

    proofs = _programs(query, budget, better)
    if proofs is None:
        return False
    for task, clause, leaves in proofs:
        keeping = Keeping(write, task, clause)
        for leaf in leaves:
            keeping.add(leaf)
        keeping.flush()
    walk = ProgramWalk(Problem.of(query), _exact(query), _STEPS, checks)
    for kind, arrays in entries:
        walk.step(kind, arrays)
    walk.finish()
    if checks.failed:
        raise UnprovedError(f"a refutation that its entries do not prove: {'; '.join(checks.failures)}")
    return True


ENGINES: Mapping[str, Engine] = {
    f.__name__: f
    for f in (
        screened,
        input_split,
        input_split_float64,
        input_split_forward,
        input_split_forward_alone,
        input_split_short_of_memory,
        input_split_recorded,
        input_split_resumed,
        activation_split,
        activation_split_refined,
        activation_split_inner,
        activation_split_half_spaces,
        activation_split_by_score,
        activation_split_resumed,
        programs,
        programs_with_cuts,
        programs_recorded,
        programs_ahead,
    )
}
