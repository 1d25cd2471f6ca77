"""The one place of choices: what a query looks like decides how it is worked on. No benchmark is known by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from verifier.attacks.plan import AttackPlan, BesidePlan

if TYPE_CHECKING:
    from verifier.query import Query

MOST_FREE_INPUTS = 20
"""Up to this many varying inputs their boxes are bisected; above, activations are split."""
FORWARD_ACTIVATIONS = 100
"""From this many activations for each function of a neuron (one a varying input and a constant) forward bounds come
before backward ones: measured, they then cost a small part of them, and with half as many a third."""
FORWARD_BOXES = 64
"""... unless the property has more boxes than this: such boxes are small, and little in them is left to tighten."""
FORWARD_ALONE = 500
"""From this many activations for each function, with more boxes than that, forward bounds stand alone: measured,
halving what they leave open then costs a tenth of backward bounds of it."""
FORWARD_ELEMENTS = 1 << 28
"""... or a batch would hold more coefficients than this (two float32 numbers each)."""
HALF_SPACE_INPUTS = 100
"""Up to this many varying inputs first-layer neurons get intervals from the half-spaces of each subproblem: measured,
with 30 inputs that saves all but a hundredth of the subproblems, and with 784 a fifth, for five times the time."""
HALF_SPACE_STEPS = 10
"""... by so many steps of ascent: with 5 there are three times as many subproblems, with 20 a third fewer."""
AHEAD_ACTIVATIONS = 256
"""Up to this many activations some programs with cuts come before activation splits: measured, with 128 one linear
program refutes two clauses of three that bounds leave open, and with 512 splits are done before it is encoded."""
AHEAD_NODES = 40
"""... up to so many for a clause that cuts have brought close."""
LEAST_BATCH, MOST_BATCH = 64, 4096
"""Boxes in a batch, whatever the network ..."""
BATCH_ELEMENTS = 1 << 20
"""... and between them, elements of all nodes in one: with fewer, small networks spend their time on calls, not numbers
(measured: six times less for each box of a network of 145 elements with 4096 boxes at once than with 256)."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a choice may depend on: inputs that vary in some case, numbers of cases and clauses, the elements that
    nonlinear operators read, and those of all nodes that vary."""

    free_inputs: int
    boxes: int
    clauses: int
    activations: int
    elements: int = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A value that the features decide, and the reason why, made in one place: ``name`` is the field of ``Strategy``
    (``input_split.forward``: of a plan in it)."""

    name: str
    value: bool | int | float
    reason: str


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Input splits. ``batch``: boxes bounded at once; ``fill``: a smaller round splits several dimensions at once to
    reach this many. ``forward``: forward linear bounds of every box first, backward ones where it stays open.
    ``backward``: without it what forward bounds leave open is bisected at once (lines of clauses alone walk back).
    ``memory``: bytes that bounds kept for later rounds may take."""

    batch: int = 256
    fill: int = 64
    forward: bool = False
    backward: bool = True
    memory: int = 1 << 30


@dataclass(frozen=True, slots=True)
class InnerPlan:
    """Bounds of inner neurons by splits. ``rounds``: in each, the leaf with the least bound of every row is split
    (several, where fewer than ``batch`` children would be bounded at once); ``first_steps`` of ascent for a row without
    splits, ``steps`` for a leaf, ``last_steps`` for one with nothing left to split; ``candidates`` as in
    ``AscentPlan``."""

    rounds: int = 24
    first_steps: int = 30
    steps: int = 15
    last_steps: int = 100
    candidates: int = 3
    batch: int = 256


@dataclass(frozen=True, slots=True)
class AheadPlan:
    """Programs before activation splits: ``cuts`` rounds of cuts for each clause, and up to ``nodes`` linear programs
    (0: no programs at all) where the cuts take away at least the part ``promise`` of what is missing, in a ``share`` of
    the time left; what they do not refute is split. ``steps`` as in ``ProgramPlan``."""

    nodes: int = 0
    steps: int = 20
    cuts: int = 8
    promise: float = 0.8
    share: float = 0.03


@dataclass(frozen=True, slots=True)
class AscentPlan:
    """Activation splits. ``intermediate_steps``: ascent steps for each unstable neuron at the root, as far as
    ``intermediate_share`` of the time left allows; ``root_steps`` for the clauses at the root, ``steps`` for each
    subproblem, ``half_space_steps`` for each first-layer neuron of one (0: it keeps the root's interval),
    ``last_steps`` for a subproblem with nothing left to split; ``batch`` parents a round; both
    children of the best ``candidates`` splits by each of two scores are looked at before one is chosen. ``inner``:
    where a search lasts, better bounds of inner neurons for at most ``inner_share`` of the time left. ``ahead``:
    programs that come first. ``memory``: bytes that slopes kept for later rounds may take."""

    intermediate_steps: int = 20
    intermediate_share: float = 0.2
    root_steps: int = 40
    steps: int = 20
    half_space_steps: int = 0
    last_steps: int = 200
    batch: int = 128
    candidates: int = 5
    inner: InnerPlan = InnerPlan()
    ahead: AheadPlan = AheadPlan()
    inner_share: float = 0.2
    memory: int = 1 << 28


@dataclass(frozen=True, slots=True)
class LendPlan:
    """A search of activation splits that goes on for ``after`` seconds after its interruption, with at least ``least``
    open subproblems, lends half of them to a second process."""

    after: float = 1.0
    least: int = 256


@dataclass(frozen=True, slots=True)
class TightenPlan:
    """Better bounds of neurons by programs, for clauses that last. ``nodes``: linear programs for each end of a neuron,
    of which the ``most`` that the clause's bound depends on most are taken in each layer, for a ``share`` of the time
    left; ``processes`` that solve them (0: the caller's)."""

    nodes: int = 20
    most: int = 20
    share: float = 0.2
    processes: int = 0


@dataclass(frozen=True, slots=True)
class ProgramPlan:
    """Mixed-integer programs in place of splits. ``steps`` (at least 1) of ascent for each neuron whose bounds enter a
    program. A clause that is open after ``nodes`` linear programs is handed to the solver's own search; all of them
    together have a ``share`` of the time left for it, each at most ``most_seconds``. ``process``: in a process of its
    own, which is killed when that is over; without it the solver works in the caller's, where it may take longer.
    ``tighten``: before the own search goes on, better bounds of neurons (None: it goes on as it is). ``cuts``: rounds
    of cuts (``milp.cuts``; 0: none) for a clause that one linear program leaves open, in ``cut_share`` of the time
    left."""

    steps: int = 20
    cuts: int = 8
    cut_share: float = 0.1
    nodes: int = 300
    share: float = 0.3
    most_seconds: float = 60.0
    process: bool = False
    tighten: TightenPlan | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"ProgramPlan.steps is {self.steps}: at least 1 is needed")
        if self.cuts < 0:
            raise ValueError(f"ProgramPlan.cuts is {self.cuts}: at least 0 is needed")


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a query is worked on: the first attack, a longer one where activation splits do not decide within
    ``attack_after`` seconds (``attack_rounds`` times the first, but at most ``attack_seconds`` and ``attack_share`` of
    the time left), short ones ``beside`` every search, and one plan for each kind of search. ``split_inputs`` chooses
    between them; ``programs`` take the place of both (None: not used). ``workers``: the processes that may share an
    activation split on a CPU (1 or 2), as ``lend`` says. ``choices``: what the features decided, each with its
    reason."""

    split_inputs: bool
    attack: AttackPlan = field(default_factory=AttackPlan)
    attack_after: float = 2.0
    attack_rounds: int = 8
    attack_seconds: float = 10.0
    attack_share: float = 0.1
    beside: BesidePlan = field(default_factory=BesidePlan)
    input_split: SplitPlan = field(default_factory=SplitPlan)
    activation_split: AscentPlan = field(default_factory=AscentPlan)
    programs: ProgramPlan | None = None
    workers: int = 1
    lend: LendPlan = field(default_factory=LendPlan)
    choices: tuple[Choice, ...] = ()


def features(query: Query) -> Features:
    """The features of a query."""
    graph = query.graph
    variable = graph.variable
    relaxed = [
        n for n in graph.nodes if variable[n.id] and n.inputs and not n.op.is_affine([variable[i] for i in n.inputs])
    ]
    watched = {i for n in relaxed for i in n.inputs if variable[i]}
    sizes = {n.id: math.prod(n.shape) for n in graph.nodes if variable[n.id]}
    count = sum(sizes[i] for i in watched)
    free = int(query.cases.varying.any(axis=0).sum()) if len(query.cases.varying) else 0
    clauses = len(query.cases.literals_of) - 1
    return Features(free, len(query.cases.lower), clauses, count, sum(sizes.values()))


def choose(what: Features, seed: int = 0, cores: int = 1) -> Strategy:
    """The strategy for a query with these features on so many cores. What depends on them comes from a ``Choice``."""
    split_inputs, batch, forward, backward = _split_inputs(what), _batch(what), _forward(what), _backward(what)
    steps, ahead, workers = _half_space_steps(what), _ahead(what), _workers(cores)
    return Strategy(
        split_inputs=bool(split_inputs.value),
        attack=AttackPlan(seed=seed),
        input_split=SplitPlan(int(batch.value), forward=bool(forward.value), backward=bool(backward.value)),
        activation_split=AscentPlan(half_space_steps=int(steps.value), ahead=AheadPlan(int(ahead.value))),
        workers=int(workers.value),
        choices=(split_inputs, batch, forward, backward, steps, ahead, workers),
    )


def explain(what: Features, strategy: Strategy) -> list[str]:
    """Lines for a reader: the features, the plans in the order of their stages, and the reason of each choice."""
    lines = [f"features: {', '.join(f'{name} {value:,}' for name, value in asdict(what).items())}"]
    search = "input_split" if strategy.split_inputs else "activation_split"
    lines += [f"{stage}: {_settings(asdict(strategy)[stage])}" for stage in ("attack", search, "beside")]
    if not strategy.split_inputs:
        own = {name: value for name, value in asdict(strategy).items() if name.startswith("attack_")}
        lines.append(f"longer attack: {_settings(own)}")
    for choice in strategy.choices:
        if choice.name == "workers" and strategy.split_inputs:
            continue
        if "." not in choice.name or choice.name.startswith(search):
            lines.append(f"{choice.name} = {choice.value}: {choice.reason}")
    return lines


def _settings(values: Mapping[str, object], within: str = "") -> str:
    texts = []
    for name, value in values.items():
        if isinstance(value, dict):
            texts.append(_settings(value, f"{within}{name}."))
        else:
            texts.append(f"{within}{name} {f'{value:g}' if isinstance(value, float) else value}")
    return ", ".join(texts)


def _split_inputs(what: Features) -> Choice:
    few = what.free_inputs <= MOST_FREE_INPUTS
    reason = f"{what.free_inputs} varying inputs are {'at most' if few else 'more than'} {MOST_FREE_INPUTS}, so " + (
        "their boxes are bisected" if few else "signs of activations are split"
    )
    return Choice("split_inputs", few, reason)


def _half_space_steps(what: Features) -> Choice:
    few = what.free_inputs <= HALF_SPACE_INPUTS
    reason = f"{what.free_inputs} varying inputs are {'at most' if few else 'more than'} {HALF_SPACE_INPUTS}: " + (
        "half-spaces of splits cut them" if few else "half-spaces of splits take little of their box"
    )
    return Choice("activation_split.half_space_steps", HALF_SPACE_STEPS if few else 0, reason)


def _ahead(what: Features) -> Choice:
    few = what.activations <= AHEAD_ACTIVATIONS
    reason = f"{what.activations} activations are {'at most' if few else 'more than'} {AHEAD_ACTIVATIONS}: " + (
        "a program with cuts often does what many splits do" if few else "a linear program costs as much as splits"
    )
    return Choice("activation_split.ahead.nodes", AHEAD_NODES if few else 0, reason)


def _workers(cores: int) -> Choice:
    if cores < 2:
        return Choice("workers", 1, "there is one core to work on")
    return Choice("workers", 2, f"{cores} cores: a long activation split is shared with a second process")


def _batch(what: Features) -> Choice:
    each = max(what.elements, what.activations, 1)
    value = max(LEAST_BATCH, min(MOST_BATCH, BATCH_ELEMENTS // each))
    reason = f"boxes of {each} elements, in all at most {BATCH_ELEMENTS}, but {LEAST_BATCH} to {MOST_BATCH} boxes"
    return Choice("input_split.batch", value, reason)


def _forward(what: Features) -> Choice:
    functions = what.free_inputs + 1
    elements = what.activations * functions * int(_batch(what).value)
    least = FORWARD_ACTIVATIONS * functions
    value, reason = True, f"{what.activations} activations are at least {least}, so forward bounds cost a small part"
    if what.boxes > FORWARD_BOXES and what.activations < FORWARD_ALONE * functions:
        value, reason = False, f"{what.boxes} boxes are more than {FORWARD_BOXES}: small ones, with little to tighten"
    elif elements > FORWARD_ELEMENTS:
        value, reason = False, f"{elements} coefficients a batch are more than {FORWARD_ELEMENTS}"
    elif what.activations < least:
        value, reason = False, f"{what.activations} activations are fewer than {least}: backward bounds are cheap"
    return Choice("input_split.forward", value, reason)


def _backward(what: Features) -> Choice:
    least = FORWARD_ALONE * (what.free_inputs + 1)
    if not _forward(what).value:
        return Choice("input_split.backward", True, "forward bounds are not used")
    if what.boxes > FORWARD_BOXES and what.activations >= least:
        reason = f"{what.boxes} boxes, {what.activations} activations, at least {least}: halves cost less"
        return Choice("input_split.backward", False, reason)
    return Choice("input_split.backward", True, "boxes that forward bounds leave open are few or cheap to tighten")
