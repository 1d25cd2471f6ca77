"""Bounds of inner neurons by splits are found again from their entries, and not where something is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.backward import State
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch.problem import Problem
from verifier.branch.root import refine, refine_by_splits, refined_by_splits, screen
from verifier.record.inner import KIND, keeping, proved
from verifier.strategy import InnerPlan

D = torch.float64
Entries = list[dict[str, Tensor]]
Case = tuple[Problem, Plan, State, State, Entries]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def case(planted: ModuleType) -> Case:
    """A problem, its plan of proof, the state before and after, and the entries."""
    rng, build = np.random.default_rng(1), Builder()
    x = build.input((2,))
    for k, (before, after) in enumerate(((2, 8), (8, 8), (8, 8), (8, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if k < 3 else x
    graph = build.finish([x])
    box = np.array([-1, -0.5], dtype=np.float32), np.array([1, 1.5], dtype=np.float32)
    query = planted.query(graph, [box], [(0, [(0, 1, 9.0)])])
    plans, problem = (prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))), Problem.of(query)
    entries: Entries = []

    def write(kind: str, arrays: Mapping[str, Tensor]) -> None:
        assert kind == KIND
        entries.append({name: values.clone() for name, values in arrays.items()})

    with torch.no_grad():
        ((_, part),) = screen(problem, plans[1])
        first = refine(problem, plans, part.open[0], 5, math.inf)
        better = refine_by_splits(problem, plans, first, InnerPlan(rounds=8, batch=32), math.inf, keeping(write, 0))
    assert first.state is not None and better.state is not None and first.state is not better.state
    return problem, plans[1], first.state, better.state, entries


def width(plan: Plan, state: State) -> float:
    return sum(float((state.bounds[n][1] - state.bounds[n][0]).sum()) for n in plan.watched)


def again(case: Case, entries: Entries) -> State:
    problem, plan, before, _, _ = case
    return refined_by_splits(problem, plan, 0, before, proved(entries))


def test_the_same_bounds_are_found_again(case: Case) -> None:
    _, plan, before, after, entries = case
    assert max(int(e["depth"].max()) for e in entries) > 1 and width(plan, after) < 0.99 * width(plan, before)
    found = again(case, entries)
    for node in plan.watched:
        for one, two in zip(found.bounds[node], after.bounds[node], strict=True):  # in other batches, so not to the bit
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-13)
    assert width(plan, again(case, [])) > width(plan, after)


def test_a_row_with_a_hole_among_its_leaves_gains_nothing(case: Case) -> None:
    """The last leaf of the last entry that has splits goes: its row is bounded as before."""
    _, plan, before, after, entries = case
    k = max(k for k, e in enumerate(entries) if int(e["depth"][-1]) > 0)
    entry = dict(entries[k])
    last = int(entry["depth"][-1])
    free = (entry["slope"].shape[0] + entry["position"].shape[0]) // entry["clause"].shape[0] - last
    for name, count in {"clause": 1, "depth": 1, "position": last, "side": last, "beta": last, "slope": free}.items():
        entry[name] = entry[name][: entry[name].shape[0] - count]
    found = again(case, [*entries[:k], entry, *entries[k + 1 :]])
    assert width(plan, after) < width(plan, found) <= width(plan, before)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("beta", lambda v: v - 1, "multiplier"),
        ("slope", lambda v: v.float() / 255 + 0.7, "slopes"),
        ("row", lambda v: v + 100, "want no bounds"),
        ("row", lambda v: 0 * v, "want no bounds"),
        ("clause", lambda v: v + 1000, "not there"),
        ("element", lambda v: v + 100, "no elements"),
    ],
)
def test_numbers_that_prove_nothing_are_refused(case: Case, name: str, change: object, reason: str) -> None:
    entries = case[-1]
    k = max(range(len(entries)), key=lambda k: entries[k]["beta"].shape[0])
    changed = {**entries[k], name: change(entries[k][name])}  # type: ignore[operator]
    with pytest.raises(ValueError, match=reason):
        again(case, [*entries[:k], changed, *entries[k + 1 :]])
