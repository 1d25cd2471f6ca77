"""What an affine operator is: its forward step, its transposed step, and what both sum."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bounds.layouts import Places, Selection, Windows
from bounds.ops.base import Interval, Op, Shape
from bounds.rounding import Rounding

ENTRIES_AT_ONCE = 1 << 22
"""Elements of rows that are looked through at once for coefficients that are not 0."""


@dataclass(frozen=True, slots=True)
class Slide:
    """An operator over images whose result at (y, x) depends on the ``extent`` of its operand that begins at
    ``(y, x) stride - begin``, in the same way everywhere; ``op`` is itself without padding."""

    op: Op
    stride: tuple[int, int]
    begin: tuple[int, int]
    extent: tuple[int, int]


class Entries(NamedTuple):
    """Coefficients of a linear map: rows and columns ``[E]`` int64, values ``[E]`` float64."""

    row: Tensor
    column: Tensor
    value: Tensor


class Affine(Op):
    """Affine in its variable operands once the others are constants.

    ``offsets`` are operand positions that are only added (a bias). ``accumulation`` bounds how many terms are summed
    into one element of the result *or* of the transposed step; 0 says that nothing is computed (values are moved).
    """

    __slots__ = ()
    offsets: ClassVar[frozenset[int]] = frozenset()
    elementwise: ClassVar[bool] = False
    """Whether element i of the result depends on element i of the operands alone (adding a constant, scaling)."""
    selects: ClassVar[bool] = False
    """Whether each element of the result is one element of an operand, or a constant."""

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return True

    @abstractmethod
    def accumulation(self, *shapes: Shape) -> int:
        """Upper bound of the number of summed terms per element, forward and transposed; 0: exact."""

    def absolute(self, *operands: Tensor) -> Tensor:
        """``|W| m + |b|`` for operands that are already absolute values (all entries >= 0)."""
        return self.forward(*operands)

    def pullback(self, rows: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor:
        """Transposed linear part: coefficient rows ``[R, *out]`` to rows ``[R, *shape]`` of operand ``position``.

        ``operands`` holds the constants (None for variable operands). The default is the vector-Jacobian product
        of ``forward``, which for a linear map is its transpose.
        """
        zero = rows.new_zeros((rows.shape[0], *shape))
        template = [zero[:1].detach() if o is None else o for o in operands]

        def linear(x: Tensor) -> Tensor:
            return self.forward(*[x if i == position else o for i, o in enumerate(template)])

        # Not torch.func.vjp, and a sum rather than grad_outputs: their first use imports torch's compiler or sympy,
        # which takes longer than most verifications.
        needed = rows.requires_grad or any(o is not None and o.requires_grad for o in operands)
        differentiable = needed and torch.is_grad_enabled()
        with torch.enable_grad():
            point = zero.requires_grad_()
            (result,) = torch.autograd.grad((linear(point) * rows).sum(), point, create_graph=differentiable)
        return result

    def pullback_windows(
        self, rows: Windows, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """``pullback`` of windows of the result, both images; None: only dense rows can be pulled back (the default,
        but for elementwise operators whose operands are not repeated)."""
        image, count = tuple(rows.values.shape[1:]), rows.values.shape[0]
        if not self.elementwise or shape[1] != image[0] or {o.shape[1:] for o in operands if o is not None} - {shape}:
            return None
        at = [None if o is None else rows.gather(o)[0].unsqueeze(1) for o in operands]
        at = [o if o is None or o.shape[0] == 1 else o.repeat(count // o.shape[0], *[1] * 4) for o in at]
        return Windows.of_whole(self.pullback(rows.values.unsqueeze(1), position, at, (1, *image)), rows.places)

    def spans(self, rows: Windows, position: int, operands: Sequence[Tensor | None], radius: Tensor) -> Tensor | None:
        """``[R]``: ``|pullback(rows)| . radius``, up to rounding, for radii ``[N, *shape]``; None: no cheap way."""
        return None

    def slide(self, operands: Sequence[Tensor | None]) -> Slide | None:
        """How the operator slides over its one variable operand, an image; None (the default) where it does not."""
        return None

    def unit_windows(
        self, units: Selection, places: Places, position: int, operands: Sequence[Tensor | None], shape: Shape
    ) -> Windows | None:
        """``unit_rows`` at ``places``, with their signs, as windows of the operand; None: no cheap way."""
        return None

    def matrix(self, operands: Sequence[Tensor | None], position: int, shape: Shape) -> Tensor | None:
        """``[k, m]`` with ``result = operand @ matrix + ...`` where the k elements of operand ``position`` and the m of
        the result are single vectors; None (the default) where that is not how the operator works."""
        return None

    def unit_rows(self, index: Tensor, position: int, operands: Sequence[Tensor | None], shape: Shape) -> Tensor | None:
        """``pullback`` of unit rows: row r is one at flat element ``index[r]`` of the result, zero elsewhere.

        None where this is not cheaper than pulling the dense rows back (the default).
        """
        return None

    def interval(self, operands: Sequence[Interval], rounding: Rounding | None) -> Interval:
        """Midpoint-radius enclosure: centre through ``forward``, radius through ``|W|``, plus error terms.

        A constant operand is recognised by two identical ends and taken as exact; errors of computed constants are
        the caller's to add (``absolute`` of the operands' sizes with the constants replaced by their errors).
        """
        lows, highs = [o[0] for o in operands], [o[1] for o in operands]
        count = self.accumulation(*(o.shape if i in self.parameters else o.shape[1:] for i, o in enumerate(lows)))
        if count == 0:
            return self.forward(*lows), self.forward(*highs)
        centres, radii, sizes = [], [], []
        fixed = all(low is high for low, high in operands)
        for i, (low, high) in enumerate(operands):
            if low is high:
                centres.append(low)
                sizes.append(low.abs())
                radii.append(torch.zeros_like(low) if fixed or i in self.offsets else sizes[-1])
                continue
            centre = (low + high) / 2
            radius = torch.maximum(high - centre, centre - low)
            centres.append(centre)
            radii.append(radius if rounding is None else rounding.up(radius))
            sizes.append(torch.maximum(low.abs(), high.abs()))
        centre, radius = self.forward(*centres), self.absolute(*radii)
        if rounding is None:
            return centre - radius, centre + radius
        radius = rounding.up(radius + rounding.affine(count, self.absolute(*sizes)))
        return rounding.down(centre - radius), rounding.up(centre + radius)

    def entries(self, position: int, operands: Sequence[Tensor], shape: Shape, result: Shape) -> Entries:
        """The linear part by operand ``position``, from ``shape`` to ``result``: flat elements of the result and of the
        operand, and the coefficient of each pair whose coefficient is not 0.

        ``operands``: constants as they are (float64), zeros for variable ones. The coefficients are those of
        ``pullback``: off by what a step over the node is charged.
        """
        numbers = torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
        if self.elementwise:  # an operand may be repeated: the numbers of its elements are laid out as the result is
            ones = torch.ones((1, *result), dtype=torch.float64)
            value = self.pullback(ones, position, operands, result).flatten()
            row, column = value.nonzero().flatten(), numbers.expand(1, *result).flatten().long() - 1
            return Entries(row, column[row], value[row])
        if self.selects:
            at, without = (
                self.forward(*[given if i == position else o for i, o in enumerate(operands)])
                for given in (numbers, torch.zeros_like(numbers))
            )
            found = (at - without).flatten().long()
            row = found.nonzero().flatten()
            return Entries(row, found[row] - 1, torch.ones(row.shape[0], dtype=torch.float64))
        return self._unit_entries(position, operands, shape, result)

    def _unit_entries(self, position: int, operands: Sequence[Tensor], shape: Shape, result: Shape) -> Entries:
        """From rows of single elements, some at a time."""
        size, parts = math.prod(result), []
        step = max(1, ENTRIES_AT_ONCE // max(size, math.prod(shape)))
        for first in range(0, size, step):
            index = torch.arange(first, min(first + step, size))
            rows = self.unit_rows(index, position, operands, shape)
            if rows is None:
                units = torch.zeros((index.shape[0], size), dtype=torch.float64)
                units[torch.arange(index.shape[0]), index] = 1.0
                rows = self.pullback(units.reshape(-1, *result), position, operands, shape)
            rows = rows.reshape(index.shape[0], -1)
            row, column = rows.nonzero().unbind(1)
            parts.append(Entries(row + first, column, rows[row, column]))
        return Entries(*(torch.cat(part) for part in zip(*parts, strict=True)))
