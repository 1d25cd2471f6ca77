"""The margin that a proof reports: no input comes closer to a counterexample, whatever was refuted on the way."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem, Step
from verifier.branch.root import refine, screen
from verifier.query import Query
from verifier.strategy import AscentPlan, SplitPlan

D = torch.float64
ROUNDING = Rounding.of(D)


def network(seed: int) -> Graph:
    """Two inputs, two layers of eight ReLUs, two outputs."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((2,))
    for width in (8, 8, 2):
        weight = rng.normal(size=(build.shape(x)[0], width)).astype(np.float32)
        bias = rng.normal(size=width).astype(np.float32)
        x = build.add(Gemm(), x, *(build.constant(torch.from_numpy(w)) for w in (weight, bias)))
        x = build.add(Relu(), x) if width == 8 else x
    return build.finish([x])


def by_inputs(query: Query) -> list[Step]:
    plans = tuple(prepare(query.graph, dtype, rounding=Rounding.of(dtype)) for dtype in (torch.float32, D))
    return list(InputSplit(Problem.of(query), plans, SplitPlan(batch=8, fill=1)).run())


def by_activations(query: Query) -> list[Step]:
    problem = Problem.of(query)
    plans = (prepare(query.graph, torch.float32), prepare(query.graph, D, rounding=ROUNDING))
    ((_, part),) = screen(problem, plans[1])
    steps = [Step(0.0, 0, 0.0, part.refuted, part.least_margin, None, 0)]
    for task in part.open:
        refined = refine(problem, plans, task, 0, 0.0)
        steps += ActivationSplit(problem, plans, refined, AscentPlan(batch=8)).run()
    return steps


@pytest.mark.parametrize("engine", [by_inputs, by_activations])
@pytest.mark.parametrize("seed", range(6))
@torch.no_grad()
def test_no_point_is_closer_than_the_margin(
    planted: ModuleType, seed: int, engine: Callable[[Query], list[Step]]
) -> None:
    """Unsafe: the first output is at most some number, or the second one is; both just out of reach."""
    graph = network(seed)
    axis = torch.linspace(-1, 1, 201, dtype=D)
    values = graph.evaluate(torch.cartesian_prod(axis, axis))[0]
    least = values.amin(0) - 0.02 * (values.amax(0) - values.amin(0))
    box = (np.full(2, -1, dtype=np.float32), np.full(2, 1, dtype=np.float32))
    query = planted.query(graph, [box], [(0, [(k, 1, float(least[k]))]) for k in range(2)])
    steps = engine(query)
    assert steps[-1].open_subproblems == 0, "nothing stays open"
    assert 0 < min(step.least_margin for step in steps) <= float((values - least).amin())
