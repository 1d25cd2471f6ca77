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


def multipliers(root: CondensedRoot, clause: int, signs: Tensor) -> Tensor | None:
    """``[U]`` float64, >= 0: betas of the half-spaces ``signs`` ``[U]`` (none of them 0) for one clause; None where the
    solver has no answer."""
    from scipy.optimize import linprog

    objective, planes = _affine(root, clause, signs)
    low, high = (flat(end)[0].double() for end in root.network.ends())
    side = signs.double()
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
    return torch.from_numpy(-found.ineqlin.marginals).clamp(min=0).to(signs.device)


def _affine(root: CondensedRoot, clause: int, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The objective ``[1 + n]`` and the pre-activations ``[1 + n, U]``: constant parts, then coefficients by input.

    From the values at 0 and at the unit vectors of the n inputs that vary."""
    network = root.network
    inputs, dtype = network.ends()[0].shape[1], network.plan.dtype
    points = torch.cat([torch.zeros((1, inputs), dtype=dtype), torch.eye(inputs, dtype=dtype)]).to(signs.device)
    outputs, planes = {network.plan.input: points}, points.new_zeros((1 + inputs, signs.shape[0]))
    for stage, place in reversed(root.order):
        (link,) = stage.sources
        values = link.up(outputs)
        if place is not None:
            planes[:, place.columns] = values[:, : stage.choices]
            values = values.clone()
            values[:, : stage.choices] *= signs[place.columns] > 0
        outputs[stage.node] = values
    objective = root.target.bias[clause].expand(1 + inputs)
    for node, part in root.target.parts.items():
        objective = objective + outputs[node] @ part[clause]
    objective, planes = objective.cpu().double(), planes.cpu().double()
    objective[1:] -= objective[:1].clone()
    planes[1:] -= planes[:1].clone()
    return objective, planes
