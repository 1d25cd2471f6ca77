"""When a point is a counterexample: a margin of the outputs that is at most 0 exactly there, and differentiable.

N examples are attacked together, and each of P points is tried for one of them (``who`` ``[P]``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from verifier.attacks.clauses import ClauseArrays
from verifier.errors import InputError


class Goal(Protocol):
    """What attacks make small: ``margin`` ``[P]`` of outputs ``[P, F]`` tried for the examples ``who`` ``[P]``."""

    def margin(self, outputs: Tensor, who: Tensor) -> Tensor:
        """At most 0 exactly where the point is a counterexample of its example; NaN outputs give +inf."""

    def labels(self, who: Tensor) -> Tensor:
        """The class ``[P]`` that each example should keep. Raises ``InputError`` for a goal without classes."""


@dataclass(frozen=True, slots=True, eq=False)
class Misclassified:
    """Some other class has at least the score of the example's own, ``label`` ``[N]``, and ``slack`` ``[N]`` more
    (None: 0), for examples of which onnxruntime has refused a point with less."""

    label: Tensor
    slack: Tensor | None = None

    def margin(self, outputs: Tensor, who: Tensor) -> Tensor:
        """The label's score less the greatest of the others, and the slack."""
        label = self.label[who][:, None]
        others = outputs.scatter(1, label, -math.inf).amax(1)
        margin = outputs.gather(1, label).squeeze(1) - others
        return _without_nan(margin if self.slack is None else margin + self.slack[who])

    def labels(self, who: Tensor) -> Tensor:
        """The labels."""
        return self.label[who]


@dataclass(frozen=True, slots=True, eq=False)
class Clauses:
    """Every literal of the example's clause is true: example i is clause i of ``arrays`` (see ``clauses``)."""

    arrays: ClauseArrays

    def margin(self, outputs: Tensor, who: Tensor) -> Tensor:
        """The largest ``sign * form - threshold`` of the clause's literals."""
        return self.arrays.margin(outputs, who)

    def labels(self, who: Tensor) -> Tensor:
        """Raises ``InputError``."""
        raise InputError("this loss needs the classes of a classifier, and a property has clauses: use Margin()")


def _without_nan(margin: Tensor) -> Tensor:
    return torch.where(margin.isnan(), math.inf, margin)
