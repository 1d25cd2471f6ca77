"""How much effort a search for counterexamples spends: plain numbers, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttackPlan:
    """Effort of ``search.candidates``. Work is counted in multiply-adds of the network, so it does not depend on
    the machine; one round is a probe of every clause, then stages of projected gradient descent.

    ``rounds``: how often the whole search runs, each time with other random points and twice the batch (up to 8
    times), until it is stopped. ``stages``: after each, the clauses that are further from being fulfilled are dropped
    and the others get their restarts. ``steps``: gradient steps of a stage. ``batch``: most points that move at once;
    ``step_work``: multiply-adds of a forward pass over them, which makes the batch smaller for large networks.
    ``probes``, ``probe_work``: most points per box of the probe, and multiply-adds for all of them. ``longest``,
    ``shortest``: first steps of the restarts, in widths of the box, are spread between them (no single length suits all
    networks); ``decay``: their factor per step; ``patience``: steps without success after which a point returns to its
    best place and halves its step; ``momentum`` of the averaged gradient.
    """

    rounds: int = 1
    stages: int = 3
    steps: int = 30
    batch: int = 192
    step_work: float = 4e7
    probes: int = 2048
    probe_work: float = 5e7
    longest: float = 0.5
    shortest: float = 0.03
    decay: float = 0.96
    patience: int = 5
    momentum: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"rounds": self.rounds, "steps": self.steps, "batch": self.batch, "probes": self.probes}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"AttackPlan.{name} is {value}: at least 1 is needed")
        if self.stages < 0:
            raise ValueError(f"AttackPlan.stages is {self.stages}: at least 0 is needed")
        if not 0 < self.shortest <= self.longest:
            raise ValueError(f"AttackPlan needs 0 < shortest <= longest, and has {self.shortest} and {self.longest}")
        for name, share in {"decay": self.decay, "momentum": self.momentum}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"AttackPlan.{name} is {share}: it must lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class BesidePlan:
    """Attacks beside branch and bound (``beside``): ``share`` of its time (0: none), not before ``least`` seconds are
    due; from the best ``points`` since the last one, ``restarts`` descents of ``steps`` steps each, all but one from
    points up to ``near`` half-widths of the box away, with first steps from ``longest`` to ``shortest`` widths."""

    share: float = 0.05
    least: float = 0.05
    points: int = 16
    restarts: int = 4
    steps: int = 10
    near: float = 0.1
    longest: float = 0.25
    shortest: float = 0.02
