"""What an exact answer cannot be had for, said before the work begins or in the words of who asks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from bounds import DomainError, Graph
from bounds.ops.base import Nonlinear, UnsupportedOperatorError
from milp.encode import UnboundedError
from verifier.errors import InputError, UnsupportedError

_LISTED = 8

ENCLOSED = "--envelope ERROR (envelope=...) encloses such operators, and what is proven is then no longer exact"


def check_operators(graph: Graph, instead: str, envelope: float | None = None) -> None:
    """Raise ``UnsupportedError`` where some operators have no exact form: it names all of them, each with its nodes.

    ``instead``: what can be done. ``envelope``: how loosely such operators may be enclosed (None: not at all). Raises
    ``InputError`` where that is not above 0.
    """
    if envelope is not None:
        if not 0 < envelope < math.inf:
            raise InputError(f"envelope: {envelope} is not a positive number")
        return
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        # Asked of the class: the block itself cannot be made before all neurons are bounded, which takes a while.
        if graph.variable[node.id] and isinstance(node.op, Nonlinear) and type(node.op).exact is Nonlinear.exact:
            found.setdefault(type(node.op).__name__, []).append(node.name or str(node.id))
    if found:
        raise UnsupportedError(
            f"an exact answer needs operators that are linear piece by piece: {'; '.join(map(_line, found.items()))} "
            f"{'has' if len(found) == 1 else 'have'} no exact form. {instead}; {ENCLOSED}"
        )


def _line(entry: tuple[str, list[str]]) -> str:
    operator, nodes = entry
    more = f" and {len(nodes) - _LISTED} more" if len(nodes) > _LISTED else ""
    return f"{operator} (node{'s' * (len(nodes) > 1)} {', '.join(nodes[:_LISTED])}{more})"


@contextmanager
def explained(instead: str) -> Iterator[None]:
    """Errors of the encoding as those of this package, with what can be done ``instead``."""
    try:
        yield
    except DomainError as error:
        raise InputError(str(error)) from error
    except UnboundedError as error:
        raise UnsupportedError(str(error)) from error
    except UnsupportedOperatorError as error:
        raise UnsupportedError(f"{error}. {instead}") from error
