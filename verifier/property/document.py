"""A property as it was read: its literals as columns, and the and/or tree as a sequence of brackets.

The tree's leaves are the literals in the order of the text, so that a run of literals is a range of numbers and the
whole tree is the list of its brackets, each with the count of literals before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.property.numbers import Exact
from verifier.query import Form, NetworkDeclaration

AND, OR, END = 1, 2, 3
GREATER, STRICT = 1, 2
"""Bits of a literal's code: ``form >= rhs`` instead of ``form <= rhs``; strict instead of not."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """``head`` ``[L]``: four times the form's number plus the code; ``rhs`` ``[L]``: index into ``values``.

    ``brackets`` ``[E]`` are ``AND``, ``OR`` and ``END``; ``marks`` ``[E]`` the literals before each. The outermost
    level, which has no bracket, is the conjunction of all assertions.
    """

    name: str
    version: str
    networks: tuple[NetworkDeclaration, ...]
    forms: tuple[Form, ...]
    values: tuple[Exact, ...]
    head: np.ndarray
    rhs: np.ndarray
    brackets: np.ndarray
    marks: np.ndarray
