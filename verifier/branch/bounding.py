"""Bounds of subproblems: an ascent over slopes, split multipliers and literal weights in the search's plan, then one
walk with all error terms and the multipliers found.

Where every relaxed operator is a ReLU and every clause one literal, the ascent works on the root's condensed network
(``condensed_splits.py``); else on the whole graph. Where other operators are relaxed, splits are at points
(``point_splits.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.ascent import ascend
from bounds.climb import Pace, climb
from bounds.dual import Dual, Multipliers, Objective, Slopes, each, evaluate, initial
from bounds.ops.base import Parameters
from bounds.plan import Plan
from verifier.branch.condensed_splits import CondensedRoot, settled
from verifier.branch.half_spaces import HalfSpaces
from verifier.branch.leaf import multipliers
from verifier.branch.point_splits import PointRoot, at_once
from verifier.branch.positions import Positions
from verifier.branch.splits import Splits

RATE = 0.1
"""How far the ascent of a subproblem steps at first, as a share of each number's range."""


@dataclass(frozen=True, slots=True, eq=False)
class Bounded:
    """K subproblems after the search's ascent (nothing proven): ``bound`` ``[K]``, the lower ``slopes`` and ``betas``
    ``[K, U]``, ``weights`` ``[K, L]`` and parameters of ``others`` that give it, the minimising ``corner``
    ``[K, *input shape]`` and the coefficient ``rows`` at the ReLUs of each place, ``[K, E]`` by node."""

    bound: Tensor
    slopes: Tensor
    betas: Tensor
    weights: Tensor
    others: Slopes
    corner: Tensor
    rows: Mapping[int, Tensor]

    def take(self, index: Tensor) -> Bounded:
        """Those at ``index``."""
        return Bounded(
            self.bound[index],
            self.slopes[index],
            self.betas[index],
            self.weights[index],
            {n: each(pair, lambda s: s[index]) for n, pair in self.others.items()},
            self.corner[index],
            {n: rows[index] for n, rows in self.rows.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Bounded]) -> Bounded:
        """All of them, in order; of one graph."""
        first = parts[0]
        if len(parts) == 1:
            return first

        def joined(node: int, side: int) -> Tensor | None:
            ends = [p.others[node][side] for p in parts]
            return None if ends[0] is None else torch.cat([end for end in ends if end is not None])

        return Bounded(
            torch.cat([p.bound for p in parts]),
            torch.cat([p.slopes for p in parts]),
            torch.cat([p.betas for p in parts]),
            torch.cat([p.weights for p in parts]),
            {node: (joined(node, 0), joined(node, 1)) for node in first.others},
            torch.cat([p.corner for p in parts]),
            {n: torch.cat([p.rows[n] for p in parts]) for n in first.rows},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Bounding:
    """The bounding problems of one box: C clauses of L literals, ``rows`` ``[C, L, F]`` and ``rhs`` ``[C, L]``."""

    rough: Plan
    exact: Plan
    positions: Positions
    rows: Tensor
    rhs: Tensor
    target: int
    condensed: CondensedRoot | None
    points: PointRoot | None = None
    half_spaces: HalfSpaces | None = None

    @staticmethod
    def of(
        plans: tuple[Plan, Plan],
        positions: Positions,
        rows: Tensor,
        rhs: Tensor,
        target: int | None = None,
        steps: int = 0,
    ) -> Bounding:
        """``plans``: for search and for proof; ``steps`` of ascent for intervals of first-layer neurons."""
        target = plans[0].output if target is None else target
        if positions.points:
            points = PointRoot.of(plans[0], positions, rows, rhs)
            return Bounding(*plans, positions, rows, rhs, target, None, points)
        root = CondensedRoot.of(plans[0], positions, target, rows[:, 0], rhs[:, 0]) if rows.shape[1] == 1 else None
        return Bounding(*plans, positions, rows, rhs, target, root, None, HalfSpaces.of(plans[1], positions, steps))

    def own_slopes(self) -> Tensor:
        """``[1, U]`` in 16 bits: the lower slopes that the root's lines have of themselves."""
        none = torch.zeros((1, self.positions.count), dtype=torch.int8, device=self.rough.device)
        lines = initial(self.rough, self.positions.state(self.rough, none))
        slopes = {p.before: lower(lines[p.relus[0]]) for p in self.positions.places}
        return self.positions.gather(slopes, none).to(torch.float16)

    def known(self, batch: Splits) -> Splits:
        """The same with intervals from their own splits, where this root has such."""
        return batch if self.half_spaces is None or batch.known is not None else self.half_spaces.known(batch)

    def ascended(self, batch: Splits, steps: int) -> Bounded:
        """At most ``steps`` steps from the stored multipliers. A bound of inf: no input is left, by what is known."""
        batch = self.known(batch)
        found = self._ascended(batch, steps)
        return replace(found, bound=torch.where(empty(batch), torch.inf, found.bound))

    def _ascended(self, batch: Splits, steps: int) -> Bounded:
        if self.points is not None:
            parts = self.points.ascended(self.rough, batch, steps, RATE)
            tensors = ((p.bound, p.slopes, p.betas, p.weights, p.corner) for p in parts)
            bound, slopes, betas, weights, corner = (torch.cat(t) for t in zip(*tensors, strict=True))
            return Bounded(bound, slopes, betas, weights, {}, corner, {})
        if self.condensed is None:
            return Bounded.cat([self._over_graph(part, steps) for part in self._parts(batch)])
        rows, count = self.condensed.rows(batch.clause, batch.signs, batch.known), self.positions.count
        point = self._start(batch)
        rows.project(point)
        if steps:
            point = climb(rows, point, rows.scale(), Pace(steps, RATE), 0.0).point
        return Bounded(
            rows.value(point),
            point[:, :count],
            point[:, count:],
            torch.ones_like(self.rhs[batch.clause]),
            {},
            rows.corners(),
            {p.relus[0]: rows.rows[:, p.columns] for p in self.positions.places},
        )

    def _parts(self, batch: Splits) -> Iterator[Splits]:
        """Of a size whose walks over the graph fit the memory."""
        most = at_once(self.rough)
        for first in range(0, max(1, batch.size), most):
            yield batch.take(slice(first, first + most))

    def _start(self, batch: Splits) -> Tensor:
        dtype = self.rough.dtype
        return torch.cat([batch.slopes.to(dtype), torch.where(batch.signs == 0, 0.0, batch.betas.to(dtype))], 1)

    def _dual(self, batch: Splits, plan: Plan) -> Dual:
        objective = Objective(
            self.rows[batch.clause].to(plan.dtype), self.rhs[batch.clause].to(plan.dtype), batch.weights.to(plan.dtype)
        )
        signs = self.positions.dense(plan, batch.signs)
        state = self.positions.state(plan, batch.signs, batch.known)
        return Dual(plan, state, self.target, objective, signs)

    def _multipliers(self, dual: Dual, side: Tensor, slopes: Tensor, betas: Tensor) -> Multipliers:
        """Written out: given slopes where ``side`` ``[K, U]`` is 0, the state's own elsewhere."""
        found = initial(dual.plan, dual.state)
        for place in self.positions.places:
            for relu in place.relus:
                own = lower(found[relu])
                mine = slopes[:, place.columns].to(own.dtype)
                found[relu] = place.put(own, torch.where(side[:, place.columns] == 0, mine, place.get(own))), None
        return Multipliers(found, self.positions.dense(dual.plan, betas, dual.signs), dual.objective.weights)

    def _over_graph(self, batch: Splits, steps: int) -> Bounded:
        plan, places = self.rough, self.positions.places
        dual = self._dual(batch, plan)
        given = batch.slopes.to(plan.dtype), batch.betas.to(plan.dtype)
        start = self._multipliers(dual, settled(batch.signs, batch.known), *given)
        found = ascend(dual, start, steps, RATE)
        chosen = found.multipliers
        slopes = {p.before: lower(chosen.slopes[p.relus[0]]) for p in places}
        betas = {n: chosen.betas[n] if n in chosen.betas else torch.zeros_like(s) for n, s in slopes.items()}
        first = {p.relus[0] for p in places}
        nodes = {relu: p for p in places for relu in p.relus if relu in found.trace}
        return Bounded(
            found.bound,
            self.positions.gather(slopes, found.bound),
            self.positions.gather(betas, found.bound),
            chosen.weights,
            {n: pair for n, pair in chosen.slopes.items() if n not in first},
            found.corner,
            {relu: place.get(found.trace[relu]) for relu, place in nodes.items()},
        )

    def by_linear_program(self, batch: Splits) -> Bounded:
        """Subproblems with nothing left to split with a solver's multipliers in float64, which prove what they prove: a
        bound of inf says that there are some, -inf that there are none."""
        bound = torch.full(batch.bound.shape, -torch.inf, dtype=torch.float64, device=batch.bound.device)
        found = torch.zeros(batch.signs.shape, dtype=torch.float64, device=batch.bound.device)
        side = settled(batch.signs, batch.known)
        for k in range(batch.size if self.condensed is not None and self.positions.count else 0):
            assert self.condensed is not None
            betas = multipliers(self.condensed, int(batch.clause[k]), batch.signs[k], side[k])
            if betas is not None:
                bound[k], found[k] = torch.inf, betas
        weights = torch.ones_like(self.rhs[batch.clause])
        return Bounded(bound, batch.slopes, found, weights, {}, bound, {})

    def decided(self, batch: Splits, found: Bounded) -> Tensor:
        """``[K]``: lower bounds that hold in exact arithmetic, from one walk with the multipliers found; inf where
        proven intervals say that no input is left."""
        batch = self.known(batch)
        if self.points is not None:
            return self.points.decided(self.exact, batch, found.slopes, found.betas, found.weights)
        parts, numbers = list(self._parts(batch)), torch.arange(batch.size, device=batch.bound.device)
        if len(parts) == 1:
            return self._decided(batch, found)
        places = numbers.split(parts[0].size)
        return torch.cat([self._decided(p, found.take(at)) for p, at in zip(parts, places, strict=True)])

    def _decided(self, batch: Splits, found: Bounded) -> Tensor:
        dual = self._dual(batch, self.exact)
        chosen = self._multipliers(dual, settled(batch.signs, batch.known), found.slopes, found.betas)
        others = {n: each(pair, lambda s: s.to(self.exact.dtype)) for n, pair in found.others.items()}
        weights = found.weights.to(self.exact.dtype)
        bound = evaluate(dual, Multipliers({**chosen.slopes, **others}, chosen.betas, weights))[1]
        return torch.where(empty(batch), torch.inf, torch.nan_to_num(bound, nan=-torch.inf))


def empty(batch: Splits) -> Tensor:
    """``[K]`` bool: where what is known leaves nothing."""
    if batch.known is None:
        return torch.zeros_like(batch.clause, dtype=torch.bool)
    return (batch.known[0] > batch.known[1]).any(1)


def lower(pair: Parameters) -> Tensor:
    """The lower slopes of a ReLU, the only ones it has a choice of."""
    assert pair[0] is not None
    return pair[0]
