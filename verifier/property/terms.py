"""Exact linear arithmetic over the variables of a property.

A variable is an integer: ``i`` for the flat output ``i``, ``~i`` for the flat input ``i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from verifier.query import Form

_MAX_BITS = 200_000


class NonlinearError(ValueError):
    """A product of variables."""


@dataclass(slots=True)
class Affine:
    """``constant + sum terms[v] * v``. An operand belongs to one expression, which may take its dictionary over."""

    constant: Fraction = Fraction(0)
    terms: dict[int, Fraction] = field(default_factory=dict)

    def scale(self, factor: Fraction) -> Affine:
        """This times an exact factor."""
        return Affine(self.constant * factor, {v: c * factor for v, c in self.terms.items()})


def add(operands: Sequence[Affine]) -> Affine:
    """The sum. The largest operand's dictionary is extended, so that a long nested sum costs linear time."""
    largest = max(operands, key=lambda o: len(o.terms))
    terms = largest.terms
    for operand in operands:
        if operand is not largest:
            for variable, coefficient in operand.terms.items():
                terms[variable] = terms.get(variable, Fraction(0)) + coefficient
    return Affine(sum((o.constant for o in operands), Fraction(0)), terms)


def subtract(operands: Sequence[Affine]) -> Affine:
    """The first minus the others; the negative of a single operand."""
    if len(operands) == 1:
        return operands[0].scale(Fraction(-1))
    return add([operands[0], add(operands[1:]).scale(Fraction(-1))])


def multiply(operands: Sequence[Affine]) -> Affine:
    """The product of constants and at most one other operand. Raises ``NonlinearError``, and ``OverflowError`` where
    the numbers grow beyond 200,000 bits."""
    factor, affine = Fraction(1), None
    for operand in operands:
        if not any(operand.terms.values()):
            factor *= operand.constant
        elif affine is None:
            affine = operand
        else:
            raise NonlinearError
        if factor.numerator.bit_length() + factor.denominator.bit_length() > _MAX_BITS:
            raise OverflowError
    return Affine(factor) if affine is None else affine.scale(factor)


def normalise(difference: Affine) -> tuple[Form, Fraction]:
    """``difference`` as ``scale * (form - rhs)``: the form with 1 as its first coefficient (outputs come first), and
    ``scale``; ``rhs`` is ``-difference.constant / scale``. Without variables: the empty form and 1."""
    variables = sorted((v for v, c in difference.terms.items() if c), key=lambda v: (v < 0, abs(v)))
    if not variables:
        return Form((), ()), Fraction(1)
    scale = difference.terms[variables[0]]
    pairs = [(v, difference.terms[v] / scale) for v in variables]
    return Form(tuple((v, c) for v, c in pairs if v >= 0), tuple((~v, c) for v, c in pairs if v < 0)), scale


def variable_form(variable: int) -> Form:
    """The form that is one variable."""
    pair = ((variable if variable >= 0 else ~variable, Fraction(1)),)
    return Form(pair, ()) if variable >= 0 else Form((), pair)
