"""Better bounds of chosen neurons from the program itself, each proven from a solver's multipliers.

Neurons are taken node by node from the input on, so that later ones profit from earlier ones. The program of what a
node depends on is loaded once, and one element after the other is minimised and maximised: only the cost changes, and
the solver goes on from its last basis. The relaxation (phases anywhere between 0 and 1) is the triangle relaxation of
Ehlers (Formal verification of piece-wise linear feed-forward neural networks, ATVA 2017); with ``nodes`` a branch and
bound of so many programs follows, whose bound is proven too (Tjeng et al., Evaluating robustness with mixed integer
programming, ICLR 2019, section 4.2, with a limit of work in place of time).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bounds import Bounds, Box, Prepared
from bounds.ops.base import Interval
from milp.encode import encode, with_cost
from milp.engine import NO_LIMITS, Limits
from milp.exact import Goal, search
from milp.model import Model, Solution
from milp.recheck import lower_bound
from milp.simplex import Simplex


def tightened(
    prepared: Prepared,
    box: Box,
    bounds: Bounds,
    neurons: Mapping[int, Sequence[int]],
    *,
    nodes: int = 1,
    seconds: float | None = None,
) -> dict[int, Interval]:
    """Intervals of all nodes as in ``bounds``, with better ones of ``neurons``: by node, which of its elements, the
    most important ones first (the time may end before the last).

    Guarantees ``lower <= node(x) <= upper`` in real arithmetic for every x in the box ``[1, *input shape]``, and that
    no interval becomes wider. ``nodes``: linear programs for each end of each neuron (1: the relaxation alone).
    ``prepared`` and ``bounds`` as ``milp.encode`` wants them; the same errors.
    """
    until = None if seconds is None else time.monotonic() + seconds
    found: dict[int, Interval] = dict(bounds.intervals)
    for node in sorted(neurons):
        part = replace(prepared, plan=prepared.plan.restricted((node,), node))
        model = encode(part, box, replace(bounds, intervals=found))
        relaxed, (low, high) = Simplex(model), (end.clone() for end in found[node])
        for element in neurons[node]:
            if until is not None and time.monotonic() >= until:
                found[node] = low, high
                return found
            for end, sign in ((low, 1.0), (high, -1.0)):
                row = torch.zeros_like(low)
                row.view(-1)[element] = sign
                bound = sign * _least(with_cost(model, node, row[0]), relaxed, nodes)
                at = end.view(-1)
                at[element] = max(float(at[element]), bound) if sign > 0 else min(float(at[element]), bound)
        found[node] = low, high
    return found


class _Priced:
    """The relaxation with another cost than the one it was loaded with."""

    def __init__(self, relaxed: Simplex, cost: Tensor) -> None:
        self._relaxed, self._cost = relaxed, cost

    def solve(self, lower: Tensor, upper: Tensor, *, limits: Limits = NO_LIMITS) -> Solution:
        """As ``Simplex.solve``."""
        return self._relaxed.solve(lower, upper, self._cost, limits=limits)


def _least(model: Model, relaxed: Simplex, nodes: int) -> float:
    """A proven lower bound of the program's minimum; ``relaxed`` has its rows."""
    if nodes > 1:
        return search(model, _Priced(relaxed, model.cost), Goal(), nodes=nodes).bound
    dual = relaxed.solve(cost=model.cost).dual
    return -math.inf if dual is None else lower_bound(model, dual)
