"""Properties of the corpus: exact to decide, and as VNN-LIB text.

A property is a few cases, each a box in decimals and clauses of literals; it describes the counterexample, so a point
that meets a clause makes the verdict ``sat``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from corpus.networks import ONE, ZERO, Sketch
from corpus.regions import Form, Piece, box_piece, met, pieces

MARGIN = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class Literal:
    """``left <relation> right``; sides are terms: ``Y_i``, ``X_i``, ``left - right`` of two of them, or a number."""

    left: str
    relation: str
    right: str

    def text(self) -> str:
        """The literal as VNN-LIB."""
        return f"({self.relation} {self.left} {self.right})"

    def forms(self, piece: Piece, outputs: Sequence[Form], slack: Fraction) -> list[tuple[Form, bool]]:
        """The literal as ``form >= 0`` over the inputs (an equality: two), loosened by ``slack``."""
        difference = term(self.left, piece, outputs).plus(term(self.right, piece, outputs), -ONE)
        signs = {"<=": (-1,), "<": (-1,), ">=": (1,), ">": (1,), "=": (-1, 1)}[self.relation]
        found = []
        for sign in signs:
            form = difference.times(Fraction(sign))
            found.append((replace(form, offset=form.offset + slack), self.relation in "<>"))
        return found


def term(text: str, piece: Piece, outputs: Sequence[Form]) -> Form:
    """The affine form over the inputs that a term stands for on a piece."""
    if text.startswith("(- "):
        left, right = text[3:-1].split()
        return term(left, piece, outputs).plus(term(right, piece, outputs), -ONE)
    size = len(piece.corners[0])
    if text.startswith("Y_"):
        return outputs[int(text[2:])]
    if text.startswith("X_"):
        return Form(tuple(Fraction(int(i == int(text[2:]))) for i in range(size)), ZERO)
    return Form((ZERO,) * size, Fraction(text))


@dataclass(frozen=True, slots=True)
class Case:
    """A box in decimals and its clauses."""

    lower: tuple[str, ...]
    upper: tuple[str, ...]
    clauses: tuple[tuple[Literal, ...], ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """A network with cases; ``witness`` meets a clause, exactly and with the thresholds tightened."""

    sketch: Sketch
    cases: tuple[Case, ...]

    def witness(self, slack: Fraction = ZERO) -> tuple[Fraction, ...] | None:
        """A point that meets some clause with every threshold loosened by ``slack``; None: there is none."""
        for case in self.cases:
            start = box_piece(tuple(map(Fraction, case.lower)), tuple(map(Fraction, case.upper)))
            for piece in pieces(self.sketch.layers, start) if start else ():
                for clause in case.clauses:
                    point = met(piece, [f for lit in clause for f in lit.forms(piece, piece.forms, slack)])
                    if point is not None:
                        return point
        return None

    def verdict(self, *, touching: bool) -> str | None:
        """``sat`` or ``unsat``; None where it hangs on less than ``MARGIN`` (unless that is wanted)."""
        exact = self.witness() is not None
        if not touching and any((self.witness(slack) is not None) != exact for slack in (MARGIN, -MARGIN)):
            return None
        return "sat" if exact else "unsat"

    def text(self) -> str:
        """The property as VNN-LIB 1.0: one box is asserted by itself, several as cases of one disjunction."""
        lines = [f"(declare-const X_{i} Real)" for i in range(self.sketch.inputs)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.sketch.width)]
        if len(self.cases) == 1:
            case, = self.cases
            lines += [f"(assert {bound})" for bound in bounds(case)]
            if len(case.clauses) == 1:
                lines += [f"(assert {literal.text()})" for literal in case.clauses[0]]
            else:
                lines += ["(assert (or", *(f"    (and {joined(c)})" for c in case.clauses), "))"]
        else:
            lines += ["(assert (or"]
            lines += [f"    (and {' '.join(bounds(k))} {joined(c)})" for k in self.cases for c in k.clauses]
            lines += ["))"]
        return "\n".join(lines) + "\n"


def bounds(case: Case) -> list[str]:
    """A box as literals."""
    return [
        text for i, (low, high) in enumerate(zip(case.lower, case.upper, strict=True))
        for text in (f"(>= X_{i} {low})", f"(<= X_{i} {high})")
    ]


def joined(clause: Sequence[Literal]) -> str:
    """The literals of a clause."""
    return " ".join(literal.text() for literal in clause)
