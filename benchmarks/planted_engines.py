"""The engines of ``planted.py``: everything that refutes, each in the ways that it can be run.

An engine is a function of a query and a budget; to add one, write it and name it in ``ENGINES``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem, Step
from verifier.branch.root import refine, screen
from verifier.query import Query
from verifier.strategy import AscentPlan, SplitPlan


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


def _activations(query: Query, budget: Budget, refinement: int, candidates: int = 3) -> bool:
    options = AscentPlan(root_steps=8, steps=4, last_steps=20, batch=32, candidates=candidates)
    problem, plans = Problem.of(query), (prepare(query.graph, torch.float32), _exact(query))
    for task in [found for _, part in screen(problem, plans[1]) for found in part.open]:
        refined = refine(problem, plans, task, refinement, float("inf"))
        if not _limited(ActivationSplit(problem, plans, refined, options).run(), budget):
            return False
    return True


def activation_split(query: Query, budget: Budget) -> bool:
    """Activation splits over plain root bounds."""
    return _activations(query, budget, 0)


def activation_split_refined(query: Query, budget: Budget) -> bool:
    """Activation splits over ascended root bounds."""
    return _activations(query, budget, 3)


def activation_split_by_score(query: Query, budget: Budget) -> bool:
    """Activation splits chosen by the intercept score alone."""
    return _activations(query, budget, 0, candidates=0)


ENGINES: Mapping[str, Engine] = {
    f.__name__: f
    for f in (
        screened,
        input_split,
        input_split_float64,
        input_split_forward,
        input_split_forward_alone,
        input_split_short_of_memory,
        activation_split,
        activation_split_refined,
        activation_split_by_score,
    )
}
