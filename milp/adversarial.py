"""The least change of an input that changes a classifier's answer, with what is proven of it.

Around the input lies a box; within it, for every other class, the program minimises the distance under the condition
that the class scores at least as much as the label (Tjeng et al., Evaluating robustness with mixed integer programming,
ICLR 2019, section 3). No input outside of the box is nearer than its radius, in either norm, so the box grows only
until it holds the nearest example found: small boxes have few unstable neurons.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from bounds import Alpha, Box, Graph, compute_bounds, margins, prepare
from bounds.constraints import Row
from milp.encode import encode
from milp.exact import Goal, Outcome
from milp.extend import with_columns, with_rows
from milp.highs import InProcess, Runner
from milp.model import Model
from milp.optimum import Optimum
from milp.settle import Effort, Settled, Standing, Watch, settle, with_points

FIRST_SHARE = 0.5
"""The first box's radius as a share of the distance of the example that a line search finds."""

STEPS = 40
"""Points that the line search looks at, from far to near."""

FIRST_RADIUS = 1 / 64
"""The first box's radius where it finds none, in units of 1 and the largest input."""

_NUDGES = (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True, slots=True, eq=False)
class _Ask:
    """A classifier ``graph`` at ``x`` ``[1, *input shape]`` (float64) with its ``label``, the norm, the inputs that
    count (None: all), and how loosely operators may be enclosed."""

    graph: Graph
    x: Tensor
    label: int
    norm: str
    within: Box | None
    envelope: float | None = None

    def box(self, radius: float) -> Box:
        """All inputs that count within this distance by each coordinate, rounded outward."""
        low, high = (torch.nextafter(self.x + s * radius, self.x.new_tensor(s * math.inf)) for s in (-1.0, 1.0))
        if self.within is None:
            return Box(low, high)
        return Box(torch.maximum(low, self.within.lower), torch.minimum(high, self.within.upper))

    def inside(self, points: Tensor) -> Tensor:
        """The points, moved to inputs that count."""
        return points if self.within is None else points.clamp(self.within.lower, self.within.upper)

    def distance(self, points: Tensor) -> Tensor:
        """``[N]``."""
        change = (points - self.x).abs().flatten(1)
        return change.amax(1) if self.norm == "inf" else change.sum(1)

    def lead(self, points: Tensor) -> Tensor:
        """``[N]``: by how much the best other class is ahead of the label (>= 0: an example)."""
        scores = self.graph.evaluate(points)[0].flatten(1)
        others = torch.arange(scores.shape[1]) != self.label
        return scores[:, others].amax(1) - scores[:, self.label]

    def nearest(self, direction: Tensor, scales: Tensor) -> tuple[float, Tensor | None]:
        """The nearest example among ``x + scale * direction``: its distance (inf: none) and itself."""
        points = self.inside(self.x + scales.reshape(-1, *[1] * (self.x.ndim - 1)) * direction)
        found = points[self.lead(points) >= 0]
        if not found.shape[0]:
            return math.inf, None
        distances = self.distance(found)
        return float(distances.amin()), found[distances.argmin()].unsqueeze(0)


def distortion(  # noqa: PLR0913 - the questions that a caller may ask
    graph: Graph,
    x: Tensor,
    label: int,
    norm: Literal["inf", "1"] = "inf",
    *,
    within: Box | None = None,
    most: float = math.inf,
    gap: float = 1e-6,
    envelope: float | None = None,
    seconds: float | None = None,
    runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    watch: Watch | None = None,
) -> Optimum:
    """The least distance from ``x`` ``[*input shape]`` to an input where some class scores at least as much as
    ``label``: an ``Optimum`` whose ``point`` is such an input (as computed in float64) at distance ``value``.

    ``bound``: proven, no such input lies nearer (inf: there is none at all). ``within``: the inputs that count (a box
    ``[1, *input shape]``; default: all); ``most``: distances beyond do not matter. ``gap, envelope, seconds, runner,
    watch`` as for ``milp.minimum``; the time of a box is shared among the classes that have to be looked at.

    Raises ``ValueError`` where shapes do not fit, for another norm, and where ``x`` is not classified as ``label``;
    ``UnsupportedOperatorError`` for an operator without an exact form.
    """
    start, ask = time.monotonic(), _asked(graph, x, label, norm, within, envelope)
    best = _line_search(ask, most)
    radius = FIRST_SHARE * best.value if best.point is not None else FIRST_RADIUS * float(1 + ask.x.abs().amax())
    while True:
        if watch is not None:
            watch(Standing(best.bound, best.value, best.claimed, 1, time.monotonic() - start, best.point))
        radius = min(radius, most)
        left = None if seconds is None else seconds - (time.monotonic() - start)
        if left is not None and left <= 0:
            return replace(best, status=Outcome.LIMIT)
        whole = _covers(ask.box(radius), within)
        best = _within_box(ask, ask.box(radius), best, math.inf if whole else radius, gap, Effort(left, runner, watch))
        best = replace(best, seconds=time.monotonic() - start)
        if whole or radius >= most or best.status is not Outcome.PROVEN or best.value - best.bound <= gap:
            return best
        # An example beyond the box is known: the next box just holds it. Else twice as far.
        radius = best.value if best.value < 2 * radius else 2 * radius


