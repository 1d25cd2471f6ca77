"""The exact range of a model's outputs over boxes: the end of each output from both sides.

From outside come bounds that are proven, from inside values that the network takes at points which are kept. The first
bounds are those of ``output_range``; then each end is a minimum, or a maximum, over the box (``milp.minimum``), and
every point that is found there is tried for all outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bounds import Box, Crown, Graph, LpBall, compute_bounds, margins
from milp.exact import Outcome
from milp.highs import InProcess, Runner
from milp.optimum import Encoded
from milp.settle import Effort, Standing
from verifier import limits
from verifier.errors import InputError, UnsupportedError
from verifier.exact.refusals import check_operators, explained
from verifier.ranges import output_range, single

if TYPE_CHECKING:
    from verifier.network import Network

Status = Literal["exact", "open", "limit"]

INSTEAD = "--method alpha (verifier.output_range) bounds every operator"


@dataclass(frozen=True, slots=True, eq=False)
class ExactRange:
    """Over N boxes, of R outputs in order or R margins, all float64: ``lower <= f(x) <= upper`` ``[N, R]`` is proven
    for every x in the box, in real arithmetic over the stored weights (infinite: nothing is known). ``least, greatest``
    ``[N, R]``: values that were found, computed in float64 at ``least_at, greatest_at`` ``[N, R, *input shape]``, which
    lie in the box.

    ``status`` of each box and output: "exact", both ends are known to within the gap; "open", a proof got stuck;
    "limit", not done.
    """

    lower: Tensor
    upper: Tensor
    least: Tensor
    greatest: Tensor
    least_at: Tensor
    greatest_at: Tensor
    status: tuple[tuple[Status, ...], ...]


@dataclass(frozen=True, slots=True)
class End:
    """One end of a range: of the box ``region`` the output ``value``, above or below."""

    region: int
    value: int
    upper: bool


@dataclass(frozen=True, slots=True)
class RangeProgress:
    """The end that is worked on, of ``total`` ends the number ``done``, its proven ``bound``, the ``value`` found, and
    how many subproblems are ``open``."""

    end: End
    done: int
    total: int
    bound: float
    value: float
    open: int


Report = Callable[[RangeProgress], None]


def exact_range(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network,
    box: Box | LpBall,
    *,
    label: int | None = None,
    gap: float = 1e-6,
    envelope: float | None = None,
    timeout: float | None = None,
    report: Report | None = None,
) -> ExactRange:
    """The range of a model's output over each of N boxes to within ``gap``, from both sides.

    With ``label`` that of the margins ``output[label] - output[c]`` for every other class c. ``timeout`` in seconds is
    shared among all ends and looked at between steps; what is proven by then is returned. ``report`` hears now and then
    how far the work is. ``envelope``: how far results of an operator without an exact form may be off it (None: such
    an operator is an error); bounds are proven then too, but need not come within the gap (status "open").

    Raises ``InputError``, ``UnsupportedError`` (an operator without an exact form, a neuron without finite bounds, a
    ball that is not a box).
    """
    until = limits.deadline(timeout)
    work = RangeSearch(single(model), box, label=label, gap=gap, envelope=envelope)
    work.run(None if timeout is None else until, report=report)
    return work.found()


class RangeSearch:
    """The search for the ends. State: the best from both sides, which ``found`` returns at any moment, also after an
    interrupt; ``failed``: why a run of the solver failed, the first of them ("": none did)."""

    def __init__(
        self,
        network: Network,
        box: Box | LpBall,
        *,
        label: int | None = None,
        gap: float = 1e-6,
        envelope: float | None = None,
    ) -> None:
        """Bound all boxes at once, by ``Crown``. Raises as ``exact_range``."""
        if isinstance(box, LpBall):
            raise UnsupportedError(
                f"an exact range over a ball of norm {box.p:g} is no linear program: norm inf, or a box, is one. "
                f"{INSTEAD} over balls too"
            )
        if not gap > 0:
            raise InputError(f"gap: {gap} is not above 0")
        check_operators(network.graph, INSTEAD, envelope)
        self.envelope, self.failed = envelope, ""
        self.graph, self.box, self.gap = network.graph, box.to(torch.float64, "cpu"), gap
        found = output_range(network, self.box, Crown(), label=label)
        self.lower, self.upper = (ends.flatten(1).clone() for ends in (found.lower, found.upper))
        self.margins = label is not None
        self.rows = _each(self.graph) if label is None else margins(self.graph, label)
        self.least, self.greatest = torch.full_like(self.lower, math.inf), torch.full_like(self.lower, -math.inf)
        self.least_at, self.greatest_at = (
            torch.zeros((*self.lower.shape, *box.lower.shape[1:]), dtype=torch.float64) for _ in range(2)
        )
        self.ended = dict[End, Outcome]()
        for region in range(box.size):
            low, high = self.box.lower[region], self.box.upper[region]
            self._try(region, (low + (high - low) / 2).clamp(low, high))

    def found(self) -> ExactRange:
        """What is known now."""
        boxes, count = self.lower.shape
        status = tuple(tuple(self._status(region, value) for value in range(count)) for region in range(boxes))
        return ExactRange(
            self.lower.clone(),
            self.upper.clone(),
            self.least.clone(),
            self.greatest.clone(),
            self.least_at.clone(),
            self.greatest_at.clone(),
            status,
        )

    def run(
        self,
        deadline: float | None = None,
        *,
        report: Report | None = None,
        runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    ) -> None:
        """Work on every end until it is known to within the gap, or until the deadline (of ``limits.now``).

        Each end has an equal share of the time that is left when it is its turn. What others leave over goes to those
        that need more, as long as a new share is twice the last one: they start again.
        """
        pending = [End(n, r, upper) for n, r in self._values() for upper in (False, True)]
        total, share = len(pending), 0.0
        while pending:
            if deadline is not None:
                fair = (deadline - limits.now()) / len(pending)
                if fair <= 2 * share:
                    return
                share = fair
            pending = list(self._round(pending, total, deadline, _Listener(report, runner)))
            if deadline is None:
                return

    def _round(
        self, pending: list[End], total: int, deadline: float | None, listener: _Listener
    ) -> Iterator[End]:
        """Work on each end once; those that had too little time."""
        region, encoded = -1, None
        for place, end in enumerate(pending):
            if self._closed(end):
                continue
            if deadline is not None and limits.now() >= deadline:
                yield from (e for e in pending[place:] if not self._closed(e))
                return
            if encoded is None or end.region != region:
                region, encoded = end.region, self._encoded(end.region)
                if self._closed(end):
                    continue
            left = None if deadline is None else max(deadline - limits.now(), 0.0) / (len(pending) - place)
            if not self._settle(encoded, end, left, (total - len(pending) + place, total), listener):
                yield end

    def _encoded(self, region: int) -> Encoded:
        """A box as a program, and what its tighter bounds say of the outputs."""
        box = self.box.take(torch.tensor([region]))
        with explained(INSTEAD):
            encoded = Encoded.of(self.graph, box, self.envelope)
            bounds = encoded.bounds
            if self.margins:
                bounds = compute_bounds(encoded.prepared, encoded.box, bounds.method, rows=self.rows)
        self.lower[region] = torch.maximum(self.lower[region], bounds.lower.flatten())
        self.upper[region] = torch.minimum(self.upper[region], bounds.upper.flatten())
        return encoded

    def _settle(
        self, encoded: Encoded, end: End, seconds: float | None, done: tuple[int, int], listener: _Listener
    ) -> bool:
        """Work on one end; whether it is done, or stuck for good."""
        sign = -1.0 if end.upper else 1.0

        def watch(standing: Standing) -> None:
            self._prove(end, standing.bound)
            if standing.point is not None and standing.value < sign * self._sides(end)[1]:
                self._try(end.region, standing.point[0])
            if listener.report is not None:
                listener.report(RangeProgress(end, *done, *self._sides(end), standing.open))

        at = self.greatest_at if end.upper else self.least_at
        found = encoded.minimum(
            sign * self.rows[end.value],
            Effort(seconds, listener.runner, watch),
            gap=0.99 * self.gap,  # a value may be computed a little differently here
            known=sign * self._sides(end)[0],
            begin=at[end.region, end.value].unsqueeze(0),
        )
        self._prove(end, found.bound)
        self.failed = self.failed or found.failed
        if found.point is not None:
            self._try(end.region, found.point[0])
        if found.status is not Outcome.LIMIT:
            self.ended[end] = found.status
        return self._closed(end)

    def _values(self) -> Iterator[tuple[int, int]]:
        return ((n, r) for n in range(self.lower.shape[0]) for r in range(self.lower.shape[1]))

    def _sides(self, end: End) -> tuple[float, float]:
        """The proven bound and the value found of an end."""
        bounds, values = (self.upper, self.greatest) if end.upper else (self.lower, self.least)
        return float(bounds[end.region, end.value]), float(values[end.region, end.value])

    def _closed(self, end: End) -> bool:
        """Whether nothing is left to do."""
        return end in self.ended or self._exact(end)

    def _exact(self, end: End) -> bool:
        bound, value = self._sides(end)
        return abs(bound - value) <= self.gap or self.ended.get(end) is Outcome.PROVEN

    def _status(self, region: int, value: int) -> Status:
        left = [end for upper in (False, True) if not self._exact(end := End(region, value, upper))]
        if not left:
            return "exact"
        return "open" if all(end in self.ended for end in left) else "limit"

    def _prove(self, end: End, bound: float) -> None:
        """A proven lower bound of an end's functional (of what is minimised)."""
        place = end.region, end.value
        if end.upper:
            self.upper[place] = min(float(self.upper[place]), -bound)
        else:
            self.lower[place] = max(float(self.lower[place]), bound)

    def _try(self, region: int, point: Tensor) -> None:
        """A point of a box ``[*input shape]``: a candidate for the ends of all outputs."""
        output = self.graph.evaluate(point.unsqueeze(0))[0].reshape(1, -1)
        values = (self.rows.flatten(1) * output).sum(1)
        for side, at, better in (
            (self.least, self.least_at, values < self.least[region]),
            (self.greatest, self.greatest_at, values > self.greatest[region]),
        ):
            at[region][better] = point
            side[region][better] = values[better]


def _each(graph: Graph) -> Tensor:
    """Rows ``[R, *output shape]``: each element of the output by itself."""
    shape = graph.nodes[graph.outputs[0]].shape
    return torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who hears how far it is, and who runs the solver."""

    report: Report | None
    runner: Runner | None
