"""Sign-sign coverage: the MC/DC criterion of software testing for neurons of adjacent layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

_CHUNK = 1 << 24

_MOST = 1 << 25
"""Pairs of neurons that fit into memory several times as float64."""


@dataclass(frozen=True, slots=True)
class Adjacent:
    """Two layers, one after the other; their pairs of neurons are numbered from ``first`` on, the earlier layer's
    neuron first."""

    earlier: Layer
    later: Layer
    first: int

    @property
    def count(self) -> int:
        """How many pairs."""
        return self.earlier.size * self.later.size


@dataclass(frozen=True, slots=True, eq=False)
class SignSign(Requirements):
    """Requirement r is a pair of neurons (i, j) of ``adjacent`` layers k and k + 1. See ``SignSignCoverage``."""

    adjacent: tuple[Adjacent, ...]

    def describe(self, number: int) -> str:
        pair, i, j = self.place(number)
        name = self.subject.name
        return (
            f"neuron {i} alone of {name(pair.earlier)} changes its sign, and so does neuron {j} of {name(pair.later)}"
        )

    def place(self, number: int) -> tuple[Adjacent, int, int]:
        """The layers of a requirement, and its two neurons."""
        pair = next(p for p in reversed(self.adjacent) if p.first <= number)
        return pair, *divmod(number - pair.first, pair.later.size)

    def met(self, values: Values, since: int = 0) -> np.ndarray:
        result = torch.zeros(self.total, dtype=torch.bool)
        for pair in self.adjacent:
            one, two = (_signs(layer, values) for layer in (pair.earlier, pair.later))
            whole = result[pair.first : pair.first + pair.count].view(pair.earlier.size, pair.later.size)
            step = max(1, _CHUNK // (one.shape[0] * pair.earlier.size))
            for start in range(since, one.shape[0], step):
                rows = slice(start, start + step)
                differs = one[rows].unsqueeze(1) != one.unsqueeze(0)
                new, old = (differs.sum(2) == 1).nonzero(as_tuple=True)
                changed = differs[new, old].int().argmax(1)
                for i in changed.unique().tolist():
                    here = changed == i
                    whole[i] |= (two[rows][new[here]] != two[old[here]]).any(0)
        return result.numpy()

    def gaps(self, values: Values) -> Tensor:
        parts = []
        for pair in self.adjacent:
            one, two = (self._distances(layer, values) for layer in (pair.earlier, pair.later))
            parts.append(torch.maximum(one.unsqueeze(1), two.unsqueeze(0)).flatten())
        return torch.cat(parts)

    def condition(self, number: int, values: Values, slack: float) -> Condition:
        pair, i, j = self.place(number)
        kink, low, high = _kink(pair.later), *self.domain.ends(pair.later.node)
        sign = -1.0 if values[pair.later.node][0, j] >= kink else 1.0
        width = float(high[j] - low[j])
        goal = Goal(pair.later.node, j, sign, kink + sign * slack * (width if math.isfinite(width) else 1.0))
        return Condition(goal, {pair.earlier.node: self._flipped(pair.earlier, values, i, slack)})

    def pulls(self, values: Values, wanted: np.ndarray) -> Mapping[int, Tensor]:
        return {}

    @property
    def alone(self) -> bool:
        return False

    def _flipped(self, layer: Layer, values: Values, one: int, slack: float) -> tuple[Tensor, Tensor]:
        """Ends at which this neuron has the other sign, and all others keep theirs: by the slack, or by what they have
        now where that is less."""
        kink, found = _kink(layer), values[layer.node][0]
        low, high = self.domain.ends(layer.node)
        margin = torch.where(torch.isfinite(high - low), high - low, 1.0) * slack
        active, free = found >= kink, torch.full_like(found, math.inf)
        least = torch.where(active, torch.minimum(found, kink + margin), -free)
        most = torch.where(active, free, torch.maximum(found, kink - margin))
        if active[one]:
            least[one], most[one] = -math.inf, kink - margin[one]
        else:
            least[one], most[one] = kink + margin[one], math.inf
        return least, most

    def _distances(self, layer: Layer, values: Values) -> Tensor:
        low, high = self.domain.ends(layer.node)
        kink, width = _kink(layer), high - low
        width = torch.where((width > 0) & width.isfinite(), width, 1.0)
        distance = (values[layer.node][0] - kink).abs() / width
        return torch.where((low >= kink) | (high < kink), math.inf, distance)


@dataclass(frozen=True, slots=True)
class SignSignCoverage:
    """Sign-sign coverage (Sun, Huang, Kroening, Testing deep neural networks, 2018, definition 8): for each neuron i
    of a layer and each neuron j of the next one two inputs x, y of the set such that

    - the sign of i differs between x and y, and that of no other neuron of i's layer does;
    - the sign of j differs between x and y.

    A neuron's sign is + where its value is at least the kink of its activation function (0 for a ReLU), else -. The
    next layer is any layer to which a path leads that passes none between. A pair is impossible where the sign of one
    of its neurons is proven to be constant over the region.
    """

    def requirements(self, subject: Subject, region: Box, method: Method | None = None) -> SignSign:
        """One requirement for each pair of neurons. Raises ``InputError`` as ``domain`` does, for a network whose
        layers do not follow on each other, for activation functions with several kinks, for more than 2^25 pairs."""
        by_node, pairs, first = {layer.node: layer for layer in subject.layers}, list[Adjacent](), 0
        for layer in subject.layers:
            if len(layer.kinks) != 1:
                raise InputError(
                    f"the neurons of {subject.name(layer)} have the kinks {list(layer.kinks)}: a sign is defined for "
                    "activation functions with one kink"
                )
            for node in layer.before:
                pairs.append(Adjacent(by_node[node], layer, first))
                first += pairs[-1].count
        if not pairs:
            raise InputError(
                "sign-sign coverage asks for pairs of neurons: no layer of this network follows on another"
            )
        if first > _MOST:
            raise InputError(
                f"the network has {first} pairs of neurons of adjacent layers: at most {_MOST} are kept; neuron, "
                "boundary and top coverage take larger networks"
            )
        known = domain(subject, region, method)
        fixed = dict[int, Tensor]()
        for layer in subject.layers:
            low, high = known.ends(layer.node)
            fixed[layer.node] = (low >= _kink(layer)) | (high < _kink(layer))
        impossible = [(fixed[p.earlier.node].unsqueeze(1) | fixed[p.later.node].unsqueeze(0)).flatten() for p in pairs]
        return SignSign(subject, known, torch.cat(impossible).numpy(), tuple(pairs))


def _kink(layer: Layer) -> float:
    return layer.kinks[0]


def _signs(layer: Layer, values: Values) -> Tensor:
    return values[layer.node] >= _kink(layer)
