"""How far a network's float32 results can be from its exact ones, over a whole set of inputs.

Let ``f(e)`` be the output when each node's result is perturbed by ``e``: ``f(0)`` is exact, and what float32 returns
is ``f(e)`` for some e within the error model of ``machine.py``. By the mean value theorem

    |f(e) - f(0)|  <=  sum over nodes  sup |d f / d node| e_node,

with the derivatives bounded over everything that a perturbed network can compute (``jacobian.py``, on bounds of
semantics "float32"). Errors of different nodes add up; those of one layer cancel in the derivative as they do in
the network, which interval propagation of errors would miss.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds import machine
from bounds.box import Box, LpBall
from bounds.compute import compute_bounds
from bounds.graph import Graph, Node
from bounds.interval import node_interval
from bounds.jacobian import derivative_ranges, seed_rows, walk
from bounds.layouts import flat
from bounds.methods import Crown, Method
from bounds.plan import prepare
from bounds.rounding import Rounding, plain_products


def forward_error(
    graph: Graph,
    box: Box | LpBall,
    method: Method = Crown(),  # noqa: B008 - a frozen value
    *,
    rows: Tensor | None = None,
) -> Tensor:
    """``[N, R]``: a bound of ``|computed - exact|`` of every output element, or of exact ``rows`` ``[R, *output]``
    over the output, at every float32 input of each box or ball, whatever the order of evaluation.

    ``exact`` is the real function of the graph's constants; ``computed`` is the graph in float32, as ``machine.py``
    assumes it. Infinite where nothing is known. Raises ``NoDerivativeError`` for operators with jumps (a rounding error
    may cross one), ``UnsupportedOperatorError`` for those without an error model, ``ValueError`` as ``compute_bounds``.
    """
    found = compute_bounds(graph, box, method, semantics="float32")
    rounding = Rounding.of(torch.float64)
    with torch.no_grad(), plain_products():
        plan = prepare(machine.stored(graph), torch.float64, found.lower.device, rounding)
        plan = replace(plan, machine=machine.SINGLE)
        ranges = derivative_ranges(plan, {i: found.at(i) for i in plan.watched})
        seeds = seed_rows(plan, rows)
        seeds = seeds.unsqueeze(0).expand(found.lower.shape[0], *seeds.shape)
        totals: list[Tensor] = []

        def reached(node: Node, centre: Tensor, radius: Tensor) -> None:
            _, error = node_interval(plan, node, found.intervals)
            if node.id in plan.relaxed:
                error = machine.roundoff(plan, node, found.intervals)
            if error is not None:
                # 0 times infinity is unknown, so NaN becomes infinite at the end.
                totals.append((flat(centre.abs() + radius, 2) * error.flatten()).sum(2))

        walk(plan, ranges, seeds, reached)
        terms = sum(int(torch.Size(n.shape).numel()) for n in plan.graph.nodes) + 16
        total = torch.stack(totals).sum(0) if totals else seeds.new_zeros(seeds.shape[:2])
        result = total * (1 + 4 * rounding.gamma(terms)) + terms * rounding.tiny
    return torch.nan_to_num(result, nan=torch.inf)
