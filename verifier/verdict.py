"""The kinds of answer. A verdict is one of four words; other kinds of result have types of their own elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np

Word = Literal["sat", "unsat", "unknown", "timeout"]

TO_TOLERANCE = "refuted to solver tolerance 1e-6"
"""The reason of an ``Unknown`` where a solver claims that there is no counterexample and the proof did not come to its
end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running verification is: the ``stage`` at work, the least ``lower_bound`` over what is open (-inf: none
    yet), the number of ``open_subproblems``, the ``open_share`` of the input set or tree in [0, 1], ``seconds`` so far,
    the least value seen at a point (``upper_bound``, inf: none yet; a counterexample has one of at most 0).
    """

    stage: str
    lower_bound: float = float("-inf")
    open_subproblems: int = 0
    open_share: float = 1.0
    seconds: float = 0.0
    upper_bound: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False)
class Counterexample:
    """A point that violates the property, replayed with onnxruntime.

    ``inputs`` and ``outputs`` are flat arrays per declared variable, in declaration order, in the model's dtype.
    ``real`` is the status in exact real arithmetic: ``violated``, ``holds`` or ``open`` (not decided).
    ``margin`` is the least slack of the clause's literals on the replayed outputs (>= 0: they hold).
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    clause: int
    margin: float
    replayed_with: str
    real: Literal["violated", "holds", "open"] = "open"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Verdict:
    """What ``verify`` answers: ``word``, the ``stage`` that decided, the ``seconds`` it took, and ``notes``.

    Notes are sentences that qualify the answer, such as the count of widened inputs.
    """

    word: ClassVar[Word]
    stage: str
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Violated(Verdict):
    """``sat``: a counterexample exists; onnxruntime replays it."""

    word: ClassVar[Word] = "sat"
    counterexample: Counterexample


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Verified(Verdict):
    """``unsat``: no counterexample exists.

    ``semantics`` says for which arithmetic ("real": exact arithmetic over the stored weights). ``margin`` is
    the least proven distance: at every input of the set each clause has a literal, or a combination of its literals
    with weights of sum 1, that fails by at least this much (inf: there was nothing to refute). ``subproblems`` is how
    many were refuted, each by bounds that include their rounding errors. ``float32_error`` is how far the forms of the
    property may be off where the network is computed in float32, in any order (inf: not known). ``record``: the file
    from which all of this can be proved again, where one was asked for.
    """

    word: ClassVar[Word] = "unsat"
    semantics: Literal["real", "float32"] = "real"
    margin: float = float("inf")
    subproblems: int = 0
    float32_error: float = float("inf")
    record: str | None = None

    @property
    def real_only(self) -> bool:
        """Whether the margin is within what float32 may be off: the proof then says nothing about float32."""
        return not self.margin > self.float32_error


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Unknown(Verdict):
    """``unknown`` with a reason; ``best_bound`` is the least lower bound left (-inf: none) and ``upper_bound`` the
    least value at a point that the search tried (inf: none), both as the search computed them, so that they claim
    nothing: the least distance from a counterexample lies between them. ``open_share`` is the share of the input set
    (or of the subproblem tree) that is still open, in [0, 1]."""

    word: ClassVar[Word] = "unknown"
    reason: str = ""
    best_bound: float = float("-inf")
    open_share: float = 1.0
    upper_bound: float = float("inf")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TimedOut(Unknown):
    """``timeout``: the limit came first."""

    word: ClassVar[Word] = "timeout"
    reason: str = field(default="time limit")
