"""What searches for a robust radius have in common: the input they are about, its surroundings, and their answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bounds import Box, Crown, DomainError, Graph, LpBall, compute_bounds, margins, prepare
from bounds.compute import Method
from verifier import limits
from verifier.errors import InputError
from verifier.ranges import rounded
from verifier.regions import Number, class_at, exact_range, fitting

if TYPE_CHECKING:
    from verifier.network import Network

Status = Literal["exact", "none", "open", "limit"]

_SCALINGS, _HALVINGS = 12, 4
"""Steps of the search for a radius that bounds alone prove: by factors of 2 until one is proven and its double is not,
then between them."""

_ROOT_BITS = 1200
"""Of a square root, the binary digits behind the point: the least float64 has 1074."""


@dataclass(frozen=True, slots=True, eq=False)
class RadiusBracket:
    """``lower``: proven, at every smaller distance from the input (among those that count) the score of ``label`` is
    above all others, in real arithmetic over the stored weights (inf: there is no other input). ``upper``: the exact
    distance, rounded up, of ``point`` ``[*input shape]`` in float64, where the class ``other`` scores at least as much
    as the label: as computed in float64 (``exact_radius``), as onnxruntime returns (``radius``). (inf, None, None: none
    was found.)

    ``status``: "exact", the ends are within the gap; "none", no input that counts has another class; "open",
    the proof got stuck; "limit", not done.
    """

    lower: float
    upper: float
    point: np.ndarray | None
    other: int | None
    label: int
    norm: str
    status: Status


@dataclass(frozen=True, slots=True)
class RadiusProgress:
    """What is proven, the distance of the nearest example (inf: none), how many subproblems are ``open``."""

    lower: float
    upper: float
    open: int


Report = Callable[[RadiusProgress], None]


@dataclass(frozen=True, slots=True, eq=False)
class Centre:
    """An input ``x`` ``[*input shape]`` (float64, exact) of class ``label`` of a ``graph``, with a ``norm`` "inf", "2"
    or "1" for distances, and the inputs that count: ``outer`` encloses them, those in the range ``inner`` are among
    them (None: all count). ``own_label``: the label is the model's own."""

    graph: Graph
    x: Tensor
    norm: str
    label: int
    own_label: bool
    outer: Box | None
    inner: tuple[float, float] | None

    @staticmethod
    def of(
        network: Network,
        x: np.ndarray,
        norm: str,
        label: int | None,
        data_range: tuple[Number, Number] | None,
    ) -> Centre:
        """Look at what is asked, but for the class at ``x`` (``check``). Raises ``InputError``."""
        point, variable = fitting(x, network, "the point"), network.inputs[0]
        if network.outputs[0].size < 2:
            raise InputError("a radius asks for a class: the model needs at least two outputs")
        if not network.graph.variable[network.graph.outputs[0]]:
            raise InputError("the model's output does not depend on its input: no change reaches another class")
        outer, inner = _within(data_range, point, variable.shape)
        own = class_at(network, point) if label is None else label
        centre = torch.from_numpy(point).reshape(variable.shape)
        return Centre(network.graph, centre, norm, own, label is None, outer, inner)

    def check(self) -> None:
        """Raise ``InputError`` where the label is no class, or another class is ahead already."""
        classes = math.prod(self.graph.nodes[self.graph.outputs[0]].shape)
        if not 0 <= self.label < classes:
            raise InputError(f"label {self.label}: the model has the classes 0 to {classes - 1}")
        scores, others = self.scores(self.x), self.others(self.x)
        if not bool(scores.isfinite().all()):
            raise InputError("at the input the model's scores are not all finite: it has no class there")
        best = int(others.argmax())
        if float(others[best]) < float(scores[self.label]):
            return
        advice = (
            "the scores are equal up to rounding: no change is needed"
            if self.own_label
            else f"leave out --label, or give --label {best}"
        )
        raise InputError(
            f"label {self.label}: at the input class {best} scores {float(others[best]):.9g} and class {self.label} "
            f"{float(scores[self.label]):.9g}, so that the radius is 0: {advice}"
        )

    def ball(self, radius: float) -> Box | LpBall:
        """All inputs that count within this distance."""
        x = self.x.unsqueeze(0)
        if self.norm != "inf":
            return LpBall(x, torch.tensor([radius], dtype=torch.float64), float(self.norm), self.outer)
        ends = [torch.nextafter(x + s * radius, x.new_tensor(s * math.inf)) for s in (-1.0, 1.0)]
        return Box(*ends) if self.outer is None else Box(*ends).intersection(self.outer)

    def counts(self, point: Tensor) -> bool:
        """Whether a point ``[*input shape]`` counts."""
        return self.inner is None or bool(((point >= self.inner[0]) & (point <= self.inner[1])).all())

    def reach(self) -> float:
        """A distance that no input that counts exceeds."""
        if self.outer is None:
            return math.inf
        ends = (values.flatten().tolist() for values in (self.outer.lower, self.x, self.outer.upper))
        sides = ((Fraction(low), Fraction(at), Fraction(high)) for low, at, high in zip(*ends, strict=True))
        # Floats need not hold the sum of an input and how far it can move.
        return self._length([max(at - low, high - at) for low, at, high in sides])

    def distance(self, point: Tensor) -> float:
        """The exact distance of a point, rounded up."""
        pairs = zip(point.flatten().tolist(), self.x.flatten().tolist(), strict=True)
        return self._length([abs(Fraction(a) - Fraction(b)) for a, b in pairs if a != b] or [Fraction(0)])

    def _length(self, changes: list[Fraction]) -> float:
        """The exact norm of changes >= 0, rounded up."""
        if self.norm == "2":
            return _root_above(sum((c * c for c in changes), Fraction(0)))
        return rounded(max(changes) if self.norm == "inf" else sum(changes, Fraction(0)), 1)

    def scores(self, point: Tensor) -> Tensor:
        """The scores ``[classes]`` at a point, as computed in float64."""
        return self.graph.evaluate(point.unsqueeze(0))[0].flatten()

    def others(self, point: Tensor) -> Tensor:
        """The scores ``[classes]``, that of the label -inf."""
        scores = self.scores(point)
        scores[self.label] = -math.inf
        return scores

    def by_bounds(self, deadline: float | None) -> tuple[float, float]:
        """A radius within which bounds of the margins prove the label (0: none was found), and one where they do not
        (inf: all of them did, or the deadline came): a lower end before anything is searched."""
        proves = Prover(self, Crown())

        def proven(radius: float) -> bool:
            return (deadline is None or limits.now() < deadline) and proves(radius)

        radius, lower, failed = float(1 + self.x.abs().amax()) / 16, 0.0, math.inf
        for _ in range(_SCALINGS):
            if proven(radius):
                lower = radius
            else:
                failed = radius
            if lower > 0 and failed < math.inf:
                break
            radius = radius / 2 if failed < math.inf else radius * 2
        for _ in range(_HALVINGS if 0 < lower < failed < math.inf else 0):
            middle = (lower + failed) / 2
            if proven(middle):
                lower = middle
            else:
                failed = middle
        return lower, failed


