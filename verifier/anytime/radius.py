"""``verifier.radius``: how far a class is certain around an input, between a proven radius and an attack's one.

First come bounds of the margins alone, for a lower end, and an attack, for an upper one. Then single radii between them
are tried: one at which the label is proven raises the lower end; an input of another class lowers the upper one, to its
own distance. A try that does not come to an end in its time is followed by nearer ones, and later by longer ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bounds import Alpha, LpBall
from milp.highs import Runner
from verifier import limits, pipeline
from verifier.anytime.nearest import nearest
from verifier.anytime.refinement import refine
from verifier.cases import dtype_of
from verifier.errors import InputError
from verifier.radii import Centre, Prover, RadiusBracket, RadiusProgress, Report, Status
from verifier.ranges import single
from verifier.regions import Number, check_norm, robustness
from verifier.replay import open_session
from verifier.strategy import MOST_FREE_INPUTS
from verifier.verdict import TimedOut, Verified, Violated

if TYPE_CHECKING:
    from verifier.network import Network

GAP = 0.01
ATTACK_SHARE = 0.15
"""Of the time, for the first attack."""

PATIENCE, PATIENCE_SHARE = 2.0, 1 / 15
"""Seconds that a first try may take, or its share of the time where there is a limit; they double ..."""

NARROW = 0.1
"""... where this share of the bracket is left below a radius that was not decided in time: that is tried again."""

ALPHA_STEPS, LINE_STEPS, JUDGED = 40, 25, 4
FURTHEST = 2.0**20
"""Without a data range, radii that are tried end at so many times the input's size."""

Tried = Literal["proven", "reached", "late", "stuck"]


def radius(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network,
    x: np.ndarray,
    norm: str = "inf",
    *,
    label: int | None = None,
    data_range: tuple[Number, Number] | None = None,
    gap: float = GAP,
    timeout: float | None = None,
    seed: int = 0,
) -> Iterator[RadiusBracket]:
    """Brackets of the largest radius around ``x`` within which a model's class is certain, each within the last.

    ``x`` has as many elements as the model's input and is taken as exact numbers; ``norm`` is "inf", "2" or "1";
    ``data_range`` ``(low, high)`` says what every element of an input can be; ``label`` defaults to the model's own
    class at ``x`` (by onnxruntime). ``lower`` is proven in real arithmetic over the stored weights, ``upper`` is the
    exact distance, rounded up, of an input that onnxruntime gives another class. The iteration ends where
    ``upper - lower <= gap * upper`` (status "exact"), where nothing more can be done ("none", "open"), or after
    ``timeout`` seconds, counted from the first step ("limit").

    In the norms 2 and 1 a radius is proven by bounds of the whole ball, or by ``refine`` where few inputs vary.
    Raises ``InputError`` (also where another class is ahead of ``label`` at ``x``) and ``UnsupportedError``.
    """
    until = limits.deadline(timeout)
    search = BracketSearch(single(model), x, norm, label=label, data_range=data_range, gap=gap, seed=seed)
    for _ in search.steps(None if timeout is None else until):
        yield search.found()


