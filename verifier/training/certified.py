"""Certified training: the loss is one that no point of the box exceeds, from bounds that gradients go through.

For lower bounds ``m_c`` of the margins ``f_y - f_c`` over the box, softmax of ``-m`` (0 for y itself) gives y no more
than at any of its points, so its cross-entropy is at least theirs (Wong and Kolter, ICML 2018, theorem 2). With
intervals this is IBP (Gowal et al., 2019), with linear bounds of the margins over intervals of the inner neurons
CROWN-IBP (Zhang et al., ICLR 2020). Intervals are loose, and a network that they can prove gives up accuracy for it:
for a complete verifier, adversarial training with a little of such a loss is better (De Palma et al., ICLR 2024). These
bounds claim nothing about rounding: ``verifier.verify`` proves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds import Box, Crown, Graph, Interval, Lines, Live, compute_bounds, live, margins, prepare
from bounds.backward import State
from bounds.methods import Found, Method, Start, Target
from verifier.errors import InputError
from verifier.training.adversary import in_mode
from verifier.training.losses import Loss, Scheduled


@dataclass(frozen=True, slots=True)
class IntervalCrown(Method):
    """Backward linear bounds of the target, and intervals of all else: what CROWN-IBP trains with."""

    def state(self, start: Start) -> tuple[State, Tensor]:
        """See ``Method``."""
        return start.propagated(None)

    def bound(self, target: Target) -> Found:
        """See ``Method``."""
        return Crown().bound(target)

    def lines(self, target: Target) -> Lines:
        """See ``Method``."""
        return Crown().lines(target)


@dataclass(frozen=True, slots=True, eq=False)
class Certified:
    """``kappa CE(f(x), y) + (1 - kappa) CE(-m, y)``, where ``m`` bounds the margins from below over all points within
    ``epsilon`` of each element, inside ``within``.

    ``m`` is ``share`` times the bounds of ``IntervalCrown`` and ``1 - share`` times those of intervals: 0 is IBP, and
    CROWN-IBP lets it fall from 1. ``of`` makes one for a module, ``ramp`` lets its numbers grow from easy to what they
    are here. Bounds are those of the module in evaluation mode (running statistics, no dropout).
    """

    module: Live
    epsilon: float
    kappa: float = 0.5
    share: float = 0.0
    within: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(f"epsilon: {self.epsilon} is not a number from 0 up")
        for name, value in (("kappa", self.kappa), ("share", self.share)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}: {value} is not between 0 and 1")

    @staticmethod
    def of(
        module: nn.Module,
        example: Tensor,
        epsilon: float,
        within: tuple[float, float] | None = None,
        kappa: float = 0.5,
    ) -> Certified:
        """For a module and one input ``[1, *shape]`` of the kind that it takes; recording it takes seconds. Raises
        ``bounds.TraceError``, which lists what is not supported."""
        with in_mode(module, training=False):
            return Certified(live(module, example), epsilon, kappa, within=within)

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``. Raises ``InputError`` for another module than the one it was made for."""
        if module is not self.module.module:
            raise InputError("this loss was made for another module: Certified.of(module, ...) makes one")
        natural = functional.cross_entropy(module(x), y)
        if self.kappa == 1:
            return natural
        return self.kappa * natural + (1 - self.kappa) * functional.cross_entropy(-self.margins(x, y), y)

    def margins(self, x: Tensor, y: Tensor) -> Tensor:
        """``[B, classes]``: ``f_y - f_c`` is at least this everywhere in the box of each example (0 at c = y)."""
        low, high = x - self.epsilon, x + self.epsilon
        if self.within is not None:
            low, high = low.clamp(*self.within), high.clamp(*self.within)
        box, graph = Box(low.unsqueeze(1), high.unsqueeze(1)), self.module.graph()
        if self.share == 0:
            return _margins(graph, box, y, Interval())
        crown = _margins(graph, box, y, IntervalCrown())
        return crown if self.share == 1 else torch.lerp(_margins(graph, box, y, Interval()), crown, self.share)


@dataclass(frozen=True, slots=True, eq=False)
class Expressive:
    """``(1 - weight) A + weight C``: MTL-IBP (De Palma et al., ICLR 2024).

    The loss ``A`` at an adversary's points is at most that of the worst points, a certified one ``C`` (with ``kappa``
    0) at least: in between is what to make small for a complete verifier. A small weight keeps the accuracy of
    adversarial training, and is enough for bounds that branching makes tight; one of 1 is for intervals alone.
    """

    adversarial: Loss
    certified: Certified
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight: {self.weight} is not between 0 and 1")

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor, draw: torch.Generator) -> Tensor:
        """See ``Loss``. Raises ``InputError`` for another module than the one it was made for."""
        if self.weight == 0:
            return self.adversarial(module, x, y, draw)
        above = self.certified(module, x, y, draw)
        return above if self.weight == 1 else torch.lerp(self.adversarial(module, x, y, draw), above, self.weight)


def _margins(graph: Graph, box: Box, y: Tensor, method: Method) -> Tensor:
    """By class: rows are shared by all boxes of a call."""
    ready = prepare(graph, box.lower.dtype, box.lower.device, semantics=None)
    order, found = [], []
    for label in y.unique().tolist():
        who = (y == label).nonzero().flatten()
        part = Box(box.lower[who], box.upper[who])
        bound = compute_bounds(ready, part, method, rows=margins(graph, label), semantics=None).lower
        zero = bound.new_zeros(len(who), 1)
        order.append(who)
        found.append(torch.cat([bound[:, :label], zero, bound[:, label:]], 1))
    return torch.cat(found)[torch.cat(order).argsort()]


def ramp(
    loss: Certified | Expressive, begin: float = 0.1, end: float = 0.6, kappa: float = 1.0, share: float = 0.0
) -> Scheduled:
    """From natural training to ``loss``: until ``begin`` (of all steps) the box is a point, from ``end`` on everything
    is as in ``loss``, and between them epsilon, ``kappa`` and ``share`` go in a straight line from 0 and from what is
    given here. With ``share=1`` (and 0 in ``loss``) it is the schedule of CROWN-IBP. Of an ``Expressive`` loss it is
    the certified part that grows. Raises ``InputError``."""
    if not 0 <= begin < end <= 1:
        raise InputError(f"begin={begin}, end={end}: parts of the training are needed, 0 <= begin < end <= 1")
    last = loss.certified if isinstance(loss, Expressive) else loss

    def at(done: float) -> Certified | Expressive:
        t = min(max((done - begin) / (end - begin), 0.0), 1.0)
        now = replace(
            last,
            epsilon=t * last.epsilon,
            kappa=kappa + t * (last.kappa - kappa),
            share=share + t * (last.share - share),
        )
        return replace(loss, certified=now) if isinstance(loss, Expressive) else now

    return Scheduled(at)
