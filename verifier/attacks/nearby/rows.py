"""What the attacks of this package have in common: rows that budgets pay for, linear models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.goals import Misclassified
from verifier.attacks.losses import Margin, TargetedMargin
from verifier.attacks.nearby.measure import Norm, dual
from verifier.attacks.rows import turns
from verifier.attacks.trial import Trial


def affordable(trial: Trial, who: Tensor, cost: int = 1) -> Tensor:
    """``[P]`` bool: rows of open examples whose budgets pay for ``cost`` evaluations of each, the first rows first."""
    if trial.budget is None and trial.distance is not None:  # examples are never done
        return torch.ones_like(who, dtype=torch.bool)
    keep = trial.is_open(who)
    if trial.budget is None:
        return keep
    return keep & ((turns(who) + 1) * cost <= trial.budget - trial.evaluations[who])


def targets(trial: Trial, who: Tensor, most: int) -> Tensor | None:
    """The ``most`` likeliest other classes ``[P, K]`` of each row's example; None for a goal without classes."""
    if not isinstance(trial.problem.goal, Misclassified):
        return None
    return trial.others(who)[:, :most]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """The linear model ``value + slope . change`` of the margin over that class whose plane is the nearest; ``margin``
    itself."""

    value: Tensor
    slope: Tensor
    margin: Tensor


def linear(trial: Trial, x: Tensor, who: Tensor, aims: Tensor | None, norm: Norm) -> Linear:
    """Models ``[P]`` at points ``[P, d]``; one evaluation for each of the classes ``aims`` ``[P, K]``, or one."""
    if aims is None:
        value, margin, slope = trial.descend(x, who, Margin())
        return Linear(value, slope, margin)
    rows, count = aims.shape
    value, margin, slope = trial.descend(
        x.repeat_interleave(count, 0), who.repeat_interleave(count), TargetedMargin(), aims.flatten()
    )
    value, slope = value.reshape(rows, count), slope.reshape(rows, count, -1)
    far = value.abs() / dual(slope, "2" if norm == "0" else norm).clamp(min=1e-30)
    near = torch.nan_to_num(far, nan=math.inf).argmin(1)
    each = torch.arange(rows, device=x.device)
    return Linear(value[each, near], slope[each, near], margin.reshape(rows, count)[:, 0])