def _asked(graph: Graph, x: Tensor, label: int, norm: str, within: Box | None, envelope: float | None) -> _Ask:
    """The question. Raises ``ValueError``."""
    shape = graph.nodes[graph.inputs[0]].shape
    if tuple(x.shape) != shape:
        raise ValueError(f"an input of shape {tuple(x.shape)} for a graph that takes {shape}")
    if norm not in ("inf", "1"):
        raise ValueError(f"norm {norm!r}: the known ones are 'inf' and '1'")
    classes = math.prod(graph.nodes[graph.outputs[0]].shape)
    if not 0 <= label < classes or classes < 2:
        raise ValueError(f"label {label}: the graph has the classes 0 to {classes - 1}")
    within = None if within is None else within.to(torch.float64)
    ask = _Ask(graph, x.double().unsqueeze(0), label, norm, within, envelope)
    if not bool((ask.inside(ask.x) == ask.x).all()):
        raise ValueError("x is not among the inputs that count (within)")
    if float(ask.lead(ask.x)) >= 0:
        raise ValueError(f"x is not classified as {label}: another class scores at least as much, the distortion is 0")
    return ask


def _line_search(ask: _Ask, most: float) -> Optimum:
    """The nearest example on the rays along the sign of the gradient of each class's lead; nothing is proven."""
    x = ask.x.clone().requires_grad_()
    with torch.enable_grad():
        scores = ask.graph.evaluate(x)[0].flatten()
        slopes = [torch.autograd.grad(s - scores[ask.label], x, retain_graph=True)[0] for s in scores]
    farthest = min(most, float(1 + ask.x.abs().amax()) * 4)
    scales = farthest * torch.logspace(0, -4, STEPS, dtype=torch.float64)
    found = [ask.nearest(slope.sign(), scales) for k, slope in enumerate(slopes) if k != ask.label]
    value, point = min(found, key=lambda pair: pair[0])
    return Optimum(value, point, 0.0, 0.0, Outcome.LIMIT, 0, 0.0)


def _covers(box: Box, within: Box | None) -> bool:
    """Whether a box that was cut to the inputs that count holds them all."""
    return within is not None and bool(((box.lower <= within.lower) & (box.upper >= within.upper)).all())


def _within_box(ask: _Ask, box: Box, best: Optimum, outside: float, gap: float, effort: Effort) -> Optimum:
    """``best`` after a search of one box, outside of which no example is nearer than ``outside``."""
    prepared, start = prepare(ask.graph), time.monotonic()
    bounds = compute_bounds(prepared, box, Alpha(), keep=prepared.plan.watched)
    rows = margins(ask.graph, ask.label)
    ahead = compute_bounds(prepared, box, Alpha(), rows=rows).lower[0]
    model = _distances(ask, encode(prepared, box, bounds, ask.envelope), prepared.plan.input, box)
    near = [k for k in ahead.argsort().tolist() if float(ahead[k]) <= 0]
    work = _Classes(ask, {k: _led(model, prepared.plan.output, rows[k]) for k in near}, best, outside, gap)
    if effort.seconds is not None:
        effort = replace(effort, seconds=effort.seconds - (time.monotonic() - start))
    return work.run(effort)


