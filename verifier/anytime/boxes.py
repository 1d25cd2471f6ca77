"""What is left of one side of a range: open boxes, each with what is proven of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.ops.base import Interval
from verifier.anytime.bounding import Found

OWN = ("lower", "upper", "bound", "axis", "unstable", "wait", "depth")
"""What every box has, as a tensor."""


def halved(lower: Tensor, upper: Tensor, axis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes ``[N, n]`` cut across their ``axis`` ``[N]``: the upper ends of the first halves, the lower ends of the
    others (they share the face between them), and ``[N]``: whether each half is smaller than its box."""
    rows = torch.arange(axis.shape[0])
    low, high = lower[rows, axis], upper[rows, axis]
    middle = low / 2 + high / 2
    left, right = upper.clone(), lower.clone()
    left[rows, axis] = right[rows, axis] = middle
    return left, right, (low < middle) & (middle < high)


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """N boxes ``lower <= x <= upper`` ``[N, n]``, ``bound`` ``[N]`` of ``sign * f``, the ``axis`` ``[N]`` along which
    each is split next, the number of ``unstable`` elements ``[N]``, ``depth`` ``[N]`` in splits, at which of them an
    exact search may try it again (``wait`` ``[N]``), and ``inherited`` bounds of neurons (none: they cost too much
    memory).
    """

    lower: Tensor
    upper: Tensor
    bound: Tensor
    axis: Tensor
    unstable: Tensor
    wait: Tensor
    depth: Tensor
    inherited: Mapping[int, Interval]

    @staticmethod
    def of(found: Found, wait: Tensor, depth: Tensor) -> Boxes:
        """What bounding found, at a depth."""
        return Boxes(found.lower, found.upper, found.bound, found.axis, found.unstable, wait, depth, found.inherited)

    @staticmethod
    def made(own: Mapping[str, Tensor], inherited: Mapping[int, Interval]) -> Boxes:
        """Of tensors by the names in ``OWN``."""
        return Boxes(**own, inherited=inherited)

    @property
    def count(self) -> int:
        """N."""
        return int(self.bound.shape[0])

    @property
    def bytes(self) -> int:
        """What they take in memory."""
        tensors = [getattr(self, name) for name in OWN] + [end for ends in self.inherited.values() for end in ends]
        return sum(t.element_size() * t.numel() for t in tensors)

    def bare(self) -> Boxes:
        """The same without what they inherit."""
        return replace(self, inherited={})

    def take(self, index: Tensor) -> Boxes:
        """Those at ``index``, numbers or a mask."""
        inherited = {i: (low[index], high[index]) for i, (low, high) in self.inherited.items()}
        return Boxes.made({name: getattr(self, name)[index] for name in OWN}, inherited)

    @staticmethod
    def cat(parts: list[Boxes]) -> Boxes:
        """All of them; they inherit what all of the parts do."""
        parts = [p for p in parts if p.count] or parts[:1]
        common = set.intersection(*(set(p.inherited) for p in parts))
        inherited = {
            i: (torch.cat([p.inherited[i][0] for p in parts]), torch.cat([p.inherited[i][1] for p in parts]))
            for i in sorted(common)
        }
        return Boxes.made({name: torch.cat([getattr(p, name) for p in parts]) for name in OWN}, inherited)

    def halves(self) -> tuple[Boxes, Tensor]:
        """Both halves ``[2N]`` of each box along its axis, which share the point between them, and ``[N]``: whether
        each half is smaller than its box."""
        left, right, smaller = halved(self.lower, self.upper, self.axis)
        deeper = replace(self, depth=self.depth + 1)
        both = Boxes.cat([replace(deeper, upper=left), replace(deeper, lower=right)])
        return both, smaller


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """The minimum of ``sign * f`` from both sides: ``open`` boxes; ``closed``, the least bound of those that are closed
    or cannot be split; ``value``, proven to be at least ``sign * f(point)`` for the best ``point`` ``[n]``; ``floor``,
    the best bound so far."""

    sign: float
    open: Boxes
    closed: float = math.inf
    value: float = math.inf
    point: Tensor | None = None
    floor: float = -math.inf

    @property
    def bound(self) -> float:
        """Proven: at most the minimum."""
        first = float(self.open.bound.min()) if self.open.count else math.inf
        return max(self.floor, min(first, self.closed, self.value))

    @property
    def gap(self) -> float:
        """How far the ends are apart."""
        return self.value - self.bound

    def attained(self, value: float, point: Tensor) -> Side:
        """With a point, where it is the best (a value that is not a number is none)."""
        return replace(self, value=value, point=point) if value < self.value else self

    def closing(self, gap: float) -> Side:
        """Without the boxes that lie within ``gap`` of what is attained, and with the bound noted."""
        side = replace(self, floor=self.bound)
        return side.without(self.open.bound >= self.value - gap)

    def without(self, done: Tensor) -> Side:
        """Without the open boxes ``done`` ``[N]`` (a mask), whose bounds still count."""
        if not bool(done.any()):
            return self
        closed = min(self.closed, float(self.open.bound[done].min()))
        return replace(self, open=self.open.take(~done), closed=closed)
