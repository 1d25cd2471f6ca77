"""Which passes boxes take: chosen from what the passes before found, and repeated from what was chosen."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.box_bounds import BoxBounds
from verifier.branch.problem import Problem
from verifier.query import Query
from verifier.strategy import SplitPlan

FORWARD_64, BACKWARD_32, BACKWARD_64 = 2, 4, 8


def bounds_of(query: Query, *, backward: bool) -> BoxBounds:
    plans = tuple(prepare(query.graph, d, rounding=Rounding.of(d)) for d in (torch.float32, torch.float64))
    return BoxBounds(Problem.of(query), plans, SplitPlan(batch=64, fill=4, forward=True, backward=backward))


def query_of(planted: ModuleType, *, centre: float = 0.0, boxes: int = 5, width: float = 0.5) -> Query:
    """A deep network whose output stays above -1e9 (nothing refutes the clause ``output <= 1e9``)."""
    rng, build = np.random.default_rng(3), Builder()
    here = build.input((3,))
    for size, wider in ((3, 20), (20, 20), (20, 20)):
        weight = build.constant(torch.from_numpy(rng.normal(size=(size, wider))))
        here = build.add(Relu(), build.add(Gemm(), here, weight))
    graph = build.finish([build.add(Gemm(), here, build.constant(torch.from_numpy(rng.normal(size=(20, 1)))))])
    middle = [centre + rng.normal(size=3) for _ in range(boxes)]
    ends = [((m - width).astype(np.float32), (m + width).astype(np.float32)) for m in middle]
    return planted.query(graph, ends, [(k, [(0, 1, 1e9)]) for k in range(boxes)])


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("centre", "width"), [(0.0, 0.5), (3e4, 1e-3)])
def test_the_same_passes_give_the_same_bounds(planted: ModuleType, backward: bool, centre: float, width: float) -> None:
    bounds = bounds_of(query_of(planted, centre=centre, width=width), backward=backward)
    batch = bounds.start()
    found = bounds.bound(batch)
    again = bounds.bound(batch, found.passes)
    assert torch.equal(found.margins, again.margins)
    assert torch.equal(found.slack, again.slack)
    assert torch.equal(found.rows, again.rows)
    assert torch.equal(found.passes, again.passes)


def test_one_box_tries_float64_forward_and_the_others_follow_where_it_is_sharper(planted: ModuleType) -> None:
    """Widths of 1e-3 around 3e4: in float32 the bounds are nothing but error terms."""
    coarse = bounds_of(query_of(planted, centre=3e4, width=1e-3), backward=True)
    passes = coarse.bound(coarse.start()).passes
    assert bool((passes == 1 + FORWARD_64 + BACKWARD_64).all())
    clear = bounds_of(query_of(planted), backward=True)
    passes = clear.bound(clear.start()).passes
    assert passes.tolist() == [1 + FORWARD_64 + BACKWARD_32] + [1 + BACKWARD_32] * 4


def test_float64_walks_start_from_the_forward_bounds_of_the_same_boxes(planted: ModuleType) -> None:
    """All boxes at once are as tight as each of them alone."""
    bounds = bounds_of(query_of(planted, centre=3e4, width=1e-3), backward=True)
    batch = bounds.start()
    together = bounds.bound(batch).margins
    for k in range(batch.size):
        alone = bounds.bound(batch.take(slice(k, k + 1))).margins
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=0)


def test_forward_bounds_alone_that_gain_nothing_call_for_backward_ones(planted: ModuleType) -> None:
    """The parents' bounds say what the last halving gained: all of it, nothing, or nothing known."""
    bounds = bounds_of(query_of(planted), backward=False)
    batch = bounds.start()
    margins = bounds.bound(batch).margins.amin(1)
    gained = torch.tensor([torch.inf, 1.0, 0.0, 1e-4, 0.5], dtype=torch.float64)
    halved = replace(batch, bound=margins + margins * gained)
    passes = bounds.bound(halved).passes & (BACKWARD_32 | BACKWARD_64)
    assert passes.tolist() == [0, 0, BACKWARD_32, BACKWARD_32, 0]