class Prover:
    """Whether bounds of the margins by a ``method`` prove the label within a radius."""

    def __init__(self, centre: Centre, method: Method) -> None:
        """The graph made ready once."""
        self.centre, self.method = centre, method
        self.prepared, self.rows = prepare(centre.graph, torch.float64), margins(centre.graph, centre.label)

    def __call__(self, radius: float) -> bool:
        """At every distance up to ``radius`` the label is ahead: proven, all rounding included (False: not known)."""
        try:
            found = compute_bounds(self.prepared, self.centre.ball(radius), self.method, rows=self.rows)
        except DomainError:  # an operator is not defined so far away
            return False
        return bool((found.lower > 0).all())


def _within(
    data_range: tuple[Number, Number] | None, point: np.ndarray, shape: tuple[int, ...]
) -> tuple[Box | None, tuple[float, float] | None]:
    """The inputs that count, rounded outward, and the ends rounded inward. Raises ``InputError``."""
    if data_range is None:
        return None, None
    low, high = exact_range(data_range)
    for value in np.unique(point).tolist():
        if not low <= Fraction(value) <= high:
            raise InputError(f"the point has an element {value} that is outside the data range [{low}, {high}]")
    whole = torch.ones((1, *shape), dtype=torch.float64)
    return Box(whole * rounded(low, -1), whole * rounded(high, 1)), (rounded(low, 1), rounded(high, -1))


def _root_above(square: Fraction) -> float:
    """The square root, rounded up."""
    top, shift = square.numerator << 2 * _ROOT_BITS, 1 << _ROOT_BITS
    root = math.isqrt(top // square.denominator)
    exact = root * root * square.denominator == top
    return rounded(Fraction(root if exact else root + 1, shift), 1)
