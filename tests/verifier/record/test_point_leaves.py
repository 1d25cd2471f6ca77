"""Leaves that are split at points are proved again from their entries; what was changed or left out is noticed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops.base import Op
from bounds.ops.bilinear import Product
from bounds.ops.extremum import Max
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid, Tanh
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch import activation_split
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen
from verifier.record import leaves, point_leaves
from verifier.record.roots import ROOT, keeping
from verifier.record.split_walk import SplitWalk
from verifier.strategy import AscentPlan

D = torch.float64
Entry = tuple[str, dict[str, Tensor]]
KINDS: dict[str, tuple[tuple[Op, ...], int, float]] = {
    "sigmoid": ((Sigmoid(), Sigmoid()), 4, 0.06),
    "tanh, relu": ((Tanh(), Relu()), 6, 0.4),
    "max, sigmoid": ((Max(), Sigmoid()), 5, 0.1),
    "product, tanh": ((Product(), Tanh()), 1, 0.15),
    "tanh, softmax": ((Tanh(), Softmax(-1)), 5, 0.2),
}
"""Operators, seed, and how far below the least value the thresholds are."""


def network(ops: tuple[Op, ...], seed: int) -> Graph:
    """Two inputs, layers of four, one output."""
    rng, build = np.random.default_rng(seed), Builder()
    x = build.input((2,))

    def dense(x: int, width: int) -> int:
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((build.shape(x)[0], width), (width,)))
        return build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))

    for op in ops:
        x = build.add(op, *[dense(x, 4) for _ in range(2 if isinstance(op, Max | Product) else 1)])
    return build.finish([dense(x, 1)])


def over_inputs() -> Graph:
    """``x tanh x`` of two inputs, which operators read themselves: splits of these shrink the box."""
    build = Builder()
    x = build.input((2,))
    weight, none = (build.constant(torch.tensor(v, dtype=D)) for v in ([[1.0], [1.5]], [0.0]))
    return build.finish([build.add(Gemm(), build.add(Product(), build.add(Tanh(), x), x), weight, none)])


def least(graph: Graph) -> float:
    axis = torch.linspace(-1, 1, 201, dtype=D)
    return float(graph.evaluate(torch.cartesian_prod(axis, axis))[0].min())


@dataclass(frozen=True)
class Searched:
    problem: Problem
    exact: Plan
    entries: list[Entry]
    refuted: int
    search: ActivationSplit


def searched(planted: ModuleType, graph: Graph, clauses: list[list[tuple[int, int, float]]]) -> Searched:
    """A search to its end, with what it writes."""
    box = (np.full(2, -1, dtype=np.float32), np.ones(2, dtype=np.float32))
    query = planted.query(graph, [box], [(0, clause) for clause in clauses])
    plans, problem = (prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))), Problem.of(query)
    entries = list[Entry]()

    def write(kind: str, arrays: Mapping[str, Tensor]) -> None:
        entries.append((kind, {name: values.clone() for name, values in arrays.items()}))

    ((_, part),) = screen(problem, plans[1])
    task = refine(problem, plans, part.open[0], 2, math.inf, keeping(write, part.open[0].task))
    search = ActivationSplit(problem, plans, task, AscentPlan(batch=16, steps=3, root_steps=3), write)
    *_, last = (step for step, _ in zip(search.run(), range(40), strict=False))
    assert last.open_subproblems == 0
    return Searched(problem, plans[1], entries, last.refuted, search)


def again(found: Searched, entries: list[Entry]) -> tuple[int, int, list[str]]:
    """Leaves, those that are not refuted again, and what is left open."""
    walk, count, bad = SplitWalk(found.problem, found.exact), 0, 0
    for kind, entry in entries:
        more, failed = walk.step(kind, entry)
        count, bad = count + more, bad + failed.shape[0]
    return count, bad, walk.open_trees()


def at(entries: list[Entry], kind: str) -> int:
    """The entry of a kind with the most numbers."""
    sizes = {k: sum(v.numel() for v in entry.values()) for k, (of, entry) in enumerate(entries) if of == kind}
    return max(sizes, key=sizes.__getitem__)


def changed(entries: list[Entry], k: int, **values: Tensor) -> list[Entry]:
    kind, entry = entries[k]
    return [*entries[:k], (kind, {**entry, **values}), *entries[k + 1 :]]


def usual_of(planted: ModuleType, kind: str) -> Searched:
    ops, seed, gap = KINDS[kind]
    graph = network(ops, seed)
    low = least(graph)
    return searched(planted, graph, [[(0, 1, low - gap)], [(0, 1, low - 1.5 * gap), (0, -1, 90.0)]])


@pytest.fixture(scope="module")
def usual(planted: ModuleType) -> Searched:
    """Two clauses, one of them of two literals; slopes from 0 to 1 and others."""
    with torch.no_grad():
        return usual_of(planted, "tanh, relu")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_leaf_is_refuted_again(planted: ModuleType, kind: str) -> None:
    found = usual_of(planted, kind)
    count, bad, holes = again(found, found.entries)
    assert count == found.refuted > 4 and not bad and not holes
    points = torch.cat([e["point"] for k, e in found.entries if k == leaves.KIND])
    assert torch.unique(points).shape[0] > 2, "not all at one point"


@torch.no_grad()
def test_splits_of_inputs_shrink_the_box(planted: ModuleType) -> None:
    graph = over_inputs()
    found = searched(planted, graph, [[(0, 1, least(graph) - 0.02)]])
    root = found.entries[at(found.entries, ROOT)][1]
    assert graph.inputs[0] in root["node"].tolist()
    count, bad, holes = again(found, found.entries)
    assert count == found.refuted > 4 and not bad and not holes


@torch.no_grad()
def test_bounds_are_those_of_the_search(planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bits, leaf by leaf."""
    seen = list[Tensor]()

    def noted(*args: object) -> tuple[Tensor, list[dict[str, Tensor]]]:
        bound, entries = decided(*args)  # type: ignore[arg-type]
        seen.append(bound[bound > 0])
        return bound, entries

    decided = point_leaves.decided
    monkeypatch.setattr(activation_split.point_leaves, "decided", noted)
    found = usual_of(planted, "tanh, softmax")
    walk, bounds = SplitWalk(found.problem, found.exact), list[Tensor]()
    for kind, entry in found.entries:
        walk.step(kind, entry)
        if kind == leaves.KIND:
            bounds.append(walk.roots[0].decided(entry)[0])
    assert torch.allclose(torch.cat(bounds), torch.cat(seen), rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_a_missing_leaf_or_a_moved_point_leaves_a_hole(usual: Searched) -> None:
    k = at(usual.entries, leaves.KIND)
    entry = usual.entries[k][1]
    _, bad, holes = again(usual, usual.entries[:k] + usual.entries[k + 1 :])
    assert not bad and holes and "parts of it open" in holes[0]
    for e in range(0, entry["side"].shape[0], 5):
        away = torch.zeros_like(entry["point"])
        away[e] = 1e-3
        _, _, holes = again(usual, changed(usual.entries, k, point=entry["point"] + away * entry["side"]))
        assert holes, "a leaf that holds less than it should"
    count, _, holes = again(usual, changed(usual.entries, k, point=entry["point"].nextafter(entry["side"] * torch.inf)))
    assert count == usual.refuted and holes, "a leaf that holds a little less than it should"


@torch.no_grad()
def test_changed_numbers_are_other_bounds(usual: Searched) -> None:
    k = at(usual.entries, leaves.KIND)
    entry, walk = usual.entries[k][1], SplitWalk(usual.problem, usual.exact)
    for kind, other in usual.entries[:k]:
        walk.step(kind, other)
    before = walk.roots[0].decided(entry)[0]
    wider = entry["point"] - entry["side"] * 0.5
    for name, other in (
        ("slope", 255 - entry["slope"]),
        ("line", entry["line"] / 2 + 0.125),
        ("beta", 0 * entry["beta"]),
        ("point", wider),
    ):
        assert not torch.equal(walk.roots[0].decided({**entry, name: other})[0], before), name
    for name, other in (("beta", 100 * entry["beta"]), ("line", entry["line"] + 3), ("point", wider - entry["side"])):
        assert again(usual, changed(usual.entries, k, **{name: other}))[1], f"leaves that this {name} does not refute"


@torch.no_grad()
def test_numbers_that_prove_nothing_are_refused(usual: Searched) -> None:
    k = at(usual.entries, leaves.KIND)
    entry = usual.entries[k][1]
    slope, most = entry["slope"].float() / 255, 2**63 - 1
    wrapping = torch.zeros(entry["depth"].shape, dtype=torch.int64)  # with the same sum in 64 bits
    wrapping[:3] = torch.tensor([most, most, 2 + int(entry["depth"].sum())])
    for name, values, words in (
        ("depth", wrapping, "numbers of splits"),
        ("beta", -entry["beta"] - 1e-3, "multiplier"),
        ("beta", entry["beta"] * math.inf, "multiplier"),
        ("beta", entry["beta"][1:], "multipliers"),
        ("slope", slope + 0.5, "outside"),
        ("slope", slope - 0.5, "outside"),
        ("slope", entry["slope"][:, 1:], "as many"),
        ("line", entry["line"] * math.nan, "not finite"),
        ("line", entry["line"][:, 1:], "as many"),
        ("weight", -entry["weight"], "weight"),
        ("weight", entry["weight"][:, 1:], "weight"),
        ("position", entry["position"] + 1000, "not there"),
        ("position", 0 * entry["position"], "do not rise"),
        ("point", entry["point"].double(), "float32"),
        ("point", entry["point"] * math.inf, "float32"),
        ("point", entry["point"][1:], "points"),
        ("side", 0 * entry["side"], "sides"),
        ("depth", entry["depth"] + 1, "sides"),
        ("clause", entry["clause"] + 2, "not there"),
    ):
        with pytest.raises(ValueError, match=words):
            again(usual, changed(usual.entries, k, **{name: values}))


@torch.no_grad()
def test_a_multiplier_of_the_wrong_sign_is_refused(usual: Searched) -> None:
    """Of an element between two points only one end may have one."""
    searched = usual.search
    root, batch = searched.bounding.points, searched._root().take(torch.zeros(1, dtype=torch.int64))
    assert root is not None
    one = torch.zeros_like(batch.low)
    one[0, 0] = 0.25
    batch = replace(batch, low=torch.where(one > 0, -one, batch.low), high=torch.where(one > 0, one, batch.high))
    found = searched.bounding.ascended(batch, 0)
    entry = point_leaves.arrays_of(root, batch, replace(found, betas=-one))
    shape = (searched.clauses.shape[0], searched.bounding.rhs.shape[1])
    assert entry["side"].tolist() == [1, -1] and entry["beta"].tolist() == [0, 0.25]
    read, numbers = point_leaves.of_arrays(entry, shape, root)
    assert torch.equal(numbers.betas, -one.double())
    assert torch.equal(read.low, batch.low) and torch.equal(read.high, batch.high)
    both = {**entry, "beta": entry["beta"] + 0.5}
    with pytest.raises(ValueError, match="both ends"):
        point_leaves.of_arrays(both, shape, root)
    half = replace(batch, high=torch.full_like(batch.high, torch.inf))
    entry = point_leaves.arrays_of(root, half, replace(found, betas=-one))
    assert entry["side"].tolist() == [1] and entry["beta"].tolist() == [0], "one that would be wrong is none"


@torch.no_grad()
def test_roots_of_other_positions_or_parameters_are_refused(usual: Searched) -> None:
    root = at(usual.entries, ROOT)
    about = usual.entries[root][1]
    for name, values, words in (
        ("element", about["element"] + 9, "no elements"),
        ("node", about["node"] + 1, "no elements"),
        ("free", about["free"] + 9, "not there"),
        ("free", 0 * about["free"], "twice"),
        ("line", about["line"] + torch.tensor([0, 2, 0]), "no parameters"),
        ("line", about["line"] + torch.tensor([0, 0, 1]), "do not fit"),
        ("line", about["line"] * torch.tensor([0, 1, 1]), "no parameters"),
        ("line", about["line"] * torch.tensor([1, 0, 1]), "comes twice"),
    ):
        with pytest.raises(ValueError, match=words):
            again(usual, changed(usual.entries, root, **{name: values}))
    entry = {name: values for name, values in about.items() if name != "line"}
    with pytest.raises(ValueError, match="without 'line'"):
        again(usual, [*usual.entries[:root], (ROOT, entry)])
