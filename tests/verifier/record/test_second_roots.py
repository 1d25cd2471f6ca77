"""Searches that begin anew with better bounds of inner neurons: they are proved again, and no tree is made of two."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.problem import Problem
from verifier.branch.root import refine, refine_by_splits, screen
from verifier.record import inner, leaves
from verifier.record.roots import ROOT, keeping
from verifier.record.split_walk import SplitWalk
from verifier.strategy import AscentPlan, InnerPlan

D = torch.float64
Entry = tuple[str, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.no_grad():
        yield


def network() -> Graph:
    """Four inputs, three layers of eight neurons, one output."""
    rng, build = np.random.default_rng(5), Builder()
    x = build.input((4,))
    for k, (before, after) in enumerate(((4, 8), (8, 8), (8, 8), (8, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if k < 3 else x
    return build.finish([x])


@dataclass(frozen=True)
class Twice:
    """Entries of a search to its end, of better bounds, and of the search with these to its end."""

    problem: Problem
    exact: Plan
    first: list[Entry]
    better: list[Entry]
    second: list[Entry]

    def walk(self, entries: list[Entry]) -> SplitWalk:
        """Raises ``ValueError`` at entries out of place; no leaf may fail."""
        walk = SplitWalk(self.problem, self.exact)
        for kind, entry in entries:
            assert not walk.step(kind, entry)[1].shape[0]
        return walk


@pytest.fixture(scope="module")
def twice(planted: ModuleType) -> Twice:
    graph, entries, axis = network(), list[Entry](), torch.linspace(-1, 1, 13, dtype=D)
    box = (np.full(4, -1, dtype=np.float32), np.ones(4, dtype=np.float32))
    least = float(graph.evaluate(torch.cartesian_prod(*[axis] * 4))[0].min())
    problem = Problem.of(planted.query(graph, [box], [(0, [(0, 1, least - 4.0)])]))
    plans = prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))
    options = AscentPlan(batch=4, steps=4, root_steps=4, last_steps=6)

    def write(kind: str, arrays: Mapping[str, Tensor]) -> None:
        entries.append((kind, {name: values.clone() for name, values in arrays.items()}))

    def searched() -> None:
        steps = list(ActivationSplit(problem, plans, task, options, write).run())
        assert steps[-1].open_subproblems == 0

    with torch.no_grad():
        ((_, part),) = screen(problem, plans[1])
        task = refine(problem, plans, part.open[0], 2, math.inf, keeping(write, 0))
        searched()
        first, entries = entries, []
        task = refine_by_splits(problem, plans, task, InnerPlan(rounds=3, batch=16), math.inf, inner.keeping(write, 0))
        better, entries = entries, []
        searched()
    return Twice(problem, plans[1], first, better, entries)


def test_the_second_search_is_proved_and_needs_nothing_of_the_first_tree(twice: Twice) -> None:
    assert all(sum(kind == leaves.KIND for kind, _ in tree) > 2 for tree in (twice.first, twice.second))
    assert not twice.walk(twice.first).open_trees()
    assert not twice.walk([*twice.first, *twice.better, *twice.second]).open_trees()
    roots = [entry for entry in twice.first if entry[0] != leaves.KIND]
    assert not twice.walk([*roots, *twice.better, *twice.second]).open_trees()
    assert not twice.walk([*twice.first, *twice.better]).open_trees(), "bounds that no root follows"


def test_leaves_before_a_root_count_no_more(twice: Twice) -> None:
    (_, root), *tree = twice.second
    assert twice.walk([*twice.first, *twice.better, (ROOT, root)]).open_trees()
    assert twice.walk([*twice.first, *twice.better, (ROOT, root), *tree[:-1]]).open_trees()


def test_roots_and_bounds_have_their_places(twice: Twice) -> None:
    with pytest.raises(ValueError, match="wrong place"):
        twice.walk([*twice.first, *twice.second])
    with pytest.raises(ValueError, match="wrong place"):
        twice.walk([*twice.better, *twice.first])
    with pytest.raises(ValueError, match="wrong place"):
        twice.walk([*twice.first, *twice.better, *twice.first])
    kind, entry = twice.better[0]
    with pytest.raises(ValueError, match="wrong place"):
        twice.walk([*twice.first, (kind, {**entry, "target": entry["target"] * 0})])


def test_the_second_tree_is_none_over_the_first_root(twice: Twice) -> None:
    """Leaves of the second root with the bounds of the first one: other positions, or bounds that do not suffice."""
    roots = [entry for entry in twice.first if entry[0] != leaves.KIND]
    tree = [entry for entry in twice.second if entry[0] == leaves.KIND]
    with pytest.raises((ValueError, AssertionError)):
        twice.walk([*roots, *tree])
