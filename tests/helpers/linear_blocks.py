"""Blocks of elementwise operators in exact rational arithmetic: which results do their rows leave for one operand?

A block of n elements falls into n parts that share no column. With the operands and a part's own columns given, what is
left of its rows is an interval of the result. Own columns are few: phases are tried one by one, a whole number is tried
next to the operand, and pieces of a disjunction have all of the operand on one piece.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from bounds.constraints import LinearBlock


def fraction(number: Any) -> Fraction:
    """The exact value of a float or an ``mpmath`` number; what is smaller than 2^-3000 counts as that much."""
    if not isinstance(number, mpmath.mpf):
        return Fraction(number)
    if number and abs(number) < mpmath.ldexp(1, -3000):
        return Fraction(1 if number > 0 else -1, 2**3000)
    sign, mantissa, exponent, _ = number._mpf_
    return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent


@dataclass(slots=True)
class Part:
    """What a block says of one element: rows ``(entries, lower, upper, error)``, entries by column."""

    operands: tuple[int, ...]
    result: int
    same: int
    ends: tuple[float, float]
    own: dict[int, tuple[int, int]] = field(default_factory=dict)
    pieces: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, Fraction], float, float, Fraction]] = field(default_factory=list)

    def choices(self, point: Sequence[Fraction]) -> Iterator[dict[int, Fraction]]:
        """Values of the own columns that may go with the operands."""
        if self.pieces:
            for x, phase in zip(self.pieces, self.own, strict=True):
                yield {x: point[0], phase: Fraction(1)}
            return
        near = math.floor(point[0])
        ranges = [
            range(low, high + 1) if high - low < 3 else range(max(low, near - 2), min(high, near + 3) + 1)
            for low, high in self.own.values()
        ]
        for values in itertools.product(*ranges):
            yield dict(zip(self.own, map(Fraction, values), strict=True))

    def results(self, point: Sequence[Fraction]) -> list[tuple[Fraction, Fraction]]:
        """The intervals of results that the rows, widened by their errors, leave at a point."""
        if self.same >= 0:
            return [(point[self.operands.index(self.same)],) * 2]
        found = []
        given = dict(zip(self.operands, point, strict=True))
        for choice in self.choices(point):
            least, most = fraction(self.ends[0]), fraction(self.ends[1])
            values = given | choice  # all others are 0
            for entries, lower, upper, error in self.rows:
                known = sum((entries[c] * v for c, v in values.items() if c in entries), Fraction(0))
                slope = entries.get(self.result, Fraction(0))
                low = None if math.isinf(lower) else fraction(lower) - error - known
                high = None if math.isinf(upper) else fraction(upper) + error - known
                if slope == 0:
                    if (low is not None and low > 0) or (high is not None and high < 0):
                        least, most = Fraction(1), Fraction(0)
                        break
                    continue
                low, high = (low, high) if slope > 0 else (high, low)
                least = least if low is None else max(least, low / slope)
                most = most if high is None else min(most, high / slope)
            if least <= most:
                found.append((least, most))
        return found

    @property
    def error(self) -> Fraction:
        """All errors together."""
        return sum((e for *_, e in self.rows), Fraction(0))


def parts(block: LinearBlock, arity: int, ends: tuple[Tensor, Tensor]) -> list[Part]:
    """The parts of a block of n elements with ``arity`` variable operands, whose results lie between ``ends``."""
    count = block.same.shape[0]
    low, high = (end.flatten().tolist() for end in ends)
    same = block.same.tolist()
    found = [
        Part(tuple(k * count + i for k in range(arity)), arity * count + i, same[i], (low[i], high[i]))
        for i in range(count)
    ]
    rows: list[dict[int, Fraction]] = [{} for _ in range(block.lower.shape[0])]
    for r, c, v in zip(block.row.tolist(), block.column.tolist(), block.value.tolist(), strict=True):
        assert c not in rows[r], "a column twice in one row"
        rows[r][c] = Fraction(v)
    first, owner = (arity + 1) * count, dict[int, int]()
    for row in rows * 2:  # rows of own columns alone follow those that name their element
        elements = {c % count for c in row if c < first} | {owner[c] for c in row if c in owner}
        assert len(elements) <= 1, "a row over two elements"
        owner |= dict.fromkeys((c for c in row if c >= first), elements.pop()) if elements else {}
    for c, integer in enumerate(block.integer.tolist(), first):
        part = found[owner[c]]
        if integer:
            part.own[c] = int(block.own_lower[c - first]), int(block.own_upper[c - first])
        else:
            part.pieces.append(c)
    sides = zip(rows, block.lower.tolist(), block.upper.tolist(), block.error.tolist(), strict=True)
    for row, lower, upper, error in sides:
        c = next(iter(row))
        found[owner[c] if c >= first else c % count].rows.append((row, lower, upper, Fraction(error)))
    return found


def relaxed_minimum(
    block: LinearBlock, operands: Sequence[tuple[Tensor, Tensor]], ends: tuple[Tensor, Tensor], cost: np.ndarray
) -> np.ndarray:
    """``[n]``: the least ``cost . (operands, result)`` of each element, costs ``[arity + 1, n]``, over the block's
    linear relaxation."""
    count, arity = block.same.shape[0], len(operands)
    columns = (arity + 1) * count
    lower = torch.cat([*(low.flatten() for low, _ in operands), ends[0].flatten(), block.own_lower]).numpy()
    upper = torch.cat([*(high.flatten() for _, high in operands), ends[1].flatten(), block.own_upper]).numpy()
    matrix = np.zeros((block.lower.shape[0], lower.shape[0]))
    matrix[block.row.numpy(), block.column.numpy()] = block.value.numpy()
    alias = block.same.numpy()
    moved = (alias >= 0).nonzero()[0]
    links = np.zeros((moved.shape[0], lower.shape[0]))
    links[np.arange(moved.shape[0]), arity * count + moved] = 1.0
    links[np.arange(moved.shape[0]), alias[moved]] -= 1.0
    constraints = optimize.LinearConstraint(
        np.concatenate([matrix, links]),
        np.concatenate([block.lower.numpy(), np.zeros(moved.shape[0])]),
        np.concatenate([block.upper.numpy(), np.zeros(moved.shape[0])]),
    )
    objective = np.zeros(lower.shape[0])
    objective[:columns] = cost.reshape(-1)
    solved = optimize.milp(objective, constraints=constraints, bounds=optimize.Bounds(lower, upper))
    assert solved.success, solved.message
    return (cost * solved.x[:columns].reshape(arity + 1, count)).sum(0)
