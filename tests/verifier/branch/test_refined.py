"""The root of an activation split from what it kept: the same state, with and without bounds known before."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder, Graph
from bounds.kept import Kept
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.problem import Problem
from verifier.branch.root import refine, refined, screen

D = torch.float64


def network(seed: int) -> Graph:
    """Two outputs, of which the property reads one."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((6,))
    for k, (before, after) in enumerate(((6, 12), (12, 12), (12, 12), (12, 2))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if k < 3 else x
    return build.finish([x])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("boxes", [1, 2])
@torch.no_grad()
def test_the_refined_state_is_proven_again(planted: ModuleType, known: bool, boxes: int) -> None:
    graph = network(3)
    box = (np.full(6, -0.5, dtype=np.float32), np.full(6, 0.5, dtype=np.float32))
    query = planted.query(graph, [box] * boxes, [(k, [(0, 1, -1.0)]) for k in range(boxes)])
    plans, problem = (prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))), Problem.of(query)
    task = next(screen(problem, plans[1]))[1].open[-1]
    assert (task.state is None) is (boxes > 1)
    task = task if known else replace(task, state=None)
    kept: dict[tuple[int, int], Kept] = {}

    def keep(number: int, node: int, one: Kept) -> None:
        kept[number, node] = one

    state = refine(problem, plans, task, 6, math.inf, keep).state
    assert state is not None and any(one.chosen for one in kept.values())
    again = refined(problem, plans[1], task.task, kept)
    rough = refined(problem, plans[1], task.task, {place: one for place, one in kept.items() if not place[0]})
    assert again.bounds.keys() == state.bounds.keys()
    assert all(torch.equal(a, b) for n in state.bounds for a, b in zip(state.bounds[n], again.bounds[n], strict=True))
    assert not torch.equal(rough.bounds[plans[1].watched[-1]][0], state.bounds[plans[1].watched[-1]][0])
