"""The methods: how inner intervals are tightened, and how rows over the target are bounded once they are.

A method is a frozen value with its own options. Whatever it is, its bounds are intersected with what intervals alone
say; ``lines`` gives the affine functions of the input that stand behind a result (constants, where there are none).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ascent import ascend, optimised
from bounds.backward import LinearBounds, State, backward
from bounds.box import Box
from bounds.concretize import concretize
from bounds.dual import Dual, Multipliers, Objective, by_rows, evaluate, initial, recast
from bounds.forward import Functions
from bounds.interval import rows_interval
from bounds.layouts import Owner, Selection
from bounds.ops.base import Interval as Ends
from bounds.plan import Plan, prepare
from bounds.propagate import Tighten, chunk_rows, crown


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """``lower_rows . x + lower_bias <= f(x) <= upper_rows . x + upper_bias`` for every x in the box, elementwise.

    Rows are ``[N, *f, *input shape]``, biases ``[N, *f]`` for f of shape ``[*f]`` (the target's, or R). Under the
    semantics "real" both inequalities hold in exact arithmetic for the numbers as they are returned.
    """

    lower_rows: Tensor
    lower_bias: Tensor
    upper_rows: Tensor
    upper_bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What is bounded in a state: the elements of ``node``, or ``rows`` ``[R, *node shape]`` over it (plan's dtype)."""

    plan: Plan
    search: Plan | None
    state: State
    node: int
    rows: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is bounded, without N."""
        return self.plan.graph.nodes[self.node].shape if self.rows is None else (self.rows.shape[0],)

    def intervals(self) -> Ends:
        """What the intervals say of it."""
        if self.rows is None:
            return self.state.bounds[self.node]
        return rows_interval(self.plan, self.state, self.node, self.rows)

    def written_out(self) -> Tensor:
        """Its coefficient rows, ``[R, *node shape]``."""
        if self.rows is not None:
            return self.rows
        shape = self.plan.graph.nodes[self.node].shape
        count = int(torch.Size(shape).numel())
        return torch.eye(count, dtype=self.plan.dtype, device=self.plan.device).reshape(count, *shape)

    def both_sides(self) -> tuple[Selection, Tensor]:
        """Unit rows of all elements and of their negatives, for every box, with their owners."""
        shape, device = self.plan.graph.nodes[self.node].shape, self.plan.device
        count, boxes = int(torch.Size(shape).numel()), self.state.box.size
        places = torch.arange(count, device=device).repeat(2 * boxes)
        sign = torch.ones(2 * count, dtype=self.plan.dtype, device=device)
        sign[count:] = -1
        owner = torch.arange(boxes, device=device).repeat_interleave(2 * count)
        return Selection(places, sign.repeat(boxes), shape), owner

    def ends(self, found: Tensor) -> Ends:
        """Lower bounds of rows and of their negatives, ``[N * 2 * R]``, intersected with the intervals."""
        found = found.reshape(self.state.box.size, 2, *self.shape)
        low, high = self.intervals()
        low, high = torch.maximum(low, found[:, 0]), torch.minimum(high, -found[:, 1])
        if self.plan.rounding is None:  # without error terms two bounds of one number may cross by rounding
            return torch.minimum(low, high), torch.maximum(low, high)
        return low, high


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Both ends of what is bounded, and the free parameters that give them (by node; empty where there are none)."""

    ends: Ends
    slopes: Mapping[int, Tensor]


class Method(ABC):
    """How bounds are computed: ``Interval``, ``Forward``, ``Crown`` or ``Alpha``."""

    __slots__ = ()

    @abstractmethod
    def tighten(self, plan: Plan, search: Plan | None) -> Tighten | None:
        """What tightens single elements of inner nodes; None where nothing does."""

    def variables(self, box: Box) -> Tensor | None:
        """Flat places of the inputs in which forward linear bounds are propagated too; None: they are not."""
        return None

    @abstractmethod
    def bound(self, target: Target) -> Found:
        """Bounds of the target."""

    @abstractmethod
    def lines(self, target: Target) -> Lines:
        """Affine functions below and above the target."""


@dataclass(frozen=True, slots=True)
class Interval(Method):
    """Interval propagation alone: one forward pass, cheap and loose. Rows over an affine node meet its operand."""

    def tighten(self, plan: Plan, search: Plan | None) -> Tighten | None:
        return None

    def bound(self, target: Target) -> Found:
        return Found(target.intervals(), {})

    def lines(self, target: Target) -> Lines:
        low, high = target.intervals()
        zero = low.new_zeros((*low.shape, *target.state.box.lower.shape[1:]))
        return Lines(zero, low, zero, high)


@dataclass(frozen=True, slots=True)
class Forward(Method):
    """Two affine functions of all varying inputs for every node, pushed forward (``forward.py``), and intervals.

    The cost of a layer is that of running it on twice as many inputs as vary: it suits few inputs and wide layers.
    """

    def tighten(self, plan: Plan, search: Plan | None) -> Tighten | None:
        return None

    def variables(self, box: Box) -> Tensor | None:
        return (box.upper > box.lower).flatten(1).any(0).nonzero().flatten()

    def bound(self, target: Target) -> Found:
        low, high = target.intervals()
        if target.rows is not None:
            below, above = self._functions(target).interval(target.plan.rounding)
            low, high = torch.maximum(low, below), torch.minimum(high, above)
            if target.plan.rounding is None:
                low, high = torch.minimum(low, high), torch.maximum(low, high)
        return Found((low, high), {})

    def lines(self, target: Target) -> Lines:
        functions, box = self._functions(target), target.state.box
        chosen = self.variables(box)
        assert chosen is not None
        return Lines(*functions.lines(box, chosen, target.plan.rounding))

    def _functions(self, target: Target) -> Functions:
        functions = target.state.functions[target.node]
        return functions if target.rows is None else functions.over_rows(target.rows, target.plan.rounding)


@dataclass(frozen=True, slots=True)
class Crown(Method):
    """Backward linear bounds of every unstable neuron and of the target (Zhang et al., CROWN, NeurIPS 2018)."""

    def tighten(self, plan: Plan, search: Plan | None) -> Tighten | None:
        return crown

    def bound(self, target: Target) -> Found:
        plan, state = target.plan, target.state
        if target.rows is None:
            units, owner = target.both_sides()
            return Found(target.ends(crown(plan, state, target.node, units, owner)), {})
        bounds = (concretize(plan, lines, state.box, state.ball) for lines in _walks(target))
        found = [bound.reshape(state.box.size, 2, -1) for bound in bounds]
        return Found(target.ends(torch.cat(found, 2)), {})

    def lines(self, target: Target) -> Lines:
        return _joined(target, [_as_true(target, lines) for lines in _walks(target)])


@dataclass(frozen=True, slots=True)
class Alpha(Method):
    """As ``Crown``, with ``steps`` ascent steps on the lower slopes of ReLUs for each neuron and each output by itself
    (Xu et al., alpha-CROWN, ICLR 2021). Its bounds carry no gradient. ``ValueError`` for fewer than one step."""

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Alpha takes at least one step, not {self.steps}: Crown() takes none")

    def tighten(self, plan: Plan, search: Plan | None) -> Tighten | None:
        return optimised(_search(plan, search), self.steps)

    def bound(self, target: Target) -> Found:
        found = [bound.reshape(target.state.box.size, 2, -1) for _, bound in self._walks(target)]
        return Found(target.ends(torch.cat(found, 2)), {})

    def lines(self, target: Target) -> Lines:
        return _joined(target, [_as_true(target, lines) for lines, _ in self._walks(target)])

    def _walks(self, target: Target) -> Iterator[tuple[LinearBounds, Tensor]]:
        plan, state = target.plan, target.state
        search = _search(plan, target.search)
        rough = recast(search, state)
        rows, boxes = target.written_out(), state.box.size
        for part in rows.split(max(1, chunk_rows(plan) // (8 * boxes))):
            signed = torch.cat([part, -part]).repeat(boxes, *[1] * (part.ndim - 1))
            owner = torch.arange(boxes, device=plan.device).repeat_interleave(2 * part.shape[0])
            dual = Dual(search, by_rows(rough, owner), target.node, Objective.single(signed.to(search.dtype)), {})
            found = ascend(dual, Multipliers(initial(search, dual.state), {}, dual.objective.weights), self.steps)
            chosen = found.multipliers.take(torch.arange(signed.shape[0], device=plan.device), plan.dtype)
            yield evaluate(Dual(plan, by_rows(state, owner), target.node, Objective.single(signed), {}), chosen)


def _search(plan: Plan, search: Plan | None) -> Plan:
    if plan.rounding is None:
        return plan
    return search if search is not None else prepare(plan.graph, torch.float32, plan.device)


def _walks(target: Target) -> Iterator[LinearBounds]:
    """Backward walks of the rows and of their negatives, in chunks; rows of a box stand together."""
    plan = target.plan
    for part in target.written_out().split(max(1, chunk_rows(plan) // (2 * target.state.box.size))):
        both = torch.cat([part, -part])
        yield backward(plan, target.state, target.node, both, Owner.shared(both.shape[0]))


def _as_true(target: Target, lines: LinearBounds) -> tuple[Tensor, Tensor]:
    """Rows ``[N, 2, r, *input]`` and biases ``[N, 2, r]`` that keep the inequality as they stand."""
    rounding, bias = target.plan.rounding, lines.bias
    if rounding is not None:
        bias = rounding.down(bias - lines.error * (1 + 8 * rounding.unit))
        bias = torch.nan_to_num(bias, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    boxes = target.state.box.size
    return lines.rows.reshape(boxes, 2, -1, *lines.rows.shape[1:]), bias.reshape(boxes, 2, -1)


def _joined(target: Target, parts: list[tuple[Tensor, Tensor]]) -> Lines:
    rows, bias = (torch.cat([part[k] for part in parts], 2) for k in (0, 1))
    (below, above), (low, high) = rows.unbind(1), bias.unbind(1)

    def shaped(values: Tensor, tail: tuple[int, ...]) -> Tensor:
        return values.reshape(values.shape[0], *target.shape, *tail)

    inputs = tuple(rows.shape[3:])
    return Lines(shaped(below, inputs), shaped(low, ()), shaped(-above, inputs), shaped(-high, ()))
