"""Bounds of inner neurons by splits are found again from their entries, and not where something is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.backward import State
from bounds.graph import Graph
from bounds.ops.sshape import Sigmoid
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
def case(planted: ModuleType, three_layers: Graph) -> Case:
    """A problem, its plan of proof, the state before and after, and the entries."""
    graph = three_layers
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


def leaf_missing(entry: dict[str, Tensor]) -> None:
    last = int(entry["depth"][-1])
    free = (entry["slope"].shape[0] + entry["position"].shape[0]) // entry["clause"].shape[0] - last
    for name, count in {"clause": 1, "depth": 1, "position": last, "side": last, "beta": last, "slope": free}.items():
        entry[name] = entry[name][: entry[name].shape[0] - count]


def leaf_on_the_other_side(entry: dict[str, Tensor]) -> None:
    entry["side"] = torch.cat([entry["side"][:-1], -entry["side"][-1:]])


def leaf_of_another_row(entry: dict[str, Tensor]) -> None:
    rows = torch.unique(entry["clause"])
    entry["clause"] = torch.cat([entry["clause"][:-1], rows[rows != entry["clause"][-1]][:1]])


@pytest.mark.parametrize("change", [leaf_missing, leaf_on_the_other_side, leaf_of_another_row])
def test_leaves_with_a_hole_are_refused(case: Case, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Of the last leaf of an entry, which has splits."""
    entries = case[-1]
    k = max(k for k, e in enumerate(entries) if int(e["depth"][-1]) > 0)
    entry = dict(entries[k])
    change(entry)
    with pytest.raises(ValueError, match="leave a part of the box open"):
        again(case, [*entries[:k], entry, *entries[k + 1 :]])


def test_weights_and_lines_from_outside_change_nothing(case: Case) -> None:
    """A bound of twice a row is no bound of the row."""
    _, plan, _, after, entries = case
    heavy = [{**e, "weight": torch.full((e["clause"].shape[0], 1), 2.0)} for e in entries]
    found = again(case, heavy)
    assert all(torch.equal(found.bounds[n][0], again(case, entries).bounds[n][0]) for n in plan.watched)
    assert width(plan, found) == pytest.approx(width(plan, after), rel=1e-9)


def test_other_multipliers_prove_other_bounds_that_hold(case: Case) -> None:
    """Whatever the numbers are, no point of the box lies outside."""
    _, plan, _, after, entries = case
    draw = torch.Generator().manual_seed(0)
    for scale in (0.0, 0.3, 30.0):
        other = [
            {
                **e,
                "beta": scale * torch.rand(e["beta"].shape, generator=draw),
                "slope": torch.randint(0, 256, e["slope"].shape, generator=draw, dtype=torch.uint8),
            }
            for e in entries
        ]
        found = again(case, other)
        assert width(plan, found) > width(plan, after)
        points = torch.rand((2000, 2), generator=draw, dtype=D) * torch.tensor([2.0, 2.0]) + torch.tensor([-1.0, -0.5])
        values = {plan.input: points}
        for node in plan.graph.nodes:
            if node.id in plan.operands and node.id != plan.input:
                pairs = zip(node.inputs, plan.operands[node.id], strict=True)
                values[node.id] = node.op.forward(*(values[i] if c is None else c for i, c in pairs))
        for node in plan.watched:
            low, high = found.bounds[node]
            assert bool(((values[node] >= low - 1e-12) & (values[node] <= high + 1e-12)).all())


def test_networks_with_other_operators_have_none(case: Case) -> None:
    problem, plan, before, _, entries = case
    nodes = list(plan.graph.nodes)
    last = max(plan.relaxed)
    nodes[last] = replace(nodes[last], op=Sigmoid())
    other = prepare(replace(plan.graph, nodes=tuple(nodes)), D, rounding=Rounding.of(D))
    with pytest.raises(ValueError, match="only ReLUs"):
        refined_by_splits(problem, other, 0, before, proved(entries))


def test_rows_that_want_no_bounds_gain_none(case: Case) -> None:
    """Another machine may know the sign of an element before its entry comes."""
    problem, plan, before, _, entries = case
    narrow = {n: (low.clone(), high.clone()) for n, (low, high) in before.bounds.items()}
    node, element = int(entries[-1]["target"]), int(entries[-1]["row"][0])
    narrow[node][0][0, element] = 0.0
    state = refined_by_splits(problem, plan, 0, replace(before, bounds=narrow), proved(entries))
    assert float(state.bounds[node][0][0, element]) == 0.0


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("beta", lambda v: v - 1, "multiplier"),
        ("slope", lambda v: v.float() / 255 + 0.7, "slopes"),
        ("row", lambda v: v + 100, "does not have"),
        ("row", lambda v: v - 100, "does not have"),
        ("depth", lambda v: v + 1, "splits"),
        ("slope", lambda v: v[1:], "slopes"),
        ("node", lambda v: v + int(1e6), "no elements"),
        ("node", lambda v: 11 + 0 * v, "no elements|do not rise"),
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
