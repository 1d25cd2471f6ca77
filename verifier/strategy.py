"""The one place of choices: what a query looks like decides how it is worked on. No benchmark is known by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from verifier.attacks.plan import AttackPlan

if TYPE_CHECKING:
    from verifier.query import Query

MOST_FREE_INPUTS = 20
"""Up to this many varying inputs their boxes are bisected; above, activations are split."""
FORWARD_ACTIVATIONS = 100
"""From this many activations for each function of a neuron (one a varying input and a constant) forward bounds come
before backward ones: measured, they then cost a small part of them, and with half as many a third."""
FORWARD_BOXES = 64
"""... unless the property has more boxes than this: such boxes are small, and little in them is left to tighten."""
FORWARD_ELEMENTS = 1 << 28
"""... or a batch would hold more coefficients than this (two float32 numbers each)."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a choice may depend on: inputs that vary in some case, numbers of cases and clauses, and the elements
    that nonlinear operators read."""

    free_inputs: int
    boxes: int
    clauses: int
    activations: int


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Input splits. ``batch``: boxes bounded at once; ``fill``: a smaller round splits several dimensions at once to
    reach this many. ``forward``: forward linear bounds of every box first, backward ones where it stays open."""

    batch: int = 256
    fill: int = 64
    forward: bool = False


@dataclass(frozen=True, slots=True)
class AscentPlan:
    """Activation splits. ``intermediate_steps``: ascent steps for each unstable neuron at the root, as far as
    ``intermediate_share`` of the time left allows; ``root_steps`` for the clauses at the root, ``steps`` for each
    subproblem, ``last_steps`` for one with nothing left to split; ``batch`` parents a round."""

    intermediate_steps: int = 20
    intermediate_share: float = 0.2
    root_steps: int = 40
    steps: int = 10
    last_steps: int = 200
    batch: int = 128


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a query is worked on: the first attack, a longer one where activation splits do not decide within
    ``attack_after`` seconds (``attack_rounds`` times the first, but at most ``attack_seconds`` and ``attack_share`` of
    the time left), and one plan for each kind of search. ``split_inputs`` chooses between them."""

    split_inputs: bool
    attack: AttackPlan = field(default_factory=AttackPlan)
    attack_after: float = 2.0
    attack_rounds: int = 8
    attack_seconds: float = 10.0
    attack_share: float = 0.1
    input_split: SplitPlan = field(default_factory=SplitPlan)
    activation_split: AscentPlan = field(default_factory=AscentPlan)


def features(query: Query) -> Features:
    """The features of a query."""
    graph = query.graph
    variable = graph.variable
    relaxed = [
        n for n in graph.nodes if variable[n.id] and n.inputs and not n.op.is_affine([variable[i] for i in n.inputs])
    ]
    watched = {i for n in relaxed for i in n.inputs if variable[i]}
    count = 0
    for i in watched:
        size = 1
        for extent in graph.nodes[i].shape:
            size *= extent
        count += size
    free = int(query.cases.varying.any(axis=0).sum()) if len(query.cases.varying) else 0
    return Features(free, len(query.cases.lower), len(query.cases.literals_of) - 1, count)


def choose(what: Features, seed: int = 0) -> Strategy:
    """The strategy for a query with these features."""
    return Strategy(
        split_inputs=what.free_inputs <= MOST_FREE_INPUTS,
        attack=AttackPlan(seed=seed),
        input_split=SplitPlan(forward=_forward(what)),
    )


def _forward(what: Features) -> bool:
    functions = what.free_inputs + 1
    few = what.boxes <= FORWARD_BOXES and what.activations * functions * SplitPlan().batch <= FORWARD_ELEMENTS
    return few and what.activations >= FORWARD_ACTIVATIONS * functions
