"""Transfer: a model that can be differentiated is attacked, and what is found is tried on another one.

Papernot et al., 2016; a mean of several models transfers better (Liu et al., ICLR 2017). The target is asked once for
each candidate, so it may be an onnxruntime session.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from verifier.attacks.apgd import Apgd
from verifier.attacks.goals import Goal
from verifier.attacks.oracle import Oracle
from verifier.attacks.trial import Attack, Problem, Trial
from verifier.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """``method`` on the ``source`` model, ``rounds`` times with other random numbers; its best point of each example is
    a candidate for the target. The source's own evaluations (``budget`` each round) do not count."""

    source: Oracle
    method: Attack = field(default_factory=Apgd)
    rounds: int = 1
    budget: int | None = None
    name: str = "transfer"

    def run(self, trial: Trial) -> None:
        """See ``Attack``. Raises ``InputError`` where the source is on another device."""
        problem = trial.problem
        if self.source.device != problem.oracle.device:
            raise InputError(f"transfer: the source is on {self.source.device}, the target on {problem.oracle.device}")
        lent = Problem(self.source, Deepest(problem.goal), problem.threat, problem.view, problem.penalty)
        for _ in range(self.rounds):
            if trial.over:
                return
            seed = int(torch.randint(2**31, (), generator=trial.draw, device=trial.draw.device))
            inner = Trial(lent, seed=seed, budget=self.budget, until=trial.until)
            closed = ~trial.is_open(torch.arange(problem.size, device=trial.margin.device))
            inner.margin[closed] = inner.rank[closed] = -torch.inf  # done: no effort is spent on them
            self.method.run(inner)
            who = trial.open()
            if not trial.late:
                trial.evaluate(inner.best[who], who)


@dataclass(frozen=True, slots=True, eq=False)
class Deepest:
    """A goal's margin m made positive everywhere, in the same order (m + 1 where m > 0, else 1 / (1 - m)): an attack
    never has enough, and goes on to points that another model is more likely to get wrong too."""

    goal: Goal

    def margin(self, outputs: Tensor, who: Tensor) -> Tensor:
        """Above 0."""
        margin = self.goal.margin(outputs, who)
        return torch.where(margin > 0, margin + 1, 1 / (1 - margin.clamp(max=0)))

    def labels(self, who: Tensor) -> Tensor:
        """The goal's."""
        return self.goal.labels(who)


@dataclass(frozen=True, slots=True)
class MeanOracle:
    """The mean of several models' outputs, all on one device and with the same numbers of inputs and outputs."""

    oracles: tuple[Oracle, ...]

    @property
    def differentiable(self) -> bool:
        """Whether all are."""
        return all(oracle.differentiable for oracle in self.oracles)

    @property
    def rows(self) -> int:
        """The least of theirs."""
        return min(oracle.rows for oracle in self.oracles)

    @property
    def device(self) -> torch.device:
        """The first one's."""
        return self.oracles[0].device

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``."""
        return torch.stack([oracle.outputs(points) for oracle in self.oracles]).mean(0)
