"""Activation splits are proved again from their entries; what was changed or left out is noticed."""

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
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding
from verifier.branch import activation_split
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.bounding import Bounded
from verifier.branch.problem import Problem
from verifier.branch.root import refine, screen
from verifier.branch.splits import Splits
from verifier.record import leaves
from verifier.record.leaves import arrays_of, of_arrays
from verifier.record.roots import BOUNDS, ROOT, keeping
from verifier.record.split_walk import SplitWalk
from verifier.strategy import AscentPlan

D = torch.float64
Entry = tuple[str, dict[str, Tensor]]


def network(seed: int, wide: int = 9) -> Graph:
    """Four inputs, three layers, one output."""
    rng = np.random.default_rng(seed)
    build = Builder()
    x = build.input((4,))
    for k, (before, after) in enumerate(((4, wide), (wide, wide), (wide, wide), (wide, 1))):
        weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
        x = build.add(Gemm(), x, build.constant(weight), build.constant(bias / 2))
        x = build.add(Relu(), x) if k < 3 else x
    return build.finish([x])


@dataclass(frozen=True)
class Searched:
    problem: Problem
    exact: Plan
    entries: list[Entry]
    refuted: int


def searched(planted: ModuleType, graph: Graph, clauses: list[list[tuple[int, int, float]]], **how: int) -> Searched:
    """A search to its end, with what it writes."""
    box = (np.full(4, -1, dtype=np.float32), np.ones(4, dtype=np.float32))
    query = planted.query(graph, [box], [(0, clause) for clause in clauses])
    plans, problem = (prepare(graph, torch.float32), prepare(graph, D, rounding=Rounding.of(D))), Problem.of(query)
    entries, refuted = list[Entry](), 0

    def write(kind: str, arrays: Mapping[str, Tensor]) -> None:
        entries.append((kind, {name: values.clone() for name, values in arrays.items()}))

    ((_, part),) = screen(problem, plans[1])
    for task in part.open:
        better = refine(problem, plans, task, 3, math.inf, keeping(write, task.task))
        options = replace(AscentPlan(batch=8, steps=4, root_steps=4, last_steps=6), **how)
        steps = list(ActivationSplit(problem, plans, better, options, write).run())
        assert steps[-1].open_subproblems == 0
        refuted += steps[-1].refuted
    return Searched(problem, plans[1], entries, refuted)


def least(graph: Graph) -> float:
    axis = torch.linspace(-1, 1, 17, dtype=D)
    return float(graph.evaluate(torch.cartesian_prod(*[axis] * 4))[0].min())


def again(found: Searched, entries: list[Entry]) -> tuple[int, list[Tensor], list[str]]:
    """Leaves, bounds of those that are not refuted again, and what is left open."""
    walk, count, bad = SplitWalk(found.problem, found.exact), 0, list[Tensor]()
    for kind, entry in entries:
        more, failed = walk.step(kind, entry)
        count, bad = count + more, bad + ([failed] if failed.shape[0] else [])
    return count, bad, walk.open_trees()


def at(entries: list[Entry], kind: str) -> int:
    """The entry of a kind with the most numbers."""
    sizes = {k: sum(v.numel() for v in entry.values()) for k, (of, entry) in enumerate(entries) if of == kind}
    return max(sizes, key=sizes.__getitem__)


def changed(entries: list[Entry], k: int, **values: Tensor) -> list[Entry]:
    kind, entry = entries[k]
    return [*entries[:k], (kind, {**entry, **values}), *entries[k + 1 :]]


@pytest.fixture(scope="module")
def usual(planted: ModuleType) -> Searched:
    """Two clauses, one of them of two literals."""
    graph = network(3)
    low = least(graph)
    with torch.no_grad():
        return searched(planted, graph, [[(0, 1, low - 25.0)], [(0, 1, low - 24.0)]])


@torch.no_grad()
def test_every_leaf_is_refuted_again(usual: Searched) -> None:
    kinds = {kind for kind, _ in usual.entries}
    assert kinds == {BOUNDS, ROOT, leaves.KIND}
    count, bad, holes = again(usual, usual.entries)
    assert count == usual.refuted > 8 and not bad and not holes


