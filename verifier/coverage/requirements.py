"""What is to be covered: requirements, each met or not by a set of inputs, and what has been met so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verifier.coverage.domain import Domain
from verifier.coverage.running import Subject, Values
from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Report:
    """Of ``total`` requirements ``covered`` are met, and ``impossible`` others are proven to be met by no input of the
    region, in exact arithmetic over the stored weights."""

    covered: int
    total: int
    impossible: int

    @property
    def share(self) -> float:
        """Covered of all, between 0 and 1."""
        return self.covered / self.total

    @property
    def share_of_possible(self) -> float:
        """Covered of those that are not proven impossible (1 where none is left)."""
        possible = self.total - self.impossible
        return self.covered / possible if possible else 1.0

    def __str__(self) -> str:
        return f"of {self.total}, {self.covered} covered, {self.impossible} proven impossible"


@dataclass(frozen=True, slots=True)
class Goal:
    """``sign * value >= sign * level`` for one neuron: the ``element`` of a layer's ``node``; ``sign`` is 1 or -1."""

    node: int
    element: int
    sign: float
    level: float


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """A set of neuron values: what an input is to bring about.

    ``goal``: of one neuron (None: nothing). ``ends``: by layer (its node) ends ``[size]`` that its neurons keep to.
    ``above``: neurons (layer, one, others ``[K]``), the one at least ``margin`` above each of the others.
    """

    goal: Goal | None = None
    ends: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    above: tuple[int, int, Tensor] | None = None
    margin: float = 0.0

    @property
    def nodes(self) -> tuple[int, ...]:
        """The layers that it speaks of, in order."""
        goal = () if self.goal is None else (self.goal.node,)
        return tuple(sorted({*self.ends, *goal, *(self.above[:1] if self.above else ())}))

    def within(self, node: int, size: int) -> tuple[Tensor, Tensor]:
        """The ends ``[size]`` of a layer's neurons, those of the goal among them."""
        high = torch.full((size,), math.inf, dtype=torch.float64)
        low, high = (e.clone() for e in self.ends.get(node, (-high, high)))
        if self.goal is not None and self.goal.node == node:
            (low if self.goal.sign > 0 else high)[self.goal.element] = self.goal.level
        return low, high

    def violation(self, values: Values) -> Tensor:
        """``[N]``: by how much values miss it, added up; 0 where they meet it. Differentiable."""
        total = torch.zeros(next(iter(values.values())).shape[0], dtype=torch.float64)
        for node in self.nodes:
            low, high = self.within(node, values[node].shape[1])
            total = total + ((low - values[node]).clamp(min=0) + (values[node] - high).clamp(min=0)).sum(1)
        if self.above is not None:
            node, one, others = self.above
            lead = values[node][:, one : one + 1] - values[node][:, others]
            total = total + (self.margin - lead).clamp(min=0).sum(1)
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Requirements(ABC):
    """All that one criterion asks for of a ``subject`` over a region (``domain``), numbered from 0.

    What each kind asks for, exactly, stands in its docstring. ``impossible`` ``[R]`` bool: requirements that no input
    of the region meets, proven by bounds in exact arithmetic over the stored weights.
    """

    subject: Subject
    domain: Domain
    impossible: np.ndarray

    @property
    def total(self) -> int:
        """R, their number."""
        return len(self.impossible)

    @abstractmethod
    def describe(self, number: int) -> str:
        """One requirement in words."""

    @abstractmethod
    def met(self, values: Values, since: int = 0) -> np.ndarray:
        """``[R]`` bool: which are met by the values of a set of inputs; requirements that are met without the inputs
        from ``since`` on may be left out."""

    @abstractmethod
    def gaps(self, values: Values) -> Tensor:
        """``[R]``: how far one input (values ``[1, size]``) is from meeting each requirement, in units of the proven
        ranges of its neurons; infinite where nothing can be said."""

    @abstractmethod
    def condition(self, number: int, values: Values, slack: float) -> Condition:
        """What an input must bring about to meet a requirement beside one input with these ``values`` ``[1, size]``
        (for pairs: together with it). ``slack``: by how much it is to be met, in units of the proven range."""

    @abstractmethod
    def pulls(self, values: Values, wanted: np.ndarray) -> Mapping[int, Tensor]:
        """By layer (its node) weights ``[size]`` of its neurons' values, whose sum grows as the ``wanted`` requirements
        ``[R]`` bool come nearer to being met by an input that has these ``values`` ``[1, size]``; empty where what one
        asks for depends on another input."""

    @property
    @abstractmethod
    def alone(self) -> bool:
        """Whether a condition does not depend on the input that it was made beside, and is no more than is asked."""

    def checked(self, inputs: np.ndarray) -> np.ndarray:
        """``[N, *shape]`` in the network's element type. Raises ``InputError`` for inputs that do not fit, or that lie
        outside of the region (it names the first)."""
        given = self.subject.fitting(inputs)
        outside = np.flatnonzero(~self.domain.inside(given))
        if len(outside):
            x = given[outside[0]]
            place = np.argwhere((x < self.domain.lower) | (x > self.domain.upper))[0]
            index = tuple(int(k) for k in place)
            ends = f"[{self.domain.lower[index]:g}, {self.domain.upper[index]:g}]"
            raise InputError(
                f"input {outside[0]} lies outside of the region: its element {list(index)} is {x[index]:g}, not in "
                f"{ends}; {len(outside)} of {len(given)} inputs do"
            )
        return given

    def covered(self, inputs: np.ndarray) -> np.ndarray:
        """``[R]`` bool: which requirements a set of inputs ``[N, *shape]`` meets, as the network computes them in its
        own element type. Raises ``InputError`` as ``checked`` does."""
        given = self.checked(inputs)
        if not len(given):
            return np.zeros(self.total, dtype=bool)
        return self.met(self.subject.values(given))

    def report(self, inputs: np.ndarray) -> Report:
        """What a set of inputs covers. Raises ``InputError`` as ``checked`` does."""
        return self.counted(self.covered(inputs))

    def counted(self, covered: np.ndarray) -> Report:
        """The report where ``covered`` ``[R]`` are met. Rounding of the network may meet what is impossible in exact
        arithmetic, by next to nothing: that counts as covered."""
        return Report(int(covered.sum()), self.total, int((self.impossible & ~covered).sum()))
