"""What holds between an operation's operands and its result, as linear rows: the language of exact encodings.

A ``LinearBlock`` names no solver. An operator makes one for its operands' intervals (``Nonlinear.exact`` and
``envelope``, ``affine_block`` for affine ones), and a mixed-integer program is nothing but the blocks of a graph's
nodes put side by side (``milp.encode``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LinearBlock:
    """Rows ``lower <= sum value * column <= upper`` between the operands and the result of one operation on one box.

    Columns are numbered: the elements of the variable operands, one operand after the other, each in C order; then
    the elements of the result; then K columns of the block's ``own``, with ends ``own_lower, own_upper`` ``[K]``, of
    which ``integer`` ``[K]`` ones take whole numbers only. ``row, column, value`` ``[E]`` are the entries (each row's
    together, rows ascending), ``lower, upper`` ``[R]`` may be infinite. ``same`` ``[result elements]``: the operand
    column that an element of the result equals, -1 where it is a column in its own right.

    Guarantees: for operands within their intervals and the operation's exact result there are values of the own columns
    such that every row holds to within ``error`` ``[R]`` (computed constants, rounded coefficients). ``exact``: and
    nothing else satisfies the rows, up to ``error`` (where the operation jumps, the values on both sides count).
    """

    row: Tensor
    column: Tensor
    value: Tensor
    lower: Tensor
    upper: Tensor
    error: Tensor
    same: Tensor
    own_lower: Tensor
    own_upper: Tensor
    integer: Tensor
    exact: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """R rows of a block, one for each of some elements: ``terms`` are pairs of columns ``[R]`` and their values."""

    terms: Sequence[tuple[Tensor, Tensor | float]]
    lower: Tensor | float = -torch.inf
    upper: Tensor | float = torch.inf
    error: Tensor | float = 0.0


def block(
    rows: Sequence[Row], same: Tensor, own: tuple[Tensor, Tensor, Tensor] | None = None, exact: bool = True
) -> LinearBlock:
    """The block of these rows; ``own``: lower, upper and integer of its own columns. Terms of value 0 fall away."""
    own = own or (
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(0, dtype=torch.float64),
        torch.zeros(0, dtype=torch.bool),
    )
    row, column, value, sides, first = [], [], [], list[Tensor](), 0
    for group in rows:
        count = group.terms[0][0].shape[0]
        numbers = torch.arange(first, first + count)
        first += count
        sides.append(torch.stack([_full(end, count) for end in (group.lower, group.upper, group.error)]))
        row.append(numbers.repeat_interleave(len(group.terms)))
        column.append(torch.stack([c for c, _ in group.terms], 1).flatten())
        value.append(torch.stack([_full(v, count) for _, v in group.terms], 1).flatten())
        there = value[-1] != 0
        row[-1], column[-1], value[-1] = row[-1][there], column[-1][there], value[-1][there]
    lower, upper, error = torch.cat(sides, 1) if sides else torch.zeros((3, 0), dtype=torch.float64)
    whole, real = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    return LinearBlock(
        torch.cat([whole, *row]),
        torch.cat([whole, *column]),
        torch.cat([real, *value]),
        lower,
        upper,
        error,
        same,
        *own,
        exact,
    )


def phases(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """``own`` of a block: ``count`` columns that are 0 or 1."""
    return (
        torch.zeros(count, dtype=torch.float64),
        torch.ones(count, dtype=torch.float64),
        torch.ones(count, dtype=torch.bool),
    )


@dataclass(slots=True)
class Own:
    """A block's own columns while it is made, numbered from ``first`` on."""

    first: int
    parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def phases(self, *shape: int) -> Tensor:
        """Numbers ``shape`` of new columns that are 0 or 1."""
        ends = phases(torch.Size(shape).numel())
        return self._add(*ends).reshape(shape)

    def columns(self, lower: Tensor, upper: Tensor, integer: bool = False) -> Tensor:
        """Numbers of new columns between ends of any one shape."""
        whole = torch.full((lower.numel(),), integer)
        return self._add(lower.flatten(), upper.flatten(), whole).reshape(lower.shape)

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """``own`` of the block."""
        lower, upper, integer = (torch.cat(part) for part in zip(phases(0), *self.parts, strict=True))
        return lower, upper, integer

    def _add(self, lower: Tensor, upper: Tensor, integer: Tensor) -> Tensor:
        self.parts.append((lower, upper, integer))
        self.first += lower.shape[0]
        return torch.arange(self.first - lower.shape[0], self.first)


def _full(value: Tensor | float, count: int) -> Tensor:
    return value.double() if isinstance(value, Tensor) else torch.full((count,), value, dtype=torch.float64)
