"""What can go wrong, by whose fault: each kind of error carries the exit code of the command line.

A message names the file, line, node, operator, shape or option, and the next step. This module imports nothing, so
that every part may import it.
"""

from __future__ import annotations

from typing import ClassVar


class VerifierError(Exception):
    """Base of all errors that are explained to the user in one line."""

    exit_code: ClassVar[int] = 4


class InputError(VerifierError):
    """A file, a property or an option is wrong: the user can mend it (exit code 2)."""

    exit_code: ClassVar[int] = 2


class UnsupportedError(VerifierError):
    """The input is valid and this program does not cover it (exit code 3)."""

    exit_code: ClassVar[int] = 3


class UnsupportedModelError(UnsupportedError):
    """A valid model uses operators, or forms of them, that are not supported; ``operators`` lists all of them."""

    def __init__(self, message: str, operators: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.operators = operators


class InternalError(VerifierError):
    """This program is wrong (exit code 4): no verdict may follow."""

    exit_code: ClassVar[int] = 4
