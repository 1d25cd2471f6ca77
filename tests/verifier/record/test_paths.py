"""Trees of splits cover their roots, and whatever lacks a leaf does not."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch

from verifier.record.paths import Paths, uncovered

Leaf = dict[int, tuple[float, float]]


def tree(seed: int, size: int, positions: int, points: int) -> list[Leaf]:
    """The leaves of random splits, of signs (one point) or of intervals at integers."""
    draw, leaves = random.Random(seed), [Leaf()]
    while len(leaves) < size:
        k, at, point = draw.randrange(len(leaves)), draw.randrange(positions), float(draw.randrange(points))
        leaf = leaves[k]
        low, high = leaf.get(at, (-math.inf, math.inf))
        if low < point < high:
            leaves[k : k + 1] = [{**leaf, at: (point, high)}, {**leaf, at: (low, point)}]
    draw.shuffle(leaves)
    return leaves


def paths(leaves: list[Leaf], clauses: list[int] | None = None) -> Paths:
    splits = [
        (k, at, side, point)
        for k, leaf in enumerate(leaves)
        for at, ends in sorted(leaf.items())
        for side, point in zip((1, -1), ends, strict=True)
        if math.isfinite(point)
    ]
    columns = list(zip(*splits, strict=True)) or [(), (), (), ()]
    leaf, position, side = (torch.tensor(c, dtype=torch.int64) for c in columns[:3])
    clause = torch.tensor([0] * len(leaves) if clauses is None else clauses, dtype=torch.int64)
    return Paths(clause, leaf, position, side, torch.tensor(columns[3], dtype=torch.float64))


SHAPES = [(1, 3, 1), (2, 3, 1), (40, 12, 1), (40, 3, 9), (300, 60, 1), (200, 5, 30)]


@pytest.mark.parametrize(("size", "positions", "points"), SHAPES)
def test_trees_cover_and_a_missing_leaf_is_noticed(size: int, positions: int, points: int) -> None:
    leaves = tree(size, size, positions, points)
    assert uncovered(paths(leaves), 1).tolist() == [0]
    for k in range(0, size, max(1, size // 12)):
        assert int(uncovered(paths(leaves[:k] + leaves[k + 1 :]), 1)) > 0


@pytest.mark.parametrize("seed", range(30))
def test_what_is_covered_is_what_sampling_says(seed: int) -> None:
    """Leaves that are left out, and others that stand several times or hold more than they need to."""
    draw = random.Random(seed)
    leaves = tree(seed, 9, 3, 5)
    for _ in range(draw.randrange(3)):
        leaves.pop(draw.randrange(len(leaves)))
    leaves += [leaves[0], leaves[-1]]
    cells = [tuple(c - 0.5 for c in cell) for cell in torch.cartesian_prod(*[torch.arange(6)] * 3).tolist()]
    full = all(any(all(a < c[u] < b for u, (a, b) in leaf.items()) for leaf in leaves) for c in cells)
    assert (int(uncovered(paths(leaves), 1)) == 0) is full


def test_a_flipped_side_is_noticed() -> None:
    leaves = tree(4, 30, 8, 1)
    for k, leaf in enumerate(leaves):
        for at, (low, high) in leaf.items():
            wrong = {**leaf, at: (-high, -low)}
            assert int(uncovered(paths([*leaves[:k], wrong, *leaves[k + 1 :]]), 1)) > 0


def test_every_clause_has_a_tree_of_its_own() -> None:
    one, two = tree(1, 8, 5, 1), tree(2, 6, 5, 1)
    assert uncovered(paths(one + two, [0] * 8 + [2] * 6), 4).tolist() == [0, 1, 0, 1]
    assert uncovered(paths(one + two, [0] * 7 + [2] * 7), 3)[0] > 0
    both = Paths.cat([paths(one, [1] * 8), paths(two, [0] * 6)])
    assert uncovered(both, 2).tolist() == [0, 0]


def test_a_leaf_on_both_sides_is_refused() -> None:
    both = paths([{0: (0.0, math.inf)}, {0: (-math.inf, 0.0)}])
    leaf, side, none = torch.tensor([0, 0, 1]), torch.tensor([1, -1, -1]), torch.zeros(3)
    twice = Paths(both.clause, leaf, none.long(), side, none)
    with pytest.raises(ValueError, match="both sides"):
        uncovered(twice, 1)


def test_many_leaves_are_quick() -> None:
    leaves = paths(tree(7, 20_000, 400, 1))
    start = time.process_time()
    assert uncovered(leaves, 1).tolist() == [0]
    assert time.process_time() - start < 30, "the work grows with the number of splits, not with its square"
