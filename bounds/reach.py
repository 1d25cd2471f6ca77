"""Which elements of which nodes some rows of the output can depend on at all.

Rows of a few outputs of a convolutional network read a part of every image: bounds of the other elements change
nothing in theirs. The part is found by one step back over each node, with absolute values in place of coefficients, so
that nothing cancels. Only time hangs on it: an element that were left out wrongly would keep the bounds it has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection, flat
from bounds.ops.affine import Affine
from bounds.ops.base import Nonlinear
from bounds.plan import Plan
from bounds.propagate import Tighten


def reached(plan: Plan, rows: Tensor) -> dict[int, Tensor]:
    """For each node that the rows ``[R, *output shape]`` depend on, which elements: ``[*shape]`` bool."""
    found = {plan.output: (rows != 0).any(0)}
    for node in reversed(plan.graph.nodes):
        if node.id not in found or node.id not in plan.operands:
            continue
        op, constants, here = node.op, plan.operands[node.id], found[node.id]
        for position, (source, constant) in enumerate(zip(node.inputs, constants, strict=True)):
            if constant is not None:
                continue
            shape = plan.graph.nodes[source].shape
            if isinstance(op, Affine) and node.id in plan.affine:
                sizes = [None if c is None else c.abs() for c in constants]
                part = op.pullback(here.to(plan.dtype).unsqueeze(0), position, sizes, shape)[0] != 0
            elif isinstance(op, Nonlinear) and op.elementwise and shape == here.shape:
                part = here
            else:
                part = torch.ones(shape, dtype=torch.bool, device=plan.device)
            found[source] = found[source] | part if source in found else part
    return found


def within(tighten: Tighten, reach: dict[int, Tensor]) -> Tighten:
    """A ``Tighten`` that asks for the elements in reach alone; of the others nothing is said (-inf)."""

    def tighten_some(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        count = units.count()
        mask = reach.get(node)
        if mask is not None and bool(mask.all()):
            return tighten(plan, state, node, units, owner)
        first = units.index[:count]
        chosen = first[:0] if mask is None else flat(mask, 0)[first].nonzero().flatten()
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        if chosen.shape[0]:
            places = torch.cat([chosen, chosen + count]) if units.mirrored else chosen
            result[places] = tighten(plan, state, node, units.take(chosen), owner[places])
        return result

    return tighten_some
