"""One attack on N examples: what it has spent, and the best point of each example so far.

Attacks ask the model through ``evaluate`` and ``descend`` alone, so every evaluation is counted for the example that it
was made for (one with a gradient counts once, as in published budgets), and the best point cannot get lost. An example
is *done* once it has a counterexample, unless the trial looks for the nearest one; attacks drop the rows of examples
that are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from verifier import limits
from verifier.attacks.goals import Goal
from verifier.attacks.losses import Loss, finite
from verifier.attacks.oracle import Oracle
from verifier.attacks.rows import turns
from verifier.attacks.threats import Threat
from verifier.errors import InputError

View = Callable[[Tensor, Tensor], Tensor]
"""The model's inputs ``[P, n]`` at parameters ``[P, d]`` of the examples ``who`` ``[P]``, differentiable."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """N examples: whether some point of ``threat`` makes ``goal`` true of the ``oracle``'s outputs. ``view`` maps
    points to the model's inputs where these are parameters of a transformation (None: points are inputs). ``penalty``
    ``[P]`` of points and examples is added to every loss; it changes no margin."""

    oracle: Oracle
    goal: Goal
    threat: Threat
    view: View | None = None
    penalty: View | None = None

    @property
    def size(self) -> int:
        """N."""
        return len(self.threat.centre)

    def inputs(self, x: Tensor, who: Tensor) -> Tensor:
        """The model's inputs ``[P, n]`` at points ``[P, d]``."""
        return x if self.view is None else self.view(x, who)


class Attack(Protocol):
    """A way to look for counterexamples: a frozen value with its own options."""

    @property
    def name(self) -> str:
        """What tables call it."""

    def run(self, trial: Trial) -> None:
        """Look until the trial is ``over`` or the attack's own effort is spent; the trial keeps what is found.
        Raises ``InputError`` where the attack does not go with the problem."""


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """What an attack found for N examples: ``points`` ``[N, d]``, each in its threat model exactly, with the ``margin``
    ``[N]`` that the oracle gives (at most 0: a counterexample, still to be replayed). ``evaluations`` ``[N]``: spent on
    each; ``needed`` ``[N]``: up to the first counterexample (0: none was found)."""

    points: Tensor
    margin: Tensor
    evaluations: Tensor
    needed: Tensor

    @property
    def found(self) -> Tensor:
        """``[N]`` bool."""
        return self.margin <= 0


