"""Subproblems with nothing left to split: a linear program, whose multipliers go into one more deciding pass.

Where every unstable ReLU is split the network is affine, and the subproblem is to minimise a line over the box and its
half-spaces. A solver's answer proves nothing; but its multipliers of the half-spaces are the betas of a backward walk
over the same lines, and what that walk proves with error terms counts. So that a subproblem without any point has
finite multipliers too, the half-spaces may be violated by some amount at a high price.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.layouts import flat
from verifier.branch.condensed_splits import CondensedRoot

PRICE = 1e3
"""Of violating a half-space by 1, as a multiple of how far the objective varies over the box (and of 1)."""


def multipliers(root: CondensedRoot, clause: int, signs: Tensor, sides: Tensor) -> Tensor | None:
    """``[U]`` float64, >= 0: betas of the half-spaces ``signs`` ``[U]`` (0: none, and no multiplier) for one clause;
    None where the solver has no answer. ``sides`` ``[U]``: on which side of 0 every position lies, none of them 0."""
    from scipy.optimize import linprog

    objective, planes = _affine(root, clause, sides)
    split = (signs != 0).nonzero().flatten()
    planes, result = planes[:, split], torch.zeros(signs.shape, dtype=torch.float64, device=signs.device)
    low, high = (flat(end)[0].double() for end in root.network.ends())
    side = signs[split].double()
    price = PRICE * float(1 + (objective[1:].abs() * (high - low)).sum())
    matrix = torch.cat([-(side * planes[1:]).T, -torch.ones((side.shape[0], 1), dtype=torch.float64)], 1)
    found = linprog(
        torch.cat([objective[1:], objective.new_full((1,), price)]).numpy(),
        A_ub=matrix.numpy(),
        b_ub=(side * planes[0]).numpy(),
        bounds=[*zip(low.tolist(), high.tolist(), strict=True), (0, None)],
        method="highs",
    )
    if found.status != 0:
        return None
    result[split] = torch.from_numpy(-found.ineqlin.marginals).clamp(min=0).to(signs.device)
    return result


def _affine(root: CondensedRoot, clause: int, sides: Tensor) -> tuple[Tensor, Tensor]:
    """The objective ``[1 + n]`` and the pre-activations ``[1 + n, U]``: constant parts, then coefficients by input.

    From the values at 0 and at the unit vectors of the n inputs that vary."""
    network = root.network
    inputs, dtype = network.ends()[0].shape[1], network.plan.dtype
    points = torch.cat([torch.zeros((1, inputs), dtype=dtype), torch.eye(inputs, dtype=dtype)]).to(sides.device)
    outputs, planes = {network.plan.input: points}, points.new_zeros((1 + inputs, sides.shape[0]))
    for stage, place in reversed(root.order):
        (link,) = stage.sources
        values = link.up(outputs)
        if place is not None:
            planes[:, place.columns] = values[:, : stage.choices]
            values = values.clone()
            values[:, : stage.choices] *= sides[place.columns] > 0
        outputs[stage.node] = values
    objective = root.target.bias[clause].expand(1 + inputs)
    for node, part in root.target.parts.items():
        objective = objective + outputs[node] @ part[clause]
    objective, planes = objective.cpu().double(), planes.cpu().double()
    objective[1:] -= objective[:1].clone()
    planes[1:] -= planes[:1].clone()
    return objective, planes
