"""Better bounds of chosen neurons from the program itself, each proven from a solver's multipliers.

Neurons are taken node by node from the input on, so that later ones profit from earlier ones. The program of what a
node depends on is loaded once, and one element after the other is minimised and maximised: only the cost changes, and
the solver goes on from its last basis. The relaxation (phases anywhere between 0 and 1) is the triangle relaxation of
Ehlers (Formal verification of piece-wise linear feed-forward neural networks, ATVA 2017); with ``nodes`` a branch and
bound of so many programs follows, whose bound is proven too (Tjeng et al., Evaluating robustness with mixed integer
programming, ICLR 2019, section 4.2, with a limit of work in place of time).

The elements of one node do not depend on each other, so several processes can share them: each takes the next one of
the list when it has done its last. What a process answers is multipliers, and what these prove is found here.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Bounds, Box, Crown, Prepared, compute_bounds
from bounds.ops.base import Interval
from bounds.propagate import loose
from milp.encode import encode, with_cost
from milp.engine import NO_LIMITS, Limits
from milp.exact import Goal, Search
from milp.model import Model, Solution
from milp.process import ProcessRunner
from milp.recheck import Leaf, Prover, leaves
from milp.simplex import Simplex

PATIENCE = 3
"""Neurons one after the other without an answer for which a solver is still asked for the next."""


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """A better end of an element's interval (``upper``: the upper one), and the leaves of a search for the least of the
    element (of its negative) over its node's ``Layer``, which prove it."""

    element: int
    upper: bool
    leaves: tuple[Leaf, ...]


Keep = Callable[[int, Sequence[End]], None]
"""``(node, better ends of it)``: told of each node in turn."""


def tightened(  # noqa: PLR0913 - what it may take, and who is to know
    prepared: Prepared,
    box: Box,
    bounds: Bounds,
    neurons: Mapping[int, Sequence[int]],
    *,
    nodes: int = 1,
    seconds: float | None = None,
    runners: Sequence[ProcessRunner] = (),
    keep: Keep | None = None,
) -> Bounds:
    """``bounds`` with better intervals of ``neurons``: by node, which of its elements, the most important ones first
    (the time may end before the last; ``candidates`` finds them), and of what these intervals improve by a walk.

    Guarantees ``lower <= node(x) <= upper`` in real arithmetic for every x in the box ``[1, *input shape]``, and that
    no interval becomes wider. ``nodes``: linear programs for each end of each neuron (1: the relaxation alone).
    ``runners``: processes that share the neurons of a node (none: this process alone); where one dies or overruns, the
    neuron that it had keeps its interval. ``keep`` is told what proves each better end: ``Layer.applied`` proves it
    again. ``prepared`` and ``bounds`` (of the output) as ``milp.encode`` wants them; the same errors.
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    for node in sorted(neurons):
        if time.monotonic() >= until:
            break
        layer = Layer.of(prepared, box, bounds, node)
        found = layer.better(neurons[node], _Work(nodes, until), runners)
        if found:
            bounds = layer.with_ends(found)
            if keep is not None:
                keep(node, [end for end, _ in found])
    return bounds


@dataclass(frozen=True, slots=True)
class _Work:
    """Linear programs for an end, and when to stop."""

    nodes: int
    until: float


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The program (``model``, without a cost) of what a ``node`` depends on, over ``bounds`` that are known."""

    prepared: Prepared
    box: Box
    bounds: Bounds
    node: int
    model: Model
    prover: Prover

    @staticmethod
    def of(prepared: Prepared, box: Box, bounds: Bounds, node: int) -> Layer:
        """Encode it. Raises as ``milp.encode``."""
        part = replace(prepared, plan=prepared.plan.restricted((node,), node))
        model = encode(part, box, bounds)
        return Layer(prepared, box, bounds, node, model, Prover.of(model))

    def priced(self, element: int, upper: bool) -> Model:
        """With an element, or its negative, to be minimised."""
        row = torch.zeros_like(self.bounds.intervals[self.node][0][0])
        row.view(-1)[element] = -1.0 if upper else 1.0
        return with_cost(self.model, self.node, row)

    def proven(self, end: End) -> float:
        """The end that the leaves prove: not above (``upper``: not below) any value of the element. Whatever the
        multipliers are; infinite where the leaves do not cover the program."""
        bound = leaves(self.priced(end.element, end.upper), end.leaves, self.prover)
        return -bound if end.upper else bound

    def applied(self, ends: Iterable[End]) -> Bounds:
        """The bounds with what these ends prove, and with what a walk over them then improves."""
        return self.with_ends([(end, self.proven(end)) for end in ends])

    def with_ends(self, proven: Iterable[tuple[End, float]]) -> Bounds:
        """The same, where it is known what they prove."""
        low, high = (end.clone() for end in self.bounds.intervals[self.node])
        for end, bound in proven:
            at = (high if end.upper else low).view(-1)
            if math.isfinite(bound):
                at[end.element] = (
                    min(float(at[end.element]), bound) if end.upper else max(float(at[end.element]), bound)
                )
        known = replace(self.bounds, intervals={**self.bounds.intervals, self.node: (low, high)})
        return walked(self.prepared, self.box, known)

    def better(self, elements: Sequence[int], work: _Work, runners: Sequence[ProcessRunner]) -> list[tuple[End, float]]:
        """Ends of these elements that are better than the known ones, and what they prove."""
        waiting, found = _Waiting(elements), list[tuple[End, float]]()

        def take(relaxed: Simplex) -> None:
            failed = 0
            for element in waiting:
                ends = [self._end(relaxed, element, upper, work) for upper in (False, True)]
                proven = [(end, self.proven(end)) for end in ends]
                found.extend(pair for pair in proven if self._gains(*pair))
                failed = 0 if any(end.leaves for end in ends) else failed + 1
                if time.monotonic() >= work.until or failed >= PATIENCE:
                    return

        if not runners:
            take(Simplex(self.model))
        else:
            _side_by_side([_sharing(take, self.model, runner) for runner in runners], waiting, runners)
        return sorted(found, key=lambda pair: (pair[0].element, pair[0].upper))

    def _end(self, relaxed: Simplex, element: int, upper: bool, work: _Work) -> End:
        model, closed = self.priced(element, upper), list[Leaf]()
        search = Search(model, _Priced(relaxed, model.cost), Goal(dive=False), closed.append, work.until, self.prover)
        state = search.start()
        for reached in search.run(state):
            state = reached
            if state.nodes >= work.nodes or state.bound == -math.inf:
                break
        left = (Leaf(node.splits, node.dual) for node in state.left if node.dual is not None)
        return End(element, upper, (*closed, *left))

    def _gains(self, end: End, bound: float) -> bool:
        low, high = (float(e.view(-1)[end.element]) for e in self.bounds.intervals[self.node])
        return bound < high if end.upper else bound > low


