"""Projected gradient descent on the margins of clauses, for many points in one batch.

Coordinates are measured in widths of the box, so a step means the same in each of them and a fixed coordinate never
moves. A point steps along the sign of its averaged gradient (good in many dimensions: it reaches corners) or along
Adam's direction (good in few: it can turn); it follows the largest literal, or the sum of the literals that are not
yet true. Where it gets no further it returns to its best place and halves its step (in the manner of Auto-PGD, Croce
and Hein, 2020). It is always clamped in the dtype in which it will be replayed.

A descent is ``start``, any number of ``step``, and ``finish``, which evaluates the last points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.graph import Graph
from verifier.attacks.clauses import Targets


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """P points ``x``, each with the box ``lower <= x <= upper`` it must stay in; all ``[P, n]`` in one dtype."""

    x: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def width(self) -> Tensor:
        """``upper - lower``, finite."""
        return (self.upper - self.lower).clamp(max=torch.finfo(self.lower.dtype).max)

    def at(self, x: Tensor) -> Places:
        """The same boxes with other points, clamped to them."""
        return Places(torch.minimum(torch.maximum(x, self.lower), self.upper), self.lower, self.upper)

    def centre(self) -> Places:
        """The middle of each box."""
        return self.at(self.lower / 2 + self.upper / 2)

    def take(self, index: Tensor) -> Places:
        """The places at ``index``."""
        return Places(self.x[index], self.lower[index], self.upper[index])


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """How each of P points descends.

    ``signed`` ``[P]`` bool: steps along the sign of the averaged gradient, or Adam's; ``summed`` ``[P]`` bool: the sum
    of the literals, or the largest; ``rate`` ``[P]``: length of the first step, in widths of the box, and ``decay``
    its factor per step; ``patience``: steps without a better margin after which a point goes back to its best place
    and halves its rate; ``momentum`` of the averaged gradient.
    """

    signed: Tensor
    summed: Tensor
    rate: Tensor
    decay: float
    patience: int
    momentum: float

    @staticmethod
    def corners(places: Places) -> Style:
        """Plain sign steps on the largest literal through the whole box: they lead into a corner."""
        rate = places.x.new_ones(len(places.x))
        yes = rate > 0
        return Style(yes, ~yes, rate, decay=1.0, patience=2, momentum=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """A descent under way: points, averaged gradients (first and second moment), the rate ``[P]`` of each point, the
    best margin ``[P]`` so far, where it was, and for how many steps it has stood (``stale`` ``[P]``)."""

    places: Places
    first: Tensor
    second: Tensor
    rate: Tensor
    best: Tensor
    best_x: Tensor
    stale: Tensor
    steps: int = 0


def start(places: Places, style: Style) -> Descent:
    """A descent that has not looked at its points yet."""
    zero = torch.zeros_like(places.x)
    best = torch.full((len(places.x),), math.inf, dtype=torch.float64, device=places.x.device)
    stale = torch.zeros(len(places.x), dtype=torch.int32, device=places.x.device)
    return Descent(places, zero, zero, style.rate, best, places.x, stale)


def step(graph: Graph, targets: Targets, style: Style, state: Descent, demand: float = 0.0) -> Descent:
    """Evaluate the points and move each by its rate."""
    x = state.places.x.detach().requires_grad_()
    with torch.enable_grad():
        (forms,) = graph.evaluate(x)
    if not forms.requires_grad:
        return finish(graph, targets, state)
    values = targets.values(forms.detach())
    margin = targets.margin(values)
    slope = targets.slope(values, margin, style.summed, demand, forms.shape[1])
    with torch.enable_grad():  # of a number: gradients of more load half a second's worth of other modules
        total = (forms * slope.to(forms.dtype)).sum()
    (gradient,) = torch.autograd.grad(total, x)
    width = state.places.width
    gradient = (gradient * width).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    state = _noted(state, margin)
    stuck = state.stale >= style.patience
    rate = torch.where(stuck, state.rate * 0.5, state.rate * style.decay)
    first = torch.lerp(gradient, state.first, style.momentum)
    second = torch.lerp(gradient * gradient, state.second, 0.99)
    count = state.steps + 1
    scale = (1 - style.momentum**count) / math.sqrt(1 - 0.99**count)
    adam = first / (second.sqrt() * scale).clamp_(min=torch.finfo(x.dtype).tiny)
    direction = torch.where(style.signed.unsqueeze(1), first.sign(), adam.clamp_(-1, 1))
    moved = x.detach() - state.rate.unsqueeze(1) * width * direction
    moved = torch.where(stuck.unsqueeze(1), state.best_x, moved)
    stale = torch.where(stuck, 0, state.stale)
    places = state.places.at(moved)
    return replace(state, places=places, first=first, second=second, rate=rate, stale=stale, steps=count)


def finish(graph: Graph, targets: Targets, state: Descent) -> Descent:
    """Evaluate the points without moving them."""
    with torch.no_grad():
        (forms,) = graph.evaluate(state.places.x)
    return _noted(state, targets.margin(targets.values(forms)))


def _noted(state: Descent, margin: Tensor) -> Descent:
    """The best margins and their points with the current ones taken in."""
    x = state.places.x.detach()
    better = margin < state.best
    return replace(
        state,
        best=torch.where(better, margin, state.best),
        best_x=torch.where(better.unsqueeze(1), x, state.best_x),
        stale=torch.where(better, 0, state.stale + 1),
    )


def diversify(graph: Graph, places: Places, steps: int, generator: torch.Generator) -> Places:
    """Output-diversified starts: follow a random direction of the forms for some steps (Tashiro et al., 2020)."""
    direction: Tensor | None = None
    width = places.width
    for _ in range(steps):
        x = places.x.detach().requires_grad_()
        with torch.enable_grad():
            (forms,) = graph.evaluate(x)
        if not forms.requires_grad:
            return places
        if direction is None:
            direction = torch.rand(forms.shape, generator=generator, device=x.device, dtype=x.dtype) * 2 - 1
        with torch.enable_grad():
            total = (forms * direction).sum()
        (gradient,) = torch.autograd.grad(total, x)
        places = places.at(x.detach() + 0.25 * width * gradient.nan_to_num(nan=0.0).sign())
    return places
