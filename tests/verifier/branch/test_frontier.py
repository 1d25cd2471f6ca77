"""The frontier gives everything back, best bound first, whatever its memory; a search ends with the same verdict."""

from __future__ import annotations

import itertools
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
from verifier.branch.frontier import Frontier, Subproblems
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem
from verifier.strategy import SplitPlan

D = torch.float64
SHAPES = {3: (2, 2), 5: (3,)}
EACH = 2 * 8 * 7
"""Bytes that one subproblem inherits."""


def some(rng: np.random.Generator, first: int, count: int) -> Subproblems:
    """Numbered by ``task``; all else follows from the number, so that a mix-up shows."""
    task = torch.arange(first, first + count)
    inherited = {i: (task.reshape(-1, *[1] * len(s)) - torch.ones(s, dtype=D),) * 2 for i, s in SHAPES.items()}
    box = task.double().unsqueeze(1).expand(count, 2)
    bound = torch.from_numpy(rng.choice([-np.inf, -3.0, -1.0, -0.5, 0.0], size=count))
    return Subproblems(box, box + 1, task, (task % 2 == 0).unsqueeze(1), bound, 1.0 / (1 + task), task, inherited)


@pytest.mark.parametrize("memory", [0, EACH, 7 * EACH, 1 << 30])
@pytest.mark.parametrize("seed", range(3))
def test_everything_comes_back_once_and_in_order(memory: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = replace(some(rng, 0, 5), inherited={})
    frontier = Frontier(first, SHAPES, D, memory)
    waiting = {int(t): float(b) for t, b in zip(first.task, first.bound, strict=True)}
    pushed, forgotten = 5, 0
    while frontier.size:
        assert frontier.size == len(waiting)
        assert float(frontier.bound.amin()) == min(waiting.values())
        assert float(frontier.share.sum()) == pytest.approx(sum(1 / (1 + t) for t in waiting))
        found = frontier.pop(int(rng.integers(1, 6)))
        taken = {int(t): waiting.pop(int(t)) for t in found.task}
        assert len(taken) == found.size and max(taken.values()) <= min(waiting.values(), default=0.0)
        for k, task in enumerate(found.task.tolist()):
            assert float(found.bound[k]) == taken[task] and found.lower[k].tolist() == [task, task]
            assert bool(found.alive[k, 0]) == (task % 2 == 0) and float(found.share[k]) == pytest.approx(1 / (1 + task))
            low, high = found.inherited[3][0][k], found.inherited[3][1][k]
            if bool(torch.isinf(low).all() and (high == torch.inf).all()):
                forgotten += task >= 5
            else:
                assert bool((low == task - 1).all() and (found.inherited[5][1][k] == task - 1).all())
        if pushed < 60:
            new = some(rng, pushed, int(rng.integers(0, 9)))
            waiting |= {int(t): float(b) for t, b in zip(new.task, new.bound, strict=True)}
            frontier.push(new)
            pushed += new.size
    assert not waiting and (forgotten > 0) == (memory < 1 << 30)


@pytest.mark.parametrize(("distance", "open_"), [(0.01, False), (-0.01, True)])
def test_a_search_with_hardly_any_memory_ends_with_the_same_verdict(
    planted: ModuleType, distance: float, open_: bool
) -> None:
    """A threshold just below the least value is refuted, one just above it never is."""
    rng = np.random.default_rng(1)
    build = Builder()
    node = build.input((2,))
    for k, shape in enumerate([(2, 10), (10, 10), (10, 1)]):
        node = build.add(Relu(), node) if k else node
        node = build.add(Gemm(), node, build.constant(torch.from_numpy(rng.normal(size=shape))))
    graph = build.finish([node])
    grid = torch.cartesian_prod(*[torch.linspace(-1, 1, 201, dtype=D)] * 2)
    least = float(graph.evaluate(grid)[0].amin())
    box = (-np.ones(2, dtype=np.float32), np.ones(2, dtype=np.float32))
    query = planted.query(graph, [box], [(0, [(0, 1, least - distance)])])
    plan = prepare(graph, D, rounding=Rounding.of(D))
    for memory in (0, 1 << 10, 1 << 30):  # of 160 bytes each
        steps = InputSplit(Problem.of(query), (plan,), SplitPlan(batch=8, fill=2, memory=memory)).run()
        last = list(itertools.islice(steps, 60 if open_ else 1000))[-1]
        assert (last.open_subproblems > 0) == open_
        assert last.refuted > 20 and (open_ or last.open_share == 0)
