"""What a statistical evaluation answers: a number with limits, a confidence, what these rest on. Never a verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, variance

from verifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Repeated:
    """``logs``: what each of R independent runs estimated, as natural logarithms (-inf: it was cut off)."""

    logs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the logarithms, -inf where a run was cut off."""
        return mean(self.logs)

    @property
    def variance(self) -> float:
        """The variance of one run's logarithm, from the spread of the runs; inf where a run was cut off."""
        return variance(self.logs) if all(map(math.isfinite, self.logs)) else math.inf


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated ``value`` of a ``quantity``, by a ``method``, from ``samples`` evaluations of the network.

    ``lower`` to ``upper`` covers the truth in a share ``confidence`` of all such experiments, if the ``assumptions``
    hold (sentences). It proves nothing: an estimate has no word, and asking whether it is true is a ``TypeError``.
    ``repeated`` has the single runs, where there were several.
    """

    value: float
    lower: float
    upper: float
    confidence: float
    quantity: str
    method: str
    samples: int
    assumptions: tuple[str, ...]
    repeated: Repeated | None = None

    def __bool__(self) -> bool:
        raise TypeError("an estimate is neither true nor false: compare its value, lower or upper")

    def __str__(self) -> str:
        return (
            f"estimate: {self.quantity} is {self.value:.6g}, {self.lower:.6g} to {self.upper:.6g} at "
            f"{100 * self.confidence:.10g} % confidence ({self.method}, {self.samples} samples, "
            f"{len(self.assumptions)} assumptions)"
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """No estimate: ``reason`` says why, ``p_value`` is that of the goodness-of-fit test (None: it was not reached), and
    ``samples`` evaluations of the network went into it. Like an estimate it is neither true nor false."""

    quantity: str
    method: str
    reason: str
    p_value: float | None
    samples: int

    def __bool__(self) -> bool:
        raise TypeError("a refused estimate is neither true nor false: its reason says what failed")

    def __str__(self) -> str:
        return f"no estimate of {self.quantity} ({self.method}, {self.samples} samples): {self.reason}"


def check_confidence(confidence: float) -> None:
    """Raise ``InputError`` for a confidence that is not between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence {confidence}: a number between 0 and 1 is needed, such as 0.95")


def check_count(name: str, value: object, least: int) -> None:
    """Raise ``InputError`` for what is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}: a whole number of at least {least} is needed")
