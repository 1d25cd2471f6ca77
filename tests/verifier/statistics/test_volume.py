"""Proven limits of the violating volume hold the truth at every size, and meet it."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from bounds import Box, Graph, LpBall, trace
from verifier.errors import InputError
from verifier.statistics import VolumeBounds, monte_carlo, violation_volume

ROW = torch.ones(1, 1)


@pytest.fixture
def total() -> Graph:
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = 1.0
    return trace(layer, torch.zeros(2))


def test_the_truth_lies_between_at_every_size_and_the_limits_close(total: Graph) -> None:
    box = Box(torch.tensor([[0.1, -0.3]]), torch.tensor([[1.1, 0.7]]))
    low, high = (Fraction(float(v)) for v in (box.lower.sum(), box.upper.sum()))
    threshold = float((low + high) / 2)  # the diagonal, up to the last bits
    before = VolumeBounds(0.0, 1.0, Fraction(0), Fraction(0), Fraction(1), 0, 1)
    for boxes in (1, 2, 30, 400, 4000):
        found = violation_volume(total, box, rows=ROW, threshold=threshold, boxes=boxes)
        assert found.boxes <= boxes
        assert before.lower <= found.lower <= 0.5 <= found.upper <= before.upper
        assert found.violating / found.volume >= Fraction(found.lower)
        assert 1 - found.free / found.volume <= Fraction(found.upper)
        before = found
    assert before.upper - before.lower < 0.01


def test_the_volume_is_exact() -> None:
    layer = torch.nn.Linear(3, 1)
    box = Box(torch.tensor([[0.1, 5.0, 0.0]]), torch.tensor([[0.3, 5.0, 0.7]]))
    found = violation_volume(trace(layer, torch.zeros(3)), box, rows=ROW, threshold=100.0)
    ends = [[Fraction(v) for v in end.flatten().tolist()] for end in (box.lower, box.upper)]
    assert found.volume == (ends[1][0] - ends[0][0]) * (ends[1][2] - ends[0][2])
    assert found.violating == found.volume and (found.lower, found.upper, found.open) == (1, 1, 0)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seed", range(3))
def test_random_networks_agree_with_sampling(seed: int) -> None:
    """Proven limits and Clopper-Pearson's at 99.9999 % overlap: a wrong box would push them apart."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    graph, box = trace(module, torch.zeros(2)), Box(-torch.ones(1, 2) * 2, torch.ones(1, 2) * 2)
    label = int(module(torch.zeros(2)).argmax())
    proven = violation_volume(graph, box, label=label, boxes=2000)
    sampled = monte_carlo(graph, box, label=label, samples=20_000, confidence=0.999999)
    assert proven.lower <= sampled.upper and sampled.lower <= proven.upper
    assert proven.upper - proven.lower < 0.1


def test_parts_are_cut_where_the_scores_change() -> None:
    """Nine of ten inputs do not matter: halving the widest one in turn would prove nothing with so few boxes."""
    layer = torch.nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        layer.weight[:] = torch.nn.functional.one_hot(torch.tensor(6), 10)
    box = Box(torch.zeros(1, 10), torch.ones(1, 10))
    found = violation_volume(trace(layer, torch.zeros(10)), box, rows=ROW, threshold=0.3, boxes=40)
    assert found.lower <= 0.3 <= found.upper <= found.lower + 2**-18


class _Jump(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x[..., :1] + 2 * x[..., 1:])


class _Steep(torch.nn.Module):
    """The slope is infinite on an edge of the box."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x[..., :1]) + x[..., 1:]


@pytest.mark.parametrize(("module", "low", "truth"), [(_Jump(), -1.0, 1 / 2), (_Steep(), 0.0, 0.5**3 / 3)])
def test_slopes_that_say_nothing(module: torch.nn.Module, low: float, truth: float) -> None:
    box = Box(torch.full((1, 2), low), torch.ones(1, 2))
    found = violation_volume(trace(module, torch.zeros(2)), box, rows=ROW, threshold=0.5, boxes=500)
    assert found.lower <= truth <= found.upper < found.lower + 0.05


def test_a_box_that_cannot_be_cut_stays_open(total: Graph) -> None:
    """Two neighbouring numbers: nothing is proven of the box, and nothing claimed."""
    one = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    box = Box(one, torch.nextafter(one, one + 1))
    found = violation_volume(total, box, rows=ROW, threshold=float(2 + 2**-53), boxes=50)
    assert found.lower == 0 and found.upper == 1 and found.open > 0


def test_no_time_leaves_the_whole_box(total: Graph) -> None:
    found = violation_volume(total, Box(torch.zeros(1, 2), torch.ones(1, 2)), rows=ROW, threshold=0.5, timeout=0.0)
    assert (found.lower, found.upper, found.boxes, found.open) == (0, 1, 0, 1)


def test_proven_limits_are_no_estimate(total: Graph) -> None:
    found = violation_volume(total, Box(torch.zeros(1, 2), torch.ones(1, 2)), rows=ROW, threshold=0.5, boxes=10)
    assert not {"confidence", "value", "word"} & set(dir(found))


@pytest.mark.parametrize(
    ("region", "changes", "message"),
    [
        (LpBall(torch.zeros(1, 2), torch.ones(1), 2), {}, "region.box"),
        (Box(torch.zeros(2, 2), torch.ones(2, 2)), {}, "one box"),
        (Box(torch.ones(1, 2), torch.zeros(1, 2)), {}, "neither empty"),
        (Box(torch.zeros(1, 2), torch.full((1, 2), float("inf"))), {}, "infinite"),
        (Box(torch.zeros(1, 3), torch.ones(1, 3)), {}, "cannot be bounded"),
        (Box(torch.zeros(1, 2), torch.ones(1, 2)), {"boxes": 0}, "boxes=0"),
        (Box(torch.zeros(1, 2), torch.ones(1, 2)), {"rows": None}, "what is a violation"),
        (Box(torch.zeros(1, 2), torch.ones(1, 2)), {"timeout": -1.0}, "timeout=-1.0"),
    ],
)
def test_bad_input_is_explained(total: Graph, region: Box, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        violation_volume(total, region, **({"rows": ROW} | changes))
