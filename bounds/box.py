"""Boxes and Lp balls: the sets of inputs that bounds are valid on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.layouts import flat
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """N axis-aligned boxes: ``lower <= x <= upper`` elementwise, both ``[N, *shape]``, ends included.

    A box with ``lower > upper`` somewhere is empty. ``ValueError`` for ends that differ in shape and for NaN,
    ``TypeError`` for ends that are no tensors.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        _check_tensors("a box", lower=self.lower, upper=self.upper)
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"lower {tuple(self.lower.shape)} and upper {tuple(self.upper.shape)} differ in shape")
        if torch.isnan(self.lower).any() or torch.isnan(self.upper).any():
            raise ValueError("a box has NaN bounds")

    @staticmethod
    def around(x: Tensor, radius: float | Tensor, within: tuple[float, float] | None = None) -> Box:
        """``{x' : |x' - x| <= radius}`` elementwise for one input ``x`` ``[*shape]``, as a batch of one box.

        ``within`` intersects it with ``[low, high]`` (it is empty where the two have nothing in common). The ends are
        rounded to nearest. ``ValueError`` for a negative radius.
        """
        _check_tensors("a box", x=x)
        if not isinstance(radius, int | float | Tensor):
            raise TypeError(f"radius {radius!r}: a number or a tensor is needed")
        if bool((torch.as_tensor(radius) < 0).any()):
            raise ValueError(f"radius {radius} is negative")
        lower, upper = (x - radius).unsqueeze(0), (x + radius).unsqueeze(0)
        if within is not None:
            lower, upper = lower.clamp(min=within[0]), upper.clamp(max=within[1])
        return Box(lower, upper)

    @property
    def size(self) -> int:
        """N, the number of boxes."""
        return int(self.lower.shape[0])

    def empty(self) -> Tensor:
        """``[N]`` bool: which boxes contain no point."""
        return flat(self.lower > self.upper).any(1)

    def take(self, index: Tensor) -> Box:
        """The boxes at ``index`` ``[K]``, in that order."""
        return Box(self.lower[index], self.upper[index])

    def intersection(self, other: Box) -> Box:
        """Elementwise intersection (which may be empty)."""
        return Box(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Box:
        """Nearest values of another dtype; see ``rounding.cast_outward`` for an enclosing conversion."""
        return Box(self.lower.to(device=device, dtype=dtype), self.upper.to(device=device, dtype=dtype))


@dataclass(frozen=True, slots=True, eq=False)
class LpBall:
    """N balls ``{x : |x - centre|_p <= radius}`` for ``p`` 1, 2 or infinity, intersected with ``within`` where given.

    ``centre`` ``[N, *shape]`` and ``radius`` ``[N]`` (>= 0) in one dtype, taken as exact numbers; the norm is over all
    elements of one input. ``within`` ``[N or 1, *shape]`` is a box, such as the range of the data. ``ValueError`` for
    shapes, dtypes or values that do not fit, ``TypeError`` for what is no tensor.
    """

    centre: Tensor
    radius: Tensor
    p: float
    within: Box | None = None

    def __post_init__(self) -> None:
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"a ball of the norm p = {self.p}: only 1, 2 and math.inf are supported")
        _check_tensors("a ball", centre=self.centre, radius=self.radius)
        if self.radius.shape != self.centre.shape[:1]:
            given = tuple(self.centre.shape), tuple(self.radius.shape)
            raise ValueError(f"centre {given[0]} and radius {given[1]}: expected (N, *shape) and (N,)")
        if self.radius.dtype != self.centre.dtype:
            raise ValueError(f"a ball with a centre of {self.centre.dtype} and a radius of {self.radius.dtype}")
        if not bool(torch.isfinite(self.centre).all() and torch.isfinite(self.radius).all() & (self.radius >= 0).all()):
            raise ValueError("a ball needs a finite centre and a finite radius >= 0")
        if self.within is not None:
            self._check_within(self.within)

    def _check_within(self, box: Box) -> None:
        if not isinstance(box, Box):
            raise TypeError(f"within={box!r}: a Box is needed, such as Box(torch.zeros_like(x), torch.ones_like(x))")
        fits = box.lower.shape[1:] == self.centre.shape[1:] and box.size in (1, self.size)
        if not fits or box.lower.dtype != self.centre.dtype or box.upper.dtype != self.centre.dtype:
            given = f"{tuple(box.lower.shape)} of {box.lower.dtype}"
            wanted = f"{tuple(self.centre.shape)} of {self.centre.dtype}"
            raise ValueError(f"the box around a ball is {given}: expected {wanted} (or one box for all)")

    @property
    def size(self) -> int:
        """N, the number of balls."""
        return int(self.centre.shape[0])

    def box(self) -> Box:
        """The least boxes ``[N, *shape]`` of the dtype that contain the sets (empty where ``within`` misses a ball)."""
        radius = _column(self.radius, self.centre).expand_as(self.centre)
        box = Box(_difference_below(self.centre, radius), -_difference_below(-self.centre, radius))
        return box if self.within is None else box.intersection(self.within)

    def empty(self) -> Tensor:
        """``[N]`` bool: balls that certainly have no point within the box."""
        box = self.box()
        gap = torch.maximum(box.lower - self.centre, self.centre - box.upper).clamp(min=0)
        rounding = Rounding.of(gap.dtype)
        terms = gap[0].numel() + 8
        far = _length(gap, self.p) * (1 - 2 * rounding.gamma(terms)) > self.radius + terms * rounding.tiny
        return box.empty() | far

    def contains(self, x: Tensor) -> Tensor:
        """``[N]`` bool: whether ``x`` ``[N, *shape]`` is certainly in its set; rounding counts against it."""
        rounding = Rounding.of(self.centre.dtype)
        terms = x[0].numel() + 8
        length = _length(x - self.centre, self.p) * (1 + 2 * rounding.gamma(terms)) + terms * rounding.tiny
        inside = (length <= self.radius) | flat(x == self.centre).all(1)
        if self.within is None:
            return inside
        return inside & flat((x >= self.within.lower) & (x <= self.within.upper)).all(1)

    def take(self, index: Tensor) -> LpBall:
        """The balls at ``index`` ``[K]``, in that order."""
        within = self.within if self.within is None or self.within.size == 1 else self.within.take(index)
        return LpBall(self.centre[index], self.radius[index], self.p, within)

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> LpBall:
        """Nearest values of another dtype (exact from float32 to float64)."""
        within = None if self.within is None else self.within.to(dtype, device)
        centre, radius = (t.to(device=device, dtype=dtype) for t in (self.centre, self.radius))
        return LpBall(centre, radius, self.p, within)


def _check_tensors(what: str, **given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{what} takes tensors: {name} is a {type(value).__name__}, torch.as_tensor makes one")


def _column(radius: Tensor, like: Tensor) -> Tensor:
    return radius.reshape(-1, *[1] * (like.ndim - 1))


def _length(difference: Tensor, p: float) -> Tensor:
    """``[N]`` norms, scaled by the largest element so that no square overflows or vanishes."""
    sizes = flat(difference).abs()
    most = sizes.amax(1)
    if p == math.inf:
        return most
    scale = torch.where(most > 0, most, torch.ones_like(most)).unsqueeze(1)
    ratio = sizes / scale
    total = ratio.sum(1) if p == 1 else (ratio * ratio).sum(1).sqrt()
    return total * most


def _difference_below(a: Tensor, b: Tensor) -> Tensor:
    """``a - b`` rounded down: as it is where it is exact (Knuth's TwoSum tells), else the next number below."""
    difference = a - b
    part = difference - a
    error = (a - (difference - part)) - (b + part)
    return torch.where(error < 0, torch.nextafter(difference, torch.full_like(difference, -torch.inf)), difference)
