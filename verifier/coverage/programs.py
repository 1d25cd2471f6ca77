"""An input that meets a condition, as near to a given one as there is, by a linear or a mixed-integer program.

The program is that of the network up to the last neurons that the condition speaks of, over the region, with proven
bounds. The classical concolic step keeps every neuron before them on the linear piece on which it is at the given
input, which leaves a linear program (Sun et al., Concolic testing for deep neural networks, ASE 2018).
Without that the pieces are free and phases decide; then boxes around the input grow, since small ones have few phases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bounds import Bounds, Box, Crown, Graph, Prepared, compute_bounds, prepare
from bounds.constraints import Row
from bounds.ops.base import Interval
from milp.encode import encode
from milp.extend import with_rows
from milp.highs import Limits, solve
from milp.model import Model, Status
from milp.simplex import Simplex
from verifier.coverage.neurons import needed
from verifier.coverage.pieces import Piece, nearest_first, within
from verifier.coverage.requirements import Condition, Goal, Requirements
from verifier.coverage.running import Values
from verifier.exact.refusals import check_operators, explained

_KEPT = 256

PIECES = 8
"""Linear pieces that a step looks at, one beyond the other."""

_FARTHER = (0.5, 0.9)
"""Where between the nearest input and the end of its piece others are looked at."""

_BEYOND = 0.01
"""How far beyond the end of a piece the next one is looked up, as a share of the step."""

INSTEAD = "Random and gradient search (sampled, descended) take every operator"


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """The input that a program is made beside: its ``number``, the ``point`` ``[*shape]`` and its neurons' ``values``
    ``[1, size]``. Number -1: the values are those of another point, on whose piece the nearest to this one is
    wanted."""

    number: int
    point: np.ndarray
    values: Values


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """``point`` ``[*shape]`` float64 (None: none was found); ``beyond``: others that go farther on the same linear
    piece, where more may be met; ``refuted``: there is none, as bounds prove or the solver claims to its tolerances.
    Neither: the program was too large, or limits ended it."""

    point: np.ndarray | None
    refuted: bool
    beyond: tuple[np.ndarray, ...] = ()


class Programs:
    """The programs of a network over the region of some ``requirements``; ``prepared``: the network up to each of its
    layers. State: bounds of boxes and programs of pieces that were asked for, to be asked for again."""

    def __init__(self, requirements: Requirements, prepared: Mapping[int, Prepared]) -> None:
        self.requirements, self.prepared = requirements, prepared
        self._known: dict[tuple[int, int, float], Bounds] = {}
        self._pieces: dict[tuple[Any, ...], Piece | None] = {}
        self._flips: dict[tuple[int, int, int], bool] = {}

    def on_piece(self, condition: Condition, beside: Beside, limits: Limits) -> Answer:
        """The input of the region that is nearest to a given one in the maximum norm, of those that meet the condition
        on the same linear pieces of all earlier neurons that the condition leaves free. Where the piece holds none, of
        those on the next piece in the direction of the goal, and so on for a few."""
        domain = self.requirements.domain
        if condition.goal is None:
            cut = self._cut(condition, domain.bounds.intervals, beside)
            return self._solved(condition, beside, (domain.box, domain.bounds), cut, limits)
        if not all(self._reachable(node, condition, beside, limits) for node in condition.ends):
            return Answer(None, True)
        piece, at, before, reached = self._piece(condition, beside), beside, beside.point, -math.inf
        for _ in range(1 if condition.ends else PIECES):
            if piece is None:
                break
            most, x = piece.most(condition.goal, {}, limits)
            if x is not None and most >= condition.goal.sign * condition.goal.level:
                nearest = piece.nearest(condition.goal, limits)
                beyond = () if nearest is None else tuple(nearest + share * (x - nearest) for share in _FARTHER)
                return Answer(nearest, False, beyond)
            if x is None or most <= reached or condition.ends:
                break
            point = domain.moved(x + _BEYOND * (x - before))
            reached, before, at = most, x, self._at(point, beside)
            piece = self._piece(condition, at)
        return Answer(None, True)

    def _at(self, point: np.ndarray, beside: Beside) -> Beside:
        return replace(beside, number=-1, values=self.requirements.subject.values(point[None]))

    def _reachable(self, node: int, condition: Condition, beside: Beside, limits: Limits) -> bool:
        """Whether the neurons of a layer can keep to the condition's ends on this piece, one neuron that does not being
        moved as far as the others allow. What is known is known for all goals that follow."""
        low, high = condition.ends[node]
        found = beside.values[node][0]
        outside = ((found < low) | (found > high)).nonzero().flatten().tolist()
        if len(outside) != 1:
            return not outside
        one, key = outside[0], (node, beside.number, outside[0])
        if key not in self._flips:
            sign = 1.0 if found[one] < low[one] else -1.0
            goal = Goal(node, one, sign, float(low[one] if sign > 0 else high[one]))
            piece, free = self._piece(Condition(goal), beside), torch.full_like(low, math.inf)
            free[one] = -math.inf
            ends = torch.where(free < 0, free, low), torch.where(free < 0, -free, high)
            most = -math.inf if piece is None else piece.most(goal, {node: ends}, limits)[0]
            self._flips[key] = most >= goal.sign * goal.level
        return self._flips[key]

    def _piece(self, condition: Condition, beside: Beside) -> Piece | None:
        """The program of a piece, without the goal; None where nothing of it is left."""
        assert condition.goal is not None
        domain, node = self.requirements.domain, condition.goal.node
        found = [(k, (beside.values[k][0] < e[0]) | (beside.values[k][0] > e[1])) for k, e in condition.ends.items()]
        key = (node, beside.number, *((k, tuple(o.nonzero().flatten().tolist())) for k, o in found))
        if beside.number >= 0 and key in self._pieces:
            return self._pieces[key]
        cut = self._cut(replace(condition, goal=replace(condition.goal, level=-math.inf * condition.goal.sign)),
                        domain.bounds.intervals, beside)  # fmt: skip
        piece = None
        if cut is not None:
            source = self.prepared[node].plan.input
            model = nearest_first(self._model(node, domain.box, domain.bounds, cut), source, domain.box, beside.point)
            piece = Piece(model, Simplex(model), source, beside.point.shape)
        if beside.number >= 0:
            if len(self._pieces) >= _KEPT:
                self._pieces.clear()
            self._pieces[key] = piece
        return piece

    def whole(self, values: Values | None) -> Piece | None:
        """The program up to the last layer: on the linear piece with these ``values`` ``[1, size]``, or the linear
        relaxation over the region. None where nothing of the piece is left."""
        domain, layers = self.requirements.domain, self.requirements.subject.layers
        node, cut = layers[-1].node, dict[int, Interval]()
        if values is not None:
            kept = self._cut(Condition(ends={node: _free(layers[-1].size)}), domain.bounds.intervals,
                             Beside(-1, domain.lower, values))  # fmt: skip
            if kept is None:
                return None
            cut = kept
        model = self._model(node, domain.box, domain.bounds, cut)
        return Piece(model, Simplex(model), self.prepared[node].plan.input, domain.lower.shape)

    def _model(self, node: int, box: Box, bounds: Bounds, cut: Mapping[int, Interval]) -> Model:
        """The network up to a node over a box, where layers keep to the intervals of ``cut``."""
        with explained(INSTEAD):
            model = encode(self.prepared[node], box, replace(bounds, intervals={**bounds.intervals, **cut}))
        return within(model, cut)

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
            bounds = self._bounds(condition.nodes[-1], beside.number, share, box)
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
        node, (box, bounds) = condition.nodes[-1], region
        model, source = self._model(node, box, bounds, cut), self.prepared[node].plan.input
        if phases is not None and int(model.integer.sum()) > phases:
            return Answer(None, False)
        model = _apart(model, condition)
        found = solve(nearest_first(model, source, box, beside.point), limits)
        if found.x is None:
            return Answer(None, found.status is Status.INFEASIBLE)
        point = found.x[model.columns[source]].reshape(beside.point.shape)
        return Answer(point.numpy(), False)

    def _cut(
        self, condition: Condition, known: Mapping[int, Interval], piece: Beside | None
    ) -> dict[int, Interval] | None:
        """Proven intervals of layers, cut to the condition and to the ``piece`` that is kept; None: nothing is left."""
        deepest, graph = condition.nodes[-1], self.requirements.subject.graph
        reached, cut = needed(graph, deepest), dict[int, Interval]()
        if condition.above is not None and _behind(known, condition):
            return None
        for layer in self.requirements.subject.layers:
            if layer.node in condition.nodes and condition.above is None:
                low, high = condition.within(layer.node, layer.size)
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


def _free(size: int) -> tuple[Tensor, Tensor]:
    high = torch.full((size,), math.inf, dtype=torch.float64)
    return -high, high


def _up_to(graph: Graph, node: int) -> Graph:
    """The graph whose output is this node; ids stay as they are."""
    return replace(graph, nodes=graph.nodes[: node + 1], outputs=(node,))


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
