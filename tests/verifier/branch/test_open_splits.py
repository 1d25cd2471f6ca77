"""Packed subproblems come back as they were, but for slopes in 8 bits or forgotten; all of them, best bound first."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from verifier.branch.open_splits import OpenSplits, Packed
from verifier.branch.splits import Splits

POSITIONS = 6
PLAIN = torch.full((1, POSITIONS), 0.5, dtype=torch.float16)


def nowhere(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points of splits, where all are at 0."""
    return torch.zeros((count, 0)), torch.zeros((count, 0)), torch.zeros(count)


def some(rng: np.random.Generator, first: int, count: int) -> Splits:
    """Numbered by ``clause``; all else follows from the number."""
    clause = torch.arange(first, first + count)
    signs = torch.from_numpy(rng.choice([-1, 0, 0, 1], size=(count, POSITIONS)).astype(np.int8))
    signs[clause % 5 == 0] = 0
    betas = torch.where(signs != 0, clause.unsqueeze(1) + torch.arange(POSITIONS), 0).half()
    slopes = (torch.arange(POSITIONS) / POSITIONS).expand(count, -1).half()
    bound = torch.from_numpy(rng.choice([-np.inf, -3.0, -1.0, -0.5, 0.0], size=count))
    return Splits(
        clause,
        signs,
        slopes,
        betas,
        clause.double().unsqueeze(1),
        bound,
        1.0 / (1 + clause.double()),
        clause % POSITIONS,
        *nowhere(count),
    )


@pytest.mark.parametrize("memory", [0, POSITIONS, 7 * POSITIONS, 1 << 30])
@pytest.mark.parametrize("seed", range(3))
def test_everything_comes_back_once_and_in_order(memory: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = some(rng, 0, 5)
    open_, given = OpenSplits.of(first, memory), [first]
    pushed, forgotten, waiting = 5, 0, dict(zip(first.clause.tolist(), first.bound.tolist(), strict=True))
    while open_.size:
        assert open_.size == len(waiting) and open_.warm.size <= max(0, memory // POSITIONS)
        assert float(open_.bound.amin()) == min(waiting.values())
        assert float(open_.share.sum()) == pytest.approx(sum(1 / (1 + c) for c in waiting))
        found, open_ = open_.pop(int(rng.integers(1, 6)), PLAIN)
        taken = {c: waiting.pop(c) for c in found.clause.tolist()}
        assert len(taken) == found.size and max(taken.values()) <= min(waiting.values(), default=0.0)
        known = Splits.cat(given).take(found.clause)
        for name in ("signs", "betas", "weights", "bound", "share", "next"):
            assert torch.equal(getattr(found, name), getattr(known, name)), name
        plain = (found.slopes == PLAIN).all(1)
        assert bool(((found.slopes - known.slopes).abs().amax(1) < 1 / 400)[~plain].all())
        forgotten += int((plain & (found.clause >= 5)).sum())
        if pushed < 60:
            given.append(some(rng, pushed, int(rng.integers(0, 9))))
            waiting |= dict(zip(given[-1].clause.tolist(), given[-1].bound.tolist(), strict=True))
            open_ = open_.push(given[-1])
            pushed += given[-1].size
    assert not waiting and (forgotten > 0) == (memory < 1 << 30)


def test_a_split_costs_bytes_only_where_it_is() -> None:
    wide = Splits(
        torch.zeros(3, dtype=torch.int64),
        torch.zeros((3, 10_000), dtype=torch.int8).index_fill(1, torch.tensor([7, 9_999]), -1),
        torch.zeros((3, 10_000), dtype=torch.float16),
        torch.zeros((3, 10_000), dtype=torch.float16),
        torch.ones((3, 1), dtype=torch.float64),
        *(torch.zeros(3, dtype=torch.float64) for _ in range(2)),
        torch.zeros(3, dtype=torch.int64),
        *nowhere(3),
    )

    def size(packed: Packed) -> int:
        return sum(values.numel() * values.element_size() for values in packed.tensors().values())

    assert size(Packed.of(wide)) < 3 * 10_100 and size(Packed.of(wide).bare()) < 3 * 100
    back = Packed.of(wide).unpacked(10_000, torch.zeros((1, 10_000), dtype=torch.float16))
    assert torch.equal(back.signs, wide.signs)


def test_splits_at_points_come_back_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    batch = some(rng, 0, 7)
    low = torch.where(batch.signs > 0, batch.clause.unsqueeze(1) - 3.5, -torch.inf)
    high = torch.where((batch.signs < 0) | (batch.signs > 0) & (batch.clause.unsqueeze(1) % 2 == 0), 9.25, torch.inf)
    parameters = torch.from_numpy(rng.normal(size=(7, 11))).half()
    batch = replace(batch, signs=0 * batch.signs, betas=-batch.betas, slopes=parameters, low=low, high=high)
    back, _ = OpenSplits.of(batch.take(batch.clause[:0]), 1 << 20).push(batch).pop(7, parameters[:1])
    for field in (f for f in fields(Splits) if f.name != "known"):
        assert torch.equal(getattr(back, field.name), getattr(batch, field.name)), field.name
