"""How the nonlinear operators are tested: examples, dangerous intervals, and lines against high precision.

**A new operator** needs one line in ``EXAMPLES`` of ``nonlinear_examples.py``: the operator, its reference in
``mpmath`` numbers, and the places where it bends, turns or jumps. ``arity`` says how many variable operands it has;
``domain`` where it is defined, ``pole`` that it is not at 0; ``parameters`` are constant operands; ``jumps`` that its
values are not continuous (then lines need not touch the graph). An operator that joins several elements of one operand
is tested in a file of its own, named in ``ELSEWHERE``. The registry test fails for an operator that is in neither.

A line is searched for its worst place by dense sampling in float64, in three rounds around the least gap; the least
gaps found, the ends and the kinks are then compared with 60 digits, with no tolerance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor

from bounds.ops.base import Interval, Line, Op, Relaxation

mpf = mpmath.mpf
mpmath.mp.prec = 200
WIDTHS = (0.0, 1e-12, 1e-7, 1e-3, 0.3, 2.0, 15.0, 1e3, 1e6)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A nonlinear operator with ``arity`` variable operands; ``kinks`` are where its intervals are aimed at."""

    op: Op
    reference: Callable[..., Any]
    kinks: tuple[float, ...] = (0.0,)
    arity: int = 1
    parameters: tuple[Tensor, ...] = field(default=())
    domain: tuple[float, float] = (-math.inf, math.inf)
    jumps: bool = False
    pole: bool = False

    @property
    def name(self) -> str:
        return f"{self.op}{[p.tolist() for p in self.parameters] or ''}"

    def exact(self, point: Sequence[float]) -> Any:
        """The value at a point of exact numbers."""
        return self.reference(*map(mpf, point))

    def operands(self, variable: Sequence[Interval]) -> list[Interval]:
        """With the constant operands behind."""
        return [*variable, *[(p, p) for p in (p.to(variable[0][0]) for p in self.parameters)]]

    def forward(self, points: Sequence[Tensor]) -> Tensor:
        """In the dtype of the points."""
        return self.op.forward(*points, *[p.to(points[0]) for p in self.parameters])


def aimed(example: Example, dtype: torch.dtype) -> Interval:
    """``[N, 1]``: points and intervals of all widths at, around, left and right of each kink, and far away."""
    ends: list[tuple[float, float]] = []
    for centre, width in itertools.product((*example.kinks, 1e-3, -30.0, 90.0, -1e4, 1e5), WIDTHS):
        for share in (0.0, 0.5, 1.0, 0.1):
            ends.append((centre - share * width, centre + (1 - share) * width))
    ends += [(-1e-40, 1e-40), (0.0, 1e-40), (-1e-40, 0.0), (0.0, 5e-324), (1e-45, 1e-40), (-0.0, 0.0)]
    ends += [(-1e-300, 1e-310), (-750.0, -740.0), (-104.0, 18.0), (-1e6, 3.0), (-2.0, 1e6)]
    return _within(example, np.array(ends), dtype)


def scattered(example: Example, dtype: torch.dtype, count: int, seed: int = 0) -> Interval:
    """``[count, 1]``: random intervals of widths 1e-12 to 1e6, many with an end or their inside near a kink."""
    rng = np.random.default_rng(seed)
    centre = rng.choice(np.array((*example.kinks, 0.0)), count)
    away = 10.0 ** rng.uniform(-14, 6, count) * rng.choice([-1.0, 0.0, 1.0], count, p=[0.4, 0.2, 0.4])
    near = rng.random(count) < 0.5
    centre = np.where(near, centre + away, centre + rng.normal(size=count) * 3)
    width = np.where(rng.random(count) < 0.1, 0.0, 10.0 ** rng.uniform(-12, 6, count))
    width = np.where(rng.random(count) < 0.4, rng.uniform(0, 12, count), width)
    share = rng.choice([0.0, 0.5, 1.0, 0.03, 0.8], count)
    tiny = rng.random(count) < 0.03
    centre, width = np.where(tiny, centre * 0, centre), np.where(tiny, 10.0 ** rng.uniform(-323, -290, count), width)
    return _within(example, np.stack([centre - share * width, centre + (1 - share) * width], 1), dtype)


def _within(example: Example, ends: np.ndarray, dtype: torch.dtype) -> Interval:
    """Ends moved into the domain; those of an open domain that touch it stay inside in either dtype."""
    if example.pole:  # what holds 0 says nothing: to one side
        ends = np.where((ends[:, :1] <= 1e-30) & (ends[:, 1:] >= -1e-30), np.abs(ends) + 1e-30, ends)
        ends = np.sort(ends, 1)
    both = torch.from_numpy(ends).to(dtype).clamp(*example.domain)
    return both[:, :1].clone(), both[:, 1:].clone()


def variables(example: Example, dtype: torch.dtype, random: int | None = None, seed: int = 0) -> list[Interval]:
    """Intervals of all variable operands: the aimed ones, or ``random`` many; the first are paired with each other."""
    low, high = aimed(example, dtype) if random is None else scattered(example, dtype, random, seed)
    found = [(low, high)]
    for k in range(1, example.arity):
        shuffle = torch.randperm(low.shape[0], generator=torch.Generator().manual_seed(k))
        near = (shuffle % 2 == 0)[:, None]
        other_low = torch.where(near, low[shuffle], low - (high - low) / 3)
        other_high = torch.where(near, high[shuffle], high - (high - low) / 4)
        other_low = other_low.clamp(*example.domain)
        found.append((other_low, torch.maximum(other_low, other_high).clamp(*example.domain)))
    return found


