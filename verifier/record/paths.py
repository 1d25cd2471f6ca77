"""Whether the leaves of a split cover its root, from what each leaf was split by alone.

A leaf is what its splits leave: ``low <= z_u <= high`` at some positions u (for signs the one point is 0). In any set
of leaves look for a cut: a position and a point such that every leaf lies on one side of it. Then the leaves cover a
part exactly if those on each side cover their half of it; and a leaf without any splits (that the part does not have
itself) covers it alone. The leaves of a tree of splits always have such a cut, the first split of what is left of
them, so whoever finds none has found a hole. All parts are looked at together, level by level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """K leaves and their E splits. ``clause`` ``[K]``: the tree that a leaf belongs to. Of a split: ``leaf`` ``[E]``
    (sorted), ``position`` ``[E]``, ``side`` ``[E]`` (1: above the point, -1: below it) and ``point`` ``[E]``."""

    clause: Tensor
    leaf: Tensor
    position: Tensor
    side: Tensor
    point: Tensor

    @staticmethod
    def of_arrays(arrays: Mapping[str, Tensor], at_points: bool = False) -> Paths:
        """Of an entry of leaves (``leaves.py``; ``at_points``: ``point_leaves.py``). Raises ``ValueError``."""
        clause, depth = arrays["clause"].long(), arrays["depth"].long()
        position, side = arrays["position"].long(), arrays["side"].long()
        point = arrays["point"] if at_points else torch.zeros_like(position, dtype=torch.float32)
        inside = (depth >= 0) & (depth <= position.numel())  # so that their sum does not wrap
        if depth.shape != clause.shape or clause.ndim != 1 or not bool(inside.all()):
            raise ValueError("leaves and their numbers of splits do not fit")
        if not position.shape == side.shape == point.shape == (int(depth.sum()),) or not bool((side.abs() == 1).all()):
            raise ValueError("splits, their sides and points do not fit the leaves")
        if point.dtype != torch.float32 or not bool(torch.isfinite(point).all()):  # what bounds are computed with
            raise ValueError("points are finite numbers in float32")
        leaf = torch.arange(clause.shape[0], device=clause.device).repeat_interleave(depth)
        order = 2 * position + (side < 0) if at_points else position  # one position may have both ends
        if not bool(((order[1:] > order[:-1]) | (leaf[1:] > leaf[:-1])).all()):
            raise ValueError("the positions of a leaf's splits do not rise")
        return Paths(clause, leaf, position, side, point.double())

    @staticmethod
    def cat(parts: Sequence[Paths]) -> Paths:
        """All leaves, in order."""
        counts = [0, *(p.clause.shape[0] for p in parts)]
        first = torch.tensor(counts).cumsum(0).tolist()
        return Paths(
            torch.cat([p.clause for p in parts]),
            torch.cat([p.leaf + k for p, k in zip(parts, first, strict=False)]),
            torch.cat([p.position for p in parts]),
            torch.cat([p.side for p in parts]),
            torch.cat([p.point for p in parts]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Sides:
    """What is left of leaves' splits: at ``position`` ``[S]`` a ``leaf`` lies between ``low`` and ``high``, numbers of
    points in their order (0 and ``far``: no split)."""

    leaf: Tensor
    position: Tensor
    low: Tensor
    high: Tensor
    far: int

    def take(self, index: Tensor) -> _Sides:
        return _Sides(self.leaf[index], self.position[index], self.low[index], self.high[index], self.far)


def uncovered(paths: Paths, trees: int) -> Tensor:
    """``[trees]``: in how many parts each tree has a hole; 0 where its leaves cover the root.

    Raises ``ValueError`` for a leaf whose splits leave nothing (both sides of one point).
    """
    sides, part = _sides(paths), paths.clause.clone()
    holes = torch.zeros(trees, dtype=torch.int64)
    present = torch.bincount(part, minlength=trees)
    holes[present == 0] = 1
    alive = torch.ones_like(part, dtype=torch.bool)
    while True:
        free = torch.ones_like(alive)
        free[sides.leaf] = False
        done = torch.unique(part[alive & free])  # parts with a leaf that is all of them
        alive &= ~torch.isin(part, done)
        sides = sides.take(alive[sides.leaf])
        if not bool(alive.any()):
            return holes
        compact, part[alive] = torch.unique(part[alive], return_inverse=True)
        size = torch.bincount(part[alive], minlength=compact.shape[0])
        position, point = _cuts(sides, part, size)
        missing = (position < 0).nonzero().flatten()
        if missing.shape[0]:
            lost = alive & torch.isin(part, missing)
            first = torch.full_like(size, -1).scatter(0, part[lost], paths.clause[lost])[missing]
            holes += torch.bincount(first, minlength=trees)
            alive &= ~lost
            sides = sides.take(alive[sides.leaf])
        sides, part = _cut(sides, part, position, point)


def _sides(paths: Paths) -> _Sides:
    points, rank = torch.unique(paths.point, return_inverse=True)
    far, count = points.shape[0] + 1, paths.clause.shape[0]
    width = int(paths.position.max()) + 1 if paths.position.shape[0] else 1
    key, where = torch.unique(paths.leaf * width + paths.position, return_inverse=True)
    low, high = torch.zeros_like(key), torch.full_like(key, far)
    above, rank = paths.side > 0, rank + 1
    low.scatter_reduce_(0, where[above], rank[above], "amax")
    high.scatter_reduce_(0, where[~above], rank[~above], "amin")
    empty = (low >= high).nonzero().flatten()
    if empty.shape[0]:
        raise ValueError(f"leaf {int(key[empty[0]] // width)} of {count} is on both sides of a split")
    return _Sides(key // width, key % width, low, high, far)


def _cuts(sides: _Sides, part: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """For each part (of ``size`` leaves) a position and a point that every leaf lies on one side of; -1: there is
    none."""
    width = int(sides.position.max()) + 1 if sides.position.shape[0] else 1
    key, where, count = torch.unique(part[sides.leaf] * width + sides.position, return_inverse=True, return_counts=True)
    full = (count == size[key // width])[where].nonzero().flatten()  # positions at which every leaf is split
    number, low, high = where[full], sides.low[full], sides.high[full]
    order = (number * (sides.far + 1) + low).argsort()
    number, low, high = number[order], low[order], high[order]
    # The highest end among the leaves before, of the same part and position: numbers of both grow along the order.
    reach = (number * (sides.far + 1) + high).cummax(0).values.roll(1)
    if reach.shape[0]:
        reach[0] = -1
    before = torch.zeros_like(low, dtype=torch.bool)
    before[1:] = number[1:] == number[:-1]
    good = (before & (reach - number * (sides.far + 1) <= low)).nonzero().flatten()
    position, point = torch.full_like(size, -1), torch.full_like(size, -1)
    at = key[number[good]]
    first = torch.full_like(size, good.shape[0]).scatter_reduce(0, at // width, torch.arange(good.shape[0]), "amin")
    found = first < good.shape[0]
    position[found], point[found] = (at % width)[first[found]], low[good][first[found]]
    return position, point


def _cut(sides: _Sides, part: Tensor, position: Tensor, point: Tensor) -> tuple[_Sides, Tensor]:
    """The halves of every part, and what is left of the leaves' splits in them."""
    mine = part[sides.leaf]
    here, value = sides.position == position[mine], point[mine]
    above = here & (sides.low >= value)
    halves = 2 * part
    halves[sides.leaf[above]] += 1
    low = torch.where(above & (sides.low == value), 0, sides.low)
    high = torch.where(here & ~above & (sides.high == value), sides.far, sides.high)
    left = (low > 0) | (high < sides.far)
    return _Sides(sides.leaf, sides.position, low, high, sides.far).take(left), halves
