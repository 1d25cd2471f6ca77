"""How coefficient rows are held, and whose box each row belongs to.

Rows are flat, ``[R, *node shape]``. ``Owner`` says which of the N boxes a row speaks about: by an index ``[R]``, or,
where every box has equally many rows, by position (a broadcast instead of a copy).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whose box a row belongs to. ``index`` ``[R]``, or None: rows are ``groups`` blocks of ``per_box`` rows.

    ``groups`` is the number of boxes, or 1 while all boxes still share the same rows (before the first nonlinear
    operator on the way back nothing depends on the box).
    """

    index: Tensor | None
    groups: int
    per_box: int

    @staticmethod
    def by_index(index: Tensor) -> Owner:
        """Rows with explicit owners."""
        return Owner(index, 0, 0)

    @staticmethod
    def shared(rows: int) -> Owner:
        """The same rows for every box."""
        return Owner(None, 1, rows)

    def spread(self, rows: Tensor, boxes: int) -> tuple[Tensor, Owner]:
        """Give every box its own copy of shared rows (a view until it is written)."""
        if self.index is not None or self.groups == boxes:
            return rows, self
        spread = rows.unsqueeze(0).expand(boxes, *rows.shape).reshape(boxes * self.per_box, *rows.shape[1:])
        return spread, replace(self, groups=boxes)

    def of(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows, values)`` viewed so that they broadcast row by row: values ``[N, *shape]`` belong to boxes."""
        if self.index is not None:
            return rows, values if values.shape[0] == 1 else values[self.index]
        boxes = values.shape[0]
        return rows.reshape(self.groups, self.per_box, *rows.shape[1:]), values.reshape(boxes, 1, *values.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Unit rows: row r has ``sign[r]`` at flat element ``index[r]`` of a node of ``shape``, and zero elsewhere."""

    index: Tensor
    sign: Tensor
    shape: tuple[int, ...]

    def dense(self) -> Tensor:
        """The rows written out, ``[R, *shape]``."""
        rows = self.sign.new_zeros((self.index.shape[0], max(1, int(torch.Size(self.shape).numel()))))
        rows[torch.arange(self.index.shape[0], device=self.index.device), self.index] = self.sign
        return rows.reshape(-1, *self.shape)
