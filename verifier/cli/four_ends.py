"""What ``verifier range`` prints of ranges whose ends are known from both sides: a table, and the same as data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from verifier.cli.text import outward

if TYPE_CHECKING:
    from torch import Tensor

    from bounds import Box, Graph, LpBall
    from verifier.cli.search import Ending

SIDES = ("lower", "upper", "least", "greatest")


class FourEnds(Protocol):
    """Over N regions, of R values, all ``[N, R]``: proven ends, those that were found, and how each is known."""

    @property
    def lower(self) -> Tensor: ...
    @property
    def upper(self) -> Tensor: ...
    @property
    def least(self) -> Tensor: ...
    @property
    def greatest(self) -> Tensor: ...
    @property
    def status(self) -> Sequence[Sequence[str]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Outside:
    """Ends that were bounded from outside alone, before the time was up, or not at all."""

    lower: Tensor
    upper: Tensor
    least: Tensor
    greatest: Tensor
    status: tuple[tuple[str, ...], ...]

    @staticmethod
    def of(lower: Tensor, upper: Tensor) -> Outside:
        """Of proven ends ``[N, R]``."""
        states = (("limit",) * lower.shape[1],) * lower.shape[0]
        least = lower.new_full(lower.shape, math.inf)
        return Outside(lower, upper, least, -least, states)


def unknown(regions: int, values: int) -> Outside:
    """Nothing is known of so many values over so many regions."""
    import torch

    ends = torch.full((regions, values), math.inf, dtype=torch.float64)
    return Outside.of(-ends, ends)


def outside(graph: Graph, region: Box | LpBall, rows: Tensor | None) -> Outside:
    """Interval bounds, the quickest. Raises ``InputError``."""
    import torch

    from bounds import Interval
    from verifier.ranges import bounded

    found = bounded(graph, region.to(torch.float64, "cpu"), Interval(), rows)
    return Outside.of(found.lower.flatten(1), found.upper.flatten(1))


def head(many: bool) -> tuple[str, ...]:
    """The first line of a table, of ``many`` regions or one."""
    return ("region",) * many + ("output", *SIDES, "status")


def counted(found: FourEnds) -> str:
    """How many values over how many regions."""
    regions = len(found.status)
    values = len(found.status[0])
    what = "1 value" if values == 1 else f"{values} values"
    return f"{what} over " + ("1 region" if regions == 1 else f"{regions} regions")


def table(found: FourEnds, names: Sequence[str], ways: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A line for each value, its ends (in the order of ``SIDES``) rounded in the ``ways`` of ``decimal``."""
    many = len(found.status) > 1
    yield head(many)
    sides = [getattr(found, side).tolist() for side in SIDES]
    for k, states in enumerate(found.status):
        for r, (name, state) in enumerate(zip(names, states, strict=True)):
            numbers = (outward(side[k][r], way) for side, way in zip(sides, ways, strict=True))
            yield (str(k),) * many + (name, *numbers, state)


def record(found: FourEnds, gap: float, ending: Ending, seconds: float) -> dict[str, Any]:
    """The same as data: exact decimals, an infinite end is null."""
    from verifier.report.result import number

    return {
        **{side: [[number(v) for v in row] for row in getattr(found, side).tolist()] for side in SIDES},
        "status": [list(states) for states in found.status],
        "gap": gap,
        "ending": ending,
        "seconds": round(seconds, 3),
    }
