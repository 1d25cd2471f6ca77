"""Branch and bound over the signs of pre-activations, for networks with many varying inputs.

A subproblem says of some unstable ReLUs on which side of 0 their pre-activation lies. Intermediate bounds are those
of the root (which hold everywhere), clamped at the splits; the half-spaces themselves enter the bound through
multipliers (beta-CROWN, Wang et al., NeurIPS 2021), which ascend together with the slopes, starting from the
parent's. Search runs in float32 without error terms; a subproblem counts as refuted after one walk in float64 with
all error terms and the multipliers found. The next split is where the relaxation loses most at the bound's own
coefficients, ``-A- t`` (the intercept part of BaBSR, Bunel et al., JMLR 2020).

This is the plain form: one clause at a time, root bounds never refreshed, no cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.ascent import Ascended, Multipliers, Objective, ascend, evaluate, initial
from bounds.backward import State
from bounds.box import Box
from bounds.layouts import flat
from bounds.ops.base import Interval, Relaxation
from bounds.ops.relu import Relu
from bounds.plan import Plan
from bounds.propagate import relax
from verifier.branch.problem import Literals, Problem, Step
from verifier.strategy import AscentPlan


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """K subproblems of one box over U positions (unstable ReLU inputs at the root).

    ``clause`` ``[K]``: row of the root's objective; ``signs`` ``[K, U]`` int8; ``slopes`` ``[K, U]`` in 8 bits and
    ``betas`` ``[K, U]`` in 16: a warm start (any values are sound); ``weights`` ``[K, L]``; ``bound, share`` ``[K]``;
    ``next`` ``[K]``: the position to split.
    """

    clause: Tensor
    signs: Tensor
    slopes: Tensor
    betas: Tensor
    weights: Tensor
    bound: Tensor
    share: Tensor
    next: Tensor

    @property
    def size(self) -> int:
        """K."""
        return int(self.clause.shape[0])

    def take(self, index: Tensor) -> Splits:
        """Those at ``index`` (numbers or a mask)."""
        return Splits(*(getattr(self, name)[index] for name in self.__slots__))

    @staticmethod
    def cat(parts: list[Splits]) -> Splits:
        """All of them, in order."""
        return parts[0] if len(parts) == 1 else Splits(
            *(torch.cat([getattr(p, name) for p in parts]) for name in Splits.__slots__)
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where the U positions are: for each split node its ReLU, the columns of U and the flat elements."""

    before: int
    relus: tuple[int, ...]
    columns: slice
    elements: Tensor


