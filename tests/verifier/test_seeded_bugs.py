"""Known ways to be wrong, planted one at a time: each must turn a gate of ``test_planted.py`` red.

A gate that no bug can fail proves nothing. Every mutation here is a mistake of the kind that verifiers have made; the
gate is the same one that passes without it.
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

import bounds.backward
import bounds.dual
import verifier.branch.activation_split
import verifier.branch.box_bounds
import verifier.record.leaves
import verifier.record.point_leaves
from bounds.ascent import DualRows
from bounds.backward import Walk
from bounds.graph import Builder
from bounds.layouts import Dense, Windows
from bounds.ops.base import Line, Relaxation
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.plan import prepare
from bounds.rounding import Rounding
from verifier.branch.frontier import Frontier, Subproblems
from verifier.branch.input_split import InputSplit
from verifier.branch.problem import Problem
from verifier.branch.splits import Splits
from verifier.cases import float_cases
from verifier.errors import InternalError
from verifier.property.numbers import Rounded
from verifier.query import Form, Specification, Variable
from verifier.strategy import SplitPlan

Patch = pytest.MonkeyPatch

pytestmark = pytest.mark.usefixtures("one_thread")


def wrap(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``change(original, *arguments)``."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: change(original, *args, **named))


# Bounds ---------------------------------------------------------------------------------------------------------------


def lines_swapped(patch: Patch) -> None:
    """The slope of the other side: ``A+ upper + A- lower``."""
    wrap(patch, bounds.backward, "sloped", lambda f, rows, parts, *sides: f(rows, parts, *sides[::-1]))


def intercept_too_small(patch: Patch) -> None:
    """A ReLU's upper line that cuts off the corner of the triangle."""

    def change(original: Callable[..., Relaxation], *args: Any, **named: Any) -> Relaxation:
        found = original(*args, **named)
        upper = found.upper[0]
        return replace(found, upper=(Line(upper.slopes, upper.offset * 0.6),))

    wrap(patch, Relu, "relaxation", change)


def padding_not_masked(patch: Patch) -> None:
    """A transposed convolution that is cropped at the wrong end."""

    def change(original: Callable[..., Tensor], self: Conv, rows: Tensor, *args: Any) -> Tensor:
        half = len(self.strides)
        return original(replace(self, pads=(*self.pads[half:], *self.pads[:half])), rows, *args)

    wrap(patch, Conv, "pullback", change)


def sign_of_unit_rows_lost(patch: Patch) -> None:
    """Upper bounds that are minus the lower bound of the same row, not of the negated one."""
    for rows in (Dense, Windows):
        wrap(patch, rows, "mirrored", lambda f, self: replace(f(self), values=torch.cat([self.values, self.values])))


def errors_not_charged(patch: Patch) -> None:
    """Float32 taken for exact arithmetic."""
    wrap(patch, Walk, "total_error", lambda f, self: torch.zeros_like(self.bias))

    def change(original: Callable[..., Tensor], plan: Any, *args: Any) -> Tensor:
        return original(replace(plan, rounding=None), *args)

    wrap(patch, verifier.branch.box_bounds, "concretize", change)


# Duals ----------------------------------------------------------------------------------------------------------------


def beta_with_the_wrong_sign(patch: Patch) -> None:
    """Half-spaces that point away from the subproblem."""
    wrap(patch, bounds.dual, "Split", lambda f, signed, point=None: f(-signed, point))

    def change(original: Callable[..., Tensor], self: DualRows) -> Tensor:
        gradient = original(self)
        for part in self.parts:
            if part.kind == 2:
                gradient[:, part.columns] *= -1
        return gradient

    wrap(patch, DualRows, "gradient", change)


def negative_weights(patch: Patch) -> None:
    """Literal weights that are not kept non-negative, neither by the ascent nor where they are written and read."""

    def change(original: Callable[..., None], self: DualRows, point: Tensor) -> None:
        original(self, point)
        literals = self.weights.shape[1]
        if literals > 1:
            point[:, point.shape[1] - literals + 1 :] *= -1

    def written(original: Callable[..., Any], plan: Any, batch: Splits, found: Any, *few: bool) -> Any:
        entry = original(plan, batch, found, *few)
        return {**entry, "weight": found.weights} if "weight" in entry else entry

    wrap(patch, DualRows, "project", change)
    wrap(patch, verifier.record.leaves, "arrays_of", written)
    wrap(patch, verifier.record.point_leaves, "arrays_of", written)
    for module in (verifier.record.leaves, verifier.record.point_leaves):
        wrap(patch, module, "weights_of", lambda f, entry, shape: entry["weight"].double() if "weight" in entry
             else f(entry, shape))  # fmt: skip


