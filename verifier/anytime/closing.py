"""Boxes with few elements that are not linear, closed exactly: splits of phases, down to linear programs.

Splits of inputs alone do not close every box of a piecewise linear network: around a minimum where several neurons
have their kinks, some of them stay undecided in every box, however small. Splits of phases end after finitely many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Box, Crown, DomainError, compute_bounds
from bounds.compute import Method
from bounds.ops.base import UnsupportedOperatorError
from milp.encode import UnboundedError, encode, with_cost
from milp.exact import Goal, Search, SearchState
from milp.simplex import Simplex
from verifier.anytime.bounding import Ends, Function
from verifier.anytime.points import samples


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """``sign * f`` on one box as a program: the ``search`` over it, and the ``point`` ``[n]`` of a solution."""

    search: Search
    point: Callable[[Tensor], Tensor]

    @staticmethod
    def of(function: Function, ends: Ends, sign: float, gap: float, method: Method) -> Program:
        """Of a box with ``ends`` ``[1, n]``; neurons are bounded by ``method``. Raises ``UnsupportedOperatorError`` for
        an operator without an exact form, ``UnboundedError`` for a neuron without finite bounds."""
        prepared, domain = function.prepared, function.domain
        part = domain.part(*ends)
        known = compute_bounds(prepared, part, method)
        output, shape = prepared.plan.output, prepared.plan.graph.nodes[prepared.plan.output].shape
        encoded = encode(prepared, part if isinstance(part, Box) else part.box(), known)
        model = with_cost(encoded, output, torch.full(shape, sign, dtype=torch.float64))
        inputs = model.columns[prepared.plan.input]

        def point(x: Tensor) -> Tensor:
            return domain.inside(x[inputs].clamp(ends[0][0], ends[1][0]).unsqueeze(0))[0]

        goal = Goal(gap=gap / 2, evaluate=lambda x: sign * float(function.values(point(x).unsqueeze(0))))
        return Program(Search(model, Simplex(model), goal), point)

    def run(self, state: SearchState, value: float, nodes: int) -> SearchState:
        """A state after at most so many further linear programs, where ``value`` is attained somewhere."""
        last = state.nodes + nodes
        state = state if value >= state.value else replace(state, value=value, x=None)
        while not self.search.finished(state) and state.nodes < last:
            state = self.search.step(state)
        return state


def program_of(function: Function, ends: Ends, sign: float, gap: float, method: Method) -> Program | None:
    """``Program.of``; None where there is none, or where rounding leaves open whether the part has a point at all."""
    if not bool(function.domain.certain(*ends).all()):
        return None
    try:
        return Program.of(function, ends, sign, gap, method)
    except (UnsupportedOperatorError, UnboundedError, DomainError):
        return None


def encodable(function: Function) -> bool:
    """Whether the function has an exact form, asked of one point of the region."""
    point = samples(function.domain, 0)[:1]
    return bool(point.isfinite().all()) and program_of(function, (point, point), 1.0, 1.0, Crown()) is not None