def samples(example: Example, variable: Sequence[Interval], count: int = 41) -> list[Tensor]:
    """``[N, S]`` float64 points of each operand, ends and kinks among them; all combined for several operands."""
    shares = torch.cat([torch.linspace(0, 1, count).double(), torch.logspace(-14, -2, 7).double()])
    shares = torch.cat([shares, 1 - torch.logspace(-9, -2, 4).double()])
    found = []
    for low, high in variable:
        low, high = low.double(), high.double()
        places = torch.tensor((*example.kinks, 0.0, -17.0, -0.3, 0.6, 36.0)).double()
        inner = torch.cat([low + shares * (high - low), places.expand(low.shape[0], -1)], 1)
        found.append(torch.minimum(torch.maximum(inner, low), high))
    if len(found) == 1:
        return found
    generator = torch.Generator().manual_seed(5)
    for k, (low, high) in enumerate(variable):
        corner = torch.tensor([(c >> k) & 1 for c in range(2 ** len(variable))]).bool()
        corners = torch.where(corner, high.double(), low.double())
        order = torch.randperm(found[k].shape[1], generator=generator) if k else torch.arange(found[k].shape[1])
        same = torch.minimum(torch.maximum(found[0], low.double()), high.double())
        found[k] = torch.cat([corners, found[k][:, order], same[:, :12]], 1)
    return found


def gaps(example: Example, line: Line, sign: int, points: Sequence[Tensor]) -> Tensor:
    """``sign (f - line)`` at points ``[N, S]`` in float64; what is no number counts as nothing found."""
    count = points[0].shape[0]
    below = line.offset.double().expand(count, 1)
    for slope, x in zip(line.slopes, points, strict=True):
        below = below + slope.double().expand(count, 1) * x
    return torch.nan_to_num((example.forward(points) - below) * sign, nan=math.inf)


def _worst(example: Example, variable: Sequence[Interval], line: Line, sign: int) -> list[Tensor]:
    """``[N, S]``: the places of the least gaps, refined for one operand, and the ends."""
    points = samples(example, variable)
    if example.arity == 1:
        ((low, high),) = [(a.double(), b.double()) for a, b in variable]
        (x,) = points
        for _ in range(2):
            best = gaps(example, line, sign, [x]).argmin(1, keepdim=True)
            ordered, order = x.sort(1)
            rank = (order == best).double().argmax(1, keepdim=True)
            left = ordered.gather(1, (rank - 1).clamp(min=0))
            right = ordered.gather(1, (rank + 1).clamp(max=x.shape[1] - 1))
            finer = left + torch.linspace(0, 1, 21).double() * (right - left)
            x = torch.cat([x.gather(1, best), torch.minimum(torch.maximum(finer, low), high)], 1)
        points = [torch.cat([x, low, high], 1)]
    least = gaps(example, line, sign, points).topk(2, 1, largest=False).indices
    extra = points[0].shape[1] - 1 - torch.arange(2 if example.arity == 1 else 4).expand(least.shape[0], -1)
    if example.arity > 1:
        extra = torch.arange(2**example.arity).expand(least.shape[0], -1)
    return [p.gather(1, torch.cat([least, extra], 1)) for p in points]


def check_line(example: Example, variable: Sequence[Interval], line: Line, sign: int) -> None:
    """A line is below (``sign`` 1) or above (-1) the function wherever it was searched, exactly."""
    count = variable[0][0].shape[0]
    slopes = [s.expand(count, 1) for s in line.slopes]
    offset = line.offset.expand(count, 1)
    assert not offset.isnan().any() and all(s.isfinite().all() for s in slopes)
    assert not (offset == sign * math.inf).any()
    places = torch.stack(_worst(example, variable, line, sign), 2).tolist()
    numbers = torch.cat([*slopes, offset], 1).tolist()
    for n, (found, line_numbers) in enumerate(zip(places, numbers, strict=True)):
        if math.isinf(line_numbers[-1]):
            continue
        *slope, constant = map(mpf, line_numbers)
        for point in set(map(tuple, found)):
            below = sum((s * mpf(x) for s, x in zip(slope, point, strict=True)), constant)
            gap = (example.exact(point) - below) * sign
            assert gap >= 0, (point, [(float(a[n]), float(b[n])) for a, b in variable], sign, float(gap))


def check_lines(example: Example, variable: Sequence[Interval], relaxation: Relaxation) -> None:
    """All lines on their side of the function."""
    for line in relaxation.lower:
        check_line(example, variable, line, 1)
    for line in relaxation.upper:
        check_line(example, variable, line, -1)


def check_interval(example: Example, variable: Sequence[Interval], interval: Interval) -> None:
    """The interval holds the least and the greatest value that are found, exactly."""
    zero = torch.zeros_like(variable[0][0])
    flat = tuple(zero for _ in variable)
    for end, sign in ((interval[0], 1), (interval[1], -1)):
        assert not end.isnan().any()
        check_line(example, variable, Line(flat, torch.where(end == sign * math.inf, -end, end)), sign)
