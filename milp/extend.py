"""More columns and rows for a model that is there: what a question adds to the encoding of a network.

Added columns belong to no node: their ``node`` is -1 and their ``element`` -1 - k, the k-th column that was added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bounds.constraints import Row, block
from milp.model import Model


def with_columns(model: Model, lower: Tensor, upper: Tensor, integer: bool = False) -> tuple[Model, Tensor]:
    """The model with K more columns, costing nothing, and their numbers ``[K]``; ``lower, upper`` ``[K]``.

    The guarantees of ``Model`` are the caller's to keep: for every input some values within these ends satisfy the rows
    that are to follow.
    """
    count, more = model.lower.shape[0], lower.shape[0]
    before = int((model.node < 0).sum())
    extended = replace(
        model,
        cost=torch.cat([model.cost, torch.zeros(more, dtype=torch.float64)]),
        lower=torch.cat([model.lower, lower.double()]),
        upper=torch.cat([model.upper, upper.double()]),
        integer=torch.cat([model.integer, torch.full((more,), integer)]),
        node=torch.cat([model.node, torch.full((more,), -1)]),
        element=torch.cat([model.element, -1 - before - torch.arange(more)]),
    )
    return extended, torch.arange(count, count + more)


def with_rows(model: Model, rows: Sequence[Row]) -> Model:
    """The model with more rows, over its columns by their numbers; terms at column -1 (which is 0) fall away.

    ``ValueError`` for a column that there is not, and for one that occurs twice in a row.
    """
    count = model.lower.shape[0]
    added = block(rows, torch.zeros(0, dtype=torch.int64))
    if bool(((added.column < -1) | (added.column >= count)).any()):
        raise ValueError(f"a row names a column outside of 0 to {count - 1}")
    there = added.column >= 0
    row, column, value = added.row[there], added.column[there], added.value[there]
    if torch.unique(row * count + column).shape[0] < row.shape[0]:
        raise ValueError("a row names a column twice: add up its values first")
    sizes = torch.bincount(row, minlength=added.lower.shape[0])
    return with_entries(model, (sizes, column, value), (added.lower, added.upper, added.error))


def with_entries(model: Model, entries: tuple[Tensor, Tensor, Tensor], sides: tuple[Tensor, Tensor, Tensor]) -> Model:
    """The model with K more rows: how many ``entries`` each has ``[K]``, their columns and values, row by row and no
    column twice in one; ``sides``: the rows' lower and upper ends and errors ``[K]``."""
    sizes, column, value = entries
    lower, upper, error = sides
    return replace(
        model,
        start=torch.cat([model.start, model.start[-1] + sizes.cumsum(0)]),
        index=torch.cat([model.index, column]),
        value=torch.cat([model.value, value]),
        row_lower=torch.cat([model.row_lower, lower]),
        row_upper=torch.cat([model.row_upper, upper]),
        row_error=torch.cat([model.row_error, error]),
    )