class BracketSearch:
    """The search for the radius. State: the best from both sides, which ``found`` returns at any moment, also after an
    interrupt; what was not decided in time; who hears of it."""

    failed = ""

    def __init__(  # noqa: PLR0913 - as ``radius``
        self,
        network: Network,
        x: np.ndarray,
        norm: str = "inf",
        *,
        label: int | None = None,
        data_range: tuple[Number, Number] | None = None,
        gap: float = GAP,
        seed: int = 0,
    ) -> None:
        """Look at what is asked. Raises as ``radius``."""
        check_norm(norm)
        if not 0 < gap < 1:
            raise InputError(f"gap: {gap} is not between 0 and 1 (it is a share of the radius)")
        self.centre = Centre.of(network, x, norm, label, data_range)
        self.centre.check()
        self.network, self.range, self.gap, self.seed = network, data_range, gap, seed
        self.judge = Judge(network, self.centre)
        self.lower, self.upper = 0.0, math.inf
        self.point: Tensor | None = None
        self.ended: Status = "limit"
        self.report: Report | None = None

    @property
    def label(self) -> int:
        """The class that has to be left."""
        return self.centre.label

    def found(self) -> RadiusBracket:
        """What is known now."""
        point = None if self.point is None else self.point.numpy().copy()
        other = None if self.point is None else self.judge.other(self.point)
        status = "exact" if self._closed() else self.ended
        # In the runtime's own rounding another class may win a little nearer than in real arithmetic.
        lower = min(self.lower, self.upper)
        return RadiusBracket(lower, self.upper, point, other, self.label, self.centre.norm, status)

    def run(
        self, deadline: float | None = None, *, report: Report | None = None, runner: Runner | None = None
    ) -> None:
        """Work until the ends are within the gap, nothing more can be done, or the deadline has come (of
        ``limits.now``). ``runner`` is not needed."""
        self.report = report
        for _ in self.steps(deadline):
            self._tell(0)

    def steps(self, deadline: float | None) -> Iterator[None]:
        """The same, step by step."""
        now = limits.now()
        until = math.inf if deadline is None else now + ATTACK_SHARE * max(deadline - now, 0.0)
        self.lower, unproven = self.centre.by_bounds(deadline)
        if self.lower >= self.centre.reach():
            self.lower, self.ended = math.inf, "none"
            yield
            return
        yield
        self._attack(until if deadline is not None else math.inf)
        yield
        few = bool(self.centre.x.numel() <= MOST_FREE_INPUTS)
        if self.centre.norm == "inf":
            yield from self._tries(deadline, self._verified, math.inf)
        elif few:
            yield from self._tries(deadline, self._refined, math.inf)
        else:
            prover = Prover(self.centre, Alpha(steps=ALPHA_STEPS))
            yield from self._tries(deadline, lambda r, _: "proven" if prover(r) else "stuck", unproven * 2)

    def _closed(self) -> bool:
        return math.isfinite(self.upper) and self.upper - self.lower <= self.gap * self.upper

    def _tell(self, count: int) -> None:
        if self.report is not None:
            self.report(RadiusProgress(self.lower, self.upper, count))

    def _tries(
        self, deadline: float | None, attempt: Callable[[float, float], Tried], undecided: float
    ) -> Iterator[None]:
        """Single radii, one a step, by ``attempt(radius, seconds)``, until one of the ends of ``steps``. ``undecided``:
        a radius from which on nothing is tried at first."""
        until = math.inf if deadline is None else deadline
        patience = PATIENCE if deadline is None else PATIENCE_SHARE * max(deadline - limits.now(), 0.0)
        late: list[tuple[float, float]] = []  # not decided in so many seconds, the least last
        while not self._closed() and limits.now() < until:
            late = [(r, seconds) for r, seconds in late if self.lower < r < self.upper]
            if late and late[-1][0] - self.lower <= max(self._narrow(), self.gap * late[-1][0] / 2):
                again, spent = late.pop()
                trial, patience = again, max(patience, 2 * spent)
            elif (between := self._between(min(self.upper, undecided, *(r for r, _ in late[-1:])))) is not None:
                trial = between
            else:
                self.ended = "open"
                yield
                return
            outcome = attempt(trial, min(patience, until - limits.now()))
            if outcome == "proven":
                self.lower = max(self.lower, trial)
                if trial >= self.centre.reach():
                    self.lower, self.ended = math.inf, "none"
                    yield
                    return
            elif outcome == "late":
                late.append((trial, patience))
            elif outcome == "stuck":
                undecided = trial
                if undecided - self.lower <= self.gap * undecided / 2:
                    self.ended = "open"
                    yield
                    return
            yield

    def _narrow(self) -> float:
        """The width below a late try from which on it is tried again rather than what is nearer."""
        wide = self.upper - self.lower
        return NARROW * wide if math.isfinite(wide) else 0.0

    def _between(self, top: float) -> float | None:
        """The next radius to try, below ``top``; None where there is none left."""
        if math.isinf(top):
            size = float(1 + self.centre.x.abs().amax())
            reach = self.centre.reach()
            if self.lower > FURTHEST * size:
                return None
            return min(max(2 * self.lower, size / 16), reach)
        if self.lower == 0:
            return top / 4 if top > 1e-12 else None
        return math.sqrt(self.lower * top) if top > 4 * self.lower else (self.lower + top) / 2

    def _verified(self, trial: float, seconds: float) -> Tried:
        """Ask for a verdict about a radius in the norm inf."""
        centre = self.centre
        query = robustness(self.network, centre.x.numpy(), Fraction(trial), "inf", self.label, self.range)
        verdict = pipeline.verify(
            query,
            timeout=None if math.isinf(seconds) else max(seconds, 0.0),
            seed=self.seed,
            device="cpu",
            report=lambda progress: self._tell(progress.open_subproblems),
        )
        if isinstance(verdict, Verified):
            return "proven"
        if isinstance(verdict, Violated):
            (inputs,) = verdict.counterexample.inputs
            point = torch.from_numpy(inputs.astype(np.float64)).reshape(centre.x.shape)
            return "reached" if self._hear(point) else "stuck"
        return "late" if isinstance(verdict, TimedOut) else "stuck"

    def _refined(self, trial: float, seconds: float) -> Tried:
        """Refine the margin over a ball of few inputs."""
        ball, limit = self.centre.ball(trial), None if math.isinf(seconds) else max(seconds, 0.0)
        assert isinstance(ball, LpBall)
        for state in refine(self.centre.graph, ball, label=self.label, of="min", gap=1e-9, timeout=limit):
            self._tell(state.open)
            if state.lower > 0:
                return "proven"
            if state.least <= 0 and state.least_at is not None and self._hear(state.least_at):
                return "reached"
        return "late" if state.status == "limit" else "stuck"

    def _attack(self, until: float) -> None:
        """The attack, twice: again with what it found."""
        for turn in range(2):
            first = self.upper if math.isfinite(self.upper) else max(2 * self.lower, 1e-3)
            found = nearest(self.centre, self.point, first, self.seed + turn, until)
            for point in found[:JUDGED]:
                self._hear(point)

    def _hear(self, point: Tensor) -> bool:
        """A point ``[*input shape]`` that may be of another class: whether it lowered the upper end. It is moved
        towards the input as far as it stays of another class."""
        stored = self.judge.stored(point)
        if not self.centre.counts(stored) or self.judge.other(stored) is None:
            return False
        best, low, high = stored, 0.0, 1.0
        for _ in range(LINE_STEPS):
            share = (low + high) / 2
            moved = self.judge.stored(self.centre.x + share * (point - self.centre.x))
            if self.centre.counts(moved) and self.judge.other(moved) is not None:
                best, high = moved, share
            else:
                low = share
        distance = self.centre.distance(best)
        if distance >= self.upper:
            return False
        self.point, self.upper = best, distance
        return True


class Judge:
    """What onnxruntime says of points. State: its session."""

    def __init__(self, network: Network, centre: Centre) -> None:
        """Open the session."""
        self.variable, self.output = network.inputs[0], network.outputs[0].name
        self.label, self.shape = centre.label, centre.x.shape
        self.dtype, self.session = np.dtype(dtype_of(self.variable)), open_session(network.model)

    def stored(self, point: Tensor) -> Tensor:
        """A point as the model takes it, rounded to its element type; float64 again."""
        return torch.from_numpy(point.numpy().astype(self.dtype).astype(np.float64))

    def other(self, point: Tensor) -> int | None:
        """The best class besides the label, where it scores at least as much; None where the label is ahead."""
        feed = {self.variable.name: point.numpy().astype(self.dtype).reshape(self.variable.shape)}
        scores = self.session.run([self.output], feed)[0].reshape(-1).astype(np.float64)
        if not np.isfinite(scores).all():
            return None
        own, scores[self.label] = scores[self.label], -math.inf
        return int(scores.argmax()) if scores.max() >= own else None
