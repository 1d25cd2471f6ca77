"""Branch and bound over linear programs whose every leaf is proven: an exact answer that trusts no solver.

A subproblem is the model with narrower ends of some integer columns. A linear program solver is asked for its
relaxation, and what counts of the answer is what ``recheck`` proves from its multipliers; a status, a value or a point
proves nothing. A subproblem is closed when its proven bound says so, else split at a column whose value is not whole
(or, where the solver has no answer or all are whole, at any that is not fixed), with both children sharing the split
value. One with nothing left to split that is not closed is kept as stuck: it counts in the bound, and is reported.

The column split is the one on which the multipliers of its rows weigh most: at the relaxation's optimum those that
want it greater and those that want it less balance, and a split takes one half away. (On networks with a hundred open
phases this needs half to an eighth of the subproblems of the least whole value, and a little fewer than pseudo-costs.)
Where no multiplier weighs on any of them, as on a plateau of the objective, it is the first, whose neuron is nearest to
the inputs. From the subproblem with the least bound the search goes down to the nearer child until one is closed, since
the solver is warm there.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from milp.engine import NO_LIMITS, Limits
from milp.model import Model, Solution, Status
from milp.recheck import Leaf, Prover, Split, ends, without_cost

WHOLE = 1e-6
"""How far a value may be from a whole number to be tried as one. Nothing that is claimed depends on it."""


class Relaxation(Protocol):
    """The linear program that is left of a model when integer columns may take any value."""

    def solve(self, lower: Tensor, upper: Tensor, *, limits: Limits = ...) -> Solution:
        """Minimise over these column ends ``[C]``, as ``milp.simplex.Simplex`` does."""


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What is asked: whether the minimum exceeds ``threshold``, or (None) the minimum to within ``gap``.

    ``evaluate`` gives what the function that the model stands for takes at a point ``[C]`` of the relaxation, or at one
    near it (inf: none): only that is a candidate. Without it, a point with whole values is one, with the model's own
    value, which holds to the solver's tolerance only. ``dive``: go down from a subproblem until one is closed, which
    finds candidates and keeps the solver warm; without it the one with the least bound is always next, and the bound
    of the whole rises soonest.
    """

    threshold: float | None = None
    gap: float = 1e-6
    evaluate: Callable[[Tensor], float] | None = None
    dive: bool = True

    def closes(self, bound: float, value: float) -> bool:
        """Whether a subproblem with this proven bound is done where the best candidate has this value."""
        return bound >= value - self.gap if self.threshold is None else bound > self.threshold

    def found(self, value: float) -> bool:
        """Whether a candidate with this value ends the search."""
        return self.threshold is not None and value <= self.threshold


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A subproblem: its ``splits``, the proven ``bound`` of the parent with the multipliers ``dual`` that prove it
    (None: no bound)."""

    splits: tuple[Split, ...] = ()
    bound: float = -math.inf
    dual: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SearchState:
    """Where a search stands. ``open``: a heap of (bound, number, subproblem); ``next``: the one to go down to first;
    ``value, x``: the best candidate; ``least``: of the bounds of closed ones."""

    open: tuple[tuple[float, int, Node], ...]
    next: Node | None
    stuck: tuple[Node, ...]
    value: float
    x: Tensor | None
    least: float
    nodes: int
    closed: int

    @property
    def left(self) -> tuple[Node, ...]:
        """The subproblems that are not closed: together with the closed ones they cover the model."""
        return (*(node for _, _, node in self.open), *([] if self.next is None else [self.next]), *self.stuck)

    @property
    def bound(self) -> float:
        """What is proven of the whole: the least bound of any subproblem, closed or not."""
        first = self.open[0][0] if self.open else math.inf
        following = self.next.bound if self.next is not None else math.inf
        return min([first, following, self.least, *(node.bound for node in self.stuck)])


class Outcome(Enum):
    """How a search ended."""

    PROVEN = "proven"  # the bound exceeds the threshold, or is within the gap of the value
    CANDIDATE = "candidate"  # the value does not exceed the threshold
    OPEN = "open"  # some subproblems are stuck: the bound is all that is known
    LIMIT = "limit"  # stopped before its end


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """``bound``: proven, at most the minimum over all inputs of the network that the model stands for; ``value, x``: of
    the best candidate (inf, None: none), which the caller replays. ``nodes`` linear programs were solved, ``closed``
    subproblems are proven, ``stuck`` ones have nothing left to split, ``left`` ones were not reached."""

    outcome: Outcome
    bound: float
    value: float
    x: Tensor | None
    nodes: int
    closed: int
    stuck: int
    left: int


class Search:
    """The search over one model. ``keep`` is given every closed leaf: ``recheck.leaves`` proves all of them again. No
    linear program goes on beyond the time ``until`` of ``time.monotonic``. ``prover``: of a model of the same rows."""

    def __init__(
        self,
        model: Model,
        relaxation: Relaxation,
        goal: Goal,
        keep: Callable[[Leaf], None] | None = None,
        until: float = math.inf,
        prover: Prover | None = None,
    ) -> None:
        self.model, self.relaxation, self.goal, self.keep, self.until = model, relaxation, goal, keep, until
        self.prover = Prover.of(model) if prover is None else replace(prover, model=model)
        self.refuter = replace(self.prover, model=without_cost(model))

    def start(self) -> SearchState:
        """The whole model, not bounded yet."""
        return SearchState((), Node(), (), math.inf, None, math.inf, 0, 0)

    def finished(self, state: SearchState) -> bool:
        """Whether a candidate ends the search, or nothing is left that could be bounded or split."""
        return self.goal.found(state.value) or (state.next is None and not state.open)

    def step(self, state: SearchState) -> SearchState:
        """Bound one subproblem: close it, split it, or set it aside as stuck. The state must not be finished."""
        node, heap = state.next, list(state.open)
        if node is None:
            node = heapq.heappop(heap)[2]
        state = replace(state, open=tuple(heap), next=None)
        if node.dual is not None and self.goal.closes(node.bound, state.value):
            return self._close(state, node.bound, Leaf(node.splits, node.dual))
        lower, upper = ends(self.model, node.splits)
        limits = NO_LIMITS if math.isinf(self.until) else Limits(seconds=max(self.until - time.monotonic(), 0.0))
        solution = self.relaxation.solve(lower, upper, limits=limits)
        if (
            solution.status is Status.LIMIT and time.monotonic() >= self.until
        ):  # says nothing: the subproblem waits as it was
            return replace(state, next=node, nodes=state.nodes + 1)
        bound, proof = self._proven(node, solution, lower, upper)
        state = self._tried(state, solution.x)
        if proof is not None and self.goal.closes(bound, state.value):
            return self._close(state, bound, proof)
        node = replace(node, bound=bound, dual=None if proof is None else proof.dual)
        if self.goal.found(state.value):
            return replace(state, next=node)
        return self._split(state, node, solution.x, lower, upper)

    def run(self, state: SearchState | None = None) -> Iterator[SearchState]:
        """Steps from a state (default: the start) until the end or the time is up; stop iterating to stop."""
        state = self.start() if state is None else state
        while not self.finished(state):
            state = self.step(state)
            yield state
            if time.monotonic() >= self.until:
                return

    def terminate(self, state: SearchState) -> Answer:
        """What a state says, finished or not."""
        if self.goal.found(state.value):
            outcome = Outcome.CANDIDATE
        elif self.goal.closes(state.bound, state.value):
            outcome = Outcome.PROVEN
        else:
            outcome = Outcome.OPEN if self.finished(state) else Outcome.LIMIT
        left = len(state.open) + (state.next is not None)
        return Answer(outcome, state.bound, state.value, state.x, state.nodes, state.closed, len(state.stuck), left)

    def _proven(self, node: Node, found: Solution, lower: Tensor, upper: Tensor) -> tuple[float, Leaf | None]:
        """The best bound of a subproblem, its own or its parent's, with what proves it."""
        inherited = None if node.dual is None else Leaf(node.splits, node.dual)
        if found.dual is None or found.dual.shape != self.model.row_lower.shape:
            return node.bound, inherited
        own = Leaf(node.splits, found.dual, ray=found.status == Status.INFEASIBLE)
        if own.ray:
            farkas = float(self.refuter.bounds(found.dual[None], lower[None], upper[None]))
            return (math.inf, own) if farkas > 0 else (node.bound, inherited)
        bound = float(self.prover.bounds(found.dual[None], lower[None], upper[None]))
        return (bound, own) if bound > node.bound else (node.bound, inherited)

    def _tried(self, state: SearchState, x: Tensor | None) -> SearchState:
        """One more linear program, whose point may be a better candidate."""
        state = replace(state, nodes=state.nodes + 1)
        if x is None:
            return state
        if self.goal.evaluate is not None:
            value = self.goal.evaluate(x)
        else:
            whole = x[self.model.integer]
            fits = bool(((whole - whole.round()).abs() <= WHOLE).all())
            value = float(self.model.cost @ x) + self.model.offset if fits else math.inf
        return replace(state, value=value, x=x) if value < state.value else state

    def _close(self, state: SearchState, bound: float, leaf: Leaf) -> SearchState:
        if self.keep is not None:
            self.keep(leaf)
        return replace(state, closed=state.closed + 1, least=min(state.least, bound))

    def _split(self, state: SearchState, node: Node, x: Tensor | None, lower: Tensor, upper: Tensor) -> SearchState:
        """The nearer child is next, the other one waits."""
        exact = torch.maximum(lower.abs(), upper.abs()) < 2**53  # else a split value and the next one may be one float
        free = (self.model.integer & exact & (upper - lower >= 1)).nonzero().flatten()
        if not free.shape[0]:
            return replace(state, stuck=(*state.stuck, node))
        point = (lower + upper) / 2 if x is None else torch.minimum(torch.maximum(x, lower), upper)
        column = int(free[self._promise(node, point, free).argmax()])
        at = float(point[column])
        value = int(min(max(math.floor(at), float(lower[column])), float(upper[column]) - 1))
        down, up = (replace(node, splits=(*node.splits, Split(column, value, side))) for side in (False, True))
        near, other = (up, down) if at - value > 0.5 else (down, up)
        heap = list(state.open)
        heapq.heappush(heap, (other.bound, 2 * state.nodes, other))
        if not self.goal.dive:
            heapq.heappush(heap, (near.bound, 2 * state.nodes - 1, near))
        return replace(state, open=tuple(heap), next=near if self.goal.dive else None)

    def _promise(self, node: Node, point: Tensor, free: Tensor) -> Tensor:
        """``[free]``: how much the multipliers weigh on each column; less than on any other where it is whole."""
        off = (point[free] - point[free].round()).abs()
        if node.dual is None:
            return off
        weight = self.prover.weight(node.dual)[free]
        return torch.where(off > WHOLE, weight, weight - weight.max() - 1)


def search(
    model: Model,
    relaxation: Relaxation,
    goal: Goal,
    *,
    nodes: int | None = None,
    seconds: float | None = None,
    keep: Callable[[Leaf], None] | None = None,
) -> Answer:
    """Run a search to its end, or until so many linear programs are solved or seconds have passed."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    work = Search(model, relaxation, goal, keep, until)
    last = work.start()
    for last in work.run():
        if nodes is not None and last.nodes >= nodes:
            break
    return work.terminate(last)
