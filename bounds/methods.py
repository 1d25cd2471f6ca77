"""The methods: how inner intervals are tightened, and how rows over the target are bounded once they are.

A method is a frozen value with its own options. Whatever it is, its bounds are intersected with what intervals alone
say; ``lines`` gives the affine functions of the input that stand behind a result (constants, where there are none).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from bounds.ascent import OUTER, Asked, decide, optimise
from bounds.backward import LinearBounds, State, backward
from bounds.box import Box, LpBall
from bounds.concretize import concretize
from bounds.dual import each, recast
from bounds.forward import Functions
from bounds.interval import rows_interval, search_intervals
from bounds.joint import together
from bounds.layouts import Owner, Selection, flat
from bounds.ops.base import Interval as Ends
from bounds.ops.base import Parameters
from bounds.plan import Plan, prepare
from bounds.propagate import Tighten, chunk_rows, crown, propagate
from bounds.shared import optimised_within_memory


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
    slopes: Mapping[int, Parameters]


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What a method begins with: the graph (and a plan without error terms for searches, where there is one), boxes
    and balls in the plan's dtype; ``known``: intervals of watched nodes that hold on them."""

    plan: Plan
    search: Plan | None
    box: Box
    ball: LpBall | None
    known: Mapping[int, Ends] | None = None

    def propagated(self, tighten: Tighten | None, variables: Tensor | None = None) -> tuple[State, Tensor]:
        """Bounds and lines of all nodes, ``tighten``ed, with forward linear bounds in ``variables`` (flat places)."""
        return propagate(
            self.plan, self.box, inherited=self.known, tighten=tighten, variables=variables, ball=self.ball
        )


class Method(ABC):
    """How bounds are computed: ``Interval``, ``Forward``, ``Crown`` or ``Alpha``."""

    __slots__ = ()
    differentiable: ClassVar[bool] = True

    @abstractmethod
    def state(self, start: Start) -> tuple[State, Tensor]:
        """Bounds (and lines, where the method has any) of all nodes; ``[N]`` bool: boxes whose bounds cross."""

    @abstractmethod
    def bound(self, target: Target) -> Found:
        """Bounds of the target."""

    @abstractmethod
    def lines(self, target: Target) -> Lines:
        """Affine functions below and above the target."""


@dataclass(frozen=True, slots=True)
class Interval(Method):
    """Interval propagation alone: one forward pass, cheap and loose. Rows over an affine node meet its operand."""

    def state(self, start: Start) -> tuple[State, Tensor]:
        plan, box = start.plan, start.box
        if plan.rounding is not None:
            return start.propagated(None)
        zero = box.lower.new_zeros(())
        state = State(box, search_intervals(plan, box), {}, {}, {}, zero, ball=start.ball)
        return state, torch.zeros(box.size, dtype=torch.bool, device=plan.device)

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

    def state(self, start: Start) -> tuple[State, Tensor]:
        return start.propagated(None, _varying(start.box))

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
        return Lines(*functions.lines(box, _varying(box), target.plan.rounding))

    def _functions(self, target: Target) -> Functions:
        functions = target.state.functions[target.node]
        return functions if target.rows is None else functions.over_rows(target.rows, target.plan.rounding)


