"""Several refinements that share one time limit: of every output, or of every margin, over every region.

All of them are bounded at once first, and points of each region are tried for all; what comes later only narrows that,
so that a model of many outputs has an answer at once. Then the refinements take turns, widest gaps first: in every
round each has the same slice of time, which doubles from round to round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from bounds import Box, Crown, Interval, LpBall, compute_bounds, prepare
from milp.highs import Runner
from verifier import limits
from verifier.anytime.domain import Domain
from verifier.anytime.enclosure import Enclosure, Status
from verifier.anytime.functional import with_expression
from verifier.anytime.points import samples
from verifier.anytime.refinement import refine
from verifier.errors import InputError
from verifier.network import Network
from verifier.ranges import bounded, rows_of

SLICE, LEAST_SLICE = 0.5, 0.1
"""Seconds of a turn in the first round, and the fewest that a turn takes where the time is short for all."""

PARAMETER_BYTES = 64
"""What a refinement that waits for its turn keeps for each parameter of the network, about."""

Place = tuple[int, int]
"""Of a refinement: its region and its value."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Over N regions, of R values, all ``[N, R]`` in float64 and proven in real arithmetic over the stored weights:
    ``lower <= min f <= least`` and ``greatest <= max f <= upper``. ``status`` of each: "exact", both gaps are at most
    what was asked for; "open", nothing more can be done; "limit", the time or the memory was used up."""

    lower: Tensor
    upper: Tensor
    least: Tensor
    greatest: Tensor
    status: tuple[tuple[Status, ...], ...]


@dataclass(frozen=True, slots=True)
class TurnProgress:
    """The refinement that is at work, of ``total`` the number ``done``, its four ends, and how many boxes of it are
    ``open``."""

    place: Place
    done: int
    total: int
    lower: float
    least: float
    greatest: float
    upper: float
    open: int


Report = Callable[[TurnProgress], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How near the ends have to come (``gap``), the bytes that open boxes may take in all, where the state of the one
    refinement is kept, and the seed of points that are tried."""

    gap: float = 1e-6
    memory: int = 1 << 30
    checkpoint: Path | None = None
    seed: int = 0


