"""The least change of an input that changes a classifier's answer, with what is proven of it.

Around the input lies a box; within it, for every other class, the program minimises the distance under the condition
that the class scores at least as much as the label (Tjeng et al., Evaluating robustness with mixed integer programming,
ICLR 2019, section 3). No input outside of the box is nearer than its radius, in either norm, so the box grows only
until it holds the nearest example found: small boxes have few unstable neurons.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
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
    """A classifier ``graph`` at ``x`` ``[1, *input shape]`` (float64) with its ``label``, the norm, and the inputs that
    count (None: all)."""

    graph: Graph
    x: Tensor
    label: int
    norm: str
    within: Box | None

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
    seconds: float | None = None,
    runner: Runner | None = InProcess(),  # noqa: B008 - a frozen value
    watch: Watch | None = None,
) -> Optimum:
    """The least distance from ``x`` ``[*input shape]`` to an input where some class scores at least as much as
    ``label``: an ``Optimum`` whose ``point`` is such an input (as computed in float64) at distance ``value``.

    ``bound``: proven, no such input lies nearer (inf: there is none at all). ``within``: the inputs that count (a box
    ``[1, *input shape]``; default: all); ``most``: distances beyond do not matter. ``gap, seconds, runner, watch`` as
    for ``milp.minimum``.

    Raises ``ValueError`` where shapes do not fit, for another norm, and where ``x`` is not classified as ``label``;
    ``UnsupportedOperatorError`` for an operator without an exact form.
    """
    start, ask = time.monotonic(), _asked(graph, x, label, norm, within)
    best = _line_search(ask, most)
    radius = FIRST_SHARE * best.value if best.point is not None else FIRST_RADIUS * float(1 + ask.x.abs().amax())
    while True:
        if watch is not None:
            watch(Standing(best.bound, best.value, best.claimed, 1, time.monotonic() - start, best.point))
        radius = min(radius, most)
        left = None if seconds is None else seconds - (time.monotonic() - start)
        whole = _covers(ask.box(radius), within)
        best = _within_box(ask, ask.box(radius), best, math.inf if whole else radius, gap, Effort(left, runner, watch))
        best = replace(best, seconds=time.monotonic() - start)
        if whole or radius >= most or best.status is not Outcome.PROVEN or best.value - best.bound <= gap:
            return best
        # An example beyond the box is known: the next box just holds it. Else twice as far.
        radius = best.value if best.value < 2 * radius else 2 * radius


def _asked(graph: Graph, x: Tensor, label: int, norm: str, within: Box | None) -> _Ask:
    """The question. Raises ``ValueError``."""
    shape = graph.nodes[graph.inputs[0]].shape
    if tuple(x.shape) != shape:
        raise ValueError(f"an input of shape {tuple(x.shape)} for a graph that takes {shape}")
    if norm not in ("inf", "1"):
        raise ValueError(f"norm {norm!r}: the known ones are 'inf' and '1'")
    classes = math.prod(graph.nodes[graph.outputs[0]].shape)
    if not 0 <= label < classes or classes < 2:
        raise ValueError(f"label {label}: the graph has the classes 0 to {classes - 1}")
    ask = _Ask(graph, x.double().unsqueeze(0), label, norm, None if within is None else within.to(torch.float64))
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
    model = _distances(ask, encode(prepared, box, bounds), prepared.plan.input, box)
    bound, claimed, status = outside, outside, Outcome.PROVEN
    near = [k for k in ahead.argsort().tolist() if float(ahead[k]) <= 0]
    for k in near:
        # Of the whole nothing is proven anew before the last class: those that wait may be as near as it was known.
        rest = (bound, claimed) if k == near[-1] else (best.bound, best.claimed)
        watch = _of_all_classes(effort.watch, best, rest)
        left = None if effort.seconds is None else effort.seconds - (time.monotonic() - start)
        led = _led(model, prepared.plan.output, rows[k])
        found, point = _one_class(ask, led, best, gap, replace(effort, seconds=left, watch=watch))
        answer = found.answer
        if answer.value < best.value:
            best = replace(best, value=answer.value, point=point)
        best = replace(best, nodes=best.nodes + answer.nodes)
        bound, claimed = min(bound, answer.bound), min(claimed, found.claimed)
        status = status if answer.outcome is Outcome.PROVEN else answer.outcome
    return replace(best, bound=max(best.bound, bound), claimed=max(best.claimed, claimed), status=status)


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


def _one_class(ask: _Ask, model: Model, best: Optimum, gap: float, effort: Effort) -> tuple[Settled, Tensor | None]:
    """What is found for one class, and the example behind its value where that is new."""
    inputs, scales = model.columns[ask.graph.inputs[0]], 1 + torch.tensor(_NUDGES, dtype=torch.float64)

    def example(x: Tensor) -> tuple[float, Tensor | None]:
        return ask.nearest(x[inputs].reshape(ask.x.shape) - ask.x, scales)

    effort = replace(effort, watch=with_points(effort.watch, lambda x: example(x)[1]))
    found = settle(model, Goal(gap=gap, evaluate=lambda x: example(x)[0]), effort, best=best.value)
    return found, None if found.answer.x is None else example(found.answer.x)[1]
