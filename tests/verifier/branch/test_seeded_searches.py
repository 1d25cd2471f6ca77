"""Mistakes of branch and bound and of deciding passes, planted one at a time: each refutes a true counterexample.

They go beyond those of ``test_seeded_bugs.py``. The instances are those of ``benchmarks/planted.py``: the place of one
that shows the mistake is written down, and without the mistake no engine refutes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import verifier.branch.box_bounds
from bounds.graph import Builder
from bounds.ops.gemm import Gemm
from bounds.ops.jumps import Jumping, Step
from bounds.ops.relu import Relu
from verifier.branch.activation_split import ActivationSplit
from verifier.branch.frontier import Subproblems
from verifier.branch.half_spaces import HalfSpaces
from verifier.branch.input_split import InputSplit
from verifier.branch.positions import Positions
from verifier.branch.problem import Literals, Problem

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``change(original, *arguments)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: change(original, *args, **named))


# Literals and clauses -------------------------------------------------------------------------------------------------


def absent_literals_count(patch: Patch) -> None:
    """Where a clause has fewer literals than others, those that it lacks are taken for ``form 0 <= 0``."""

    def change(original: Callable[..., Problem], *args: Any) -> Problem:
        found = original(*args)
        absent = found.column < 0
        return replace(found, column=found.column.clamp(min=0), threshold=found.threshold.masked_fill(absent, 0.0))

    wrap(patch, Problem, "of", change)


def signs_lost(patch: Patch) -> None:
    """``form >= t`` read as ``form <= t``: the column's sign is left out of its row."""

    def change(original: Callable[..., Tensor], self: Problem, *args: Any) -> Tensor:
        return original(replace(self, sign=self.sign.abs()), *args)

    wrap(patch, Problem, "rows", change)


def clauses_of_another_box(patch: Patch) -> None:
    """Subproblems that are taken out of a batch keep the clauses of those that stood there before."""

    def change(original: Callable[..., Subproblems], self: Subproblems, index: Tensor) -> Subproblems:
        found = original(self, index)
        return replace(found, alive=self.alive[torch.arange(found.size) % max(1, self.size)])

    wrap(patch, Subproblems, "take", change)


def tasks_mixed(patch: Patch) -> None:
    """Two batches are put together, and the tasks of the first serve for both."""

    def change(original: Callable[..., Subproblems], parts: list[Subproblems]) -> Subproblems:
        found = original(parts)
        return replace(found, task=torch.full_like(found.task, int(found.task[0])) if found.size else found.task)

    patch.setattr(Subproblems, "cat", staticmethod(lambda parts, f=Subproblems.cat: change(f, parts)))


def lines_of_another_box(patch: Patch) -> None:
    """Joint refutation with the lines of the next subproblem."""
    wrap(patch, verifier.branch.box_bounds, "joint", lambda f, rows, *rest: f(rows.roll(1, 0), *rest))


# Splits ---------------------------------------------------------------------------------------------------------------


def cut_at_another_point(patch: Patch) -> None:
    """Bounds clamped at a point that is not the one where the children meet."""

    def change(original: Callable[..., Any], self: Positions, *asked: Any) -> Any:
        shifted = {n: (low - 0.1, high - 0.1) for n, (low, high) in self.root.bounds.items()}
        return original(replace(self, root=replace(self.root, bounds=shifted)), *asked)

    wrap(patch, Positions, "state", change)


def half_space_of_the_wrong_side(patch: Patch) -> None:
    """Neurons bounded over what the other child of each split keeps."""
    wrap(patch, HalfSpaces, "_opposite", lambda f, self, signs: f(self, -signs))


def cut_not_shared(patch: Patch) -> None:
    """Each child is cut in its own middle: between them a gap is left."""

    def change(original: Callable[..., Any], self: InputSplit, parents: Subproblems, scores: Tensor) -> Any:
        children, more, still = original(self, parents, scores)
        half = children.size // 2
        lower = children.lower.clone()
        moved = lower[half:] > children.lower[:half]
        lower[half:] += moved * 0.5 * (children.upper - children.lower)[half:]
        return replace(children, lower=lower), more, still

    wrap(patch, InputSplit, "_bisect", change)


def cut_on_the_wrong_side(patch: Patch) -> None:
    """What a literal's line leaves of a box is thrown away, and the rest is kept."""
    wrap(patch, verifier.branch.box_bounds, "clip", lambda f, rows, *rest: f(-rows, *rest))


# What is left ---------------------------------------------------------------------------------------------------------


def stuck_leaves_dropped(patch: Patch) -> None:
    """Subproblems with nothing left to split count as refuted."""

    def change(original: Callable[..., Any], self: ActivationSplit, *args: Any) -> Any:
        found = original(self, *args)
        return replace(found, stuck=found.stuck.take(found.stuck.clause[:0]))

    wrap(patch, ActivationSplit, "_sift", change)


# Deciding passes ------------------------------------------------------------------------------------------------------


def search_taken_for_proof(patch: Patch) -> None:
    """The bound of the search, which has no error terms, counts as proven."""
    patch.setattr(ActivationSplit, "_decide", lambda self, batch, found: found.bound.double())


def no_number_is_great(patch: Patch) -> None:
    """A bound that is not a number counts as +inf."""

    def change(original: Callable[..., Tensor], self: Literals, bounds: Tensor) -> Tensor:
        return torch.nan_to_num(original(self, bounds), nan=torch.inf, neginf=torch.inf)

    wrap(patch, Literals, "slack", change)