@dataclass(slots=True)
class _Classes:
    """The work on the classes that may win in a box, each with its model. State: ``best`` so far; of each class what is
    proven, what the solver claimed, and how its search ended. Of the whole ``outside`` is known elsewhere."""

    ask: _Ask
    models: dict[int, Model]
    best: Optimum
    outside: float
    gap: float
    bound: dict[int, float] = field(default_factory=dict)
    claimed: dict[int, float] = field(default_factory=dict)
    ended: dict[int, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for k in self.models:
            self.bound[k], self.claimed[k], self.ended[k] = self.best.bound, self.best.claimed, Outcome.LIMIT

    def run(self, effort: Effort) -> Optimum:
        """Every class with an equal share of the time that is left when it is its turn. What others leave over goes to
        those that need more, as long as a new share is twice the last one: they start again."""
        until = math.inf if effort.seconds is None else time.monotonic() + effort.seconds
        pending, share = list(self.models), 0.0
        while pending:
            fair = (until - time.monotonic()) / len(pending)
            if fair <= 2 * share:
                break
            share = fair
            for place, k in enumerate(pending):
                left = None if math.isinf(until) else (until - time.monotonic()) / (len(pending) - place)
                self._settle(k, replace(effort, seconds=left))
            pending = [k for k in pending if self.ended[k] is Outcome.LIMIT and effort.seconds is not None]
        missed = [ended for ended in self.ended.values() if ended is not Outcome.PROVEN]
        status = Outcome.LIMIT if Outcome.LIMIT in missed else Outcome.OPEN if missed else Outcome.PROVEN
        bound, claimed = (min([self.outside, *known.values()]) for known in (self.bound, self.claimed))
        best = self.best
        return replace(best, bound=max(best.bound, bound), claimed=max(best.claimed, claimed), status=status)

    def _settle(self, k: int, effort: Effort) -> None:
        """Work on one class."""
        rest = [
            min([self.outside, *(known[other] for other in known if other != k)])
            for known in (self.bound, self.claimed)
        ]
        watch = _of_all_classes(effort.watch, self.best, (rest[0], rest[1]))
        effort = replace(effort, watch=watch)
        found, point = _one_class(self.ask, self.models[k], (self.best.value, self.bound[k]), self.gap, effort)
        answer, best = found.answer, self.best
        if answer.value < best.value:
            best = replace(best, value=answer.value, point=point)
        self.best = replace(best, nodes=best.nodes + answer.nodes, failed=best.failed or found.failed)
        self.bound[k], self.claimed[k] = max(self.bound[k], answer.bound), max(self.claimed[k], found.claimed)
        self.ended[k] = answer.outcome


def _of_all_classes(watch: Watch | None, best: Optimum, rest: tuple[float, float]) -> Watch | None:
    """A watch for the work on one class that hears of all: of the others ``rest`` is proven, and claimed."""
    if watch is None:
        return None

    def hear(standing: Standing) -> None:
        bound, claimed = min(standing.bound, rest[0]), min(standing.claimed, rest[1])
        point = best.point if standing.point is None else standing.point
        watch(replace(standing, bound=max(best.bound, bound), claimed=max(best.claimed, claimed), point=point))

    return hear


def _distances(ask: _Ask, model: Model, source: int, box: Box) -> Model:
    """The model that minimises the distance: the largest change of an input, or (norm 1) the sum of all changes."""
    columns, centre = model.columns[source], ask.x.flatten()
    reach = torch.maximum(box.upper - ask.x, ask.x - box.lower).flatten()
    reach = torch.nextafter(reach, torch.full_like(reach, math.inf)).clamp(min=0)
    ends = reach if ask.norm == "1" else reach.amax().reshape(1)
    model, added = with_columns(model, torch.zeros_like(ends), ends)
    change = added.expand(columns.shape)
    model = with_rows(
        model,
        (
            Row(((columns, 1.0), (change, -1.0)), upper=centre),
            Row(((columns, 1.0), (change, 1.0)), lower=centre),
        ),
    )
    return replace(model, cost=model.cost.index_fill(0, added, 1.0))


def _led(model: Model, output: int, margin: Tensor) -> Model:
    """The model of inputs at which a margin (the label's score less another's) is at most 0."""
    columns = model.columns[output]
    there = columns >= 0
    # Outputs that are one and the same have one column.
    total = torch.zeros_like(model.lower).index_add_(0, columns[there], margin.flatten()[there])
    terms = [(k.reshape(1), float(total[k])) for k in total.nonzero().flatten()]
    return with_rows(model, (Row(terms, upper=0.0),))


def _one_class(
    ask: _Ask, model: Model, ends: tuple[float, float], gap: float, effort: Effort
) -> tuple[Settled, Tensor | None]:
    """What is found for one class, and the example behind its value where that is new. ``ends``: the distance of the
    nearest example so far, and what is proven of this class."""
    best, known = ends
    inputs, scales = model.columns[ask.graph.inputs[0]], 1 + torch.tensor(_NUDGES, dtype=torch.float64)

    def example(x: Tensor) -> tuple[float, Tensor | None]:
        return ask.nearest(x[inputs].reshape(ask.x.shape) - ask.x, scales)

    effort = replace(effort, watch=with_points(effort.watch, lambda x: example(x)[1]))
    found = settle(model, Goal(gap=gap, evaluate=lambda x: example(x)[0]), effort, known=known, best=best)
    return found, None if found.answer.x is None else example(found.answer.x)[1]
