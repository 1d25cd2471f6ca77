"""How coefficient rows are held, and whose box each row belongs to.

``Selection`` names unit rows, a tensor is dense rows, and a ``Window`` beside a tensor says that all its rows vanish
outside one patch of the image: rows of neighbouring neurons see little of a convolution's operand, and whatever
belongs to the node (slopes, charges, biases) is sliced instead of gathered.

Rows are flat, ``[R, *node shape]``. ``Owner`` says which of the N boxes a row speaks about: by an index ``[R]``, or,
where every box has equally many rows, by position (a broadcast instead of a copy).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional


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


@dataclass(frozen=True, slots=True)
class Window:
    """A patch of the last two axes of a node: ``height`` rows from ``top``, ``width`` columns from ``left``."""

    top: int
    left: int
    height: int
    width: int

    def crop(self, values: Tensor) -> Tensor:
        """The patch of a tensor over the node (or of one that is constant along an axis of size 1)."""
        if values.shape[-2] != 1:
            values = values[..., self.top : self.top + self.height, :]
        if values.shape[-1] != 1:
            values = values[..., self.left : self.left + self.width]
        return values

    def union(self, other: Window) -> Window:
        """The least window that contains both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        bottom = max(self.top + self.height, other.top + other.height)
        right = max(self.left + self.width, other.left + other.width)
        return Window(top, left, bottom - top, right - left)

    def within(self, rows: Tensor, outer: Window) -> Tensor:
        """Rows on this window, zero-padded to an outer one."""
        before, above = self.left - outer.left, self.top - outer.top
        after, below = outer.width - before - self.width, outer.height - above - self.height
        return functional.pad(rows, (before, after, above, below))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Coefficient rows of a node: dense, or on a window of it."""

    values: Tensor
    window: Window | None = None

    def crop(self, values: Tensor) -> Tensor:
        """What belongs to the node, where the rows are."""
        return values if self.window is None else self.window.crop(values)

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The rows over the whole node."""
        if self.window is None:
            return self.values
        return self.window.within(self.values, Window(0, 0, shape[-2], shape[-1]))

    def plus(self, other: Rows, shape: tuple[int, ...]) -> Rows:
        """The sum of two sets of rows of one node, on a common frame."""
        if self.window is None or other.window is None:
            return Rows(self.dense(shape) + other.dense(shape))
        frame = self.window.union(other.window)
        return Rows(self.window.within(self.values, frame) + other.window.within(other.values, frame), frame)


def flat(values: Tensor, leading: int = 1) -> Tensor:
    """All axes behind the leading ones as one (a scalar node has one element)."""
    return values.unsqueeze(-1).flatten(leading)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Unit rows: row r has ``sign[r]`` at flat element ``index[r]`` of a node of ``shape``, and zero elsewhere.

    Where a ``window`` of the node that contains them all is given, they are walked as rows on windows.
    """

    index: Tensor
    sign: Tensor
    shape: tuple[int, ...]
    window: Window | None = None

    def inside(self, window: Window) -> Tensor:
        """The rows written out on a window that contains them all, ``[R, *leading, h, w]``."""
        *leading, height, width = self.shape
        y, x = self.index // width % height - window.top, self.index % width - window.left
        plane = self.index // (width * height)
        count = int(torch.Size(leading).numel())
        rows = self.sign.new_zeros((self.index.shape[0], count, window.height, window.width))
        rows[torch.arange(self.index.shape[0], device=self.index.device), plane, y, x] = self.sign
        return rows.reshape(-1, *leading, window.height, window.width)

    def dense(self) -> Tensor:
        """The rows written out, ``[R, *shape]``."""
        rows = self.sign.new_zeros((self.index.shape[0], max(1, int(torch.Size(self.shape).numel()))))
        rows[torch.arange(self.index.shape[0], device=self.index.device), self.index] = self.sign
        return rows.reshape(-1, *self.shape)
