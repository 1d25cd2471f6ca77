"""Where noise is added: to the input, to the input on a grid, or to what the first layer makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from verifier.smoothing.counting import Scores
from verifier.smoothing.exact import Grid, GridNoise, check_range
from verifier.smoothing.layer import NoiseLayer
from verifier.smoothing.noise import Noise, Norm
from verifier.smoothing.shifts import Larger, Scaled, Shift


class Place(Protocol):
    """Noise and the classifier behind it."""

    @property
    def noise(self) -> Noise:
        """What is added."""

    @property
    def scores(self) -> Scores:
        """The classifier of noisy values."""

    @property
    def unit(self) -> float:
        """What noise is measured in."""

    @property
    def arithmetic(self) -> str:
        """What certificates hold in, as results say it."""

    def start(self, x: Tensor) -> Tensor:
        """What noise is added to for an input ``[n]``. Raises ``InputError`` for inputs that do not fit."""

    def shift(self, norm: Norm, size: int) -> Shift:
        """What shifts of an input of ``size`` elements do."""


@dataclass(frozen=True, slots=True, eq=False)
class AtInput:
    """Noise on the input itself."""

    noise: Noise
    scores: Scores
    unit: ClassVar[float] = 1.0
    arithmetic: ClassVar[str] = "real arithmetic"

    def start(self, x: Tensor) -> Tensor:
        """See ``Place``."""
        return x

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Place``."""
        return self.noise.shift(norm, size)


@dataclass(frozen=True, slots=True, eq=False)
class OnGrid:
    """Noise in whole steps of a grid that inputs are on (``exact``)."""

    noise: GridNoise
    plain: Scores
    arithmetic: ClassVar[str] = "floating point included"

    @property
    def unit(self) -> float:
        """See ``Place``."""
        return float(self.noise.step)

    def scores(self, numbers: Tensor) -> Tensor:
        """See ``Place``."""
        return self.plain(Grid(self.noise.step).points(numbers))

    def start(self, x: Tensor) -> Tensor:
        """See ``Place``."""
        numbers = Grid(self.noise.step).numbers(x)
        check_range(self.noise, numbers)
        return numbers

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Place``."""
        return Scaled(self.noise.shift(norm, size), float(self.noise.step))


@dataclass(frozen=True, slots=True, eq=False)
class AfterLayer:
    """Noise on the values of the first layer (Lecuyer et al., S&P 2019): what follows is a classifier smoothed at its
    input, and a change of the input by r moves that by ``sensitivity * r`` at most."""

    noise: Noise
    layer: NoiseLayer
    unit: ClassVar[float] = 1.0
    arithmetic: ClassVar[str] = "real arithmetic"

    @property
    def scores(self) -> Scores:
        """See ``Place``."""
        return self.layer.after

    def start(self, x: Tensor) -> Tensor:
        """See ``Place``."""
        return self.layer.before(x.unsqueeze(0))[0]

    def shift(self, norm: Norm, size: int) -> Shift:
        """See ``Place``: by the norm of the layer's values that says most."""
        known = {q: stretch for (p, q), stretch in self.layer.sensitivities.items() if p == norm and stretch < math.inf}
        size = self.layer.size
        return Larger(tuple(Scaled(self.noise.shift(q, size), 1 / max(known[q], 1e-300)) for q in known))