def value_at_the_jump_left_out(patch: Patch) -> None:
    """At a jump that is an end of the interval, only the limit from inside counts."""

    def change(original: Callable[..., Any], self: Jumping, low: Tensor, high: Tensor, sign: int) -> Any:
        inside = []
        for place, value in original(self, low, high, sign):
            before, after = self.sides(place)
            inside.append((place, torch.where(place <= low, after, torch.where(place >= high, before, value))))
        return inside

    wrap(patch, Jumping, "_outline", change)


# With the engine and the place, among the instances of seed 31, from which on one soon shows it.
BUGS: Sequence[tuple[Callable[[Patch], None], str, int]] = (
    (absent_literals_count, "input_split_float64", 7),
    (signs_lost, "input_split_float64", 5),
    (clauses_of_another_box, "input_split_float64", 16),
    (tasks_mixed, "input_split_float64", 3),
    (lines_of_another_box, "input_split_float64", 82),
    (cut_at_another_point, "activation_split_by_score", 10),
    (half_space_of_the_wrong_side, "activation_split_half_spaces", 2),
    (cut_not_shared, "input_split_float64", 72),
    (cut_on_the_wrong_side, "input_split_float64", 2),
    (stuck_leaves_dropped, "activation_split_by_score", 0),
)
SEED, MOST = 31, 60


@pytest.mark.parametrize(("bug", "engine", "place"), BUGS, ids=[bug.__name__ for bug, *_ in BUGS])
def test_a_seeded_bug_is_caught(
    planted: ModuleType, monkeypatch: Patch, bug: Callable[[Patch], None], engine: Any, place: int
) -> None:
    engine, budget = planted.ENGINES[engine], planted.Budget(rounds=8, seconds=1e9)
    bug(monkeypatch)
    with torch.no_grad():
        dense = bug is half_space_of_the_wrong_side
        some = planted.instances(SEED, MOST, place, dense)
        shown = next((one for one in some if engine(one.query, budget)), None)
        assert shown is not None, "the mistake does not show"
        monkeypatch.undo()
        assert not engine(shown.query, budget), "refuted without the bug too"


def chain(*layers: tuple[Any, np.ndarray | None, np.ndarray | None]) -> Any:
    """A graph of operators one after the other, with weights and shifts where they have some."""
    build = Builder()
    x = build.input((layers[0][1].shape[0] if layers[0][1] is not None else 1,))
    for op, weight, shift in layers:
        constants = [] if weight is None else [build.constant(torch.from_numpy(a)) for a in (weight, shift)]
        x = build.add(op, x, *constants)
    return build.finish([x])


def box(*ends: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A box from the ends of each input."""
    lower, upper = np.array(ends, dtype=np.float32).T
    return lower, upper


@pytest.mark.parametrize("engine", ["screened", "input_split"])
def test_a_missing_value_at_a_jump_is_caught(planted: ModuleType, monkeypatch: Patch, engine: str) -> None:
    """On [0, 1] the sign is at most one half at 0 alone."""
    graph = chain((Step(-1.0, 0.0, 1.0), None, None), (Gemm(), np.ones((1, 1)), np.zeros(1)))
    query = planted.query(graph, [box((0, 1))], [(0, [(0, 1, 0.5)])])
    with torch.no_grad():
        assert not planted.ENGINES[engine](query, planted.Budget(4))
        value_at_the_jump_left_out(monkeypatch)
        assert planted.ENGINES[engine](query, planted.Budget(4))


def test_an_overflow_taken_for_a_bound_is_caught(planted: ModuleType, monkeypatch: Patch) -> None:
    """Bounds overflow in float32, while the true values and the threshold are ordinary float64 numbers."""
    steep = Gemm(), np.array([[1e20, -1e20], [1e20, 2e20]]), np.array([1.0, -1.0])
    graph = chain(*[steep, (Relu(), None, None)] * 3, (Gemm(), np.ones((2, 1)), np.zeros(1)))
    query = planted.query(graph, [box((-1, 1), (-1, 1))], [(0, [(0, 1, 1e25)])])
    with torch.no_grad():
        assert not planted.ENGINES["input_split"](query, planted.Budget(4))
        no_number_is_great(monkeypatch)
        assert planted.ENGINES["input_split"](query, planted.Budget(4))


def barely_true(planted: ModuleType, seed: int) -> Any:
    """An affine network, and its exact minimum over the box rounded up as the threshold of a literal that holds."""
    rng = np.random.default_rng(seed)
    weight, shift = rng.normal(size=(4, 1)), rng.normal(size=1)
    ends = np.sort(rng.normal(size=(2, 4)).astype(np.float32), axis=0)
    least = Fraction(float(shift[0]))
    for i in range(4):
        least += min(Fraction(float(weight[i, 0])) * Fraction(float(end[i])) for end in ends)
    above = float(least)
    above = above if Fraction(above) >= least else float(np.nextafter(above, np.inf))
    return planted.query(chain((Gemm(), weight, shift)), [(ends[0], ends[1])], [(0, [(0, 1, above)])])


def test_a_search_taken_for_a_proof_is_caught(planted: ModuleType, monkeypatch: Patch) -> None:
    engine, budget = planted.ENGINES["activation_split"], planted.Budget(2)
    queries = [barely_true(planted, seed) for seed in range(20)]
    with torch.no_grad():
        assert not any(engine(query, budget) for query in queries)
        search_taken_for_proof(monkeypatch)
        assert sum(engine(query, budget) for query in queries) > 3
