"""Criteria that ask something of single neurons: that it is active, leaves a range, is among the largest of its layer.

A criterion is a frozen value; ``requirements(subject, region)`` says what it asks for of a network over a region.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds import Box
from bounds.compute import Method
from verifier.coverage.domain import domain
from verifier.coverage.neurons import Layer
from verifier.coverage.requirements import Condition, Goal, Requirements
from verifier.coverage.running import Subject, Values
from verifier.errors import InputError

_LEAST = 0.01
"""The least gap by which a requirement is weighed, as a share of the neuron's proven range."""


@dataclass(frozen=True, slots=True, eq=False)
class Reaching(Requirements):
    """Requirement r: at some input ``sign[r] * value(neuron[r]) > sign[r] * limit[r]``; ``neuron`` ``[R]`` counts
    through all layers, ``limit`` is float64, ``sign`` 1 or -1."""

    neuron: Tensor
    sign: Tensor
    limit: Tensor

    def describe(self, number: int) -> str:
        layer, element = place(self.subject.layers, int(self.neuron[number]))
        relation = ">" if self.sign[number] > 0 else "<"
        return f"neuron {element} of {self.subject.name(layer)} {relation} {float(self.limit[number]):g}"

    def met(self, values: Values, since: int = 0) -> np.ndarray:
        found = _side_by_side(self.subject.layers, values)[since:, self.neuron]
        return ((found - self.limit) * self.sign > 0).any(0).numpy()

    def gaps(self, values: Values) -> Tensor:
        found = _side_by_side(self.subject.layers, values)[0, self.neuron]
        return (self.limit - found) * self.sign / widths(self)[self.neuron]

    def condition(self, number: int, values: Values, slack: float) -> Condition:
        neuron = int(self.neuron[number])
        layer, element = place(self.subject.layers, neuron)
        sign, limit = float(self.sign[number]), float(self.limit[number])
        return Condition(Goal(layer.node, element, sign, limit + sign * slack * float(widths(self)[neuron])))

    def pulls(self, values: Values, wanted: np.ndarray) -> Mapping[int, Tensor]:
        """Of two that pull at one neuron in both directions, only the nearer one does."""
        gaps, width = self.gaps(values), widths(self)
        nearest = torch.full_like(width, math.inf)
        weights = torch.zeros_like(width)
        for number in np.flatnonzero(wanted):
            neuron, gap = int(self.neuron[number]), max(float(gaps[number]), _LEAST)
            if gap < nearest[neuron]:
                nearest[neuron], weights[neuron] = gap, self.sign[number] / (gap * width[neuron])
        parts = weights.split([layer.size for layer in self.subject.layers])
        return {layer.node: part for layer, part in zip(self.subject.layers, parts, strict=True)}

    @property
    def alone(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class NeuronCoverage:
    """Neuron coverage (Pei et al., DeepXplore, SOSP 2017, section 4.1): for each neuron some input at which its
    pre-activation exceeds the ``threshold``. For a ReLU and a threshold >= 0 this is the paper's "output greater than
    the threshold", without its scaling by layers."""

    threshold: float = 0.0

    def requirements(self, subject: Subject, region: Box, method: Method | None = None) -> Reaching:
        """One requirement for each neuron. Raises ``InputError`` as ``domain`` does, and for a threshold that is no
        finite number."""
        if not math.isfinite(self.threshold):
            raise InputError(f"threshold {self.threshold}: a finite number is needed")
        known = domain(subject, region, method)
        high = torch.cat([known.ends(layer.node)[1] for layer in subject.layers])
        sign, limit = torch.ones_like(high), torch.full_like(high, self.threshold)
        neuron = torch.arange(subject.total)
        return Reaching(subject, known, (high <= self.threshold).numpy(), neuron, sign, limit)


@dataclass(frozen=True, slots=True, eq=False)
class BoundaryCoverage:
    """Neuron boundary coverage (Ma et al., DeepGauge, ASE 2018, definition 2): for each neuron an input at which its
    value lies above the range of a ``reference``, and one at which it lies below. The reference is a set of inputs
    ``[N, *shape]`` (the range that was seen on it), or a ``Box`` (the proven range over it)."""

    reference: np.ndarray | Box

    def requirements(self, subject: Subject, region: Box, method: Method | None = None) -> Reaching:
        """Two requirements for each neuron, first all "above", then all "below". Raises ``InputError`` as ``domain``
        does, and for a reference that does not fit."""
        known = domain(subject, region, method)
        low, high = self._range(subject, method)
        least, most = (torch.cat(ends) for ends in zip(*(known.ends(n.node) for n in subject.layers), strict=True))
        impossible = torch.cat([most <= high, least >= low]).numpy()
        neuron, ones = torch.arange(subject.total).repeat(2), torch.ones_like(low)
        return Reaching(subject, known, impossible, neuron, torch.cat([ones, -ones]), torch.cat([high, low]))

    def _range(self, subject: Subject, method: Method | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.reference, Box):
            known = domain(subject, self.reference, method)
            low, high = (torch.cat(e) for e in zip(*(known.ends(n.node) for n in subject.layers), strict=True))
            if not bool((low.isfinite() & high.isfinite()).all()):
                raise InputError("the reference box leaves a neuron without finite bounds: take a smaller one")
            return low, high
        given = subject.fitting(self.reference, "the reference inputs")
        if not len(given):
            raise InputError("the reference is a set of at least one input")
        seen = _side_by_side(subject.layers, subject.values(given))
        return seen.amin(0), seen.amax(0)


@dataclass(frozen=True, slots=True, eq=False)
class Leading(Requirements):
    """Requirement r: at some input neuron r is among the ``k`` largest of its layer, of equal ones those that come
    first."""

    k: int

    def describe(self, number: int) -> str:
        layer, element = place(self.subject.layers, number)
        return f"neuron {element} of {self.subject.name(layer)} among the {self.k} largest of its layer"

    def met(self, values: Values, since: int = 0) -> np.ndarray:
        parts = []
        for layer in self.subject.layers:
            found = torch.zeros(layer.size, dtype=torch.bool)
            found[_largest(values[layer.node][since:], self.k).flatten()] = True
            parts.append(found)
        return torch.cat(parts).numpy()

    def gaps(self, values: Values) -> Tensor:
        lags = []
        for layer in self.subject.layers:
            found = values[layer.node][0]
            last = found.topk(min(self.k, layer.size)).values[-1]
            lags.append(last - found)
        return torch.cat(lags) / widths(self)

    def condition(self, number: int, values: Values, slack: float) -> Condition:
        """All stay below it but the k - 1 others that are largest at the given input (enough, not necessary)."""
        layer, element = place(self.subject.layers, number)
        order = values[layer.node][0].argsort(descending=True, stable=True)
        others = order[order != element][self.k - 1 :]
        return Condition(None, {}, (layer.node, element, others), slack * float(widths(self)[number]))

    def pulls(self, values: Values, wanted: np.ndarray) -> Mapping[int, Tensor]:
        return {}

    @property
    def alone(self) -> bool:
        return self.k == 1


@dataclass(frozen=True, slots=True)
class TopCoverage:
    """Layer coverage, as top-k neurons (Ma et al., DeepGauge, ASE 2018, definition 4): for each neuron an
    input at which it is among the ``k`` largest of its layer (of equal ones those that come first). Layers of at most k
    neurons meet it with any input."""

    k: int = 1

    def requirements(self, subject: Subject, region: Box, method: Method | None = None) -> Leading:
        """One requirement for each neuron; impossible where k others are proven to be larger. Raises ``InputError`` as
        ``domain`` does, and for a k below 1."""
        if self.k < 1:
            raise InputError(f"k = {self.k}: a whole number from 1 on is needed")
        known = domain(subject, region, method)
        parts = []
        for layer in subject.layers:
            low, high = known.ends(layer.node)
            parts.append((low > high.unsqueeze(1)).sum(1) >= self.k)
        return Leading(subject, known, torch.cat(parts).numpy(), self.k)


def patterns(subject: Subject, inputs: np.ndarray, k: int = 1) -> int:
    """How many different top-k patterns (DeepGauge, definition 5) a set of inputs shows: the k largest neurons of every
    layer. There is no known total."""
    values = subject.values(subject.fitting(inputs))
    largest = [_largest(values[layer.node], k).sort(1).values for layer in subject.layers]
    return int(torch.cat(largest, 1).unique(dim=0).shape[0])


def place(layers: Sequence[Layer], neuron: int) -> tuple[Layer, int]:
    """The layer of a neuron that is counted through all layers, and its number there."""
    for layer in layers:
        if neuron < layer.size:
            return layer, neuron
        neuron -= layer.size
    raise IndexError(f"there are {sum(layer.size for layer in layers)} neurons")


def widths(requirements: Requirements) -> Tensor:
    """``[neurons]``: the proven ranges, 1 where one is a point or infinite."""
    ends = [requirements.domain.ends(layer.node) for layer in requirements.subject.layers]
    width = torch.cat([high - low for low, high in ends])
    return torch.where((width > 0) & width.isfinite(), width, 1.0)


def _side_by_side(layers: Sequence[Layer], values: Values) -> Tensor:
    return torch.cat([values[layer.node] for layer in layers], 1)


def _largest(values: Tensor, k: int) -> Tensor:
    """``[N, k]``: the numbers of the k largest, of equal ones the first."""
    return values.argsort(dim=1, descending=True, stable=True)[:, :k]
