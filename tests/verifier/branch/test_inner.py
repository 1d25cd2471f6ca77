"""Bounds of inner neurons by splits: they hold, they are nearly exact after enough rounds, and the search uses them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.sshape import Sigmoid
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch.inner import _rank, splits_apply
from verifier.branch.problem import OpenTask, Problem
from verifier.branch.root import refine, refine_by_splits, screen
from verifier.branch.splits import Splits
from verifier.strategy import InnerPlan

D = torch.float64
LOW, HIGH = np.array([-1, -0.5], dtype=np.float32), np.array([1, 1.5], dtype=np.float32)


def network(seed: int, middle: type = Relu) -> Graph:
    """Two inputs, three layers of eight neurons, one output."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((2,))
    for k, (before, after) in enumerate(((2, 8), (8, 8), (8, 8), (8, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        if k < 3:
            x = build.add(middle() if k == 1 else Relu(), x)
    return build.finish([x])


def refined(planted: ModuleType, graph: Graph) -> tuple[Problem, tuple[Plan, Plan], OpenTask]:
    """The task of a box whose clause CROWN leaves open."""
    query = planted.query(graph, [(LOW, HIGH)], [(0, [(0, 1, 9.0)])])
    plans = prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))
    problem = Problem.of(query)
    ((_, part),) = screen(problem, plans[1])
    return problem, plans, refine(problem, plans, part.open[0], 20, float("inf"))


def values(graph: Graph, plan: Plan) -> dict[int, torch.Tensor]:
    """All nodes at a fine grid of the box."""
    sides = [torch.linspace(float(a), float(b), 400, dtype=D) for a, b in zip(LOW, HIGH, strict=True)]
    found: dict[int, torch.Tensor] = {plan.input: torch.cartesian_prod(*sides)}
    for node in graph.nodes:
        if node.id in plan.operands and node.id != plan.input:
            pairs = zip(node.inputs, plan.operands[node.id], strict=True)
            found[node.id] = node.op.forward(*(found[i] if c is None else c for i, c in pairs))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_come_close_to_what_neurons_reach(planted: ModuleType, seed: int) -> None:
    graph = network(seed)
    problem, plans, before = refined(planted, graph)
    after = refine_by_splits(problem, plans, before, InnerPlan(rounds=60, batch=32), float("inf"))
    assert before.state is not None
    assert after.state is not None
    points, gained = values(graph, plans[1]), 0.0
    for node in plans[1].watched:
        low, high = (end[0] for end in after.state.bounds[node])
        least, most = points[node].amin(0), points[node].amax(0)
        assert bool((low <= least).all())
        assert bool((high >= most).all())
        was = before.state.bounds[node]
        assert bool((low >= was[0][0]).all())
        assert bool((high <= was[1][0]).all())
        unstable = (low < 0) & (high > 0)
        near = 0.1 * (most - least) + 0.02
        assert bool((low >= least - near)[unstable].all())
        assert bool((high <= most + near)[unstable].all())
        gained += float(((was[1][0] - was[0][0]) - (high - low)).sum())
    assert gained > 0.1


def test_nothing_is_said_after_the_time_or_of_other_operators(planted: ModuleType) -> None:
    problem, plans, task = refined(planted, network(0))
    assert refine_by_splits(problem, plans, task, InnerPlan(), 0.0) is task
    problem, plans, task = refined(planted, network(0, Sigmoid))
    assert not splits_apply(plans[0])
    assert refine_by_splits(problem, plans, task, InnerPlan(), float("inf")) is task


def test_ranks_count_leaves_of_the_same_row() -> None:
    clause, bound = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([-1.0, -2.0, -3.0, -1.0, -2.5], dtype=D)
    nothing = torch.zeros((5, 0))
    leaves = Splits(clause, nothing, nothing, nothing, nothing, bound, bound, clause, nothing, nothing, bound)
    assert _rank(leaves).tolist() == [1, 1, 0, 2, 0]