def one_side_of_a_split(patch: Patch) -> None:
    """The active half of each activation split alone."""
    wrap(patch, verifier.branch.activation_split, "children", lambda f, batch: _first_half(f(batch)))


def _first_half(splits: Splits) -> Splits:
    return splits.take(torch.arange(splits.size // 2))


# Boxes ----------------------------------------------------------------------------------------------------------------


def clipped_across_clauses(patch: Patch) -> None:
    """The intersection of what each clause leaves of a box, where the hull is needed."""
    original = Tensor.scatter_reduce

    def change(self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str) -> Tensor:
        if self.numel() and bool(torch.isinf(self).all()):
            return original(-self, dim, index, src, {"amin": "amax", "amax": "amin"}[reduce])
        return original(self, dim, index, src, reduce)

    patch.setattr(Tensor, "scatter_reduce", change)


def leaf_dropped(patch: Patch) -> None:
    """The frontier forgets what does not fit into the next batch."""

    def change(original: Callable[..., Any], self: Frontier, count: int) -> Any:
        everything = original(self, self.size)
        return everything.take(everything.bound.argsort()[-8:])

    wrap(patch, Frontier, "pop", change)


def children_that_do_not_cover(patch: Patch) -> None:
    """The second child ends before its parent does."""

    def change(original: Callable[..., Any], self: InputSplit, parents: Subproblems, scores: Tensor) -> Any:
        children, more, still = original(self, parents, scores)
        half = children.size // 2
        upper = children.upper.clone()
        split = children.lower[half:] > children.lower[:half]
        upper[half:] -= split * 0.1 * (children.upper - children.lower)[half:]
        return replace(children, upper=upper), more, still

    wrap(patch, InputSplit, "_bisect", change)


def bounds_of_a_sibling(patch: Patch) -> None:
    """Children inherit the intermediate bounds of another box."""

    def change(original: Callable[..., Any], self: InputSplit, *args: Any) -> Any:
        children, still = original(self, *args)
        inherited = {n: (low.roll(1, 0), high.roll(1, 0)) for n, (low, high) in children.inherited.items()}
        return replace(children, inherited=inherited), still

    wrap(patch, InputSplit, "_children", change)


def joint_without_thresholds(patch: Patch) -> None:
    """Weighted literals whose slacks are taken for zero where they are negative."""
    wrap(patch, verifier.branch.box_bounds, "joint", lambda f, rows, slack, *box: f(rows, slack * 0.5, *box))


# With the engine that it is planted in, the seed of instances that soon show it, and the first that does.
BUGS: Sequence[tuple[Callable[[Patch], None], str, int, int]] = (
    (lines_swapped, "input_split_float64", 13, 6),
    (intercept_too_small, "screened", 19, 4),
    (padding_not_masked, "input_split_float64", 14, 24),
    (sign_of_unit_rows_lost, "input_split_float64", 14, 1),
    (beta_with_the_wrong_sign, "activation_split", 15, 59),
    (negative_weights, "activation_split", 14, 5),
    (one_side_of_a_split, "activation_split", 17, 0),
    (clipped_across_clauses, "input_split_float64", 18, 10),
    (leaf_dropped, "input_split_float64", 13, 4),
    (children_that_do_not_cover, "input_split_float64", 13, 6),
    (bounds_of_a_sibling, "input_split_float64", 14, 2),
    (joint_without_thresholds, "input_split_float64", 13, 1),
)
SEED, MOST = 12, 150


def test_contradictions_of_a_whole_box_are_an_error(planted: ModuleType, monkeypatch: Patch) -> None:
    """Nothing is assumed of a whole box, so bounds that cross there are a fault of ours and no refutation."""
    sign_of_unit_rows_lost(monkeypatch)
    with pytest.raises(InternalError, match="contradict"):
        planted.gate(planted.ENGINES["screened"], SEED, MOST, planted.Budget(), twins=MOST)


@pytest.mark.parametrize(("bug", "engine", "seed", "first"), BUGS, ids=[bug.__name__ for bug, *_ in BUGS])
def test_a_seeded_bug_is_caught(
    planted: ModuleType, monkeypatch: Patch, bug: Callable[[Patch], None], engine: str, seed: int, first: int
) -> None:
    budget = planted.Budget(rounds=8, seconds=1e9)
    bug(monkeypatch)
    with pytest.raises(planted.FalseRefutationError) as caught:
        planted.gate(planted.ENGINES[engine], seed, MOST, budget, twins=MOST, first=first)
    monkeypatch.undo()
    place = int(str(caught.value).split()[1])
    (one,) = planted.instances(seed, 1, place)
    assert not planted.ENGINES[engine](one.query, budget), "refuted without the bug too"


# What only exact numbers can tell -------------------------------------------------------------------------------------


def minima(exact: ModuleType, count: int) -> list[Any]:
    """Affine networks, their box, and their exact minimum over it rounded up: the threshold of a true literal."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        build = Builder()
        x = build.input((4,))
        for before, after in ((4, 5), (5, 1)):
            weight, bias = (torch.from_numpy(rng.normal(size=s)) for s in ((before, after), (after,)))
            x = build.add(Gemm(), x, build.constant(weight), build.constant(bias))
        graph = build.finish([x])
        ends = np.sort(rng.normal(size=(2, 4)).astype(np.float32), axis=0)
        corners = [np.where([k >> i & 1 for i in range(4)], ends[0], ends[1]) for k in range(16)]
        least = min(exact.evaluate(graph, exact.exact(c))[graph.outputs[0]][0] for c in corners)
        above = float(least)
        found.append(
            (graph, (ends[0], ends[1]), above if Fraction(above) >= least else float(np.nextafter(above, np.inf)))
        )
    return found


def refuted(planted: ModuleType, exact: ModuleType, dtype: torch.dtype) -> int:
    """How many of 40 literals that hold at a corner of their box are refuted in one pass."""
    count = 0
    for graph, box, threshold in minima(exact, 40):
        query = planted.query(graph, [box], [(0, [(0, 1, threshold)])])
        plan = prepare(graph, dtype, rounding=Rounding.of(dtype))
        with torch.no_grad():
            step = next(InputSplit(Problem.of(query), (plan,), SplitPlan()).run())
        count += step.open_subproblems == 0
    return count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_missing_error_terms_are_caught(
    planted: ModuleType, exact: ModuleType, monkeypatch: Patch, dtype: torch.dtype
) -> None:
    assert refuted(planted, exact, dtype) == 0
    errors_not_charged(monkeypatch)
    assert refuted(planted, exact, dtype) > 5


def specification(rng: np.random.Generator) -> Specification:
    """Random decimals, among them ties and numbers that floats hold."""
    decimals = sorted({Fraction(int(n), 10 ** int(e)) for n, e in rng.integers((-9999, 0), (9999, 9), (60, 2))})
    size = len(decimals)
    lower = np.sort(rng.integers(0, size, (2, 5, 4)), axis=0)
    variable = Variable("X", "float32", (4,), 0)
    return Specification(
        constants=decimals,
        lower=lower[0],
        upper=lower[1],
        clauses_of=np.arange(6),
        literals_of=np.arange(0, 16, 3),
        form=np.zeros(15, dtype=np.int64),
        sign=rng.choice([-1, 1], 15),
        rhs=rng.integers(0, size, 15),
        strict=np.zeros(15, dtype=bool),
        forms=(Form(((0, Fraction(1)),)),),
        inputs=(variable,),
        outputs=(Variable("Y", "float32", (1,), 0),),
    )


def unsafe_numbers() -> int:
    """Thresholds and box ends on the wrong side of the exact numbers they stand for."""
    wrong = 0
    for seed in range(5):
        spec = specification(np.random.default_rng(seed))
        cases, _ = float_cases(spec, spec.inputs)
        for threshold, sign, rhs in zip(cases.threshold, spec.sign, spec.rhs, strict=True):
            wrong += Fraction(float(threshold)) < int(sign) * spec.constants[rhs]
        for ends, ranks, side in ((cases.lower, spec.lower, 1), (cases.upper, spec.upper, -1)):
            pairs = zip(ends.flat, ranks.flat, strict=True)
            wrong += sum(side * (Fraction(float(end)) - spec.constants[rank]) > 0 for end, rank in pairs)
    return wrong


def test_rounding_to_the_wrong_side_is_caught(monkeypatch: Patch) -> None:
    assert unsafe_numbers() == 0
    wrap(monkeypatch, Rounded, "enclose", lambda f, self, dtype: f(self, dtype)[::-1])
    assert unsafe_numbers() > 20
