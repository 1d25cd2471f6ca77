"""What ``verifier range`` prints of ranges whose ends are known from both sides: a table, and the same as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from verifier.cli.text import outward

if TYPE_CHECKING:
    from torch import Tensor

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


def counted(found: FourEnds) -> str:
    """How many values over how many regions."""
    regions = len(found.status)
    return f"{len(found.status[0])} values over " + ("1 region" if regions == 1 else f"{regions} regions")


def table(found: FourEnds, names: Sequence[str], ways: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """A line for each value, its ends (in the order of ``SIDES``) rounded in the ``ways`` of ``decimal``."""
    many = len(found.status) > 1
    yield ("region",) * many + ("output", *SIDES, "status")
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