def walked(prepared: Prepared, box: Box, bounds: Bounds) -> Bounds:
    """``bounds`` intersected with those of one CROWN walk for each node over their intervals."""
    found = compute_bounds(prepared, box, Crown(), keep=prepared.plan.watched, known=bounds.intervals)
    intervals = {
        node: _both(ends, found.intervals[node]) if node in found.intervals else ends
        for node, ends in bounds.intervals.items()
    }
    low, high = _both((bounds.lower, bounds.upper), (found.lower, found.upper))
    return replace(bounds, lower=low, upper=high, intervals=intervals)


def candidates(prepared: Prepared, bounds: Bounds, model: Model, dual: Tensor) -> dict[int, list[int]]:
    """By pre-activation that bounds may gain from (an affine function of the input has exact ones), its elements whose
    operators are relaxed, the one first whose phases cost the bound of ``model`` that ``dual`` ``[R]`` proves most, and
    of those that cost the same the widest.

    ``model``: the program of ``prepared`` over ``bounds`` with whatever was added to it.
    """
    plan, prover = prepared.plan, Prover.of(model)
    sizes, found = (model.value * dual[prover.row]).abs(), dict[int, list[int]]()
    for node in plan.watched:
        if node in plan.direct or node not in model.columns:
            continue
        columns = model.columns[node].flatten()
        own = torch.isin(model.node, torch.tensor(plan.consumers[node])) & (model.element < 0)
        held = own[model.index]
        rows = torch.zeros_like(model.row_lower).index_add_(0, prover.row[held], sizes[held])
        weight = torch.zeros_like(model.cost).index_add_(0, model.index, rows[prover.row])
        mine = torch.where(columns >= 0, weight[columns.clamp(min=0)], 0.0)
        low, high = bounds.intervals[node]
        open_ = loose(plan, bounds.intervals, node, (low, high)).flatten().nonzero().flatten()
        open_ = open_[(high - low).flatten()[open_].argsort(descending=True, stable=True)]
        found[node] = open_[mine[open_].argsort(descending=True, stable=True)].tolist()
    return {node: elements for node, elements in found.items() if elements}


def _both(one: Interval, other: Interval) -> Interval:
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])


class _Priced:
    """The relaxation with another cost than the one it was loaded with."""

    def __init__(self, relaxed: Simplex, cost: Tensor) -> None:
        self._relaxed, self._cost = relaxed, cost

    def solve(self, lower: Tensor, upper: Tensor, *, limits: Limits = NO_LIMITS) -> Solution:
        """As ``Simplex.solve``."""
        return self._relaxed.solve(lower, upper, self._cost, limits=limits)


class _Waiting:
    """Elements that are handed out one by one, to several threads. State: those that are left."""

    def __init__(self, elements: Sequence[int]) -> None:
        self._left, self._lock = list(reversed(elements)), threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                if not self._left:
                    return
                element = self._left.pop()
            yield element

    def close(self) -> None:
        """Hand out no more."""
        with self._lock:
            self._left.clear()


def _sharing(take: Callable[[Simplex], None], model: Model, runner: ProcessRunner) -> Callable[[], None]:
    return lambda: take(Simplex(model, runner.load))


def _side_by_side(parts: Sequence[Callable[[], None]], waiting: _Waiting, runners: Sequence[ProcessRunner]) -> None:
    """Run parts in threads of their own: the work is the processes'. An error of one, or here, ends all of them."""
    errors = list[BaseException]()

    def guarded(part: Callable[[], None]) -> None:
        try:
            with torch.no_grad():
                part()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            errors.append(error)
            waiting.close()

    threads = [threading.Thread(target=guarded, args=(part,), daemon=True) for part in parts]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        waiting.close()
        if any(thread.is_alive() for thread in threads):  # interrupted: a dead worker is an answer
            for runner in runners:
                runner.close()
            for thread in threads:
                thread.join()
    if errors:
        raise errors[0]
