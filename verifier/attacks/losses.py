"""What attacks descend on. A loss need not be the margin: it only has to lead to where the margin is small.

All are to be made small. ``target`` ``[P]`` is the class that a targeted loss aims at. Outputs count as scores,
whatever their scale is; the difference-of-logits ratios do not change where scores are scaled or shifted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from verifier.attacks.goals import Goal


class Loss(Protocol):
    """``value`` ``[P]`` of outputs ``[P, F]`` for the examples ``who`` ``[P]``; ``targeted``: it wants a target."""

    @property
    def targeted(self) -> bool:
        """Whether each point aims at one class."""

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """To be made small, differentiable in ``outputs``. Raises ``InputError`` where the goal has no classes and the
        loss needs them."""


@dataclass(frozen=True, slots=True)
class Margin:
    """The goal's own margin: for classes the hinge-free loss of Carlini and Wagner (S&P 2017, f6), for properties the
    largest literal of a clause."""

    targeted: ClassVar[bool] = False

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``."""
        return goal.margin(outputs, who)


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The log-probability of the label under softmax (Goodfellow et al., ICLR 2015)."""

    targeted: ClassVar[bool] = False

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``."""
        return outputs.log_softmax(1).gather(1, goal.labels(who)[:, None]).squeeze(1)


@dataclass(frozen=True, slots=True)
class Dlr:
    """Difference of logits ratio, (z_y - max_{i != y} z_i) / (z_1 - z_3) with z_1 >= z_2 >= z_3 (Croce and Hein, ICML
    2020, equation 6, negated); with two classes the numerator alone."""

    targeted: ClassVar[bool] = False

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``."""
        label = goal.labels(who)[:, None]
        gap = outputs.gather(1, label).squeeze(1) - outputs.scatter(1, label, -math.inf).amax(1)
        if outputs.shape[1] < 3:
            return gap
        most = outputs.topk(3, dim=1).values
        return gap / (most[:, 0] - most[:, 2]).clamp(min=1e-12)


@dataclass(frozen=True, slots=True)
class TargetedMargin:
    """The label's score less the target's (multi-targeted attack, Gowal et al., 2019)."""

    targeted: ClassVar[bool] = True

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``."""
        assert target is not None
        label = goal.labels(who)[:, None]
        return (outputs.gather(1, label) - outputs.gather(1, target[:, None])).squeeze(1)


@dataclass(frozen=True, slots=True)
class TargetedDlr:
    """(z_y - z_t) / (z_1 - (z_3 + z_4) / 2) (Croce and Hein, ICML 2020, equation 7); the numerator alone where there
    are fewer than four classes."""

    targeted: ClassVar[bool] = True

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``."""
        gap = TargetedMargin().value(goal, outputs, who, target)
        if outputs.shape[1] < 4:
            return gap
        most = outputs.topk(4, dim=1).values
        return gap / (most[:, 0] - (most[:, 2] + most[:, 3]) / 2).clamp(min=1e-12)


def finite(gradient: Tensor) -> Tensor:
    """A gradient with 0 where it is not finite: no information there."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
