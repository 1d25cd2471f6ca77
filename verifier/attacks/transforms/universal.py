"""Universal perturbations: one point for all examples (Moosavi-Dezfooli et al., CVPR 2017).

The problem has one example, the whole data set: parameters ``[P, d]`` give the inputs of all N examples side by side
``[P, N n]``, the oracle gives all their outputs ``[P, N F]``, and the goal counts how many are fooled. So every attack
works on it, and the best point that a trial keeps is the one that fools most examples. An evaluation of it is N
evaluations of the model. The loss is the mean over the examples, where each counts only until it is fooled by a margin
(the clipped loss of Shafahi et al., Universal adversarial training, AAAI 2020).

Any view can be shared: additive changes, flows, both (GUAP; Zhang et al., ICDM 2020), or a patch at other places in
different examples (Brown et al., 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from verifier.attacks.goals import Goal, Misclassified
from verifier.attacks.losses import Loss, Margin
from verifier.attacks.oracle import Oracle
from verifier.attacks.threats import Threat
from verifier.attacks.transforms.views import Penalty
from verifier.attacks.trial import Problem, View
from verifier.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """The view of all ``count`` examples at once: ``[P, d] -> [P, N n]``."""

    view: View
    count: int

    def __call__(self, theta: Tensor, who: Tensor) -> Tensor:
        """See ``View``; ``who`` is 0 everywhere."""
        every = torch.arange(self.count, device=theta.device).repeat(len(theta))
        return self.view(theta.repeat_interleave(self.count, 0), every).reshape(len(theta), -1)


@dataclass(frozen=True, slots=True, eq=False)
class AllAtOnce:
    """An oracle of ``count`` inputs side by side: ``[P, N n] -> [P, N F]``."""

    oracle: Oracle
    count: int

    @property
    def differentiable(self) -> bool:
        """As the oracle is."""
        return self.oracle.differentiable

    @property
    def rows(self) -> int:
        """As many as fit, one at least."""
        return max(1, self.oracle.rows // self.count)

    @property
    def device(self) -> torch.device:
        """The oracle's."""
        return self.oracle.device

    def outputs(self, points: Tensor) -> Tensor:
        """See ``Oracle``; where one point's inputs are too many, parts of them are computed again for the gradient."""
        inputs = points.reshape(len(points) * self.count, -1)
        if len(inputs) <= self.oracle.rows:
            found = self.oracle.outputs(inputs)
        else:
            found = torch.cat([_again(part, self.oracle) for part in inputs.split(self.oracle.rows)])
        return found.reshape(len(points), -1)


class _Again(torch.autograd.Function):
    """An oracle's outputs that keep its inputs alone. (``torch.utils.checkpoint`` would load the compiler: seconds.)"""

    @staticmethod
    def forward(ctx: Any, points: Tensor, oracle: Oracle) -> Tensor:
        ctx.save_for_backward(points)
        ctx.oracle = oracle
        return oracle.outputs(points)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, None]:
        (points,) = ctx.saved_tensors
        with torch.enable_grad():
            at = points.detach().requires_grad_()
            outputs = ctx.oracle.outputs(at)
            gradient = torch.autograd.grad(outputs, at, slopes)[0] if outputs.requires_grad else None
        return gradient, None


def _again(points: Tensor, oracle: Oracle) -> Tensor:
    found: Tensor = _Again.apply(points, oracle)  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Fooled:
    """At least ``wanted`` of the N examples are misclassified; ``label`` ``[N]``. With the labels that the model itself
    gives, their share is the fooling rate."""

    label: Tensor
    wanted: int

    def each(self, loss: Loss, outputs: Tensor) -> Tensor:
        """The loss ``[P, N]`` of every example at outputs ``[P, N F]``."""
        count = len(self.label)
        every = torch.arange(count, device=outputs.device).repeat(len(outputs))
        flat = outputs.reshape(len(outputs) * count, -1)
        return loss.value(Misclassified(self.label), flat, every, None).reshape(len(outputs), count)

    def margin(self, outputs: Tensor, who: Tensor) -> Tensor:
        """How many more would have to be misclassified: a step function. Descend on ``Mean``."""
        return self.wanted - (self.each(Margin(), outputs) <= 0).sum(1).to(outputs.dtype)

    def labels(self, who: Tensor) -> Tensor:
        """Raises ``InputError``."""
        raise InputError("one point for many examples has no class of its own: use Mean() as the loss")


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of an untargeted ``loss`` over the examples of ``Fooled``, of which none counts for less than
    ``-enough``."""

    loss: Loss = field(default_factory=Margin)
    enough: float = 1.0

    @property
    def targeted(self) -> bool:
        """False."""
        return False

    def value(self, goal: Goal, outputs: Tensor, who: Tensor, target: Tensor | None) -> Tensor:
        """See ``Loss``. Raises ``InputError`` for another goal."""
        if not isinstance(goal, Fooled) or self.loss.targeted:
            raise InputError("Mean() goes with an untargeted loss and the problems of universal()")
        return goal.each(self.loss, outputs).clamp(min=-self.enough).mean(1)


def universal(
    oracle: Oracle,
    labels: Tensor,
    view: View,
    threat: Threat,
    *,
    share: float = 1.0,
    penalty: Penalty | None = None,
) -> Problem:
    """One point of ``threat`` (of one example: ``[1, d]``) for the N examples of ``view``, which is to fool a ``share``
    of them; ``labels`` ``[N]``. Attacks on it need the loss ``Mean()``. Raises ``InputError`` for another threat."""
    if len(threat.centre) != 1 or not 0 < share <= 1:
        raise InputError(f"one set is shared by all examples, not {len(threat.centre)}; a share lies in (0, 1]")
    count = len(labels)
    wanted = max(1, min(count, math.ceil(share * count - 1e-9)))
    return Problem(
        AllAtOnce(oracle, count), Fooled(labels.to(oracle.device), wanted), threat, Shared(view, count), penalty
    )


def fooling_rate(problem: Problem, point: Tensor) -> float:
    """The share of the examples that ``point`` ``[d]`` fools. Raises ``InputError`` for other problems."""
    if not isinstance(problem.goal, Fooled):
        raise InputError("only a problem of universal() has a fooling rate")
    who = torch.zeros(1, dtype=torch.int64, device=point.device)
    with torch.no_grad():
        outputs = problem.oracle.outputs(problem.inputs(point[None], who))
    return float((problem.goal.each(Margin(), outputs) <= 0).double().mean())