@dataclass(frozen=True, slots=True)
class Crown(Method):
    """Backward linear bounds of every unstable neuron and of the target (Zhang et al., CROWN, NeurIPS 2018)."""

    def state(self, start: Start) -> tuple[State, Tensor]:
        return start.propagated(crown)

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
    """As ``Crown``, with ``steps`` ascent steps on the parameters of all lines (the lower slopes of ReLUs, the slopes
    around smooth functions) for each neuron and each output by itself (Xu et al., alpha-CROWN, ICLR 2021).

    ``start``: the ``slopes`` of earlier bounds of the same target; what is asked for is then at least as good as what
    they give. Its bounds carry no gradient. ``ValueError`` for fewer than one step.

    Where parameters for each neuron do not fit into ``memory``, the neurons of a layer share theirs (``shared.py``);
    layers whose neurons would take more products than ``work.py`` allows keep CROWN's bounds.
    With ``joint`` those of all neurons climb together for the sum of the bounds that are asked for (``joint.py``): for
    small networks of ReLUs (``ValueError`` names another operator), from CROWN's parameters, and none are returned.
    """

    differentiable: ClassVar[bool] = False
    steps: int = 20
    start: Mapping[int, Parameters] | None = field(default=None, compare=False, repr=False)
    joint: bool = False

    def __post_init__(self) -> None:
        if self.joint and self.start is not None:
            raise ValueError("Alpha(joint=True) begins with CROWN's parameters: it takes no start")
        if not isinstance(self.steps, int):
            raise TypeError(f"Alpha takes a whole number of steps, not {self.steps!r}")
        if self.start is not None and not isinstance(self.start, Mapping):
            raise TypeError(f"start={self.start!r}: the slopes of earlier bounds are needed (found.slopes)")
        if self.steps < 1:
            raise ValueError(f"Alpha takes at least one step, not {self.steps}: Crown() takes none")

    def state(self, start: Start) -> tuple[State, Tensor]:
        if self.joint:
            return start.propagated(crown)
        return start.propagated(optimised_within_memory(_search(start.plan, start.search), self.steps))

    def bound(self, target: Target) -> Found:
        results = list(self._walks(target))
        if not results:  # a node without elements
            return Found(target.intervals(), {})
        found = torch.cat([bound for _, bound, _ in results], 2)
        slopes = {node: _together([part[node] for _, _, part in results]) for node in results[0][2]}
        return Found(target.ends(found), slopes)

    def lines(self, target: Target) -> Lines:
        return _joined(target, [_as_true(target, lines) for lines, _, _ in self._walks(target)])

    def _walks(self, target: Target) -> Iterator[tuple[LinearBounds, Tensor, Mapping[int, Parameters]]]:
        """Lines, bounds ``[N, 2, r]`` and parameters ``[N, 2, r, ...]`` of the rows and their negatives, in chunks."""
        plan, state = target.plan, target.state
        search, rows, boxes = _search(plan, target.search), target.written_out(), state.box.size
        if self.joint:
            yield together(search, plan, state, (target.node, rows), self.steps)
            return
        rough = recast(search, state)
        size, pace = max(1, chunk_rows(plan) // (8 * boxes)), replace(OUTER, steps=self.steps)
        for first in range(0, rows.shape[0], size):
            part = rows[first : first + size]
            signed = torch.cat([part, -part]).repeat(boxes, *[1] * (part.ndim - 1))
            owner = torch.arange(boxes, device=plan.device).repeat_interleave(2 * part.shape[0])

            def mine(values: Tensor) -> Tensor:
                return values[:, :, first : first + size].reshape(owner.shape[0], *values.shape[3:])  # noqa: B023

            start = {node: each(pair, mine) for node, pair in (self.start or {}).items()}
            asked = Asked(search, rough, target.node, signed.to(search.dtype), owner)
            found = optimise(asked, pace, start=start)
            lines, bound = decide(Asked(plan, state, target.node, signed, owner), found)

            def shaped(values: Tensor) -> Tensor:
                return values.reshape(boxes, 2, -1, *values.shape[1:])

            yield lines, shaped(bound), {node: each(pair, shaped) for node, pair in found.slopes.items()}


def _together(pairs: Sequence[Parameters]) -> Parameters:
    """Parameters of chunks of rows as one."""
    below = [pair[0] for pair in pairs if pair[0] is not None]
    above = [pair[1] for pair in pairs if pair[1] is not None]
    return torch.cat(below, 2) if below else None, torch.cat(above, 2) if above else None


def _varying(box: Box) -> Tensor:
    """Flat places of the inputs that are not fixed in every box."""
    return flat(box.upper > box.lower).any(0).nonzero().flatten()


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
