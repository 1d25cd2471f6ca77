"""The unstable neurons of one box, numbered through, and the states that splits of them lead to.

Position u of U stands for one element of one pre-activation; a subproblem is then a row of signs ``[U]``.
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
from bounds.propagate import relax


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The positions of one pre-activation ``before``: the ReLUs that read it, their ``columns`` of U, and the flat
    ``elements`` they stand for."""

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
    """All places of a root state (proven bounds of one box), ``count`` positions together."""

    root: State
    places: tuple[Place, ...]
    count: int

    @staticmethod
    def of(plan: Plan, root: State) -> Positions:
        """The unstable ReLU inputs of the root's box."""
        places: list[Place] = []
        start = 0
        for before in plan.watched:
            consumers = [c for c in plan.consumers[before] if c in plan.relaxed]
            relus = tuple(c for c in consumers if isinstance(plan.graph.nodes[c].op, Relu))
            low, high = root.bounds[before]
            elements = ((low < 0) & (high > 0)).flatten().nonzero().flatten()
            if relus and elements.shape[0]:
                places.append(Place(before, relus, slice(start, start + elements.shape[0]), elements))
                start += elements.shape[0]
        return Positions(root, tuple(places), start)

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

    def state(self, plan: Plan, signs: Tensor) -> State:
        """The root's state with bounds clamped at the splits ``signs`` ``[K, U]``, one box per subproblem.

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
            bounds[place.before] = (place.put(below, low), place.put(above, high))
        relaxations: dict[int, Relaxation] = {}
        exact = plan.rounding is not None
        charges = dict(root.charges) if exact else {}
        for node in sorted(plan.relaxed):
            relax(plan, bounds, plan.graph.nodes[node], relaxations, charges)
        ends = (end.to(plan.dtype).expand(count, *end.shape[1:]) for end in (root.box.lower, root.box.upper))
        lines = {node: _spread(relaxation, count) for node, relaxation in relaxations.items()}
        return State(Box(*ends), bounds, lines, charges, root.sizes if exact else {}, root.floor.to(plan.dtype))


def _spread(relaxation: Relaxation, count: int) -> Relaxation:
    """Lines of one box repeated for ``count`` (nodes without a split)."""

    def spread(values: Tensor) -> Tensor:
        return values.expand(count, *values.shape[1:]) if values.shape[0] == 1 else values

    def lines(side: tuple[Line, ...]) -> tuple[Line, ...]:
        return tuple(replace(v, slopes=tuple(spread(s) for s in v.slopes), offset=spread(v.offset)) for v in side)

    return Relaxation(lines(relaxation.lower), lines(relaxation.upper))
