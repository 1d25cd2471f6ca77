"""Transformations as values, and the problems that they pose: parameters in a box, inputs clamped to a range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from verifier.attacks.goals import Goal
from verifier.attacks.oracle import Oracle
from verifier.attacks.rounding import inward
from verifier.attacks.threats import Boxes
from verifier.attacks.trial import Problem
from verifier.errors import InputError

Ends = tuple[float, float]


class Transform(Protocol):
    """A map of inputs with parameters, a frozen value."""

    @property
    def neutral(self) -> Tensor:
        """The parameters ``[d]`` (float64) at which every input stays as it is, exactly."""

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """Inputs ``[P, n]`` from inputs ``[P, n]`` and parameters ``[P, d]`` of the same type, each row by itself;
        differentiable in the parameters almost everywhere (or with a gradient that leads somewhere)."""


@dataclass(frozen=True, slots=True)
class Additive:
    """A change of each of the ``size`` elements."""

    size: int

    @property
    def neutral(self) -> Tensor:
        """Zeros."""
        return torch.zeros(self.size, dtype=torch.float64)

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """``x + theta``."""
        return x + theta


@dataclass(frozen=True, slots=True)
class Chain:
    """``first``, then ``second``; the parameters one after the other. GUAP (Zhang et al., ICDM 2020) is a flow, then an
    additive change."""

    first: Transform
    second: Transform

    @property
    def neutral(self) -> Tensor:
        """Those of both."""
        return torch.cat([self.first.neutral, self.second.neutral])

    def apply(self, x: Tensor, theta: Tensor) -> Tensor:
        """See ``Transform``."""
        cut = len(self.first.neutral)
        return self.second.apply(self.first.apply(x, theta[:, :cut]), theta[:, cut:])


@dataclass(frozen=True, slots=True, eq=False)
class Transformed:
    """The view of a problem: examples ``x`` ``[N, n]``, transformed and clamped to ``ends``."""

    transform: Transform
    x: Tensor
    ends: Ends = (-math.inf, math.inf)

    def __call__(self, theta: Tensor, who: Tensor) -> Tensor:
        """Inputs ``[P, n]`` at parameters ``[P, d]`` of the examples ``who`` ``[P]``."""
        return self.transform.apply(self.x[who], theta).clamp(*self.ends)


def transformed(
    oracle: Oracle, goal: Goal, view: Transformed, box: tuple[Tensor, Tensor], penalty: Penalty | None = None
) -> Problem:
    """N examples under a transformation whose parameters lie in ``box`` (two ends, float64, taken as exact numbers, of
    shapes that expand to ``[N, d]``), searched from the neutral ones. ``penalty`` ``[P, d] -> [P]`` is added to losses.

    Raises ``InputError`` where an end is crossed or an example lies outside of the range.
    """
    if bool(((view.x < view.ends[0]) | (view.x > view.ends[1])).any()):
        raise InputError(f"an example lies outside the data range [{view.ends[0]}, {view.ends[1]}]")
    return Problem(oracle, goal, parameter_box(view, box), view, penalty)


def parameter_box(view: Transformed, box: tuple[Tensor, Tensor], rows: int | None = None) -> Boxes:
    """The parameters of the examples' type in ``box``, for each example (or ``rows`` times)."""
    neutral = view.transform.neutral.to(view.x.device)
    shape = (len(view.x) if rows is None else rows, len(neutral))
    lower, upper = (end.to(neutral).expand(shape) for end in box)
    low, high = inward(lower, view.x.dtype), -inward(-upper, view.x.dtype)
    return Boxes.of(low, high, neutral.to(low.dtype).expand(shape))


Penalty = Callable[[Tensor, Tensor], Tensor]
"""A part ``[P]`` of the loss that depends on the parameters ``[P, d]`` (of the examples ``[P]``) alone."""
