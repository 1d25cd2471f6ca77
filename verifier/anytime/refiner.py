"""The anytime refiner: best-first branch and bound on boxes, for the minimum and the maximum of a function at once.

Every step splits the boxes with the least bounds of the side whose ends are farther apart, bounds the halves
(``bounding.py``) and tries points in them. A box that few neurons keep from being linear goes to splits of phases
(``closing.py``), for a part of the work: with them the ends of a piecewise linear network meet after finitely many
steps. Regions of many varying inputs are not split at all but left to phases as a whole.

Both ends are proven: the outer ones are bounds with error terms, the inner ones are proven values at single points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Alpha, Crown, DomainError
from milp.exact import SearchState
from verifier import limits
from verifier.anytime.bounding import Asked, Function
from verifier.anytime.boxes import Boxes, Side
from verifier.anytime.closing import Program, encodable, program_of
from verifier.anytime.enclosure import Enclosure, Status
from verifier.anytime.points import check_finite, descended, samples
from verifier.strategy import MOST_FREE_INPUTS

LEAST_BATCH, MOST_BATCH = 64, 512
"""Boxes bounded in a step: a quarter of those that are open, between these."""

FEW, LEAST_FEW, MOST_FEW, DEPTH_SHARE = 24.0, 8.0, 64.0, 0.25
"""A box may be closed by phases where at most so many elements are unstable, and this many more for each split above
it. The number grows by a quarter with each box that is closed so, and falls by as much where one is not, between these.
"""

EXACT_WORK, EXACT_SHARE, TRY_WORK, PROGRAM_WORK = 4000, 0.25, 250, 25
"""Phases may take so much work, and this share of that on boxes; a try counts like so many boxes, each linear program
like some more ..."""

TRY_PROGRAMS, WAIT = 100, 4
"""... and ends after so many; where it did not close its box, the parts are tried again so many splits below."""

ROUNDING = 32.0
"""Boxes are closed where their bounds are so many times as far from what is attained as rounding leaves a value open:
below a smaller gap they would be split until the floats end."""

DESCENTS, STEPS, POINT_SHARE = 4, 4, 4
"""Points in a step that are the start of a descent, of so many steps; of so many boxes, those with the least bounds,
one has a point tried."""

WIDE_PROGRAMS = 8
"""Linear programs in a step where a region is left to phases as a whole."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Where a refinement stands: its sides, the searches over phases of the whole region (None: it is split), and
    what was done: ``boxes`` bounded, ``points`` evaluated, linear ``programs`` solved, ``exact`` work on phases.
    ``few``: the unstable elements up to which a box goes to phases."""

    sides: tuple[Side, ...]
    searches: tuple[SearchState | None, ...]
    boxes: int = 0
    points: int = 0
    programs: int = 0
    exact: int = 0
    few: float = FEW

    def with_side(self, number: int, side: Side) -> State:
        """With one side replaced."""
        return replace(self, sides=(*self.sides[:number], side, *self.sides[number + 1 :]))


class Refiner:
    """A refinement as a value: what it works on, the ``gap`` at which a side is done (boxes: ``near``, where rounding
    does not allow less), and bytes of ``memory`` for its boxes. After the time ``until`` (of ``time.monotonic``)
    bounding stops to tighten."""

    def __init__(
        self,
        function: Function,
        signs: tuple[float, ...] = (1.0, -1.0),
        gap: float = 1e-6,
        *,
        memory: int = 1 << 30,
        until: float = math.inf,
        seed: int = 0,
    ) -> None:
        self.function, self.signs, self.gap = function, signs, gap
        self.memory, self.until, self.seed = memory, until, seed
        self.exact = encodable(function)
        wide = function.free.shape[0] > MOST_FREE_INPUTS and self.exact
        ends = function.domain.ends()
        self.near = max(gap, ROUNDING * _rounding(function))
        self.wholes = tuple(program_of(function, ends, sign, self.near, Alpha()) if wide else None for sign in signs)

    def begun(self) -> State:
        """The whole region bounded, and the points tried where its bounds say that f may be least and greatest. Raises
        ``InputError`` where f is not finite at the centre."""
        low, high = self.function.domain.ends()
        none, points = torch.zeros(1, dtype=torch.int64), [low / 2 + high / 2]
        check_finite(self.function, self.function.domain.inside(points[0]))
        sides = []
        for sign in self.signs:
            found = self.function.bound(Asked(low, high, sign, until=self.until))
            sides.append(Side(sign, Boxes.of(found, none, none)))
            points.append(found.points)
        searches = tuple(None if whole is None else whole.search.start() for whole in self.wholes)
        state = State(tuple(sides), searches, boxes=len(sides))
        return self._closed(self._tried(state, self.function.domain.inside(torch.cat(points))))

    def beginnings(self) -> Iterator[State]:
        """The first states, up to where boxes are split: the region bounded; bounded once more against what is
        attained, which clips it and shows whether rounding is what keeps it open; left to phases where few elements are
        unstable; samples of it, and descents from the best of them. Raises ``InputError`` where f is not finite at
        one."""
        state = self.begun()
        yield state
        for number, side in enumerate(state.sides):
            if side.open.count:  # what it inherits holds where it was collapsed to, not on the whole region
                box = side.open
                asked = Asked(box.lower, box.upper, side.sign, side.value, box.inherited, self.until)
                again = Boxes.of(self.function.bound(asked), box.wait, box.depth)
                state = replace(state.with_side(number, replace(side, open=again)), boxes=state.boxes + 1)
        yield (state := self._closed(state))
        for number, whole in enumerate(self.wholes):
            if self.exact and whole is None:
                state = self._phases(state, number)
        yield (state := self._closed(state))
        if not self.finished(state):
            yield self._sampled(state)

    def _sampled(self, state: State) -> State:
        """With points of the whole region tried."""
        points, (low, high) = samples(self.function.domain, self.seed), self.function.domain.ends()
        check_finite(self.function, points)
        tried = [points]
        for sign in self.signs:
            best = points[self._signed(points, sign).argsort()[:DESCENTS]]
            tried.append(descended(self.function, best, high - low, sign))
        return self._closed(self._tried(state, torch.cat(tried)))

    def finished(self, state: State) -> bool:
        """Whether nothing is left to do."""
        return not any(side.open.count for side in state.sides)

    def exhausted(self, state: State) -> bool:
        """Whether the open boxes alone take more memory than they may."""
        return sum(side.open.bare().bytes for side in state.sides) > self.memory

    def step(self, state: State) -> State:
        """Work on the side whose ends are farther apart. The state must not be finished."""
        waiting = [k for k, side in enumerate(state.sides) if side.open.count]
        number = max(waiting, key=lambda k: state.sides[k].gap)
        program, search = self.wholes[number], state.searches[number]
        if program is not None and search is not None:
            return self._closed(self._whole(state, number, program, search))
        state = self._split(state, number)
        if self.exact:
            state = self._phases(state, number)
        return self._closed(state)

    def terminate(self, state: State, seconds: float, status: Status | None = None) -> Enclosure:
        """What a state says. ``status``: why it is the last one, where it is not done."""
        ends = {side.sign: side for side in state.sides}
        least, greatest = ends.get(1.0), ends.get(-1.0)
        shape = self.function.domain.shape
        done = all(side.gap <= self.gap for side in state.sides)
        return Enclosure(
            -math.inf if least is None else least.bound,
            math.inf if least is None else least.value,
            -math.inf if greatest is None else -greatest.value,
            math.inf if greatest is None else -greatest.bound,
            None if least is None or least.point is None else least.point.reshape(shape),
            None if greatest is None or greatest.point is None else greatest.point.reshape(shape),
            "exact" if done else status or "open",
            state.boxes,
            state.points,
            state.programs,
            sum(side.open.count for side in state.sides),
            seconds,
        )

    def run(self, state: State | None = None) -> Iterator[State]:
        """States from one on (default: the beginnings) until nothing is left, or the time or the memory is used up."""
        for first in self.beginnings() if state is None else (state,):
            state = first
            yield state
            if self._ended(state):
                return
        assert state is not None
        while not self._ended(state):
            state = self.step(state)
            yield state

    def _ended(self, state: State) -> bool:
        return self.finished(state) or self.exhausted(state) or limits.now() >= self.until

    def _closed(self, state: State) -> State:
        sides = tuple(side.closing(self.near) for side in state.sides)
        if sum(side.open.bytes for side in sides) > self.memory:
            sides = tuple(replace(side, open=side.open.bare()) for side in sides)
        return replace(state, sides=sides)

    def _signed(self, points: Tensor, sign: float) -> Tensor:
        """``sign * f`` at points, inf where it is no number."""
        with torch.no_grad():
            values = self.function.values(points)
        return torch.where(values.isfinite(), sign * values, math.inf)

    def _tried(self, state: State, points: Tensor) -> State:
        """With points of the region, where one is the best of a side: as proven of its value."""
        state = replace(state, points=state.points + points.shape[0])
        for number, side in enumerate(state.sides):
            signed = self._signed(points, side.sign)
            best = int(signed.argmin())
            if float(signed[best]) < side.value:
                low, high = self.function.enclosed(points[best : best + 1])
                state = state.with_side(number, side.attained(float(high if side.sign > 0 else -low), points[best]))
        return state

    def _split(self, state: State, number: int) -> State:
        """Halve the boxes with the least bounds and bound the halves."""
        side = state.sides[number]
        order = side.open.bound.argsort()
        count = min(max(LEAST_BATCH, min(MOST_BATCH, order.shape[0] // 4)), order.shape[0])
        chosen, rest = side.open.take(order[:count]), side.open.take(order[count:])
        halves, smaller = chosen.halves()
        side = replace(side, open=Boxes.cat([rest, chosen.take(~smaller)]))
        side = side.without(torch.arange(side.open.count) >= rest.count)  # what cannot be split counts as it is
        halves = halves.take(smaller.repeat(2))
        halves = halves.take(self.function.domain.inhabited(halves.lower, halves.upper))
        if not halves.count:
            return state.with_side(number, side)
        asked = Asked(halves.lower, halves.upper, side.sign, side.value, halves.inherited, self.until)
        found = self.function.bound(asked)
        found = replace(found, bound=torch.maximum(found.bound, halves.bound))
        side = replace(side, open=Boxes.cat([side.open, Boxes.of(found, halves.wait, halves.depth)]))
        state = replace(state.with_side(number, side), boxes=state.boxes + halves.count)
        few = found.bound.argsort()[: max(DESCENTS, halves.count // POINT_SHARE)]
        points, width = self.function.domain.inside(found.points[few]), (halves.upper - halves.lower)[few]
        best = self._signed(points, side.sign).argsort()[:DESCENTS]
        moved = descended(self.function, points[best], width[best], side.sign, STEPS)
        return self._tried(state, torch.cat([points, moved]))

    def _phases(self, state: State, number: int) -> State:
        """Close boxes by phases, those with the least bounds first, while that has not had its share of the work."""
        while state.exact <= EXACT_WORK + EXACT_SHARE * state.boxes:
            side = state.sides[number]
            boxes = side.open
            near = (boxes.unstable <= state.few + DEPTH_SHARE * boxes.depth) & (boxes.wait <= boxes.depth)
            fit = near & (boxes.bound < side.value - self.near)
            if not bool(fit.any()):
                break
            best = torch.where(fit, boxes.bound, math.inf).argmin()
            ends = boxes.lower[best].unsqueeze(0), boxes.upper[best].unsqueeze(0)
            wait = boxes.wait.index_put((best,), boxes.depth[best] + WAIT)
            side = replace(side, open=replace(boxes, wait=wait))
            state = replace(state.with_side(number, side), exact=state.exact + TRY_WORK)
            program = program_of(self.function, ends, side.sign, self.near, Crown())
            if program is None:
                continue
            last = program.run(program.search.start(), side.value, TRY_PROGRAMS)
            bound = boxes.bound.index_put((best,), boxes.bound[best].clamp(min=last.bound))
            state = state.with_side(number, replace(side, open=replace(side.open, bound=bound)))
            work, closed = PROGRAM_WORK * last.nodes, program.search.finished(last)
            few = min(state.few * 1.25, MOST_FEW) if closed else max(state.few / 1.25, LEAST_FEW)
            state = replace(state, programs=state.programs + last.nodes, exact=state.exact + work, few=few)
            if last.x is not None:
                state = self._tried(state, program.point(last.x).unsqueeze(0))
            state = state.with_side(number, state.sides[number].closing(self.near))
        return state

    def _whole(self, state: State, number: int, program: Program, search: SearchState) -> State:
        """Some linear programs more over the whole region."""
        side = state.sides[number]
        last = program.run(search, side.value, WIDE_PROGRAMS)
        bound = side.open.bound.clamp(min=last.bound)
        state = state.with_side(number, replace(side, open=replace(side.open, bound=bound)))
        searches = (*state.searches[:number], last, *state.searches[number + 1 :])
        state = replace(state, searches=searches, programs=state.programs + last.nodes - search.nodes)
        if last.x is not None:
            state = self._tried(state, program.point(last.x).unsqueeze(0))
        if program.search.finished(last):  # phases are used up: what is proven stands
            state = state.with_side(number, state.sides[number].without(torch.ones(1, dtype=torch.bool)))
        return state


def _rounding(function: Function) -> float:
    """How far apart the proven ends of f are at a usual point (0: not known). At single points a jump is between."""
    points = samples(function.domain, 0)[:9]
    points = points[points.isfinite().all(1)]
    try:
        if not points.shape[0]:
            return 0.0
        least, most = function.enclosed(points)
    except DomainError:
        return 0.0
    widths = most - least
    widths = widths[widths.isfinite()]
    return float(widths.median()) if widths.shape[0] else 0.0