@pytest.mark.parametrize("case", ["literals", pytest.param("linear programs", marks=pytest.mark.slow)])
@torch.no_grad()
def test_other_searches_are_proved_again(planted: ModuleType, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {"literals": network(4), "linear programs": network(8, wide=4)}[case]
    low = least(graph) - {"literals": 25.0, "linear programs": -0.2}[case]
    programs = list[int]()

    def counted(*args: object) -> Tensor | None:
        programs.append(1)
        return multipliers(*args)  # type: ignore[arg-type]

    from verifier.branch import bounding
    from verifier.branch.leaf import multipliers

    monkeypatch.setattr(bounding, "multipliers", counted)
    plain = {"steps": 0, "root_steps": 0, "last_steps": 0, "batch": 512, "candidates": 0}
    how = plain if case == "linear programs" else {}
    clause = [(0, 1, low - 0.3)] + ([(0, -1, 900.0)] if case == "literals" else [])
    found = searched(planted, graph, [clause], **how)
    count, bad, holes = again(found, found.entries)
    assert count == found.refuted > 3 and not bad and not holes
    assert bool(programs) is (case == "linear programs")
    types = {entry["beta"].dtype for kind, entry in found.entries if kind == leaves.KIND}
    assert (torch.float64 in types) is (case == "linear programs")


@torch.no_grad()
def test_bounds_are_those_of_the_search(usual: Searched, planted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, leaf by leaf in batches of the same leaves."""
    seen = list[Tensor]()

    def noted(*args: object) -> tuple[Tensor, list[dict[str, Tensor]]]:
        bound, entries = decided(*args)  # type: ignore[arg-type]
        seen.append(bound[bound > 0])
        return bound, entries

    decided = leaves.decided
    monkeypatch.setattr(activation_split.leaves, "decided", noted)
    found = searched(planted, network(3), [[(0, 1, least(network(3)) - 25.0)]])
    walk, bounds = SplitWalk(found.problem, found.exact), list[Tensor]()
    for kind, entry in found.entries:
        walk.step(kind, entry)
        if kind == leaves.KIND:
            bounds.append(walk.roots[0].decided(entry)[0])
    assert torch.allclose(torch.cat(bounds), torch.cat([b for b in seen if b.shape[0]]), rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_changed_numbers_are_other_bounds(usual: Searched) -> None:
    k = at(usual.entries, leaves.KIND)
    entry, walk = usual.entries[k][1], SplitWalk(usual.problem, usual.exact)
    for kind, other in usual.entries[:k]:
        walk.step(kind, other)
    before = walk.roots[0].decided(entry)[0]
    for name, other in (("slope", 255 - entry["slope"]), ("beta", 0 * entry["beta"])):
        assert not torch.equal(walk.roots[0].decided({**entry, name: other})[0], before)
    _, bad, _ = again(usual, changed(usual.entries, k, beta=100 * entry["beta"]))
    assert bad, "leaves that these multipliers do not refute"


@torch.no_grad()
def test_a_missing_leaf_or_root_is_noticed(usual: Searched) -> None:
    k = at(usual.entries, leaves.KIND)
    _, bad, holes = again(usual, usual.entries[:k] + usual.entries[k + 1 :])
    assert not bad and len(holes) >= 1 and "parts of it open" in holes[0]
    entry = usual.entries[k][1]
    side = entry["side"].clone()
    side[0] = -side[0]
    _, _, holes = again(usual, changed(usual.entries, k, side=side))
    assert holes, "a leaf on the other side of its split"
    _, _, holes = again(usual, [e for e in usual.entries if e[0] == BOUNDS])
    assert holes == ["task 0 was not split"]
    root = at(usual.entries, ROOT)
    with pytest.raises(ValueError, match="were not searched"):
        again(usual, changed(usual.entries, root, clause=usual.entries[root][1]["clause"][:1]))
    with pytest.raises(ValueError, match="at the wrong place"):
        again(usual, usual.entries[root + 1 :])


@torch.no_grad()
def test_numbers_that_prove_nothing_are_refused(usual: Searched) -> None:
    k, root = at(usual.entries, leaves.KIND), at(usual.entries, ROOT)
    entry = usual.entries[k][1]
    slope = entry["slope"].float() / 255
    for name, values, words in (
        ("beta", -entry["beta"] - 1e-9, "multiplier"),
        ("beta", entry["beta"] * math.inf, "multiplier"),
        ("beta", entry["beta"][1:], "multiplier"),
        ("slope", slope + 0.5, "slopes"),
        ("slope", slope - 0.5, "slopes"),
        ("slope", entry["slope"][1:], "slopes"),
        ("weight", -torch.ones((entry["clause"].shape[0], 1)), "weight"),
        ("position", entry["position"] + 1000, "not there"),
        ("position", 0 * entry["position"], "do not rise"),
        ("side", 0 * entry["side"], "sides"),
        ("depth", entry["depth"] + 1, "sides"),
        ("clause", entry["clause"] + 2, "not there"),
    ):
        with pytest.raises(ValueError, match=words):
            again(usual, changed(usual.entries, k, **{name: values}))
    with pytest.raises(ValueError, match="without 'side'"):
        again(usual, [*usual.entries[:k], (leaves.KIND, {n: v for n, v in entry.items() if n != "side"})])
    about = usual.entries[root][1]
    with pytest.raises(ValueError, match="no elements"):
        again(usual, changed(usual.entries, root, element=about["element"] + 9))
    with pytest.raises(ValueError, match="no elements"):
        again(usual, changed(usual.entries, root, node=about["node"] + 1))


@torch.no_grad()
def test_entries_are_read_as_they_were_written() -> None:
    draw = torch.Generator().manual_seed(0)
    share, slopes, betas = (torch.rand((7, 30), generator=draw) for _ in range(3))
    signs = (torch.where(share < 0.3, 1, 0) - torch.where(share > 0.8, 1, 0)).to(torch.int8)
    clause, none = torch.arange(7) % 3, torch.zeros(7)
    weights = torch.rand((7, 2), generator=draw)
    batch = Splits(clause, signs, slopes, betas, weights.double(), none, none, clause, share[:, :0], share[:, :0], none)
    found = Bounded(none, slopes, betas * signs.abs(), weights, {}, none, {})
    graph = prepare(network(0), D)
    for few in (True, False):
        entry = arrays_of(graph, batch, found, few)
        read, numbers = of_arrays(entry, (3, 2), 30)
        assert torch.equal(read.clause, clause) and torch.equal(read.signs, signs)
        assert torch.equal(numbers.betas, found.betas.double()) and torch.equal(numbers.weights, weights.double())
        off = (numbers.slopes - slopes)[signs == 0].abs().max()
        assert float(off) < (0.5001 / 255 if few else 1e-12)
        same = arrays_of(graph, read, numbers, few)
        assert all(torch.equal(same[name].double(), values.double()) for name, values in entry.items())
