"""An input that meets a condition, as near to a given one as there is, by a linear or a mixed-integer program.

The program is that of the network up to the last neurons that the condition speaks of, over the region, with proven
bounds. The classical concolic step keeps every neuron before them on the linear piece on which it is at the given
input, which leaves a linear program (Sun et al., Concolic testing for deep neural networks, ASE 2018, section 6).
Without that the pieces are free and phases decide; then boxes around the input grow, since small ones have few phases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from bounds import Bounds, Box, Crown, Graph, Prepared, compute_bounds, prepare
from bounds.constraints import Row
from bounds.ops.base import Interval
from milp.encode import encode
from milp.extend import with_columns, with_rows
from milp.highs import Limits, solve
from milp.model import Model, Status
from verifier.coverage.neurons import needed
from verifier.coverage.requirements import Condition, Requirements
from verifier.coverage.running import Values
from verifier.exact.refusals import check_operators, explained

_KEPT = 256

INSTEAD = "Random and gradient search (sampled, descended) take every operator"


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """The input that a program is made beside: its ``number``, the ``point`` ``[*shape]`` and its neurons' ``values``
    ``[1, size]``."""

    number: int
    point: np.ndarray
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """``point`` ``[*shape]`` float64 (None: none was found); ``refuted``: there is none, as bounds prove or the solver
    claims to its tolerances. Neither: the program was too large, or limits ended it."""

    point: np.ndarray | None
    refuted: bool


class Programs:
    """The programs of a network over the region of some ``requirements``; ``prepared``: the network up to each of its
    layers. State: bounds of boxes that were asked for, to be asked for again."""

    def __init__(self, requirements: Requirements, prepared: Mapping[int, Prepared]) -> None:
        self.requirements, self.prepared = requirements, prepared
        self._known: dict[tuple[int, int, float], Bounds] = {}

    def on_piece(self, condition: Condition, beside: Beside, limits: Limits) -> Answer:
        """The input of the region that is nearest to a given one in the maximum norm, of those that meet the condition
        on the same linear pieces of all earlier neurons that the condition leaves free."""
        domain = self.requirements.domain
        cut = self._cut(condition, domain.bounds.intervals, beside)
        return self._solved(condition, beside, (domain.box, domain.bounds), cut, limits)

    def near(self, condition: Condition, beside: Beside, share: float, limits: Limits, phases: int) -> Answer:
        """The same, whatever the pieces, of those inputs that are no farther from the given one than a ``share`` of the
        region's greatest width. A small box has few neurons that can change at all, and bounds alone often prove that
        the condition is met nowhere in it. A program with more whole columns than ``phases`` is not solved."""
        domain = self.requirements.domain
        box, bounds = domain.box, domain.bounds
        if share < 1:
            centre = torch.from_numpy(beside.point.astype(np.float64))[None]
            reach = float((box.upper - box.lower).amax()) * share
            box = Box(torch.maximum(box.lower, centre - reach), torch.minimum(box.upper, centre + reach))
            bounds = self._bounds(condition.deepest, beside.number, share, box)
        cut = self._cut(condition, bounds.intervals, None)
        return self._solved(condition, beside, (box, bounds), cut, limits, phases)

    def _bounds(self, node: int, number: int, share: float, box: Box) -> Bounds:
        key = (node, number, share)
        if key not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            with explained(INSTEAD):
                self._known[key] = compute_bounds(self.prepared[node], box, Crown())
        return self._known[key]

    def _solved(
        self,
        condition: Condition,
        beside: Beside,
        region: tuple[Box, Bounds],
        cut: dict[int, Interval] | None,
        limits: Limits,
        phases: int | None = None,
    ) -> Answer:
        if cut is None:
            return Answer(None, True)
        prepared, (box, bounds) = self.prepared[condition.deepest], region
        with explained(INSTEAD):
            model = encode(prepared, box, replace(bounds, intervals={**bounds.intervals, **cut}))
        if phases is not None and int(model.integer.sum()) > phases:
            return Answer(None, False)
        model = _apart(_within(model, cut), condition)
        found = solve(_near(model, prepared.plan.input, box, beside.point), limits)
        if found.x is None:
            return Answer(None, found.status is Status.INFEASIBLE)
        point = found.x[model.columns[prepared.plan.input]].reshape(beside.point.shape)
        return Answer(point.numpy(), False)

    def _cut(
        self, condition: Condition, known: Mapping[int, Interval], piece: Beside | None
    ) -> dict[int, Interval] | None:
        """Proven intervals of layers, cut to the condition and to the ``piece`` that is kept; None: nothing is left."""
        deepest, graph = condition.deepest, self.requirements.subject.graph
        reached, cut = needed(graph, deepest), dict[int, Interval]()
        if condition.above is not None and _behind(known, condition):
            return None
        for layer in self.requirements.subject.layers:
            if layer.node in condition.ends:
                low, high = condition.ends[layer.node]
            elif piece is not None and layer.node in reached and layer.node != deepest:
                low, high = layer.phase(piece.values[layer.node][0])
            else:
                continue
            least, most = (end.flatten() for end in known[layer.node])
            low, high = torch.maximum(low, least), torch.minimum(high, most)
            if bool((low > high).any()):
                return None
            shape = (1, *graph.nodes[layer.node].shape)
            cut[layer.node] = low.reshape(shape), high.reshape(shape)
        return cut


def programs(requirements: Requirements) -> Programs:
    """Raises ``UnsupportedError`` where an operator up to the last layer has no exact form (it names all of them)."""
    subject = requirements.subject
    check_operators(_up_to(subject.graph, max(layer.node for layer in subject.layers)), INSTEAD)
    ready = {layer.node: prepare(_up_to(subject.graph, layer.node), torch.float64) for layer in subject.layers}
    return Programs(requirements, ready)


def _behind(known: Mapping[int, Interval], condition: Condition) -> bool:
    """Whether bounds alone prove that the one neuron is not ahead of some other."""
    assert condition.above is not None
    node, one, others = condition.above
    low, high = (end.flatten() for end in known[node])
    return bool((high[one] < low[others] + condition.margin).any())


def _up_to(graph: Graph, node: int) -> Graph:
    """The graph whose output is this node; ids stay as they are."""
    return replace(graph, nodes=graph.nodes[: node + 1], outputs=(node,))


def _within(model: Model, cut: Mapping[int, Interval]) -> Model:
    """The model with these intervals as ends of columns: a node that only moves elements has the columns of others."""
    lower, upper = model.lower.clone(), model.upper.clone()
    for node, (low, high) in cut.items():
        columns = model.columns.get(node)
        if columns is not None:
            there = columns >= 0
            lower.scatter_reduce_(0, columns[there], low.flatten()[there], "amax")
            upper.scatter_reduce_(0, columns[there], high.flatten()[there], "amin")
    return replace(model, lower=lower, upper=upper)


def _apart(model: Model, condition: Condition) -> Model:
    """The model of inputs at which one neuron is ahead of others."""
    if condition.above is None or not len(condition.above[2]):
        return model
    node, one, others = condition.above
    columns = model.columns[node]
    if bool((columns[others] == columns[one]).any()):  # the same value always: never ahead
        return with_rows(model, (Row(((torch.tensor([-1]), 1.0),), lower=1.0),))
    terms = ((columns[one].expand(len(others)), 1.0), (columns[others], -1.0))
    return with_rows(model, (Row(terms, lower=condition.margin),))


def _near(model: Model, source: int, box: Box, point: np.ndarray) -> Model:
    """The model that minimises the largest change of an input."""
    columns, centre = model.columns[source], torch.from_numpy(point.astype(np.float64)).flatten()
    reach = torch.maximum(box.upper.flatten() - centre, centre - box.lower.flatten()).amax().clamp(min=0)
    model, added = with_columns(model, torch.zeros(1, dtype=torch.float64), reach.reshape(1) * (1 + 2**-40))
    change, moves = added.expand(columns.shape), (box.upper > box.lower).flatten()
    columns, change, centre = columns[moves], change[moves], centre[moves]
    if len(columns):
        rows = (
            Row(((columns, 1.0), (change, -1.0)), upper=centre),
            Row(((columns, 1.0), (change, 1.0)), lower=centre),
        )
        model = with_rows(model, rows)
    return replace(model, cost=model.cost.index_fill(0, added, 1.0))
