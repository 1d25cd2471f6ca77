"""Steps over convolutions in float32, where they take other routes: against the plain transposed step in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Builder, Graph
from bounds.layouts import Owner, Places, Windows
from bounds.ops.conv import Conv
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.propagate import crown, propagate

# Channels of the operand and the result, kernel, strides, pads.
FORMS = [
    (3, 8, (3, 3), (1, 1), (1, 1, 1, 1)),
    (3, 8, (4, 4), (2, 2), (1, 1, 1, 1)),
    (2, 20, (3, 3), (2, 2), (0, 1, 1, 0)),
    (6, 6, (3, 2), (1, 1), (1, 0, 0, 2)),
    (6, 20, (2, 2), (2, 2), (0, 0, 0, 0)),
    (3, 24, (4, 4), (4, 4), (0, 0, 0, 0)),
    (2, 4, (2, 3), (3, 3), (2, 0, 0, 1)),
    (2, 4, (1, 1), (2, 2), (0, 0, 0, 0)),
    (2, 4, (3, 3), (1, 1), (2, 3, 2, 3)),
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("channels", "out", "kernel", "strides", "pads"), FORMS)
def test_a_step_and_its_spans(
    channels: int, out: int, kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], whole: bool
) -> None:
    op, shape, boxes = Conv(strides, (1, 1), pads), (1, channels, 11, 12), 2
    weight, radius = drawn(out, channels, *kernel), drawn(boxes, *shape, seed=1) + 0.5
    results = op.forward(radius, weight).shape[1:]
    owner = Owner.by_index(torch.tensor([0, 1, 1, 0, 1]))
    dense = drawn(5, *results, seed=2)
    if whole:
        rows = Windows.of_whole(dense, Places.of_owner(owner, dense))
    else:  # some of which stick out
        origin = torch.tensor([[-1, 0], [0, -1], [results[2] - 2, 0], [0, results[3] - 1], [-1, -1]])
        patches = drawn(5, out, 3, 2, seed=3)
        rows = Windows.of_images(patches, Places(torch.arange(5), origin, owner.boxes(5, origin.device)), results)
    expected = op.pullback(rows.dense(results), 0, (None, weight), shape)
    single = Windows(rows.values.float(), rows.places)
    step = op.pullback_windows(single, 0, (None, weight.float()), shape)
    assert step is not None
    torch.testing.assert_close(step.dense(shape).double(), expected, rtol=1e-5, atol=1e-5)
    spans = op.spans(single, 0, (None, weight.float()), radius.float())
    assert spans is not None
    wanted = (expected.abs() * radius[owner.boxes(5, radius.device)]).flatten(1).sum(1)
    torch.testing.assert_close(spans.double(), wanted, rtol=1e-5, atol=1e-5)


def network() -> Graph:
    build = Builder()
    x = build.input((1, 3, 8, 8))
    for channels, out, stride in ((3, 8, 2), (8, 6, 1), (6, 4, 1)):
        weight = build.constant(drawn(out, channels, 3, 3, seed=out))
        x = build.add(
            Conv((stride, stride), (1, 1), (1, 1, 1, 1)), x, weight, build.constant(drawn(out, seed=channels))
        )
        x = build.add(Relu(), x)
    return build.finish((x,))


@pytest.mark.parametrize("boxes", [1, 3])
def test_bounds_in_float32_are_those_in_float64(boxes: int) -> None:
    centre = drawn(boxes, 1, 3, 8, 8, seed=7)
    box = Box(centre - 0.1, centre + 0.1)
    expected, _ = propagate(prepare(network(), torch.float64), box, tighten=crown)
    plan = prepare(network(), torch.float32)
    found, _ = propagate(plan, box.to(torch.float32), tighten=crown)
    assert plan.watched
    for node in plan.watched:
        for one, two in zip(found.bounds[node], expected.bounds[node], strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-5)
