"""The exact robust radius: the least change of an input that changes a model's answer, from both sides.

From below come radii within which no other class is reached: first by bounds of the margins alone, then those that
``milp.distortion`` proves. From above comes the nearest input found that another class wins, with its exact distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bounds import Box, Crown, LpBall, compute_bounds, margins, prepare
from milp.adversarial import distortion
from milp.encode import UnboundedError
from milp.exact import Outcome
from milp.highs import InProcess, Runner
from milp.settle import Standing
from verifier import limits
from verifier.errors import InputError, UnsupportedError
from verifier.exact.refusals import check_operators, explained
from verifier.ranges import rounded, single
from verifier.regions import Number, class_at, exact_range, fitting

if TYPE_CHECKING:
    from verifier.network import Network

Status = Literal["exact", "none", "open", "limit"]

INSTEAD = "verifier verify --input FILE --epsilon R decides single radii with every operator"

_SCALINGS, _HALVINGS = 12, 4
"""Steps of the search for a radius that bounds alone prove: by factors of 2 until one is proven and its double is not,
then between them."""

_NUDGES = (0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4)


@dataclass(frozen=True, slots=True, eq=False)
class RadiusBracket:
    """``lower``: proven, at every smaller distance from the input (among those that count) the score of ``label`` is
    above all others, in real arithmetic over the stored weights (inf: there is no other input). ``upper``: the exact
    distance, rounded up, of ``point`` ``[*input shape]`` in float64, where the class ``other`` scores at least as much
    as the label, as computed in float64 (inf, None, None: none was found).

    ``status``: "exact", ``upper - lower`` is at most the gap; "none", no input that counts has another class; "open",
    the proof got stuck; "limit", not done.
    """

    lower: float
    upper: float
    point: np.ndarray | None
    other: int | None
    label: int
    norm: str
    status: Status


@dataclass(frozen=True, slots=True)
class RadiusProgress:
    """What is proven, the distance of the nearest example (inf: none), how many subproblems are ``open``."""

    lower: float
    upper: float
    open: int


Report = Callable[[RadiusProgress], None]


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
    start = limits.now()
    work = RadiusSearch(single(model), x, norm, label=label, data_range=data_range, gap=gap, envelope=envelope)
    work.run(None if timeout is None else start + timeout, report=report)
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
        point, variable = fitting(x, network, "the point"), network.inputs[0]
        if network.outputs[0].size < 2:
            raise InputError("a radius asks for a class: the model needs at least two outputs")
        if not network.graph.variable[network.graph.outputs[0]]:
            raise InputError("the model's output does not depend on its input: no change reaches another class")
        check_operators(network.graph, INSTEAD, envelope)
        self.envelope, self.failed = envelope, ""
        self.graph, self.norm, self.gap = network.graph, norm, gap
        self.x = torch.from_numpy(point).reshape(variable.shape)
        self.outer, self.inner = _within(data_range, point, variable.shape)
        self.own_label = label is None
        self.label = class_at(network, point) if label is None else label
        self._check_class(network.outputs[0].size)
        self.lower, self.upper = 0.0, math.inf
        self.point: Tensor | None = None
        self.heard: Tensor | None = None
        self.ended: Status = "limit"

    def found(self) -> RadiusBracket:
        """What is known now."""
        status = self.ended
        if self.upper - self.lower <= self.gap:
            status = "exact"
        other = None if self.point is None else int(self._others(self.point).argmax())
        point = None if self.point is None else self.point.numpy().copy()
        return RadiusBracket(self.lower, self.upper, point, other, self.label, self.norm, status)

    def run(
        self,
        deadline: float | None = None,
        *,
        report: Report | None = None,
        runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    ) -> None:
        """Work until the radius is known to within the gap, or until the deadline (of ``limits.now``)."""
        self._by_bounds(deadline)

        def watch(standing: Standing) -> None:
            self._hear(standing.bound, standing.point)
            if report is not None:
                report(RadiusProgress(self.lower, self.upper, standing.open))

        left = None if deadline is None else max(deadline - limits.now(), 0.0)
        with explained(INSTEAD):
            try:
                found = distortion(
                    self.graph,
                    self.x,
                    self.label,
                    self.norm,  # type: ignore[arg-type]
                    within=self.outer,
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
            self.ended = "none" if math.isinf(found.bound) else "open"

    def _check_class(self, classes: int) -> None:
        """Raise ``InputError`` where the label is no class, or another class is ahead already."""
        if not 0 <= self.label < classes:
            raise InputError(f"label {self.label}: the model has the classes 0 to {classes - 1}")
        scores = self._scores(self.x)
        others = self._others(self.x)
        best = int(others.argmax())
        if float(others[best]) < float(scores[self.label]):
            return
        advice = (
            "the scores are equal up to rounding: no change is needed"
            if self.own_label
            else f"leave out --label, or give --label {best}"
        )
        raise InputError(
            f"label {self.label}: at the input class {best} scores {float(others[best]):.9g} and class {self.label} "
            f"{float(scores[self.label]):.9g}, so that the radius is 0: {advice}"
        )

    def _by_bounds(self, deadline: float | None) -> None:
        """A radius within which bounds of the margins prove the label: a lower end before any program is solved."""
        prepared, rows = prepare(self.graph, torch.float64), margins(self.graph, self.label)

        def proves(radius: float) -> bool:
            if deadline is not None and limits.now() >= deadline:
                return False
            bounds = compute_bounds(prepared, self._ball(radius), Crown(), rows=rows)
            return bool((bounds.lower > 0).all())

        radius, failed = float(1 + self.x.abs().amax()) / 16, math.inf
        with explained(INSTEAD):
            for _ in range(_SCALINGS):
                if proves(radius):
                    self.lower = radius
                else:
                    failed = radius
                if self.lower > 0 and failed < math.inf:
                    break
                radius = radius / 2 if failed < math.inf else radius * 2
            for _ in range(_HALVINGS if 0 < self.lower < failed < math.inf else 0):
                middle = (self.lower + failed) / 2
                if proves(middle):
                    self.lower = middle
                else:
                    failed = middle

    def _ball(self, radius: float) -> Box | LpBall:
        """All inputs that count within this distance."""
        x = self.x.unsqueeze(0)
        if self.norm == "1":
            return LpBall(x, torch.tensor([radius], dtype=torch.float64), 1.0, self.outer)
        ends = [torch.nextafter(x + s * radius, x.new_tensor(s * math.inf)) for s in (-1.0, 1.0)]
        return Box(*ends) if self.outer is None else Box(*ends).intersection(self.outer)

    def _hear(self, bound: float, point: Tensor | None) -> None:
        self.lower = max(self.lower, bound)
        if point is None or (self.heard is not None and torch.equal(point, self.heard)):
            return
        self.heard = point
        found = self._inside(point[0])
        if found is None:
            return
        distance = _distance(found, self.x, self.norm)
        if distance < self.upper:
            self.point, self.upper = found, distance

    def _inside(self, point: Tensor) -> Tensor | None:
        """The example, or one beside it, where no element leaves the data range by its rounding to float64."""
        if self.inner is None or bool(((point >= self.inner[0]) & (point <= self.inner[1])).all()):
            return point
        for nudge in _NUDGES:
            moved = (self.x + (1 + nudge) * (point - self.x)).clamp(*self.inner)
            if float(self._others(moved).amax()) >= float(self._scores(moved)[self.label]):
                return moved
        return None

    def _scores(self, point: Tensor) -> Tensor:
        return self.graph.evaluate(point.unsqueeze(0))[0].flatten()

    def _others(self, point: Tensor) -> Tensor:
        """The scores ``[classes]``, that of the label -inf."""
        scores = self._scores(point)
        scores[self.label] = -math.inf
        return scores


def _within(
    data_range: tuple[Number, Number] | None, point: np.ndarray, shape: tuple[int, ...]
) -> tuple[Box | None, tuple[float, float] | None]:
    """The inputs that count, rounded outward, and the ends rounded inward. Raises ``InputError``."""
    if data_range is None:
        return None, None
    low, high = exact_range(data_range)
    for value in np.unique(point).tolist():
        if not low <= Fraction(value) <= high:
            raise InputError(f"the point has an element {value} that is outside the data range [{low}, {high}]")
    whole = torch.ones((1, *shape), dtype=torch.float64)
    return Box(whole * rounded(low, -1), whole * rounded(high, 1)), (rounded(low, 1), rounded(high, -1))


def _distance(point: Tensor, x: Tensor, norm: str) -> float:
    """The exact distance, rounded up."""
    pairs = zip(point.flatten().tolist(), x.flatten().tolist(), strict=True)
    changes = [abs(Fraction(a) - Fraction(b)) for a, b in pairs if a != b] or [Fraction(0)]
    return rounded(max(changes) if norm == "inf" else sum(changes, Fraction(0)), 1)
