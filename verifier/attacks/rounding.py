"""Numbers of a model's element type on the safe side of exact ones: ends of boxes, changes, distances."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.errors import InputError

_VAST = 2**1000
"""Radii from here on are left to exact arithmetic."""


def rounded_towards(centre: Tensor, away: Tensor) -> Tensor:
    """Numbers of the centre's type between ``centre`` and ``centre + away`` (float64), next to the latter: exactly,
    ``|result - centre| <= |away|`` in every coordinate, up to float64's rounding of the difference."""
    wide = centre.double()
    near = (wide + away).to(centre.dtype)
    beyond = (near.double() - wide).abs() > away.abs()
    return torch.where(beyond, torch.nextafter(near, centre), near)


def upper_distance(x: Tensor, centre: Tensor, norm: str) -> Tensor:
    """``[P]`` float64, at least the exact distance of ``x`` from ``centre`` (``[P, d]`` each) in the norm 2, 1 or inf:
    differences, products and sums of d terms are off by at most a share (d + 8) * 2^-52 and an underflow."""
    gap = x.double() - centre.double()
    more = 1 + (gap.shape[1] + 8) * 2.0**-52
    if norm == "inf":
        return gap.abs().amax(1) * more
    if norm == "1":
        return gap.abs().sum(1) * more
    return ((gap.square().sum(1) * more + gap.shape[1] * 2.0**-1022).sqrt()) * (1 + 2.0**-50)


def below(number: Fraction) -> float:
    """The greatest float64 that is at most the number."""
    near = float(number)
    return near if Fraction(near) <= number else math.nextafter(near, -math.inf)


def box_around(
    centres: np.ndarray, radius: Fraction, ends: tuple[Fraction, Fraction] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest numbers of the array's type within ``radius`` of each element and within ``ends``.

    ``centres`` (float32 or float64, any shape) are exact numbers, so each lies between its two ends. Raises
    ``InputError`` for an element outside of ``ends``, and where a radius leads beyond the type's range.
    """
    values, inverse = np.unique(centres, return_inverse=True)
    if ends is not None:
        first, last = inner_ends(ends, values.dtype)
        outside = values[(values < first) | (values > last)]
        if len(outside):
            raise InputError(f"an element {outside[0]} is outside the data range [{ends[0]}, {ends[1]}]")
    low = _least_within(values, radius, None if ends is None else ends[0])
    high = -_least_within(-values, radius, None if ends is None else -ends[1])
    return low[inverse].reshape(centres.shape), high[inverse].reshape(centres.shape)


def _least_within(values: np.ndarray, radius: Fraction, end: Fraction | None) -> np.ndarray:
    """The least numbers of the array's type that are at least ``value - radius`` and ``end``.

    Fractions are slow, and nearly always float64 leaves no doubt: between its result less and plus its error (a
    rounding each of the radius, of the difference and of these sums) there is no number of a narrower type.
    """
    wide = torch.from_numpy(values).double()
    size = float(radius) if radius < _VAST else math.inf
    near, error = wide - size, 2.0**-51 * (wide.abs() + size) + 2.0**-1000
    kind = torch.from_numpy(values[:0]).dtype
    found, other = (inward(number, kind).numpy() for number in (near - error, near + error))
    doubtful = (found != other) | ~(np.abs(found) < np.finfo(values.dtype).max)
    if end is not None:
        found = np.maximum(found, _above(end, values.dtype))
    for k in np.flatnonzero(doubtful).tolist():
        first = Fraction(float(values[k])) - radius
        found[k] = _above(first if end is None else max(first, end), values.dtype)
    return found


def inward(lower: Tensor, dtype: torch.dtype) -> Tensor:
    """The least numbers of a type that are at least ``lower`` (float64)."""
    near = lower.to(dtype)
    return torch.where(near.double() < lower, torch.nextafter(near, torch.full_like(near, math.inf)), near)


def inner_ends(ends: tuple[Fraction, Fraction], dtype: np.dtype) -> tuple[Any, Any]:
    """The least and the greatest number of a type in a range."""
    low, high = _above(ends[0], dtype), -_above(-ends[1], dtype)
    if low > high:
        raise InputError(f"data range: no number of {dtype} lies in [{ends[0]}, {ends[1]}]")
    return low, high


def _above(number: Fraction, dtype: np.dtype) -> Any:
    """The least number of the type that is at least ``number``."""
    try:
        with np.errstate(over="ignore"):  # said below
            near = np.asarray(float(number)).astype(dtype)[()]
    except OverflowError:
        near = dtype.type(math.inf)
    if not np.isfinite(near):
        raise InputError(f"epsilon: the region reaches beyond the range of {dtype}")
    if Fraction(float(near)) < number:
        near = np.nextafter(near, dtype.type(math.inf))
    if near == np.finfo(dtype).min:
        return near
    below_it = np.nextafter(near, dtype.type(-math.inf))
    return below_it if Fraction(float(below_it)) >= number else near