class ActivationSplit:
    """The search over one box: its root state (proven, float64), the rough plan and the exact one."""

    def __init__(
        self, problem: Problem, rough: Plan, exact: Plan, root: State, task: int, alive: Tensor, options: AscentPlan
    ) -> None:
        self.problem, self.rough, self.exact, self.root, self.options = problem, rough, exact, root, options
        self.task = task
        literals = Literals.of(problem, torch.tensor([task], device=rough.device))
        self.clauses = literals.clause[0][alive]
        rows = problem.rows(literals.columns, exact)[literals.place[0][alive]]
        threshold = literals.threshold[0][alive]
        present = torch.isfinite(threshold)
        self.rows = rows * present.unsqueeze(-1)
        self.rhs = torch.where(present, threshold, 0.0)
        self.present = present
        self.places = _places(exact, root)
        self.positions = sum(int(p.elements.shape[0]) for p in self.places)

    def run(self) -> Iterator[Step]:
        """Rounds until nothing is open; the first bounds the clauses at the root."""
        frontier = self._root()
        refuted, least, stuck = 0, float("inf"), []
        steps = self.options.root_steps
        children, share = frontier, 0.0
        while True:
            found, corner = self._bound(children, steps)
            proven = self._decide(children, found)
            refuted += int((proven > 0).sum())
            if bool((proven > 0).any()):
                least = min(least, float(proven[proven > 0].min()))
            open_ = proven <= 0
            kept, last = self._remember(children.take(open_), found, open_)
            if last.size:
                last = self._last(last)
                if last.size:
                    stuck.append(last)
            frontier = kept if steps == self.options.root_steps and children is frontier else Splits.cat([frontier, kept])
            waiting = [p for p in (frontier, *stuck) if p.size]
            share = sum(float(p.share.sum()) for p in waiting)
            yield Step(
                min((float(p.bound.amin()) for p in waiting), default=float("inf")),
                sum(p.size for p in waiting),
                share,
                refuted,
                least,
                self._points(corner[open_], children.clause[open_]),
                sum(p.size for p in stuck),
            )
            if not frontier.size:
                return
            batch, frontier = _pop(frontier, self.options.batch)
            children, steps = _split(batch), self.options.steps

    def _root(self) -> Splits:
        count, device = self.rows.shape[0], self.rough.device
        low = initial(self.rough, self._state(self.rough, torch.zeros((1, self.positions), dtype=torch.int8)))
        slopes = self._gather({p.before: low[p.relus[0]] for p in self.places}, 1)
        weights = self.present.double() / self.present.sum(1, keepdim=True).clamp(min=1)
        return Splits(
            torch.arange(count, device=device),
            torch.zeros((count, self.positions), dtype=torch.int8, device=device),
            (slopes * 255).round().to(torch.uint8).expand(count, -1),
            torch.zeros((count, self.positions), dtype=torch.float16, device=device),
            weights,
            torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
            torch.full((count,), 1 / max(1, count), dtype=torch.float64, device=device),
            torch.zeros(count, dtype=torch.int64, device=device),
        )

    def _gather(self, values: Mapping[int, Tensor], count: int) -> Tensor:
        """``[K, U]`` from per-node tensors ``[K, *shape]`` keyed by the split node."""
        parts = [flat(values[p.before])[:, p.elements] for p in self.places]
        return torch.cat(parts, 1) if parts else torch.zeros((count, 0), device=self.rough.device)

    def _scatter(self, values: Tensor, plan: Plan, place: _Place, base: Tensor) -> Tensor:
        """``[K, *shape]``: ``base`` with the positions of one node replaced."""
        full = flat(base.expand(values.shape[0], *base.shape[1:])).clone()
        full[:, place.elements] = values[:, place.columns].to(plan.dtype)
        return full.reshape(-1, *base.shape[1:])

    def _state(self, plan: Plan, signs: Tensor) -> State:
        """The root's state with bounds clamped at the splits, one box per subproblem."""
        bounds: dict[int, Interval] = {
            n: (low.to(plan.dtype), high.to(plan.dtype)) for n, (low, high) in self.root.bounds.items()
        }
        for place in self.places:
            low, high = (flat(b)[:, place.elements] for b in bounds[place.before])
            sign = signs[:, place.columns]
            low, high = torch.where(sign > 0, low.clamp(min=0), low), torch.where(sign < 0, high.clamp(max=0), high)
            below, above = bounds[place.before]
            bounds[place.before] = (
                _placed(below, place.elements, low),
                _placed(above, place.elements, high),
            )
        relaxations: dict[int, Relaxation] = {}
        charges = dict(self.root.charges) if plan.rounding is not None else {}
        for node in sorted(plan.relaxed):
            relax(plan, bounds, plan.graph.nodes[node], relaxations, charges)
        box = Box(*(b.to(plan.dtype).expand(signs.shape[0], *b.shape[1:]) for b in (self.root.box.lower, self.root.box.upper)))
        sizes = self.root.sizes if plan.rounding is not None else {}
        return State(box, bounds, _expanded(relaxations, signs.shape[0]), charges, sizes, self.root.floor.to(plan.dtype))

    def _objective(self, children: Splits, plan: Plan) -> Objective:
        return Objective(
            self.rows[children.clause].to(plan.dtype),
            self.rhs[children.clause].to(plan.dtype),
            children.weights.to(plan.dtype),
        )

    def _signs(self, plan: Plan, signs: Tensor) -> dict[int, Tensor]:
        """Dense signs of the nodes that have a split in this batch."""
        result = {}
        for place in self.places:
            if bool(signs[:, place.columns].any()):
                zero = torch.zeros((1, *plan.graph.nodes[place.before].shape), dtype=plan.dtype, device=plan.device)
                result[place.before] = self._scatter(signs, plan, place, zero)
        return result

    def _bound(self, children: Splits, steps: int) -> tuple[Ascended, Tensor]:
        """Ascend in the rough plan from the stored multipliers."""
        plan = self.rough
        state = self._state(plan, children.signs)
        signs = self._signs(plan, children.signs)
        slopes = initial(plan, state)
        for place in self.places:
            free = children.signs[:, place.columns] == 0
            for relu in place.relus:
                own = flat(slopes[relu])[:, place.elements]
                stored = children.slopes[:, place.columns].to(plan.dtype) / 255
                slopes[relu] = _placed(slopes[relu], place.elements, torch.where(free, stored, own))
        betas = {
            p.before: self._scatter(children.betas, plan, p, torch.zeros_like(signs[p.before][:1]))
            for p in self.places
            if p.before in signs
        }
        start = Multipliers(slopes, betas, children.weights.to(plan.dtype))
        found = ascend(plan, state, plan.output, self._objective(children, plan), start, signs, steps)
        return found, found.corner

    def _decide(self, children: Splits, found: Ascended) -> Tensor:
        """``[K]`` float64: the proven bound of those that the search calls refuted, the search's bound of the rest."""
        proven = found.bound.double().clamp(max=0)
        hopeful = (found.bound > 0).nonzero().flatten()
        for part in hopeful.split(self.options.batch) if hopeful.shape[0] else ():
            mine = children.take(part)
            plan = self.exact
            chosen = found.multipliers
            exact = Multipliers(
                {n: s[part].to(plan.dtype) for n, s in chosen.slopes.items()},
                {n: b[part].to(plan.dtype) for n, b in chosen.betas.items()},
                chosen.weights[part].to(plan.dtype),
            )
            state, signs = self._state(plan, mine.signs), self._signs(plan, children.signs)
            signs = {n: s[part] for n, s in signs.items()}
            _, proven[part] = evaluate(plan, state, plan.output, self._objective(mine, plan), exact, signs)
        return torch.nan_to_num(proven, nan=-torch.inf)

    def _remember(self, children: Splits, found: Ascended, open_: Tensor) -> tuple[Splits, Splits]:
        """Open subproblems with their multipliers stored and the next split chosen; second: nothing left to split."""
        m = found.multipliers
        slopes = self._gather({p.before: m.slopes[p.relus[0]][open_] for p in self.places}, children.size)
        zero = {p.before: torch.zeros_like(m.slopes[p.relus[0]][open_]) for p in self.places}
        betas = self._gather({p.before: m.betas[p.before][open_] if p.before in m.betas else zero[p.before] for p in self.places}, children.size)
        scores = self._scores(children, found, open_)
        best, position = scores.max(1) if self.positions else (children.bound * 0 - 1, children.clause)
        kept = replace(
            children,
            slopes=(slopes.clamp(0, 1) * 255).round().to(torch.uint8),
            betas=betas.clamp(0, 6e4).to(torch.float16),
            weights=m.weights[open_].double(),
            bound=torch.maximum(children.bound, found.bound[open_].double()),
            next=position,
        )
        able = best >= 0
        return kept.take(able), kept.take(~able)

    def _scores(self, children: Splits, found: Ascended, open_: Tensor) -> Tensor:
        """``[K, U]``: what the relaxation of each unsplit position loses; -1 where it is split."""
        state = self._state(self.rough, children.signs)
        losses: dict[int, Tensor] = {}
        for place in self.places:
            total = torch.zeros((), device=self.rough.device)
            for relu in place.relus:
                if relu in found.trace:
                    offset = state.relaxations[relu].upper[0].offset
                    total = total - found.trace[relu][open_].clamp(max=0) * offset
            shape = (children.size, *self.rough.graph.nodes[place.before].shape)
            losses[place.before] = total.expand(shape)
        scores = self._gather(losses, children.size)
        return torch.where(children.signs == 0, scores, -1.0)

    def _last(self, last: Splits) -> Splits:
        """Nothing left to split: the problem is linear; ascend for longer. What stays open is returned."""
        found, _ = self._bound(last, self.options.last_steps)
        return last.take(self._decide(last, found) <= 0)

    def _points(self, corner: Tensor, clause: Tensor) -> Tensor | None:
        """Minimising corners that violate their clause in the network's dtype."""
        if not corner.shape[0]:
            return None
        problem, box = self.problem, self.problem.box[self.task]
        points = corner.flatten(1).to(problem.inner_lower.dtype)
        points = torch.minimum(torch.maximum(points, problem.inner_lower[box]), problem.inner_upper[box])
        forms = self.rough.graph.evaluate(points.to(self.rough.dtype))[0]
        good = problem.arrays.satisfied(forms, self.clauses[clause])
        return points[good] if bool(good.any()) else None


