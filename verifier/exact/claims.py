"""What the solver's own search says of a clause: a counterexample to be replayed, or a claim that proves nothing.

Its branch and bound is much quicker than one that proves every leaf, so it finds points that the latter would come to
late; and where it says that the margin is above 0, and the proof does not come to its end, that is worth telling.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from milp.highs import InProcess, Limits, Progress, Runner, filled
from milp.model import Model, Solution, Status
from milp.process import ProcessRunner
from verifier.attacks.nearest import nearest
from verifier.exact.programs import Program
from verifier.run import Run
from verifier.strategy import ProgramPlan

_START_SHARE = 0.2
"""Of a clause's time, what it may take to find a point to begin with."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the solver said of a clause's margin: ``refuted``, to its tolerances it is above 0 everywhere; ``failed``:
    why it said nothing, where it broke down. Neither proves anything."""

    refuted: bool = False
    failed: str = ""


def claim_of(found: Solution) -> Claim:
    """What a run on a clause's program says.

    A bound above 0 counts where the solver ended as it should. "Infeasible" never does: every input of the box is a
    point of the program, so that only the solver's arithmetic can have come to that.
    """
    if found.status is Status.FAILED:
        return Claim(failed=found.reason)
    if found.status is Status.INFEASIBLE:
        return Claim(failed="the solver calls a program infeasible that is not")
    ended = found.status in (Status.OPTIMAL, Status.STOPPED)
    return Claim(refuted=ended and found.bound > 0 and not found.value <= 0)


@dataclass(frozen=True, slots=True)
class Claims:
    """The solver at work for a run."""

    run: Run
    plan: ProgramPlan
    runner: Runner

    @staticmethod
    @contextmanager
    def of(run: Run, plan: ProgramPlan) -> Iterator[Claims]:
        """With the runner that the plan asks for, which is closed at the end."""
        if not plan.process:
            yield Claims(run, plan, InProcess())
            return
        with contextlib.closing(ProcessRunner()) as runner:
            yield Claims(run, plan, runner)

    def of_program(self, program: Program, seconds: float) -> Claim:
        """Let the solver search a clause's program for at most so many seconds. Its points are replayed: where one is a
        counterexample the run ends (``verifier.run.Decided``)."""
        until = time.monotonic() + min(seconds, self.plan.most_seconds)
        columns = program.model.columns[program.graph.inputs[0]]
        low, high = (ends[program.box] for ends in (self.run.problem.inner_lower, self.run.problem.inner_upper))

        def watch(progress: Progress) -> None:
            x = None if progress.x is None else progress.x[columns].to(low).clamp(low, high).unsqueeze(0)
            self.run.replay(x)
            self.run.progress(1)

        start = self._start(program, columns, until)
        limits = Limits(max(until - time.monotonic(), 0.0), bound=0.0, value=0.0)
        found = self.runner(program.model, limits, start=start, watch=watch)
        if found.x is not None:
            watch(Progress(found.bound, found.value, 0.0, found.x))
        return claim_of(found)

    def _start(self, program: Program, columns: Tensor, until: float) -> Tensor | None:
        """All columns at the attack's best point of the clause."""
        (clause,), model = program.clauses, program.model
        share = time.monotonic() + _START_SHARE * (until - time.monotonic())
        deadline = None if math.isinf(share) else share
        point = nearest(self.run.query, clause, self.run.strategy.attack, deadline=deadline)
        left = None if deadline is None else deadline - time.monotonic()
        if point is None or (left is not None and left <= 0):
            return None
        return filled(model, columns, _inside(model, columns, point), runner=self.runner, seconds=left)


def _inside(model: Model, columns: Tensor, point: Tensor) -> Tensor:
    return point.double().clamp(model.lower[columns], model.upper[columns])
