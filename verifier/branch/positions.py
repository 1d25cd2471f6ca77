"""The unstable neurons of one box, numbered through, and the states that splits of them lead to.

Position u of U stands for one element of one pre-activation. Where all that is relaxed is ReLUs, a subproblem is a row
of signs ``[U]``; else every element that any operator's lines lose something on is a position, and a subproblem says
between which points it lies (GenBaB: Shi et al., TACAS 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import State
from bounds.box import Box
from bounds.layouts import flat
from bounds.ops.base import Interval, Line, Relaxation
from bounds.ops.relu import Relu
from bounds.plan import Plan
from bounds.propagate import loose, propagate, relax

LEAST_WIDTH = 1e-5
"""Intervals are not split any more that are narrower than this, as a share of their numbers (and of 1)."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The positions of one pre-activation ``before``: the ReLUs that read it (none where ``Positions.points``), their
    ``columns`` of U, and the flat ``elements`` they stand for."""

    before: int
    relus: tuple[int, ...]
    columns: slice
    elements: Tensor

    def put(self, base: Tensor, values: Tensor) -> Tensor:
        """``[K, *shape]``: ``base`` (of one box or of K) with these elements replaced by ``values`` ``[K, E]``."""
        full = flat(base.expand(values.shape[0], *base.shape[1:])).clone()
        full[:, self.elements] = values.to(base.dtype)
        return full.reshape(-1, *base.shape[1:])

    def get(self, values: Tensor) -> Tensor:
        """``[K, E]``: these elements of ``[K, *shape]``."""
        return flat(values)[:, self.elements]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """All places of a root state (proven bounds of one box), ``count`` positions together. ``points``: they may be
    split at any point, not only at 0."""

    root: State
    places: tuple[Place, ...]
    count: int
    points: bool = False

    @staticmethod
    def of(plan: Plan, root: State) -> Positions:
        """The unstable ReLU inputs of the root's box, as far as the state goes; where anything else is relaxed, all
        that operators gain from."""
        if splits_at_points(plan):
            return Positions.of_points(plan, root)
        places: list[Place] = []
        start = 0
        for before in plan.watched:
            consumers = [c for c in plan.consumers[before] if c in root.relaxations]
            relus = tuple(c for c in consumers if isinstance(plan.graph.nodes[c].op, Relu))
            if not relus:
                continue
            low, high = root.bounds[before]
            elements = ((low < 0) & (high > 0)).flatten().nonzero().flatten()
            if elements.shape[0]:
                places.append(Place(before, relus, slice(start, start + elements.shape[0]), elements))
                start += elements.shape[0]
        return Positions(root, tuple(places), start)

    @staticmethod
    def of_points(plan: Plan, root: State) -> Positions:
        """All elements that some operator wants better bounds of."""
        places: list[Place] = []
        start = 0
        for before in plan.watched:
            wanted = loose(plan, root.bounds, before, root.bounds[before]) & wide(*root.bounds[before])
            elements = wanted.flatten().nonzero().flatten()
            if elements.shape[0]:
                places.append(Place(before, (), slice(start, start + elements.shape[0]), elements))
                start += elements.shape[0]
        return Positions(root, tuple(places), start, points=True)

    def gather(self, values: Mapping[int, Tensor], like: Tensor) -> Tensor:
        """``[K, U]`` from ``[K, *shape]`` tensors by pre-activation (``like`` ``[K, ...]`` where U is 0)."""
        parts = [p.get(values[p.before]) for p in self.places]
        return torch.cat(parts, 1) if parts else like.new_zeros((like.shape[0], 0))

    def dense(self, plan: Plan, values: Tensor, nodes: Mapping[int, object] | None = None) -> dict[int, Tensor]:
        """``[K, *shape]`` by pre-activation from ``[K, U]``, zero elsewhere; of the given ``nodes``, or of those where
        something is not zero."""
        result: dict[int, Tensor] = {}
        for place in self.places:
            mine = values[:, place.columns]
            if place.before in nodes if nodes is not None else bool(mine.any()):
                zero = torch.zeros((1, *plan.graph.nodes[place.before].shape), dtype=plan.dtype, device=plan.device)
                result[place.before] = place.put(zero, mine)
        return result

    def state(self, plan: Plan, signs: Tensor, known: Interval | None = None) -> State:
        """The root's state with bounds clamped at the splits ``signs`` ``[K, U]``, one box per subproblem, and within
        the intervals ``known`` ``[K, U]``; where these are empty anything is said.

        The root's charges and sizes hold here too, since every set is a part of the root's.
        """
        root, count = self.root, signs.shape[0]
        bounds: dict[int, Interval] = {
            n: (low.to(plan.dtype), high.to(plan.dtype)) for n, (low, high) in root.bounds.items()
        }
        for place in self.places:
            below, above = bounds[place.before]
            sign, low, high = signs[:, place.columns], place.get(below), place.get(above)
            low = torch.where(sign > 0, low.clamp(min=0), low)
            high = torch.where(sign < 0, high.clamp(max=0), high)
            if known is not None:
                one, two = (end[:, place.columns].to(plan.dtype) for end in known)
                one, two = torch.maximum(low, one), torch.minimum(high, two)
                low, high = torch.minimum(one, two), torch.maximum(one, two)
            bounds[place.before] = (place.put(below, low), place.put(above, high))
        relaxations: dict[int, Relaxation] = {}
        exact = plan.rounding is not None
        charges = dict(root.charges) if exact else {}
        for node in sorted(root.relaxations):
            relax(plan, bounds, plan.graph.nodes[node], relaxations, charges)
        ends = (end.to(plan.dtype).expand(count, *end.shape[1:]) for end in (root.box.lower, root.box.upper))
        lines = {node: _spread(relaxation, count) for node, relaxation in relaxations.items()}
        return State(Box(*ends), bounds, lines, charges, root.sizes if exact else {}, root.floor.to(plan.dtype))

    def between(self, plan: Plan, low: Tensor, high: Tensor) -> tuple[State, Tensor]:
        """What is known where positions lie between ``low`` and ``high`` ``[K, U]``, one box per subproblem, and which
        of them (``[K]`` bool) hold no input, because bounds contradict each other.

        What follows from the splits is carried forward by intervals, within the root's bounds; an input that is split
        shrinks the box.
        """
        root, count = self.root, low.shape[0]
        known = {n: _expanded(root.bounds[n], plan, count) for n in plan.watched}
        empty = torch.zeros(count, dtype=torch.bool, device=low.device)
        for place in self.places:
            ends = known[place.before]
            below = torch.maximum(place.get(ends[0]), low[:, place.columns].to(plan.dtype))
            above = torch.minimum(place.get(ends[1]), high[:, place.columns].to(plan.dtype))
            empty |= (below > above).any(1)
            below, above = torch.minimum(below, above), torch.maximum(below, above)
            known[place.before] = place.put(ends[0], below), place.put(ends[1], above)
        whole = _expanded((root.box.lower, root.box.upper), plan, count)
        state, crossed = propagate(plan, Box(*known.get(plan.input, whole)), inherited=known)
        return state, empty | crossed


def splits_at_points(plan: Plan) -> bool:
    """Whether splits are at any points of any operators: where something else than ReLUs is relaxed."""
    return not all(isinstance(plan.graph.nodes[n].op, Relu) for n in plan.relaxed)


def _expanded(ends: Interval, plan: Plan, count: int) -> Interval:
    """The interval of one box for each of ``count``."""
    low, high = (end.to(plan.dtype).expand(count, *end.shape[1:]) for end in ends)
    return low, high


def wide(low: Tensor, high: Tensor) -> Tensor:
    """Which intervals are wide enough to be split."""
    return high - low > LEAST_WIDTH * (1 + torch.maximum(low.abs(), high.abs()))


def _spread(relaxation: Relaxation, count: int) -> Relaxation:
    """Lines of one box repeated for ``count`` (nodes without a split)."""

    def spread(values: Tensor) -> Tensor:
        return values.expand(count, *values.shape[1:]) if values.shape[0] == 1 else values

    def lines(side: tuple[Line, ...]) -> tuple[Line, ...]:
        return tuple(replace(v, slopes=tuple(spread(s) for s in v.slopes), offset=spread(v.offset)) for v in side)

    return Relaxation(lines(relaxation.lower), lines(relaxation.upper))
