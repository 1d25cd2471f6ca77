"""Noise on a grid, exactly: certificates that floating-point arithmetic cannot break.

In real arithmetic x + noise tells nothing about x but by its distribution. In floating point it can: sums are rounded,
and where, depends on x, so that there are base classifiers whose certificates are false (Voracek and Hein, ICML 2023).
The remedy is theirs too. Inputs are on a grid, ``x = step k``, as images of 8 bits are (step 1/255); the classifier
that is smoothed is the one that first moves its real input to the nearest point of the grid. Under noise z it is
evaluated at ``step (k + round(z / step))``: sums of whole numbers, which are exact. What the network makes of a grid
point, rounding and all, is then simply the base classifier.

Whole numbers are drawn from 62 random bits each, by a table of the discrete distribution. How far that is from the true
one, in total variation, is charged to every probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import numpy as np
import torch
from torch import Tensor

from verifier.errors import InputError, UnsupportedError
from verifier.smoothing.noise import Independent, Noise, Norm
from verifier.smoothing.shifts import Near, Scaled, Shift

_BITS = 62
_MOST_CELLS = 2**18
_NEAR = 2.0**-22
"""How far an input may be from the grid, in its own size: what a quotient or a product in float32 is off by, twice."""


@dataclass(frozen=True, slots=True, eq=False)
class GridNoise:
    """``round(noise / step)`` as a distribution of whole numbers; shifts are measured in steps.

    The first bits of a draw choose a column c of the table ``[columns]``, the others are compared with ``marks[c]``:
    below it, it is the whole number ``first + c``, else ``others[c]`` (Walker's alias method, in whole numbers).
    """

    noise: Independent
    step: Fraction
    first: int
    marks: Tensor = field(repr=False)
    others: Tensor = field(repr=False)

    @staticmethod
    def of(noise: Noise, step: Fraction, device: torch.device | str = "cpu") -> GridNoise:
        """Raises ``UnsupportedError`` for noise whose elements depend on each other, ``InputError`` for a step too
        fine to be tabulated."""
        if not isinstance(noise, Independent):
            raise UnsupportedError(
                f"exact noise: elements of {noise.words} depend on each other; gaussian, laplace and uniform do not"
            )
        if step <= 0:
            raise InputError(f"step={step}: a positive number is needed, such as 1/255")
        last = _last(noise, float(step))
        edges = (np.arange(-last, last, dtype=np.float64) + 0.5) * float(step)
        # What quantiles are off by may not make them fall: that would be a chance below 0.
        below = np.maximum.accumulate(np.ceil(noise.below(edges) * 2.0**_BITS).astype(np.int64))
        marks, others = _columns(np.diff(below, prepend=0, append=2**_BITS).tolist())
        return GridNoise(noise, step, -last, torch.tensor(marks).to(device), (torch.tensor(others) - last).to(device))

    @property
    def words(self) -> str:
        """See ``Noise``."""
        return f"{self.noise.words} on a grid of {self.step}"

    def draw(self, rows: int, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See ``Noise``: whole numbers."""
        bits = torch.randint(2**_BITS, (rows * size,), generator=generator, device=generator.device)
        width = self._width
        column = bits >> width
        other = self.others.index_select(0, column)
        own = bits.bitwise_and_(2**width - 1) < self.marks.index_select(0, column)
        return torch.where(own, column.add_(self.first), other).to(dtype).reshape(rows, size)

    def chances(self) -> dict[int, int]:
        """How many of the 2^62 draws each whole number has."""
        found: dict[int, int] = {}
        for c, (mark, other) in enumerate(zip(self.marks.tolist(), self.others.tolist(), strict=True)):
            for k, chance in ((self.first + c, mark), (other, 2**self._width - mark)):
                if chance:
                    found[k] = found.get(k, 0) + chance
        return found

    @property
    def _width(self) -> int:
        """Bits that are compared with a mark."""
        return _BITS - (len(self.marks) - 1).bit_length()

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Noise``; in steps. Those of the real noise, moved to the grid: what follows a shift of the real input
        is a function of it."""
        return Near(Scaled(self.noise.shift(norm, size), 1 / float(self.step)), size * self.distance)

    def variance(self, size: int) -> float:
        """See ``Noise``: of the real noise, in steps."""
        return self.noise.variance(size) / float(self.step) ** 2

    @property
    def distance(self) -> float:
        """Total variation of one element from the true distribution, at most: each mark is off by a draw, by 1e-15 in
        the quantile, and by what a relative error of 2^-50 of the edge does (a density times the edge is below 1); the
        ends hold what lies beyond."""
        cells = 2 * -self.first + 1
        beyond = 2 * float(self.noise.below(np.array([(self.first + 0.5) * float(self.step)]))[0])
        return cells * (2.0**-_BITS + 2e-15 + 2.0**-50) + beyond


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Points ``step * k``."""

    step: Fraction

    def numbers(self, x: Tensor) -> Tensor:
        """The whole numbers k of an input ``[n]``. Raises ``InputError`` where it is not on the grid."""
        wide = x.double() / float(self.step)
        found = wide.round()
        off = (wide - found).abs() / found.abs().clamp(min=1)
        if not float(off.max()) <= _NEAR:  # NaN too
            worst = int(off.argmax())
            raise InputError(
                f"exact noise: element {worst} of an input, {float(x[worst]):.9g}, is not a multiple of the step "
                f"{self.step}; noise on a grid is for inputs that are on it, such as images with values k / 255"
            )
        return found.to(x.dtype)

    def points(self, numbers: Tensor) -> Tensor:
        """The points of whole numbers ``[P, n]``: one multiplication and one division, so that a number always gives
        the same point."""
        return numbers * float(self.step.numerator) / float(self.step.denominator)


def check_range(noise: GridNoise, numbers: Tensor) -> None:
    """Raise ``InputError`` where sums of an input's whole numbers and noise are not exact in their type."""
    most = float(numbers.abs().max()) - noise.first
    digits = 24 if numbers.dtype == torch.float32 else 53
    if most >= 2**digits:
        raise InputError(
            f"exact noise: whole numbers up to {most:.3g} are not exact in {numbers.dtype}; take a larger step"
        )


def _columns(chances: list[int]) -> tuple[list[int], list[int]]:
    """Chances that add up to 2^62, distributed over columns of equal size, a power of two of them: column c has
    ``marks[c]`` of c, and the rest of ``others[c]`` (Vose, 1991)."""
    count = 1 << (len(chances) - 1).bit_length()
    room, left = 2**_BITS // count, chances + [0] * (count - len(chances))
    marks, others = [room] * count, list(range(count))
    small = [c for c in range(count) if left[c] < room]
    large = [c for c in range(count) if left[c] > room]
    while small:
        c, giver = small.pop(), large[-1]
        marks[c], others[c] = left[c], giver
        left[giver] -= room - left[c]
        if left[giver] <= room:
            large.pop()
            small += [giver] if left[giver] < room else []
    return marks, others


def _last(noise: Independent, step: float) -> int:
    """The whole number beyond which noise has a probability of at most 1e-18 on each side."""
    deviation = math.sqrt(noise.variance(1))
    for times in (2, 5, 10, 20, 40, 80):
        last = math.ceil(times * deviation / step)
        if last > _MOST_CELLS:
            break
        beyond = cast(float, noise.below(np.array([-(last - 0.5) * step]))[0])
        if beyond <= 1e-18:
            return last
    raise InputError(f"exact noise: a step of {step:.3g} is too fine for {noise.words}: take a larger one")
