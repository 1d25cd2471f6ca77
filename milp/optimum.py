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
from milp.encode import encode, with_cost
from milp.exact import Goal, Outcome
from milp.highs import InProcess, Runner, filled
from milp.model import Model
from milp.settle import Effort, Watch, settle, with_points


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """``value``: what the functional takes at ``point`` ``[1, *input shape]``, computed in float64, the least that was
    found (inf, None: no point). ``bound``: proven, ``bound <= functional(x)`` for every x in the set, in real
    arithmetic over the stored weights. ``claimed``: the solver's bound, to its tolerances, which proves nothing (-inf:
    none).

    ``status``: PROVEN, ``value - bound`` is at most the gap; LIMIT, the time was up; OPEN, the proof got stuck (an
    envelope in place of an exact form, or the solver's arithmetic). ``nodes``: linear programs of the proof.
    """

    value: float
    point: Tensor | None
    bound: float
    claimed: float
    status: Outcome
    nodes: int
    seconds: float


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
    the neurons come first and are not interrupted). ``envelope``: how far the envelope of an operator without an exact
    form may be from it (None: such an operator is an error). ``point`` ``[1, *input shape]``: a point of the box to
    begin with, such as an attack's best. ``runner`` runs the solver (``milp.process.ProcessRunner``: in a process that
    can be killed; None: not at all). ``watch`` hears how far it is.

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
        inputs = model.columns[self.prepared.plan.input]

        def at(x: Tensor) -> Tensor:
            return x[inputs].reshape(self.box.lower.shape).clamp(self.box.lower, self.box.upper)

        def value(x: Tensor) -> float:
            return float((row * self.graph.evaluate(at(x))[0]).sum())

        first = None if begin is None else filled(model, inputs, _inside(self.box, begin).flatten())
        effort = replace(effort, watch=with_points(effort.watch, at))
        found = settle(model, Goal(gap=gap, evaluate=value), effort, known=known, first=first)
        answer = found.answer
        return Optimum(
            answer.value,
            None if answer.x is None else at(answer.x),
            answer.bound,
            found.claimed,
            answer.outcome,
            answer.nodes,
            time.monotonic() - start,
        )


def _inside(box: Box, point: Tensor) -> Tensor:
    """A point to begin with, moved into the box. Raises ``ValueError`` for another shape."""
    if point.shape != box.lower.shape:
        raise ValueError(f"a point of shape {tuple(point.shape)} for a box of shape {tuple(box.lower.shape)}")
    return point.to(torch.float64).clamp(box.lower, box.upper)