class Trial:
    """State of one attack (module docstring). ``budget``: evaluations an example may cost (None: no limit): rows beyond
    it are not asked, and get NaN outputs, a margin and a loss of inf, a gradient of 0; ``until`` (of ``limits.now``):
    when to stop; ``distance``: where given, the best point of an example is its nearest
    counterexample by this measure ``(x [P, d], who [P]) -> [P]``, and no example is ever done."""

    def __init__(
        self,
        problem: Problem,
        *,
        seed: int = 0,
        budget: int | None = None,
        until: float = math.inf,
        distance: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.problem, self.budget, self.until, self.distance = problem, budget, until, distance
        centre = problem.threat.centre
        self.draw = torch.Generator(centre.device).manual_seed(seed)
        self.margin = centre.new_full((problem.size,), math.inf)
        self.rank = self.margin.clone()
        self.best = centre.clone()
        self.evaluations = torch.zeros(problem.size, dtype=torch.int64, device=centre.device)
        self.needed = torch.zeros_like(self.evaluations)
        self._others: Tensor | None = None
        self._width = 0

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return limits.now() >= self.until

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: time or budgets are up, or all examples are done."""
        return self.late or not len(self.open())

    def open(self) -> Tensor:
        """The examples ``[K]`` that are not done and have budget left."""
        left = torch.ones_like(self.margin, dtype=torch.bool)
        if self.budget is not None:
            left = self.evaluations < self.budget
        if self.distance is None:
            left = left & (self.margin > 0)
        return torch.nonzero(left).squeeze(1)

    def is_open(self, who: Tensor) -> Tensor:
        """``[P]`` bool: which rows belong to examples that are still open."""
        state = torch.zeros_like(self.margin, dtype=torch.bool)
        state[self.open()] = True
        return state[who]

    def outputs(self, x: Tensor, who: Tensor) -> Tensor:
        """Outputs ``[P, F]`` at points ``[P, d]`` of their sets; counted, and the best ones are kept."""
        return self._ask(x, who)[0]

    def evaluate(self, x: Tensor, who: Tensor) -> Tensor:
        """Margins ``[P]`` at points of their sets; see ``outputs``."""
        return self._ask(x, who)[1]

    def _ask(self, x: Tensor, who: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and margins."""
        paid = self._paid(who)
        if not len(x):
            return x.new_zeros((0, self._width)), x.new_zeros(0)
        if not bool(paid.all()):
            some, least = self._ask(x[paid], who[paid])
            outputs = some.new_full((len(x), some.shape[1]), math.nan).index_put((paid,), some)
            return outputs, x.new_full((len(x),), math.inf).index_put((paid,), least)
        with torch.no_grad():
            parts = [
                self.problem.oracle.outputs(self.problem.inputs(a, b))
                for a, b in zip(x.split(self.problem.oracle.rows), who.split(self.problem.oracle.rows), strict=True)
            ]
        outputs = torch.cat(parts)
        self._width = outputs.shape[1]
        margin = self.problem.goal.margin(outputs, who).to(x.dtype)
        self._note(x, who, margin)
        return outputs, margin

    def descend(
        self, x: Tensor, who: Tensor, loss: Loss, target: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss ``[P]``, the margin ``[P]`` and the loss's gradient ``[P, d]`` (0 where it is not finite); counted,
        and the best points are kept. Raises ``InputError`` where the oracle has no gradients."""
        if not self.problem.oracle.differentiable:
            raise InputError(
                "this attack needs gradients, and the model gives outputs alone: take one by queries "
                "(square, sparse-rs, nes, spsa, zoo)"
            )
        paid = self._paid(who)
        if not (len(x) and bool(paid.all())):
            value, gradient = x.new_full((len(x),), math.inf), torch.zeros_like(x)
            margin = value.clone()
            if bool(paid.any()):
                some = self.descend(x[paid], who[paid], loss, None if target is None else target[paid])
                value[paid], margin[paid], gradient[paid] = some
            return value, margin, gradient
        goal, parts = self.problem.goal, []
        for rows in torch.arange(len(x), device=x.device).split(self.problem.oracle.rows):
            at, owner = x[rows].detach().requires_grad_(), who[rows]
            aim = None if target is None else target[rows]
            with torch.enable_grad():
                outputs = self.problem.oracle.outputs(self.problem.inputs(at, owner))
                value = loss.value(goal, outputs, owner, aim)
                if self.problem.penalty is not None:
                    value = value + self.problem.penalty(at, owner)
                gradient = _gradient(value, at)
            parts.append((value.detach(), goal.margin(outputs.detach(), owner), gradient))
        value, margin, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
        self._note(x, who, margin.to(x.dtype))
        return value.to(x.dtype), margin.to(x.dtype), gradient

    def others(self, who: Tensor) -> Tensor:
        """The classes ``[P, F - 1]`` other than the label of each row's example, the likeliest first by the scores at
        its centre."""
        if self._others is None:
            every = torch.arange(self.problem.size, device=self.margin.device)
            scores = self.outputs(self.problem.threat.centre, every)
            label = self.problem.goal.labels(every)[:, None]
            self._others = scores.scatter(1, label, -math.inf).argsort(1, descending=True)[:, :-1]
        return self._others[who]

    def result(self) -> Attacked:
        """What was found so far."""
        return Attacked(self.best.clone(), self.margin.clone(), self.evaluations.clone(), self.needed.clone())

    def _paid(self, who: Tensor) -> Tensor:
        """``[P]`` bool: the rows that the budgets still pay for, the first ones of each example."""
        if self.budget is None:
            return torch.ones_like(who, dtype=torch.bool)
        return self.evaluations[who] + turns(who) < self.budget

    def _note(self, x: Tensor, who: Tensor, margin: Tensor) -> None:
        """Count one evaluation a row, and keep the best row of each example. A row with a NaN or an infinity is in no
        set, whatever a model makes of it (a jump gives a number)."""
        margin = torch.where(x.isfinite().all(1), margin, math.inf)
        hit = margin <= 0
        first = hit & (self.needed[who] == 0)
        if bool(first.any()):
            spent = (self.evaluations[who] + turns(who) + 1)[first]
            self.needed.scatter_reduce_(0, who[first], spent, "amin", include_self=False)
        self.evaluations.index_add_(0, who, torch.ones_like(who))
        rank = margin
        if self.distance is not None:
            rank = torch.where(hit, self.distance(x, who).to(margin.dtype), math.inf)
        rank = torch.where(rank.isnan(), math.inf, rank)
        least = self.rank.scatter_reduce(0, who, rank, "amin")
        best = torch.nonzero((rank == least[who]) & (rank < self.rank[who])).squeeze(1)
        best = best[turns(who[best]) == 0]  # of several written to one place at once, threads could mix the elements
        self.best[who[best]] = x[best].detach()
        self.margin[who[best]] = margin[best]
        self.rank = least


def attack(
    problem: Problem,
    method: Attack,
    *,
    seed: int = 0,
    budget: int | None = None,
    until: float = math.inf,
) -> Attacked:
    """Run one attack on all examples of a problem; see ``Trial``. Raises ``InputError``."""
    trial = Trial(problem, seed=seed, budget=budget, until=until)
    if len(trial.open()):
        method.run(trial)
    return trial.result()


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of each value by its own row; 0 where nothing depends on it."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(value.sum(), at)
    return finite(gradient)
