"""Mistakes of the refiner, planted one at a time: each turns the check of enclosures against exact ranges red.

The check is the one that the same network passes without the mistake: at every step the ends lie on their sides of the
exact minimum and maximum (by ``milp.minimum``), no end falls back, the inner ends are what the network has in fractions
at the points that are named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bounds import Box, Graph, LpBall
from bounds.graph import Builder
from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.piecewise import LeakyRelu
from bounds.ops.relu import Relu
from milp import minimum
from milp.exact import SearchState
from verifier.anytime import refiner
from verifier.anytime.bounding import Asked, Ends, Found, Function
from verifier.anytime.boxes import Boxes, Side
from verifier.anytime.closing import Program
from verifier.anytime.domain import Domain
from verifier.anytime.enclosure import Enclosure
from verifier.anytime.refinement import refine

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``change(original, *arguments)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: change(original, *args, **named))


# The check ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """A network with one output on a region, and its exact least and greatest value there, each between two numbers."""

    graph: Graph
    region: Box | LpBall
    least: tuple[float, float]
    greatest: tuple[float, float]


def chain(*parts: nn.Linear | Op) -> Graph:
    """Layers and activations one after the other."""
    build = Builder()
    first = next(part for part in parts if isinstance(part, nn.Linear))
    x = build.input((1, first.in_features))
    for part in parts:
        if isinstance(part, nn.Linear):
            x = build.add(Gemm(), x, build.constant(part.weight.detach().T.double()),
                          build.constant(part.bias.detach().double()))  # fmt: skip
        else:
            x = build.add(part, x)
    return build.finish([x])


def layer(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    found = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
    with torch.no_grad():
        found.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        found.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return found


def instance(seed: int, diamond: bool) -> Instance:
    """A small network on a box; ``diamond``: of two inputs, on a ball of the norm 1, which is a box of other axes."""
    torch.manual_seed(seed)
    n, width = (2 if diamond else 2 + seed % 3), 4 + seed % 5
    parts = nn.Linear(n, width), Relu(), nn.Linear(width, width), LeakyRelu(0.1), nn.Linear(width, 1)
    centre, radius = torch.randn(1, 1, n, dtype=torch.float64), torch.rand(1, 1, n, dtype=torch.float64) + 0.2
    if not diamond:
        box = Box(centre - radius, centre + radius)
        return Instance(chain(*parts), box, *exact_ends(chain(*parts), box))
    turned = chain(layer([[0.5, 0.5], [0.5, -0.5]], centre.flatten().tolist()), *parts)
    one = torch.ones(1, 1, 2, dtype=torch.float64)
    return Instance(chain(*parts), LpBall(centre, one[0, 0, :1], 1.0), *exact_ends(turned, Box(-one, one)))


def cliff() -> Instance:
    """``x_0 / 100 + 10 relu(x_0 - 1)``, which rises slowly at first and then steeply, and ``relu(x_1 + x_2) -
    |x_1 - x_2|``, which no lines follow."""
    first = layer([[1, 0, 0], [0, 1, 1], [0, 1, -1], [0, -1, 1]], [1.0, 0.0, 0.0, 0.0])
    second = layer([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]], [0.0, -2.0, 0.0, 0.0])
    graph = chain(first, Relu(), second, Relu(), layer([[0.01, 10.0, 1.0, -1.0]], [0.0]))
    ends = (torch.tensor([[end]], dtype=torch.float64) for end in ([0.0, -1.0, -1.0], [4.0, 1.0, 1.0]))
    box = Box(*ends)
    return Instance(graph, box, *exact_ends(graph, box))


def exact_ends(graph: Graph, box: Box) -> tuple[tuple[float, float], tuple[float, float]]:
    row = torch.ones(graph.nodes[graph.outputs[0]].shape, dtype=torch.float64)
    low, high = minimum(graph, box, row, gap=1e-9), minimum(graph, box, -row, gap=1e-9)
    return (low.bound, low.value), (-high.value, -high.bound)


def fault(case: Instance, exact: ModuleType, gap: float) -> str:
    """What is wrong with the first steps of a refinement ("": nothing)."""
    return next(faults(case, exact, list(itertools.islice(refine(case.graph, case.region, gap=gap), STEPS))), "")


def faults(case: Instance, exact: ModuleType, found: list[Enclosure]) -> Iterator[str]:
    # What the solver found was computed in float64, and the turned box in another order.
    slack = 1e-12 if isinstance(case.region, Box) else 1e-9
    for one in found:
        if one.lower > case.least[1] + slack or one.upper < case.greatest[0] - slack:
            yield "an outer end is inside of the exact range"
        if one.least < case.least[0] - slack or one.greatest > case.greatest[1] + slack:
            yield "an inner end is outside of the exact range"
    for one, two in itertools.pairwise(found):
        if not (one.lower <= two.lower and two.least <= one.least):
            yield "the minimum's ends widened"
        if not (one.upper >= two.upper and two.greatest >= one.greatest):
            yield "the maximum's ends widened"
    for one in found[:: max(len(found) - 1, 1)]:
        for point, value, sign in ((one.least_at, one.least, 1), (one.greatest_at, one.greatest, -1)):
            assert point is not None
            true = exact.evaluate(case.graph, exact.exact(point.flatten()))[case.graph.outputs[0]].item()
            if sign * (true - Fraction(value)) > 0:
                yield "a value is not attained"


# Splits and what is proven of parts -----------------------------------------------------------------------------------


def half_dropped(patch: Patch) -> None:
    """The right half of every box is never looked at."""

    def change(original: Callable[..., Any], self: Boxes) -> tuple[Boxes, Tensor]:
        both, smaller = original(self)
        return both.take(torch.arange(both.count) % self.count), smaller

    wrap(patch, Boxes, "halves", change)


def halves_apart(patch: Patch) -> None:
    """The right halves begin behind where the left ones end."""

    def change(original: Callable[..., Any], self: Boxes) -> tuple[Boxes, Tensor]:
        both, smaller = original(self)
        cut = 0.3 * (both.upper - both.lower) * (both.lower != self.lower.repeat(2, 1))
        return replace(both, lower=both.lower + cut), smaller

    wrap(patch, Boxes, "halves", change)


def parents_forgotten(patch: Patch) -> None:
    """Neither halves nor the whole keep what was proven before."""

    def change(original: Callable[..., Any], self: Boxes) -> tuple[Boxes, Tensor]:
        both, smaller = original(self)
        return replace(both, bound=torch.full_like(both.bound, -torch.inf)), smaller

    wrap(patch, Boxes, "halves", change)
    wrap(patch, Side, "closing", lambda f, self, gap: replace(f(self, gap), floor=-torch.inf))


def floor_is_the_value(patch: Patch) -> None:
    """What is attained so far is noted as the bound."""
    wrap(patch, Side, "closing", lambda f, self, gap: replace(f(self, gap), floor=self.value))


def closed_at_the_value(patch: Patch) -> None:
    """Boxes that are closed within the gap count as if nothing lay below what is attained."""

    def change(original: Callable[..., Side], self: Side, done: Tensor) -> Side:
        return replace(original(self, done), closed=self.closed)

    wrap(patch, Side, "without", change)


def inhabited_by_the_centre_alone(patch: Patch) -> None:
    """A box counts as empty where its centre lies outside of the ball."""

    def change(original: Callable[..., Tensor], self: Domain, lower: Tensor, upper: Tensor) -> Tensor:
        middle = lower / 2 + upper / 2
        return original(self, middle, middle)

    wrap(patch, Domain, "inhabited", change)


# Bounds of boxes ------------------------------------------------------------------------------------------------------


def wrong_face(patch: Patch) -> None:
    """Rising taken for falling: boxes are collapsed onto the face where the function is greatest."""

    def change(original: Callable[..., Ends | None], *args: Any) -> Ends | None:
        found = original(*args)
        return None if found is None else (-found[1], -found[0])

    wrap(patch, Function, "_jacobian", change)


def face_without_its_ends(patch: Patch) -> None:
    """What holds on a face is kept for all of the box."""

    def change(original: Callable[..., Found], self: Function, asked: Asked) -> Found:
        return replace(original(self, asked), lower=asked.lower, upper=asked.upper)

    wrap(patch, Function, "bound", change)


def half_of_the_slope(patch: Patch) -> None:
    """The mean value falls by half of what it may."""
    wrap(patch, Function, "_mean_value", lambda f, self, asked, low, high: f(self, asked, low / 2, high / 2))


def clipped_too_far(patch: Patch) -> None:
    """Boxes are clipped by lines that lie higher than they do."""

    def change(original: Callable[..., Ends], self: Function, lines: Any, bound: Tensor, asked: Asked) -> Ends:
        lower, upper = original(self, lines, bound, asked)
        return lower, lower + (upper - lower) * torch.where(upper < asked.upper, 0.5, 1.0)

    wrap(patch, Function, "_clipped", change)


def sibling_inherited(patch: Patch) -> None:
    """Boxes inherit the bounds of neurons of another box."""

    def change(original: Callable[..., Found], self: Function, asked: Asked) -> Found:
        other = {i: (low.roll(1, 0), high.roll(1, 0)) for i, (low, high) in dict(asked.inherited).items()}
        return original(self, replace(asked, inherited=other))

    wrap(patch, Function, "bound", change)


# Values and programs --------------------------------------------------------------------------------------------------


def values_as_computed(patch: Patch) -> None:
    """An attained value without its error term."""

    def change(original: Callable[..., Ends], self: Function, points: Tensor) -> Ends:
        return self.values(points), self.values(points)

    wrap(patch, Function, "enclosed", change)


def values_of_other_points(patch: Patch) -> None:
    """The point that is kept is not the one whose value is."""
    wrap(patch, Side, "attained", lambda f, self, value, point: f(self, value, point.flip(0)))


def program_of_a_part(patch: Patch) -> None:
    """The bound of another box, the left part of this one, is noted for it."""

    def change(original: Callable[..., Any], function: Function, ends: Ends, *args: Any) -> Program | None:
        return original(function, (ends[0], ends[0] * 0.4 + ends[1] * 0.6), *args)

    wrap(patch, refiner, "program_of", change)


def unfinished_taken_as_finished(patch: Patch) -> None:
    """After its linear programs are used up, a search is believed to be at its end, and its candidate to be least."""

    def change(original: Callable[..., SearchState], self: Program, state: SearchState, *args: Any) -> SearchState:
        last = original(self, state, *args)
        return replace(last, open=(), next=None, stuck=(), least=last.value)

    wrap(patch, Program, "run", change)


def one_phase_alone(patch: Patch) -> None:
    """Of a phase that is split only one child is searched."""

    def change(original: Callable[..., SearchState], self: Program, state: SearchState, *args: Any) -> SearchState:
        last = original(self, state, *args)
        return replace(last, open=last.open[1:]) if last.next is None else replace(last, next=None)

    wrap(patch, Program, "run", change)


# How the refiner works ------------------------------------------------------------------------------------------------


def boxes_alone(patch: Patch) -> None:
    """No phases."""
    patch.setattr(refiner, "encodable", lambda *_: False)


def phases_of_boxes(patch: Patch) -> None:
    """Boxes are split where a few linear programs do not close them."""
    patch.setattr(refiner, "TRY_PROGRAMS", 3)


def phases_alone(patch: Patch) -> None:
    """The whole region, as where many inputs vary."""
    patch.setattr(refiner, "MOST_FREE_INPUTS", 0)


Plant = Callable[[Patch], None]
STEPS = 16
CLIFF = -1

# With how the refiner works, the first network that shows it, and what is seen.
BUGS: Sequence[tuple[Plant, Plant, int, str]] = (
    (half_dropped, boxes_alone, 1, "outer end"),
    (halves_apart, boxes_alone, 1, "outer end"),
    (parents_forgotten, boxes_alone, 1, "widened"),
    (floor_is_the_value, boxes_alone, 1, "outer end"),
    (closed_at_the_value, boxes_alone, 1, "outer end"),
    (wrong_face, boxes_alone, 2, "outer end"),
    (face_without_its_ends, boxes_alone, CLIFF, "outer end"),
    (half_of_the_slope, boxes_alone, 2, "outer end"),
    (clipped_too_far, boxes_alone, 2, "outer end"),
    (sibling_inherited, boxes_alone, 2, "outer end"),
    (values_as_computed, boxes_alone, 0, "not attained"),
    (values_of_other_points, boxes_alone, 0, "not attained"),
    (inhabited_by_the_centre_alone, boxes_alone, 0, "outer end"),
    (program_of_a_part, phases_of_boxes, 2, "outer end"),
    (program_of_a_part, phases_alone, 3, "outer end"),
    (unfinished_taken_as_finished, phases_of_boxes, 1, "outer end"),
    (unfinished_taken_as_finished, phases_alone, 3, "outer end"),
    (one_phase_alone, phases_alone, 3, "outer end"),
)


@pytest.mark.parametrize(("bug", "way", "seed", "seen"), BUGS, ids=[f"{b.__name__}-{w.__name__}" for b, w, *_ in BUGS])
def test_a_mistake_is_seen(
    exact: ModuleType, monkeypatch: Patch, bug: Plant, way: Plant, seed: int, seen: str
) -> None:
    case = cliff() if seed == CLIFF else instance(seed, diamond=bug is inhabited_by_the_centre_alone)
    gap = 0.3 if bug is closed_at_the_value else 1e-4
    way(monkeypatch)
    assert fault(case, exact, gap) == ""
    bug(monkeypatch)
    assert seen in fault(case, exact, gap)
