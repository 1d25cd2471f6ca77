"""The clauses of a task as rows over the output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.plan import Plan
from verifier.branch.problem import Literals, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Objectives:
    """C clauses of at most L literals, ``rows . output - rhs`` each: ``clauses`` ``[C]`` by their numbers in the query,
    ``rows`` ``[C, L, F]``, ``rhs`` ``[C, L]``; rows and right-hand sides are 0 where no literal is ``present``
    ``[C, L]``."""

    clauses: Tensor
    rows: Tensor
    rhs: Tensor
    present: Tensor

    @staticmethod
    def of(problem: Problem, plan: Plan, task: int, alive: Tensor) -> Objectives:
        """Of the clauses ``alive`` (a mask) of a task."""
        literals = Literals.of(problem, torch.tensor([task], device=plan.device))
        threshold = literals.threshold[0][alive]
        present = torch.isfinite(threshold)
        rows = problem.rows(literals.columns, plan)[literals.place[0][alive]]
        rhs = torch.where(present, threshold, 0.0)
        return Objectives(literals.clause[0][alive], rows * present.unsqueeze(-1), rhs, present)
