"""The exact robust radius: the least change of an input that changes a model's answer, from both sides.

From below come radii within which no other class is reached: first by bounds of the margins alone, then those that
``milp.distortion`` proves. From above comes the nearest input found that another class wins, with its exact distance:
first by an attack, so that there is an upper end before any program is solved.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milp.adversarial import distortion
from milp.encode import UnboundedError
from milp.exact import Outcome
from milp.highs import InProcess, Runner
from milp.settle import Standing
from verifier import limits
from verifier.anytime.nearest import nearest
from verifier.attacks.nearby.fmn import FURTHEST
from verifier.errors import InputError, UnsupportedError
from verifier.exact.refusals import check_operators, explained
from verifier.radii import Centre, RadiusBracket, RadiusProgress, Report, Status
from verifier.ranges import single
from verifier.regions import Number

if TYPE_CHECKING:
    from verifier.network import Network

INSTEAD = "verifier verify --input FILE --epsilon R decides single radii with every operator"

ATTACK_SHARE, JUDGED, LINE_STEPS = 0.15, 4, 25
"""Of the time, for the attack; of its points, how many are looked at, each moved in so many steps towards the input."""

_NUDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)


def exact_radius(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network,
    x: np.ndarray,
    norm: str = "inf",
    label: int | None = None,
    data_range: tuple[Number, Number] | None = None,
    *,
    gap: float = 1e-6,
    envelope: float | None = None,
    timeout: float | None = None,
    report: Report | None = None,
) -> RadiusBracket:
    """The distance, in the norm "inf" or "1", from ``x`` to the nearest input of another class, to within ``gap``.

    ``x`` has as many elements as the model's input and is taken as exact numbers; ``data_range`` ``(low, high)`` says
    what every element of an input can be; ``label`` defaults to the model's own class at ``x`` (by onnxruntime).
    ``timeout`` in seconds is looked at between steps; what is proven by then is returned. ``report`` hears now and then
    how far the work is. ``envelope``: how far results of an operator without an exact form may be off it (None: such
    an operator is an error); ``lower`` is proven then too, but need not come within the gap (status "open").

    Raises ``InputError`` (also where another class is ahead of ``label`` at ``x``), ``UnsupportedError`` (another norm,
    an operator without an exact form, a neuron without finite bounds).
    """
    until = limits.deadline(timeout)
    work = RadiusSearch(single(model), x, norm, label=label, data_range=data_range, gap=gap, envelope=envelope)
    work.run(None if timeout is None else until, report=report)
    return work.found()


def check_norm(norm: str) -> None:
    """Raise ``UnsupportedError`` for norm "2", ``InputError`` for one that is not known."""
    if norm == "2":
        raise UnsupportedError(
            "norm 2: the least distance in it is no linear program; the norms inf and 1 are supported (verifier range "
            "--norm 2 bounds outputs over such balls)"
        )
    if norm not in ("inf", "1"):
        raise InputError(f"norm {norm!r}: the known ones are inf and 1")


class RadiusSearch:
    """The search for the radius. State: the best from both sides, which ``found`` returns at any moment, also after an
    interrupt; ``failed``: why a run of the solver failed, the first of them ("": none did)."""

    def __init__(  # noqa: PLR0913 - as ``exact_radius``
        self,
        network: Network,
        x: np.ndarray,
        norm: str = "inf",
        *,
        label: int | None = None,
        data_range: tuple[Number, Number] | None = None,
        gap: float = 1e-6,
        envelope: float | None = None,
    ) -> None:
        """Look at what is asked. Raises as ``exact_radius``."""
        check_norm(norm)
        if not gap > 0:
            raise InputError(f"gap: {gap} is not above 0")
        self.centre = Centre.of(network, x, norm, label, data_range)
        check_operators(network.graph, INSTEAD, envelope)
        self.centre.check()
        self.envelope, self.failed, self.gap = envelope, "", gap
        self.lower, self.upper = 0.0, math.inf
        self.point: Tensor | None = None
        self.heard: Tensor | None = None
        self.ended: Status = "limit"

    @property
    def label(self) -> int:
        """The class that has to be left."""
        return self.centre.label

    def found(self) -> RadiusBracket:
        """What is known now."""
        status = self.ended
        if self.upper - self.lower <= self.gap:
            status = "exact"
        other = None if self.point is None else int(self.centre.others(self.point).argmax())
        point = None if self.point is None else self.point.numpy().copy()
        # As computed in float64 another class may win a little nearer than in real arithmetic.
        lower = min(self.lower, self.upper)
        return RadiusBracket(lower, self.upper, point, other, self.label, self.centre.norm, status)

    def run(
        self,
        deadline: float | None = None,
        *,
        report: Report | None = None,
        runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    ) -> None:
        """Work until the radius is known to within the gap, or until the deadline (of ``limits.now``)."""
        now = limits.now()
        until = math.inf if deadline is None else now + ATTACK_SHARE * max(deadline - now, 0.0)
        with explained(INSTEAD):
            self.lower = self.centre.by_bounds(deadline)[0]
        if self.lower < self.centre.reach():
            self._attack(until)

        def watch(standing: Standing) -> None:
            self._hear(standing.bound, standing.point)
            if report is not None:
                report(RadiusProgress(self.lower, self.upper, standing.open))

        left = None if deadline is None else max(deadline - limits.now(), 0.0)
        with explained(INSTEAD):
            try:
                found = distortion(
                    self.centre.graph,
                    self.centre.x,
                    self.label,
                    self.centre.norm,  # type: ignore[arg-type]
                    within=self.centre.outer,
                    gap=0.99 * self.gap,  # the distance is computed exactly here
                    envelope=self.envelope,
                    seconds=left,
                    runner=runner,
                    watch=watch,
                )
            except UnboundedError:
                if not self.lower > 0:
                    raise
                self.ended = "open"  # boxes grew beyond what can be bounded
                return
        self._hear(found.bound, found.point)
        self.failed = found.failed
        if found.status is not Outcome.LIMIT:
            self.ended = "none" if math.isinf(found.bound) and self.point is None else "open"

    def _attack(self, until: float) -> None:
        """Examples before any program is solved, each as near to the input as it stays one on the way there."""
        first = max(2 * self.lower, 1e-3) if math.isfinite(self.lower) else 1.0
        for size in (first, FURTHEST * first, FURTHEST**2 * first):
            for point in nearest(self.centre, None, size, 0, until)[:JUDGED]:
                self._approach(point)
            if math.isfinite(self.upper):
                break
        if self.point is not None:  # again, from what was found
            for point in nearest(self.centre, self.point, self.upper, 1, until)[:JUDGED]:
                self._approach(point)

    def _approach(self, point: Tensor) -> None:
        if not self._another(point):
            return
        low, high, way = 0.0, 1.0, point - self.centre.x
        for step in range(LINE_STEPS):
            share = (low + high) / 2 if step else 1.0
            moved = self.centre.x + share * way
            if not self._another(moved):
                low = share
                continue
            high = share
            if self.centre.counts(moved) and (distance := self.centre.distance(moved)) < self.upper:
                self.point, self.upper = moved, distance

    def _another(self, point: Tensor) -> bool:
        """Whether another class scores at least as much as the label, as computed in float64."""
        return float(self.centre.others(point).amax()) >= float(self.centre.scores(point)[self.label])

    def _hear(self, bound: float, point: Tensor | None) -> None:
        self.lower = max(self.lower, bound)
        if point is None or (self.heard is not None and torch.equal(point, self.heard)):
            return
        self.heard = point
        found = self._inside(point[0])
        if found is None:
            return
        distance = self.centre.distance(found)
        if distance < self.upper:
            self.point, self.upper = found, distance

    def _inside(self, point: Tensor) -> Tensor | None:
        """The example, or one beside it, where no element leaves the data range by its rounding to float64."""
        centre = self.centre
        if centre.counts(point) or centre.inner is None:
            return point
        for nudge in _NUDGES:
            moved = (centre.x + (1 + nudge) * (point - centre.x)).clamp(*centre.inner)
            if self._another(moved):
                return moved
        return None
