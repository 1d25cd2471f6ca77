"""What linear bounds say about the inputs: smaller boxes, and clauses that no single literal refutes.

On a box the bounds give, for each literal of a clause, a line ``A x + d <= sign * form(x)``. A counterexample must
fulfil ``A x + d <= threshold`` for all literals of the clause at once. So each literal cuts the box (clipping), and a
non-negative combination of literals whose line stays positive refutes the clause (joint refutation). Everything here
is float64 and rounded outward; cuts are made per clause, and across the clauses of a box the hull is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bounds.rounding import Rounding

ROUNDING = Rounding.of(torch.float64)


def clip(rows: Tensor, slack: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes ``[P, f]`` cut by the L lines of one clause each.

    ``rows`` ``[P, L, f]``; ``slack`` ``[P, L]``: a true lower bound of (line minus threshold) on the box; NaN-free;
    literals that are absent have ``slack = -inf`` and cut nothing. Returns ends that contain every x of the box with
    all lines at most their thresholds; ``lower > upper`` somewhere: there is none. (The relaxed clipping of the
    field's verifiers, with outward rounding.)
    """
    room = ROUNDING.up(-slack).clamp(min=0).unsqueeze(-1)
    step = ROUNDING.up(room / rows.abs().clamp(min=1e-300))  # smaller coefficients cut nothing
    step = torch.nan_to_num(step, nan=torch.inf, posinf=torch.inf)  # nor do those that overflowed
    cut_above = torch.where(rows > 1e-300, ROUNDING.up(lower.unsqueeze(1) + step), torch.inf).amin(1)
    cut_below = torch.where(rows < -1e-300, ROUNDING.down(upper.unsqueeze(1) - step), -torch.inf).amax(1)
    return torch.maximum(lower, cut_below), torch.minimum(upper, cut_above)


def joint(rows: Tensor, slack: Tensor, lower: Tensor, upper: Tensor, steps: int = 12) -> Tensor:
    """``[P]``: a true lower bound of ``max over weights of min over the box of sum weights * (line - threshold)``.

    ``rows`` ``[P, L, f]``, ``slack`` ``[P, L]`` as in ``clip``. A positive value refutes the clause. The weights
    (non-negative, of sum about 1) follow the gradient, which is each line's value at the minimising corner.
    """
    present = torch.isfinite(slack)
    size = torch.maximum(lower.abs(), upper.abs())
    rows = torch.where(present.unsqueeze(-1), rows, 0.0)
    slack = torch.where(present, slack, 0.0)
    # line - threshold = rows x + constant, with a constant that is at most the true one
    least = (rows.clamp(min=0) * lower.unsqueeze(1) + rows.clamp(max=0) * upper.unsqueeze(1)).sum(2)
    lost = (rows.abs() * size.unsqueeze(1)).sum(2)
    constant = ROUNDING.down(slack - least - lost * (2 * ROUNDING.gamma(rows.shape[2] + 4)))
    scale = (rows.abs() * (upper - lower).unsqueeze(1)).sum(2).amax(1, keepdim=True).clamp(min=1e-300)
    logits = torch.where(present, torch.zeros_like(slack), -torch.inf)
    best = torch.full(slack.shape[:1], -torch.inf, dtype=slack.dtype, device=slack.device)
    for step in range(steps):
        weights = torch.softmax(logits, 1)
        combined = (weights.unsqueeze(-1) * rows).sum(1)
        value = (combined.clamp(min=0) * lower + combined.clamp(max=0) * upper).sum(1) + (weights * constant).sum(1)
        mass = (weights.unsqueeze(-1) * rows.abs()).sum(1)
        error = (mass * size).sum(1) + (weights * constant.abs()).sum(1)
        terms = rows.shape[1] + rows.shape[2] + 8
        best = torch.maximum(best, ROUNDING.down(value - error * (2 * ROUNDING.gamma(terms))))
        corner = torch.where(combined > 0, lower, upper)
        gradient = (rows * corner.unsqueeze(1)).sum(2) + constant
        logits = logits + torch.where(present, gradient / scale * (8.0 / (1 + step) ** 0.5), 0.0)
    return torch.where(torch.isnan(best), -torch.inf, best)