def _places(plan: Plan, root: State) -> list[_Place]:
    """The unstable ReLU inputs of the root's box."""
    places, start = [], 0
    for before in plan.watched:
        relus = tuple(c for c in plan.consumers[before] if c in plan.relaxed and isinstance(plan.graph.nodes[c].op, Relu))
        if not relus:
            continue
        low, high = root.bounds[before]
        elements = ((low < 0) & (high > 0)).flatten().nonzero().flatten()
        if elements.shape[0]:
            places.append(_Place(before, relus, slice(start, start + elements.shape[0]), elements))
            start += elements.shape[0]
    return places


def _placed(base: Tensor, elements: Tensor, values: Tensor) -> Tensor:
    """``[K, *shape]``: ``base`` (of one box or of K) with flat ``elements`` replaced by ``values`` ``[K, E]``."""
    full = flat(base.expand(values.shape[0], *base.shape[1:])).clone()
    full[:, elements] = values
    return full.reshape(-1, *base.shape[1:])


def _expanded(relaxations: Mapping[int, Relaxation], count: int) -> dict[int, Relaxation]:
    """Lines of one box repeated for all subproblems (nodes without a split)."""

    def spread(values: Tensor) -> Tensor:
        return values.expand(count, *values.shape[1:]) if values.shape[0] == 1 else values

    return {
        node: Relaxation(
            tuple(replace(line, slopes=tuple(spread(s) for s in line.slopes), offset=spread(line.offset)) for line in r.lower),
            tuple(replace(line, slopes=tuple(spread(s) for s in line.slopes), offset=spread(line.offset)) for line in r.upper),
        )
        for node, r in relaxations.items()
    }


def _pop(frontier: Splits, count: int) -> tuple[Splits, Splits]:
    if frontier.size <= count:
        return frontier, frontier.take(frontier.clause[:0])
    chosen = torch.topk(frontier.bound, count, largest=False, sorted=False).indices
    rest = torch.ones(frontier.size, dtype=torch.bool, device=frontier.clause.device)
    rest[chosen] = False
    return frontier.take(chosen), frontier.take(rest)


def _split(batch: Splits) -> Splits:
    """Both sides of each parent's next position."""
    at = batch.next.unsqueeze(1)
    sides = []
    for side in (1, -1):
        signs = batch.signs.scatter(1, at, torch.full_like(at, side, dtype=torch.int8))
        sides.append(replace(batch, signs=signs, share=batch.share / 2))
    return Splits.cat(sides)
