"""Lines around a nonlinear operator as rows of a block.

``y >= slopes . x + offset`` becomes ``y - slopes . x >= offset``: the lines hold as they are returned, so where each of
their slopes is one coefficient nothing is charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bounds.constraints import LinearBlock, Row, block
from bounds.rounding import Rounding

if TYPE_CHECKING:
    from bounds.ops.base import Interval, Line, Nonlinear, Relaxation

_AT_ONCE = 1 << 22
"""Coefficients of rows that are held at once while the ones that are not 0 are looked for."""


def lines_block(op: Nonlinear, relaxation: Relaxation, operands: Sequence[Interval]) -> LinearBlock:
    """The block of lines of ``relaxation``, valid on ``operands`` ``[1, *shape]`` (parameters among them count for
    nothing); lines with infinite offsets say nothing and are left out."""
    data = [o for k, o in enumerate(operands) if k not in op.parameters]
    sides = [(line, 1.0) for line in relaxation.lower] + [(line, -1.0) for line in relaxation.upper]
    size = relaxation.lower[0].offset.numel()
    same = torch.full((size,), -1)
    if op.elementwise:
        return block([_elementwise(line, sign, data, size) for line, sign in sides], same, exact=False)
    return _coupled(op, sides, data, same)


def numbered(operands: Sequence[Interval], shape: Sequence[int]) -> list[Tensor]:
    """For each operand the columns ``[elements]`` that elements of the result read, where operands broadcast."""
    found, first = [], 0
    for low, _ in operands:
        here = torch.arange(first, first + low.numel()).reshape(low.shape)
        found.append(here.expand(*shape).flatten())
        first += low.numel()
    return found


def _elementwise(line: Line, sign: float, data: Sequence[Interval], size: int) -> Row:
    offset = line.offset.flatten()
    there = torch.isfinite(offset).nonzero().flatten()
    result = sum(low.numel() for low, _ in data) + torch.arange(size)
    columns = numbered(data, line.offset.shape)
    slopes = [s.expand_as(line.offset).flatten() for s in line.slopes]
    terms = [(c[there], -s[there]) for c, s in zip(columns, slopes, strict=True)]
    return _sided([(result[there], 1.0), *terms], offset[there], sign)


def _sided(terms: list[tuple[Tensor, Tensor | float]], offset: Tensor, sign: float) -> Row:
    return Row(terms, lower=offset) if sign > 0 else Row(terms, upper=offset)


def _coupled(op: Nonlinear, sides: Sequence[tuple[Line, float]], data: Sequence[Interval], same: Tensor) -> LinearBlock:
    """Rows by ``across`` of unit rows, whose coefficients are computed: that is charged."""
    first, size = sum(low.numel() for low, _ in data), same.shape[0]
    rounding = Rounding.of(torch.float64)
    sizes = [torch.maximum(low.abs(), high.abs()) for low, high in data]
    terms = op.terms(*(tuple(s.shape[1:]) for s in sizes))
    rows, columns, values, ends, count = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor](), 0
    for line, sign in sides:
        offset = line.offset.flatten()
        there = torch.isfinite(offset).nonzero().flatten()
        charge = len(data) * rounding.affine(terms, op.along([s.abs() for s in line.slopes], sizes)).flatten()
        least, most = (offset, torch.inf) if sign > 0 else (-torch.inf, offset)
        ends.append(torch.stack([torch.as_tensor(e).expand_as(offset) for e in (least, most, charge)])[:, there])
        for part in there.split(max(1, _AT_ONCE // max(1, first))):
            unit = torch.zeros((part.shape[0], size), dtype=torch.float64)
            unit[torch.arange(part.shape[0]), part] = 1.0
            found = op.across(line.slopes, unit.reshape(-1, *line.offset.shape[1:]))
            matrix = torch.cat([-f.reshape(part.shape[0], -1) for f in found], 1)
            row, column = matrix.nonzero(as_tuple=True)
            numbers = torch.arange(count, count + part.shape[0])
            row, column = torch.cat([numbers, row + count]), torch.cat([first + part, column])
            value = torch.cat([torch.ones(part.shape[0], dtype=torch.float64), matrix[matrix != 0]])
            order = row.sort(stable=True).indices
            rows.append(row[order])
            columns.append(column[order])
            values.append(value[order])
            count += part.shape[0]
    plain = block((), same, exact=False)
    lower, upper, error = torch.cat(ends, 1)
    return LinearBlock(
        torch.cat(rows), torch.cat(columns), torch.cat(values), lower, upper, error, same,
        plain.own_lower, plain.own_upper, plain.integer, False,
    )  # fmt: skip
