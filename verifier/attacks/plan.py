"""How much effort a search for counterexamples spends: plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """Effort of ``search.candidates``. Work is counted in multiply-adds of the network, so it does not depend on
    the machine; one round is a probe of every clause, then stages of projected gradient descent.

    ``rounds``: how often the whole search runs, each time with other random points and twice the batch, until it is
    stopped. ``steps``: gradient steps of a stage. ``stages``: after each, the clauses that are further from being
    fulfilled are dropped, and the others get their restarts. ``batch``: most points that move at once;
    ``step_work``: multiply-adds of a forward pass over them, which makes the batch smaller for large networks.
    ``probe_work``, ``probes``: multiply-adds for, and most, random points per box of the probe. ``rate_first``,
    ``rate_last``: step length at the first and the last step of a stage, in widths of the box.
    """

    rounds: int = 1
    steps: int = 25
    stages: int = 3
    batch: int = 256
    step_work: float = 1e8
    probe_work: float = 5e7
    probes: int = 2048
    rate_first: float = 0.25
    rate_last: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"rounds": self.rounds, "steps": self.steps, "batch": self.batch, "probes": self.probes}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"AttackPlan.{name} is {value}: at least 1 is needed")
        if self.stages < 0:
            raise ValueError(f"AttackPlan.stages is {self.stages}: at least 0 is needed")
        if not 0 < self.rate_last <= self.rate_first:
            raise ValueError(
                f"AttackPlan needs 0 < rate_last <= rate_first, and has {self.rate_last} and {self.rate_first}"
            )
