"""Programs proved again from their entries: each open clause's program is built anew, and its leaves are re-checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds import Alpha, Prepared
from bounds import prepare as prepare_graph
from bounds.plan import Plan
from milp import recheck
from milp.model import Model
from verifier.branch.problem import OpenTask, Problem
from verifier.branch.root import screen
from verifier.exact.programs import EncodedBox, clause_program
from verifier.record import programs
from verifier.record.report import Checks


class ProgramWalk:
    """Feed it the entries in order; ``finish`` proves the last clause and says which have none. State: the leaves of
    the clause at hand, the program that they are of, and the clauses that are proved."""

    def __init__(self, problem: Problem, exact: Plan, steps: int, checks: Checks) -> None:
        self.problem, self.checks, self.method = problem, checks, Alpha(steps=steps)
        self.prepared: Prepared = prepare_graph(problem.query.graph)
        self.tasks: dict[int, OpenTask] = {}
        self.at: tuple[int, int] | None = None
        self.encoded: EncodedBox | None = None
        self.model: Model | None = None
        self.leaves: list[recheck.Leaf] = []
        self.proved: set[tuple[int, int]] = set()
        for _, part in screen(problem, exact):
            checks.add(part.refuted)
            self.tasks.update({task.task: task for task in part.open})

    def step(self, kind: str, entry: Mapping[str, Tensor]) -> None:
        """Take an entry. Raises ``ValueError`` for one that is none, or is about nothing that is open."""
        if kind != programs.KIND:
            raise ValueError(f"an entry of kind {kind!r} among programs")
        place = int(entry["task"]), int(entry["clause"])
        if place not in self._open():
            raise ValueError(f"an entry about clause {place[1]} of task {place[0]}, which is not open")
        if place != self.at:
            self._close()
            self._begin(place)
        assert self.model is not None
        self.leaves += programs.of_arrays(entry, self.model.lower.shape[0], self.model.row_lower.shape[0])

    def finish(self) -> None:
        """After the last entry."""
        self._close()
        for task, clause in sorted(self._open() - self.proved):
            self.checks.fail(f"nothing refutes clause {clause} of task {task}")

    def _open(self) -> set[tuple[int, int]]:
        return {
            (number, int(clause))
            for number, task in self.tasks.items()
            for clause in self.problem.clauses[number][task.alive]
        }

    def _begin(self, place: tuple[int, int]) -> None:
        box = int(self.problem.box[place[0]])
        if self.encoded is None or self.encoded.number != box:
            self.encoded = EncodedBox.of(self.problem.query, self.prepared, box, self.method)
        self.at, self.leaves, self.model = place, [], clause_program(self.encoded, place[1]).model

    def _close(self) -> None:
        """Prove the clause at hand."""
        if self.at is None or self.model is None:
            return
        with torch.no_grad():
            bound = recheck.leaves(self.model, self.leaves)
        if bound > 0:
            self.proved.add(self.at)
            self.checks.add(len(self.leaves))
        else:
            self.checks.add(len(self.leaves), len(self.leaves))
            self.checks.fail(f"the leaves of clause {self.at[1]} in task {self.at[0]} prove no more than {bound:.3g}")
        self.at = None
