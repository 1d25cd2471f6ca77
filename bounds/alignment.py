"""Products of coefficient rows with what belongs to a node: offsets, slopes, parts of a matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Aligned(NamedTuple):
    """Rows ``[g, b, *shape]`` in g blocks, and what belongs to the node there, ``[g or 1, b or 1, *shape]``."""

    rows: Tensor
    values: list[Tensor]


def inner(rows: Tensor, values: Tensor) -> Tensor:
    """``[g b]``: ``rows . values`` for ``Aligned`` rows and values."""
    left, right = (x.unsqueeze(-1).flatten(2) for x in (rows, values))
    if values.shape[:2] == (1, 1):
        return left.flatten(0, 1) @ right.flatten()
    if values.shape[1] == 1:
        return torch.matmul(left, right.transpose(1, 2)).flatten()
    return (left * right).sum(2).flatten()


def sloped(rows: Tensor, parts: tuple[Tensor, Tensor], below: Tensor, above: Tensor) -> Tensor:
    """``A+ below + A- above`` for ``Aligned`` rows A in ``parts`` (A-, A+), with one rounding for each element."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (rows, below, above)):
        # The derivative at a coefficient of zero is that of one line.
        return rows * torch.where(rows > 0, below, above)
    # One of the two products is zero, so that their sum is exact; a choice for each element takes far longer.
    return (parts[1] * below).addcmul_(parts[0], above)


def cut(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """Some rows and columns of a matrix, transposed: along its memory first, so that it is never copied as a whole."""
    cuts = [(0, rows), (1, columns)] if matrix.is_contiguous() else [(1, columns), (0, rows)]
    for axis, index in cuts:
        if index is not None:
            matrix = matrix.index_select(0, index) if axis == 0 else matrix.T.index_select(0, index).T
    return matrix.T
