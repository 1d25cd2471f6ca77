"""What linear bounds say about the inputs: smaller boxes, and clauses that no single literal refutes.

On a box the bounds give, for each literal of a clause, a line ``A x + d <= sign * form(x)``. A counterexample must
fulfil ``A x + d <= threshold`` for all literals of the clause at once. So each literal cuts the box (clipping), and a
non-negative combination of literals whose line stays positive refutes the clause (joint refutation). Everything here
is float64 and rounded outward; cuts are made per clause, and across the clauses of a box the hull is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.rounding import Rounding

ROUNDING = Rounding.of(torch.float64)
STEPS = 11
"""Steps of the weights of three and more literals ..."""
MORE_STEPS = 100
"""... and where the lines are the network itself, so that nothing but better weights is gained any more."""


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


@dataclass(frozen=True, slots=True, eq=False)
class _Literals:
    """Lines ``rows x + constant <= line - threshold`` of P clauses on their boxes (rows and constants of absent ones
    are zero)."""

    rows: Tensor
    constant: Tensor
    present: Tensor
    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(rows: Tensor, slack: Tensor, lower: Tensor, upper: Tensor) -> _Literals:
        present = torch.isfinite(slack)
        rows = torch.where(present.unsqueeze(-1), rows, 0.0)
        size = torch.maximum(lower.abs(), upper.abs())
        least = (rows.clamp(min=0) * lower.unsqueeze(1) + rows.clamp(max=0) * upper.unsqueeze(1)).sum(2)
        lost = (rows.abs() * size.unsqueeze(1)).sum(2) * (2 * ROUNDING.gamma(rows.shape[2] + 4))
        constant = ROUNDING.down(torch.where(present, slack, 0.0) - least - lost)
        return _Literals(rows, torch.where(present, constant, 0.0), present, lower, upper)

    def combined(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows [P, K, f], slack [P, K])`` of the sums with weights ``[P, K, L]`` >= 0: a line below each weighted
        sum on the box, and a true lower bound of it (-inf where an absent literal has a weight)."""
        rows = weights @ self.rows
        low, high = self.lower.unsqueeze(1), self.upper.unsqueeze(1)
        value = (rows.clamp(min=0) * low + rows.clamp(max=0) * high).sum(2)
        value = value + (weights * self.constant.unsqueeze(1)).sum(2)
        size = torch.maximum(low.abs(), high.abs())
        error = ((weights @ self.rows.abs()) * size).sum(2) + (weights * self.constant.abs().unsqueeze(1)).sum(2)
        terms = self.rows.shape[1] + self.rows.shape[2] + 8
        tiny = 4 * terms * ROUNDING.tiny * (1 + size.sum(2))
        slack = ROUNDING.down(value - error * (2 * ROUNDING.gamma(terms)) - tiny)
        known = ((weights > 0) <= self.present.unsqueeze(1)).all(2) & ~torch.isnan(slack)
        return rows, torch.where(known, slack, -torch.inf)

    def gradient(self, rows: Tensor) -> Tensor:
        """``[P, L]``: each line where ``rows`` ``[P, f]`` is least (-inf: absent)."""
        corner = torch.where(rows > 0, self.lower, self.upper)
        value = (self.rows * corner.unsqueeze(1)).sum(2) + self.constant
        return torch.where(self.present, value, -torch.inf)

    def climb(self, steps: int) -> Tensor:
        """Weights ``[P, 1, L]`` that follow the gradient of the bound."""
        reach = (self.rows.abs() * (self.upper - self.lower).unsqueeze(1)).sum(2)
        scale = reach.amax(1, keepdim=True).clamp(min=1e-300)
        logits = torch.where(self.present, 0.0, -torch.inf).to(self.rows.dtype)
        best = torch.nan_to_num(torch.softmax(logits, 1)).unsqueeze(1)
        rows, top = self.combined(best)
        for step in range(steps):
            rise = torch.where(self.present, self.gradient(rows[:, 0]) / scale * (8.0 / (1 + step) ** 0.5), 0.0)
            logits = logits + rise
            weights = torch.nan_to_num(torch.softmax(logits, 1)).unsqueeze(1)
            rows, value = self.combined(weights)
            best = torch.where((value > top).unsqueeze(2), weights, best)
            top = torch.maximum(top, value)
        return best

    def towards(self, base: Tensor, partner: Tensor) -> Tensor:
        """Weights ``[P, 1 + f, L]`` on the way from those of ``base`` ``[P, 1, L]`` to the literal ``partner`` ``[P]``
        alone: the base, and the places where a coefficient is zero. The bound is greatest at one of them or at the
        partner itself, since it is concave and piecewise linear on the way."""
        one = torch.zeros_like(base).scatter_(2, partner.reshape(-1, 1, 1), 1.0)
        first, second = (base @ self.rows)[:, 0], (one @ self.rows)[:, 0]
        apart = first - second
        share = torch.where(apart.abs() > 1e-300, first / apart, 0.0)
        share = torch.where((share > 0) & (share < 1), share, 0.0).unsqueeze(2)
        return torch.cat([base, (1 - share) * base + share * one], 1)


def combine(rows: Tensor, slack: Tensor, lower: Tensor, upper: Tensor, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Lines that follow from all literals of a clause together: ``(rows [P, K, f], slack [P, K])`` of K weighted sums.

    ``rows`` ``[P, L, f]``, ``slack`` ``[P, L]`` as in ``clip``, which takes the results as further literals. Weights
    are non-negative, of sum about 1. Of two literals one sum has the greatest lower bound of all, exactly: it is one
    of at most f places between the two where a coefficient vanishes (or a literal alone, whose bound is ``slack``).
    With these the cuts of ``clip`` are those of both literals together ("complete clipping"). Of more literals the
    weights first follow the gradient, which is each line's value at the minimising corner, and then go towards the
    literal that is greatest there.
    """
    literals = _Literals.of(rows, slack, lower, upper)
    count = rows.shape[1]
    if count == 2:
        base = torch.eye(2, dtype=rows.dtype, device=rows.device)[:1].expand(rows.shape[0], 1, 2)
        return literals.combined(literals.towards(base, torch.ones_like(slack[:, 0], dtype=torch.int64)))
    base = literals.climb(steps)
    partner = literals.gradient((base @ literals.rows)[:, 0]).argmax(1)
    return literals.combined(literals.towards(base, partner))


def joint(rows: Tensor, slack: Tensor, lower: Tensor, upper: Tensor, steps: int = STEPS) -> Tensor:
    """``[P]``: a true lower bound of ``max over weights of min over the box of sum weights * (line - threshold)``.

    ``rows`` ``[P, L, f]``, ``slack`` ``[P, L]`` as in ``clip``. A positive value refutes the clause.
    """
    return combine(rows, slack, lower, upper, steps)[1].amax(1)
