"""The exact minimum of a linear functional of a network over a box, and what is proven of it.

Proven bounds of all neurons give the program, and ``settle.py`` works on it from both sides. Every point of the box is
a candidate, with the value that the network itself takes there: what is returned was attained, whatever a solver's
tolerances are.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Alpha, Bounds, Box, Graph, Prepared, compute_bounds, prepare
from milp.cuts import strengthened
from milp.encode import encode, with_cost
from milp.exact import Goal, Outcome
from milp.highs import InProcess, Runner, filled
from milp.model import Model
from milp.settle import Effort, Watch, settle, with_points

FILL_SHARE = 0.1
"""Of the time limit, what it may take to find the other columns of a point to begin with."""

CUT_SHARE, CUT_SECONDS = 0.1, 5.0
"""Of the time limit, what cuts of the program may take, and at most so long."""


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """``value``: what the functional takes at ``point`` ``[1, *input shape]``, computed in float64, the least that was
    found (inf, None: no point). ``bound``: proven, ``bound <= functional(x)`` for every x in the set, in real
    arithmetic over the stored weights. ``claimed``: the solver's bound, to its tolerances, which proves nothing (-inf:
    none).

    ``status``: PROVEN, ``value - bound`` is at most the gap; LIMIT, the time was up; OPEN, the proof got stuck (an
    envelope in place of an exact form, or the solver's arithmetic). ``nodes``: linear programs of the proof.
    ``failed``: why the solver's own search failed, where it did (a crash of its process, a model that it refuses).
    """

    value: float
    point: Tensor | None
    bound: float
    claimed: float
    status: Outcome
    nodes: int
    seconds: float
    failed: str = ""


def minimum(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    box: Box,
    row: Tensor,
    *,
    gap: float = 1e-6,
    seconds: float | None = None,
    envelope: float | None = None,
    point: Tensor | None = None,
    runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    watch: Watch | None = None,
) -> Optimum:
    """The minimum of ``row . output`` over one box ``[1, *input shape]``, for a row of the output's shape.

    The search ends where the proven bound is within ``gap`` of the least value found, or after ``seconds`` (bounds of
    the neurons come first and are not interrupted, then cuts: ``milp.cuts``). ``envelope``: how far the envelope of an
    operator without an exact form may be from it (None: such an operator is an error). ``point`` ``[1, *input shape]``:
    a point of the box to begin with, such as an attack's best. ``runner`` runs the solver's own search:
    ``milp.process.ProcessRunner`` in a process that is killed at its limit; the default in this process, where it can
    overrun ``seconds`` in presolve and at the root of its search, which nobody can interrupt (``milp.highs``); None:
    not at all. The linear programs of the proof run in this process and look at the clock at every iteration. ``watch``
    hears how far it is.

    Raises ``ValueError`` where shapes do not fit or a neuron has no finite bounds, ``UnsupportedOperatorError`` for an
    operator without an exact form.
    """
    start, shape = time.monotonic(), graph.nodes[graph.outputs[0]].shape
    if tuple(row.shape) != shape:
        raise ValueError(f"a row of shape {tuple(row.shape)} for an output of shape {shape}")
    encoded = Encoded.of(graph, box, envelope)
    rows = row.to(torch.float64).unsqueeze(0)
    known = float(compute_bounds(encoded.prepared, encoded.box, Alpha(), rows=rows).lower)
    effort = Effort(None if seconds is None else seconds - (time.monotonic() - start), runner, watch)
    found = encoded.minimum(row, effort, gap=gap, known=known, begin=point)
    return replace(found, seconds=time.monotonic() - start)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A graph on one box as a program without a cost, for the minima of several functionals; ``bounds``: proven ones of
    its output, on which the program rests."""

    graph: Graph
    box: Box
    prepared: Prepared
    bounds: Bounds
    model: Model

    @staticmethod
    def of(graph: Graph, box: Box, envelope: float | None = None) -> Encoded:
        """Bound all neurons and encode. Raises as ``minimum``."""
        prepared, box = prepare(graph), box.to(torch.float64)
        bounds = compute_bounds(prepared, box, Alpha(), keep=prepared.plan.watched)
        return Encoded(graph, box, prepared, bounds, encode(prepared, box, bounds, envelope))

    def minimum(
        self, row: Tensor, effort: Effort, *, gap: float = 1e-6, known: float = -math.inf, begin: Tensor | None = None
    ) -> Optimum:
        """``minimum`` of one functional, which is proven to be at least ``known``. ``begin``: a point to begin with."""
        start, row = time.monotonic(), row.to(torch.float64)
        model = with_cost(self.model, self.prepared.plan.output, row)
        model = self._cut(model, effort)
        inputs = model.columns[self.prepared.plan.input]

        def at(x: Tensor) -> Tensor:
            return x[inputs].reshape(self.box.lower.shape).clamp(self.box.lower, self.box.upper)

        def taken(point: Tensor) -> float:
            return float((row * self.graph.evaluate(point)[0]).sum())

        begin = None if begin is None else _inside(self.box, begin)
        best, first = math.inf, None
        if begin is not None:
            best, first = taken(begin), self._filled(model, begin.flatten(), effort)
        left = None if effort.seconds is None else effort.seconds - (time.monotonic() - start)
        effort = replace(effort, seconds=left, watch=with_points(effort.watch, at))
        goal = Goal(gap=gap, evaluate=lambda x: taken(at(x)))
        found = settle(model, goal, effort, known=known, best=best, first=first)
        answer = found.answer
        return Optimum(
            answer.value,
            begin if answer.x is None else at(answer.x),
            answer.bound,
            found.claimed,
            answer.outcome,
            answer.nodes,
            time.monotonic() - start,
            found.failed,
        )

    def _cut(self, model: Model, effort: Effort) -> Model:
        """The model with cuts, where finding them fits into a part of the time."""
        seconds = CUT_SECONDS if effort.seconds is None else min(CUT_SECONDS, effort.seconds * CUT_SHARE)
        return strengthened(model, seconds=seconds).model

    def _filled(self, model: Model, begin: Tensor, effort: Effort) -> Tensor | None:
        """A point to begin with, where the runner finds its other columns in a part of the time."""
        seconds = None if effort.seconds is None else effort.seconds * FILL_SHARE
        runner = InProcess() if effort.runner is None else effort.runner
        return filled(model, model.columns[self.prepared.plan.input], begin, runner=runner, seconds=seconds)


def _inside(box: Box, point: Tensor) -> Tensor:
    """A point to begin with, moved into the box. Raises ``ValueError`` for another shape."""
    if point.shape != box.lower.shape:
        raise ValueError(f"a point of shape {tuple(point.shape)} for a box of shape {tuple(box.lower.shape)}")
    return point.to(torch.float64).clamp(box.lower, box.upper)
