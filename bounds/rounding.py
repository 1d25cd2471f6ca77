"""The error terms: the one place that knows how floating point rounds.

A bound that is claimed for exact real arithmetic is computed in float32 or float64 and then moved outward by a
bound of everything that rounding can have done to it. All terms come from the standard model
``fl(a op b) = (a op b)(1 + d) + e`` with ``|d| <= u`` and ``|e| <= tiny`` (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., section 3.1): a sum of n products in any order, with or without fused operations,
is off by at most ``gamma_n * sum |a_i||b_i|`` plus underflow.

``None`` in place of a ``Rounding`` means search: no claim is made and no term is added. The model speaks of plain dot
products; ``plain_products`` turns off the algorithms that are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

LIBRARY_UNITS = 32
"""Units of the last place (of the value, or of 1) that a library's exp, tanh, erf, ... may be off. An assumption."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Error model of one dtype: unit roundoff ``unit`` (2^-24 or 2^-53), underflow threshold ``tiny``, and the
    ``greatest`` number."""

    unit: float
    tiny: float
    greatest: float = math.inf

    @staticmethod
    def of(dtype: torch.dtype) -> Rounding:
        """The model of ``torch.float32`` or ``torch.float64``; any other dtype raises ``ValueError``."""
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"no error model for {dtype}: use float32 or float64")
        info = torch.finfo(dtype)
        return Rounding(unit=info.eps / 2, tiny=info.tiny, greatest=info.max)

    def gamma(self, n: int) -> float:
        """``n u / (1 - n u)``, rounded up; infinite where ``n u >= 1/2`` (no claim is possible)."""
        product = n * self.unit
        return math.inf if product >= 0.5 else product / (1 - product) * (1 + 2**-40)

    def affine(self, count: int, size: Tensor) -> Tensor:
        """Error of a sum of ``count`` products whose absolute values sum (as computed) to ``size``.

        Covers the rounding of the sum, of a bias added to it, of ``size`` itself and of up to eight further
        roundings around it, and underflow: ``|computed - exact| <= affine(count, size)``.
        """
        terms = count + 8
        return size * (self.gamma(terms) * (1 + 2 * self.gamma(terms))) + terms * 4 * self.tiny

    def computed(self, count: int, size: Tensor) -> Tensor:
        """How far a machine of this model is off when it sums ``count`` products of total size ``size``, in any order.

        For use in a wider dtype than the machine's: ``size`` may itself be off by one part in a million. Infinite where
        a partial sum can overflow.
        """
        error = size * (self.gamma(count) * (1 + 2**-19)) + count * 2 * self.tiny
        return torch.where(size < self.greatest / 2, error, math.inf)

    def function(self, size: Tensor) -> Tensor:
        """How far a machine's library function is off where its values are at most ``size``: see ``machine.py``."""
        error = size.clamp(min=1) * (LIBRARY_UNITS * self.unit)
        return torch.where(size < self.greatest / 2, error, math.inf)

    def up(self, value: Tensor) -> Tensor:
        """A number of the dtype at least as large as any real that rounds to ``value`` (two units outward)."""
        return value + (value.abs() * (4 * self.unit) + self.tiny)

    def down(self, value: Tensor) -> Tensor:
        """A number of the dtype at most as large as any real that rounds to ``value``."""
        return value - (value.abs() * (4 * self.unit) + self.tiny)


def difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a - b`` as computed, and what it lacks: ``a - b = value + rest`` exactly, unless it overflows (Knuth, The Art
    of Computer Programming, vol. 2, section 4.2.2)."""
    value = a - b
    part = value - a
    return value, (a - (value - part)) - (b + part)


def difference_above(a: Tensor, b: Tensor) -> Tensor:
    """The least number of the dtype that is at least ``a - b``: itself, wherever the dtype holds it."""
    value, rest = difference(a, b)
    return torch.where(rest > 0, torch.nextafter(value, value.new_tensor(math.inf)), value)


def cast_outward(lower: Tensor, upper: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Convert an interval to ``dtype`` so that it contains the given one; exact ends stay as they are."""
    low, high = lower.to(dtype), upper.to(dtype)
    inf = torch.tensor(math.inf, dtype=dtype, device=lower.device)
    low = torch.where(low.to(lower.dtype) > lower, torch.nextafter(low, -inf), low)
    high = torch.where(high.to(upper.dtype) < upper, torch.nextafter(high, inf), high)
    return low, high


@contextmanager
def plain_products() -> Iterator[None]:
    """Matrix products and convolutions as plain dot products (no TF32, no cuDNN or NNPACK algorithms) while inside.

    Torch's flags hold for the whole process; they are put back at the end.
    """
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.enabled
    (nnpack,) = torch.backends.nnpack.set_flags(False)  # Winograd and FFT from 16 images on
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.enabled = cudnn
        torch.backends.nnpack.set_flags(nnpack)