class Turns:
    """The refinements of a network's outputs over N regions; of the margins of ``label``, or of a ``functional``
    (an expression), in their place. State: the ends, which ``found`` returns at any moment, also after an interrupt;
    ``history``, the enclosures of a refinement that is the only one."""

    def __init__(
        self,
        network: Network,
        region: Box | LpBall,
        *,
        label: int | None = None,
        functional: str | None = None,
        effort: Effort = Effort(),
    ) -> None:
        """Bound everything at once, by ``Crown``, and try points. Raises ``InputError``, ``UnsupportedError``."""
        start = limits.now()
        self.graph = network.graph if functional is None else with_expression(network.graph, functional)
        self.rows = None if label is None else rows_of(network, label)
        self.region, self.effort = region.to(torch.float64, "cpu"), effort
        found = bounded(self.graph, self.region, Crown(), self.rows)
        self.lower, self.upper = (ends.flatten(1).clone() for ends in (found.lower, found.upper))
        self.least, self.greatest = torch.full_like(self.lower, math.inf), torch.full_like(self.lower, -math.inf)
        if effort.checkpoint is not None and self.lower.numel() != 1:
            raise InputError(
                f"a checkpoint is of one value over one region; these are {self.lower.numel()} (name one functional, "
                "such as y[0])"
            )
        self.ended, self.heard = dict[Place, Status](), dict[Place, Status]()
        self.waiting = dict[Place, Generator[Enclosure]]()
        self._try_points()
        self.start, self.history = start, list[Enclosure]()
        if self.lower.numel() == 1:
            spent = limits.now() - start
            first = Enclosure(*self._sides((0, 0)), None, None, "open", 1, self.tried, 0, 1, spent)
            self.history.append(first)

    def found(self) -> Ends:
        """What is known now."""
        regions, values = self.lower.shape
        status = tuple(tuple(self._status((n, r)) for r in range(values)) for n in range(regions))
        return Ends(self.lower.clone(), self.upper.clone(), self.least.clone(), self.greatest.clone(), status)

    def run(
        self, deadline: float | None = None, *, report: Report | None = None, runner: Runner | None = None
    ) -> None:
        """Work until every gap is at most what was asked for, nothing more can be done, or the deadline has come (of
        ``limits.now``). ``runner`` is not needed: no solver is asked."""
        try:
            size = SLICE
            while pending := [place for place in self._places() if not self._done(place)]:
                pending.sort(key=self._gap, reverse=True)
                fair = math.inf if deadline is None else (deadline - limits.now()) / len(pending)
                for place in pending:
                    if deadline is not None and limits.now() >= deadline:
                        return
                    self._turn(place, max(min(size, fair), LEAST_SLICE), deadline, report)
                size *= 2
        finally:
            for refinement in self.waiting.values():
                refinement.close()
            self.waiting.clear()

    def _turn(self, place: Place, seconds: float, deadline: float | None, report: Report | None) -> None:
        """Let a refinement go on for some seconds, at least one step."""
        until = limits.now() + seconds
        refinement = self.waiting.pop(place, None) or self._begun(place, deadline)
        for enclosure in refinement:
            self._hear(place, enclosure)
            if report is not None:
                report(self._progress(place, enclosure.open))
            if self._exact(place):
                break
            if limits.now() >= until:
                if len(self.waiting) < self._room():
                    self.waiting[place] = refinement
                    return
                break
        else:
            late = deadline is not None and limits.now() >= deadline
            self.ended[place] = "limit" if late else self.heard[place]
        refinement.close()

    def _begun(self, place: Place, deadline: float | None) -> Generator[Enclosure]:
        effort, count = self.effort, min(self.lower.numel(), self._room() + 1)
        found = refine(
            self.graph,
            self.region.take(torch.tensor([place[0]])),
            self._row(place[1]),
            gap=effort.gap,
            timeout=None if deadline is None else max(deadline - limits.now(), 0.0),
            memory=max(effort.memory // count, 1),
            checkpoint=effort.checkpoint,
            seed=effort.seed,
        )
        return cast("Generator[Enclosure]", found)

    def _room(self) -> int:
        """How many refinements are kept between their turns; others start again, from what is known of the ends."""
        parameters = sum(constant.value.numel() for constant in self.graph.constants.values())
        return self.effort.memory // (PARAMETER_BYTES * (parameters + 1))

    def _row(self, value: int) -> Tensor | None:
        if self.rows is not None:
            return self.rows[value]
        if self.lower.shape[1] == 1:
            return None
        row = torch.zeros(self.lower.shape[1], dtype=torch.float64)
        row[value] = 1.0
        return row.reshape(self.graph.nodes[self.graph.outputs[0]].shape)

    def _try_points(self) -> None:
        """Some points of each region, for all values at once: with the proven ends of what they attain."""
        prepared = prepare(self.graph, torch.float64)
        self.tried = 0
        for n in range(self.lower.shape[0]):
            domain = Domain.of(self.region.take(torch.tensor([n])))
            points = samples(domain, self.effort.seed)
            points = points[points.isfinite().all(1)].reshape(-1, *domain.shape)
            if not points.shape[0]:
                continue
            self.tried += points.shape[0]
            at = compute_bounds(prepared, Box(points, points), Interval(), rows=self.rows)
            low, high = at.lower.flatten(1), at.upper.flatten(1)
            self.least[n] = torch.where(high.isnan(), math.inf, high).amin(0)
            self.greatest[n] = torch.where(low.isnan(), -math.inf, low).amax(0)

    def _hear(self, place: Place, enclosure: Enclosure) -> None:
        self.heard[place] = enclosure.status
        self.lower[place] = max(float(self.lower[place]), enclosure.lower)
        self.least[place] = min(float(self.least[place]), enclosure.least)
        self.greatest[place] = max(float(self.greatest[place]), enclosure.greatest)
        self.upper[place] = min(float(self.upper[place]), enclosure.upper)
        if self.lower.numel() == 1:
            lower, least, greatest, upper = self._sides(place)
            spent = limits.now() - self.start
            self.history.append(
                replace(enclosure, lower=lower, least=least, greatest=greatest, upper=upper, seconds=spent)
            )

    def _progress(self, place: Place, count: int) -> TurnProgress:
        done, total = sum(map(self._done, self._places())), self.lower.numel()
        return TurnProgress(place, done, total, *self._sides(place), count)

    def _sides(self, place: Place) -> tuple[float, float, float, float]:
        """In the order of size."""
        return (
            float(self.lower[place]), float(self.least[place]), float(self.greatest[place]), float(self.upper[place])
        )  # fmt: skip

    def _places(self) -> list[Place]:
        return [(n, r) for n in range(self.lower.shape[0]) for r in range(self.lower.shape[1])]

    def _gap(self, place: Place) -> float:
        gap = max(float(self.least[place] - self.lower[place]), float(self.upper[place] - self.greatest[place]))
        return math.inf if math.isnan(gap) else gap

    def _exact(self, place: Place) -> bool:
        return self._gap(place) <= self.effort.gap

    def _done(self, place: Place) -> bool:
        return place in self.ended or self._exact(place)

    def _status(self, place: Place) -> Status:
        return "exact" if self._exact(place) else self.ended.get(place, "limit")
