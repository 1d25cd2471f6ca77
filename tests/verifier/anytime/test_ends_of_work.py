"""How refinements end: ends that meet, no time, no memory, and regions on which little or nothing varies."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bounds import Box, Graph
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Tanh
from milp import minimum
from verifier.anytime.bounding import Function
from verifier.anytime.boxes import Boxes
from verifier.anytime.domain import Domain
from verifier.anytime.enclosure import Enclosure
from verifier.anytime.refinement import refine
from verifier.anytime.refiner import Refiner

pytestmark = pytest.mark.usefixtures("one_thread")

MOST = 200
"""Steps that no refinement here needs."""


def network(seed: int = 0, inputs: int = 2, smooth: bool = False) -> Graph:
    """Two hidden layers, one output."""
    draw, build = torch.Generator().manual_seed(seed), Builder()
    x = build.input((1, inputs))
    for before, after in ((inputs, 8), (8, 6), (6, 1)):
        weight, bias = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight / math.sqrt(before / 2)), build.constant(bias / 2))
        if after > 1:
            x = build.add(Tanh() if smooth else Relu(), x)
    return build.finish([x])


def box(lower: list[float], upper: list[float]) -> Box:
    return Box(torch.tensor([[lower]], dtype=torch.float64), torch.tensor([[upper]], dtype=torch.float64))


def wide(inputs: int = 2) -> Box:
    return box([-2.0] * inputs, [2.0] * inputs)


def contained(found: list[Enclosure], truth: tuple[float, float]) -> None:
    """Every step holds the truth, which is known up to 1e-9, and none is wider than the one before."""
    for one in found:
        assert one.lower <= truth[0] + 1e-9 and truth[1] - 1e-9 <= one.upper
        assert one.least >= truth[0] - 1e-9 and truth[1] + 1e-9 >= one.greatest
    for one, two in itertools.pairwise(found):
        assert one.lower <= two.lower <= two.least <= one.least
        assert one.greatest <= two.greatest <= two.upper <= one.upper


def exact_ends(graph: Graph, region: Box) -> tuple[float, float]:
    row = torch.ones(1, 1, dtype=torch.float64)
    return minimum(graph, region, row, gap=1e-10).value, -minimum(graph, region, -row, gap=1e-10).value


@pytest.mark.parametrize("seed", range(6))
def test_without_a_gap_the_ends_meet_up_to_rounding(seed: int) -> None:
    graph = network(seed)
    found = list(itertools.islice(refine(graph, wide(), gap=0.0), MOST))
    contained(found, exact_ends(graph, wide()))
    last = found[-1]
    assert len(found) < MOST and last.open == 0 and last.status in ("exact", "open")
    assert last.gap <= 1e-8


def test_no_gap_and_no_kinks_goes_on_until_it_is_stopped() -> None:
    found = list(itertools.islice(refine(network(smooth=True), wide(), gap=0.0), 30))
    assert len(found) == 30 and found[-1].status == "open" and found[-1].gap < found[0].gap / 2


@pytest.mark.parametrize("smooth", [False, True])
def test_memory_that_is_used_up_ends_it(smooth: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What boxes inherit goes first; what is known by then holds, and is said to be a limit."""
    monkeypatch.setattr("verifier.anytime.refiner.EXACT_WORK", -math.inf)  # boxes are split
    graph, bared = network(smooth=smooth), list[int]()
    original = Boxes.bare

    def bare(self: Boxes) -> Boxes:
        bared.append(self.count if self.inherited else 0)
        return original(self)

    truth = None if smooth else exact_ends(graph, wide())
    monkeypatch.setattr(Boxes, "bare", bare)
    found = list(itertools.islice(refine(graph, wide(), gap=1e-12, memory=500), MOST))
    last = found[-1]
    assert len(found) < MOST and last.status == "limit" and last.open > 0 and math.isfinite(last.gap)
    assert {one.status for one in found[:-1]} <= {"open"} and sum(bared) > 0
    draw = torch.rand(2000, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4 - 2
    values = graph.to(torch.float64).evaluate(draw)[0]
    assert last.lower <= float(values.min()) and float(values.max()) <= last.upper
    if truth is not None:
        contained(found, truth)


def test_boxes_go_on_without_what_they_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two limits: nothing is inherited any more, and it comes to its end all the same."""
    monkeypatch.setattr("verifier.anytime.refiner.EXACT_WORK", -math.inf)
    graph = network()
    refiner = Refiner(Function.of(graph, Domain.of(wide())), gap=1e-3, memory=400)
    states = list(itertools.islice(refiner.run(), MOST))
    inherits = [any(side.open.inherited for side in state.sides) for state in states]
    assert inherits[0] and not all(inherits[:-1]) and refiner.finished(states[-1])
    contained([refiner.terminate(state, 0.0) for state in states], exact_ends(graph, wide()))


def test_memory_that_is_used_up_and_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifier.anytime.refiner.EXACT_WORK", -math.inf)
    graph, path = network(), tmp_path / "state.npz"
    options: dict[str, Any] = {"gap": 1e-3, "checkpoint": path}
    first = list(itertools.islice(refine(graph, wide(), memory=300, **options), MOST))
    assert first[-1].status == "limit" and path.exists()
    again = list(itertools.islice(refine(graph, wide(), memory=300, **options), MOST))
    assert len(again) == 1 and again[0].status == "limit" and again[0].gap <= first[-1].gap
    rest = list(itertools.islice(refine(graph, wide(), **options), MOST))
    contained([*first, *again, *rest], exact_ends(graph, wide()))
    assert rest[-1].status == "exact" and rest[0].boxes >= first[-1].boxes and not path.exists()


@pytest.mark.parametrize("smooth", [False, True])
def test_no_time_at_all_is_one_answer(smooth: bool) -> None:
    """The first bounds are always waited for."""
    graph = network(smooth=smooth)
    (found,) = refine(graph, wide(), gap=0.0, timeout=0.0)
    assert found.status == "limit" and -math.inf < found.lower <= found.least
    assert found.greatest <= found.upper < math.inf
    if not smooth:
        contained([found], exact_ends(graph, wide()))


def test_inputs_that_do_not_vary() -> None:
    """Three of four are fixed: the others count, as in the network without them."""
    graph = network(inputs=4)
    region = box([-2.0, 0.3, -0.7, 0.1], [2.0, 0.3, -0.7, 0.1])
    found = list(itertools.islice(refine(graph, region, gap=1e-6), MOST))
    contained(found, exact_ends(graph, region))
    last = found[-1]
    assert last.status == "exact" and last.least_at is not None and last.greatest_at is not None
    for at in (last.least_at, last.greatest_at):
        assert at.flatten()[1:].tolist() == [0.3, -0.7, 0.1]


@pytest.mark.parametrize("smooth", [False, True])
def test_a_region_of_one_point(smooth: bool) -> None:
    graph, at = network(smooth=smooth), [0.3, -0.7]
    value = float(graph.to(torch.float64).evaluate(torch.tensor([[at]], dtype=torch.float64))[0])
    (found,) = refine(graph, box(at, at), gap=1e-9)
    assert found.status == "exact" and found.lower <= found.least and found.greatest <= found.upper
    assert [found.lower, found.upper, found.least, found.greatest] == pytest.approx([value] * 4, abs=1e-10)
    # Without a gap too there is nothing that could be split.
    last = list(itertools.islice(refine(graph, box(at, at), gap=0.0), MOST))[-1]
    assert last.open == 0 and last.lower <= value <= last.upper and last.gap < 1e-10


@pytest.mark.parametrize("gap", [1e-9, 0.0])
def test_an_output_that_is_constant_on_the_region(gap: float) -> None:
    """Dead neurons alone, and a weight of nothing."""
    build, one = Builder(), torch.ones(2, 1, dtype=torch.float64)
    shift, three = (build.constant(torch.full((n,), v, dtype=torch.float64)) for n, v in ((2, -5.0), (1, 3.0)))
    x = build.add(Gemm(), build.input((1, 2)), build.constant(torch.eye(2, dtype=torch.float64)), shift)
    dead = build.add(Gemm(), build.add(Relu(), x), build.constant(one), three)
    none = build.add(Gemm(), x, build.constant(0 * one), three)
    for output in (dead, none):
        graph = build.finish([output])
        last = list(itertools.islice(refine(graph, wide(), gap=gap), MOST))[-1]
        assert last.open == 0 and last.lower <= 3 <= last.upper and last.gap <= 1e-9
        assert last.least >= 3 >= last.greatest
