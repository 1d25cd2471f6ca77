"""Certificates in the norm 1 without chance: splitting noise (Levine and Feizi, ICML 2021) on a grid of inputs.

Inputs lie on the grid {0, 1/q, ..., 1}, as those of image files do (q = 255). Thresholds a period of 2 width apart,
half-way between grid values, cut [0, 1] into cells, and an element becomes the middle of its cell. One number s moves
all thresholds, those of element i from a fixed offset v_i; it has ``cells = 2 width q`` values, and the smoothed
classifier is the class of most of them. All are evaluated: nothing is estimated.

Of the ``cells`` values of s, those that put a threshold between two values of element i that are d grid steps apart are
min(d, cells), whatever v_i is. So two inputs that are D steps apart in the norm 1 become different points for at most D
values of s, no count of a class differs by more than D between them, and no lead by more than 2 D (theorems 1 and 2 of
the paper).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from verifier.errors import InputError
from verifier.examples import fit_examples
from verifier.smoothing.base import Base, Model, Way, base
from verifier.smoothing.counting import chosen
from verifier.smoothing.noise import Norm

_ROUNDING = 2.0**-23
"""How far from the grid an input may be: what scaling to [0, 1] in float32 is off by."""

_MOST_LEVELS = 65_535


@dataclass(frozen=True, slots=True)
class Derandomised:
    """The smoothed classifier gives ``label`` at every input of the grid of ``1 / levels`` that is at most ``steps``
    grid steps away in the norm 1, that distance included. ``label`` None: no point had finite scores, and nothing is
    claimed. ``counts``: of the ``points``, how many are of each class. Of other inputs, and of the base classifier,
    nothing is said."""

    label: int | None
    steps: int
    levels: int
    points: int
    counts: tuple[int, ...]
    norm: Norm = "1"

    @property
    def width(self) -> Fraction:
        """Half the period of the thresholds."""
        return Fraction(self.points, 2 * self.levels)

    @property
    def radius(self) -> float:
        """``steps / levels``, rounded down."""
        near = self.steps / self.levels
        return near if Fraction(near) <= Fraction(self.steps, self.levels) else math.nextafter(near, 0)

    def __str__(self) -> str:
        if self.label is None:
            return f"no class: none of {self.points} points had finite scores"
        return (
            f"class {self.label} within {self.steps}/{self.levels} (norm 1): deterministic, of the smoothed "
            f"classifier, inputs on the grid of 1/{self.levels}, {self.points} points"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Splitting:
    """A base classifier smoothed with ``cells`` places of the thresholds, which ``seed`` shifts against each other; its
    width is ``cells / (2 levels)``. Raises ``InputError`` for numbers that make no sense."""

    base: Base
    cells: int
    levels: int = 255
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.cells, self.base.rows) < 1 or not 1 <= self.levels <= _MOST_LEVELS:
            raise InputError(
                f"cells={self.cells}, rows={self.base.rows}, levels={self.levels}: at least one each is needed, and at "
                f"most {_MOST_LEVELS} levels; image files have 255 above 0"
            )

    @property
    def words(self) -> str:
        """The noise, as logs say it."""
        return f"splitting width={self.cells}/{2 * self.levels}"

    def certify(self, x: np.ndarray | Tensor) -> tuple[Derandomised, ...]:
        """A certificate for each input of ``x`` ``[N, *input shape]`` (or flat). Raises ``InputError`` for inputs off
        the grid."""
        given = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
        wide = np.float64 if self.base.dtype == torch.float64 else np.float32
        return tuple(self.certified(row) for row in fit_examples(given, None, self.base.shape, wide).x)

    def certified(self, x: np.ndarray | Tensor) -> Derandomised:
        """The class at one flat ``x`` ``[size]`` and the steps that it holds for. It has the most points, at ties the
        lowest index. It stays the class D steps away if its lead over each class of higher index is at least ``2 D``,
        over each of lower index above ``2 D``: a radius of width times the difference of the shares, in whole steps.

        This holds in floating point, for every base classifier that gives a point at the same place in a batch of the
        same length the same class, whatever the other points are. Raises ``InputError`` for inputs off the grid."""
        counts = self.counts(x)
        most = max(counts)
        if not most:
            return Derandomised(None, 0, self.levels, self.cells, counts)
        label = counts.index(most)
        leads = [most - count - (k < label) for k, count in enumerate(counts) if k != label]
        steps = min((lead // 2 for lead in leads), default=most - 1)
        return Derandomised(label, steps, self.levels, self.cells, counts)

    def counts(self, x: np.ndarray | Tensor) -> tuple[int, ...]:
        """Of the ``cells`` points, how many are of each class; those whose scores are not all finite are of none.
        Raises ``InputError`` for inputs off the grid."""
        total = torch.zeros(self.base.classes + 1, dtype=torch.int64, device=self.base.device)
        with torch.inference_mode():
            for points in self.points(x):
                places = chosen(self.base.scores(points), self.base.classes)
                total.scatter_add_(0, places, torch.ones_like(places))
        return tuple(total.tolist()[:-1])

    def points(self, x: np.ndarray | Tensor) -> Iterator[Tensor]:
        """What ``x`` becomes, ``[rows, size]``, in the order of s. A grid value k stands in a cell whose upper
        threshold is ``w + 1/2``, w being the first from k that is ``s + v`` modulo ``cells``; it becomes the middle of
        ``[w + 1/2 - cells, w + 1/2]``, cut to [0, levels], rounded once."""
        size = math.prod(self.base.shape)
        whole = _on_grid(x, size, self.levels)
        draw = torch.Generator().manual_seed(self.seed % 2**63)
        starts = (torch.randint(self.cells, (size,), generator=draw) - whole).int().to(self.base.device)
        whole = whole.int().to(self.base.device)
        last = 2 * torch.arange(self.levels + self.cells) + 1  # w + 1/2, in halves of a step
        middles = last.clamp(max=2 * self.levels) + (last - 2 * self.cells).clamp(min=0)  # in quarters of one
        # In float64 first: quotients of such small numbers are never as near to a tie of float32 as that is off.
        table = (middles.double() / (4 * self.levels)).to(self.base.device, self.base.dtype)
        for start in range(0, self.cells, self.base.rows):
            s = torch.arange(start, min(start + self.base.rows, self.cells), dtype=torch.int32, device=self.base.device)
            w = (s[:, None] + starts).remainder_(self.cells).add_(whole)
            yield table.index_select(0, w.flatten()).view(len(s), -1)


def derandomise(
    model: Model,
    width: float | Fraction,
    *,
    levels: int = 255,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    way: Way = Way(),  # noqa: B008 - a frozen value
) -> Splitting:
    """The classifier ``model`` smoothed with splitting noise; the other arguments are those of ``smooth``. ``width``
    becomes the nearest possible (at least half a grid step): the results say which. Raises ``InputError`` and
    ``UnsupportedError``."""
    if not 0 < width < math.inf:
        raise InputError(f"width: {width} is not a positive number")
    return Splitting(base(model, shape, way), max(1, round(2 * Fraction(width) * levels)), levels, seed)


def _on_grid(x: np.ndarray | Tensor, size: int, levels: int) -> Tensor:
    """The whole numbers ``[size]`` that ``x`` is in steps of the grid. Raises ``InputError``."""
    given = torch.as_tensor(x).detach().cpu().double()
    if given.shape != (size,):
        raise InputError(f"an input of shape {list(given.shape)} does not fit a classifier of [{size}]")
    whole = (given * levels).round().clamp(0, levels)
    away = (given - whole / levels).abs()
    bad = torch.nonzero(~(away <= _ROUNDING))
    if len(bad):
        at = int(bad[0])
        why = f"is no multiple of 1/{levels}" if 0 <= given[at] <= 1 else "is outside [0, 1]"
        raise InputError(
            f"element {at} of the input, {float(given[at]):.9g}, {why}: the certificates are of inputs on the grid "
            f"{{0, 1/{levels}, ..., 1}}; divide levels of image files by {levels}, or name the levels that there are"
        )
    return whole.long()
