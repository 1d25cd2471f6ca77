"""A model for other solvers: as a PuLP problem, as an .lp or .mps file, and solved by CBC.

The files are written here and not by PuLP, which rounds every number to 12 digits and leaves out the objective's
constant: another model. Here a number is written with as many digits as it takes to read the same double back.
A constant of the objective is the cost of a column ``constant`` that is fixed to 1, which every reader understands. A
row with two finite and different sides becomes two rows, because formats and readers disagree on ranges and the
width of a range need not be a double; a row without any side is left out.

Two limits are the readers'. HiGHS leaves out coefficients of at most 1e-9 (its option ``small_matrix_value``) and takes
those above 1e15 for an error; CBC reads decimals with an error in the last digits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bounds.graph import Graph
from milp.model import Model
from milp.names import CONSTANT, OBJECTIVE, Names, readable_names

if TYPE_CHECKING:
    import pulp

ENDINGS = (".lp", ".mps")
_WORDS = 4
_INTORG, _INTEND = "'INTORG'", "'INTEND'"


@dataclass(frozen=True, slots=True)
class _Row:
    """``sum value * column <sense> side``; the sense is "<=", ">=" or "="."""

    name: str
    columns: list[int]
    values: list[float]
    sense: str
    side: float


def to_pulp(model: Model, graph: Graph | None = None, *, named: Mapping[int, str] | None = None) -> pulp.LpProblem:
    """The model as a PuLP problem, its variables in the order of the columns; ``names.py`` says how all is called.

    PuLP rounds numbers when it writes files, ``write`` does not. ``ValueError`` for a number that is NaN, and for a
    column without finite ends (it is named).
    """
    import pulp

    _check(model, names := readable_names(model, graph, named or {}))
    problem = pulp.LpProblem("network", pulp.LpMinimize)
    kinds = [pulp.LpInteger if whole else pulp.LpContinuous for whole in model.integer.tolist()]
    ends = zip(names.columns, model.lower.tolist(), model.upper.tolist(), kinds, strict=True)
    variables = [problem.add_variable(*column) for column in ends]
    cost = zip(variables, model.cost.tolist(), strict=True)
    problem.setObjective(pulp.LpAffineExpression([(v, c) for v, c in cost if c], constant=model.offset, name=OBJECTIVE))
    senses = {"<=": pulp.LpConstraintLE, ">=": pulp.LpConstraintGE, "=": pulp.LpConstraintEQ}
    for row in _rows(model, names):
        terms = [(variables[k], value) for k, value in zip(row.columns, row.values, strict=True)]
        problem.addConstraint(pulp.LpConstraint(pulp.LpAffineExpression(terms), senses[row.sense], row.name, row.side))
    return problem


def write(
    model: Model,
    path: str | os.PathLike[str],
    graph: Graph | None = None,
    *,
    named: Mapping[int, str] | None = None,
    comment: str = "",
) -> None:
    """Write the model to a file: the CPLEX format for a name that ends in ``.lp``, free MPS for ``.mps``.

    ``named``: names for some columns in place of those that ``readable_names`` finds; ``comment`` stands at the head of
    the file. ``ValueError`` for another ending, for a number that is NaN, and for a column without finite ends (it
    is named).
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: the ending says which format is written, .lp or .mps; this is {ending or 'none'}")
    _check(model, names := readable_names(model, graph, named or {}))
    lines = _lp(model, names) if ending == ".lp" else _mps(model, names)
    mark = "\\" if ending == ".lp" else "*"
    with open(path, "w", encoding="ascii", errors="backslashreplace", newline="\n") as file:
        file.writelines(f"{mark} {line}\n" for line in comment.splitlines())
        file.writelines(line + "\n" for line in lines)


def _check(model: Model, names: Names) -> None:
    for k in (~torch.isfinite(model.lower) | ~torch.isfinite(model.upper)).nonzero()[:1].flatten().tolist():
        raise ValueError(f"column {names.columns[k]} has no finite bounds: {model.lower[k]} to {model.upper[k]}")
    finite = torch.isfinite(model.value).all() & torch.isfinite(model.cost).all()
    if not bool(finite) or not math.isfinite(model.offset):
        raise ValueError("a coefficient of the model is not finite")
    if bool(torch.isnan(model.row_lower).any() | torch.isnan(model.row_upper).any()):
        raise ValueError("a side of a row is NaN")


def _rows(model: Model, names: Names) -> Iterator[_Row]:
    """The rows that say something, those with two different sides twice."""
    start, index, value = model.start.tolist(), model.index.tolist(), model.value.tolist()
    ends = zip(names.rows, model.row_lower.tolist(), model.row_upper.tolist(), strict=True)
    for k, (name, low, high) in enumerate(ends):
        part = slice(start[k], start[k + 1])
        if low == high:
            yield _Row(name, index[part], value[part], "=", low)
            continue
        if low > -math.inf:
            yield _Row(name, index[part], value[part], ">=", low)
        if high < math.inf:
            upper = f"{name}.upper" if low > -math.inf else name
            yield _Row(upper, index[part], value[part], "<=", high)


def _lp(model: Model, names: Names) -> Iterator[str]:
    yield "minimize"
    terms = [_term(c, name) for c, name in zip(model.cost.tolist(), names.columns, strict=True) if c]
    yield from _folded([f"{OBJECTIVE}:", *terms, _term(model.offset, CONSTANT)])
    yield "subject to"
    for row in _rows(model, names):
        entries = zip(row.columns, row.values, strict=True)
        # A row without entries still says that 0 lies within its sides.
        terms = [_term(v, names.columns[k]) for k, v in entries] or [_term(0.0, CONSTANT)]
        yield from _folded([f"{row.name}:", *terms, f"{row.sense} {row.side!r}"])
    yield "bounds"
    yield f" {CONSTANT} = 1"
    for name, low, high in zip(names.columns, model.lower.tolist(), model.upper.tolist(), strict=True):
        yield f" {name} = {low!r}" if low == high else f" {low!r} <= {name} <= {high!r}"
    whole = [name for name, integer in zip(names.columns, model.integer.tolist(), strict=True) if integer]
    if whole:
        yield "generals"
        yield from (f" {name}" for name in whole)
    yield "end"


def _folded(words: list[str]) -> Iterator[str]:
    """Lines of a few words each: some readers have a longest line."""
    for k in range(0, len(words), _WORDS):
        yield " " * (1 if k == 0 else 3) + " ".join(words[k : k + _WORDS])


def _term(value: float, name: str) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value)!r} {name}"


def _mps(model: Model, names: Names) -> Iterator[str]:
    rows = list(_rows(model, names))
    columns: list[list[str]] = [[] for _ in names.columns]
    for row in rows:
        for k, value in zip(row.columns, row.values, strict=True):
            columns[k].append(f" {names.columns[k]} {row.name} {value!r}")
    yield "NAME network"
    yield "ROWS"
    yield f" N {OBJECTIVE}"
    letters = {"<=": "L", ">=": "G", "=": "E"}
    yield from (f" {letters[row.sense]} {row.name}" for row in rows)
    yield "COLUMNS"
    whole = False
    kinds = zip(names.columns, columns, model.cost.tolist(), model.integer.tolist(), strict=True)
    for name, lines, cost, integer in kinds:
        if integer != whole:
            yield f" MARKER 'MARKER' {_INTORG if integer else _INTEND}"
            whole = integer
        yield f" {name} {OBJECTIVE} {cost!r}"
        yield from lines
    if whole:
        yield f" MARKER 'MARKER' {_INTEND}"
    yield f" {CONSTANT} {OBJECTIVE} {model.offset!r}"
    yield "RHS"
    yield from (f" RHS {row.name} {row.side!r}" for row in rows if row.side)
    yield "BOUNDS"
    yield from _mps_bounds(model, names)
    yield "ENDATA"


def _mps_bounds(model: Model, names: Names) -> Iterator[str]:
    for name, low, high in zip(names.columns, model.lower.tolist(), model.upper.tolist(), strict=True):
        if low == high:
            yield f" FX BND {name} {low!r}"
        else:
            yield f" LO BND {name} {low!r}"
            yield f" UP BND {name} {high!r}"
    yield f" FX BND {CONSTANT} 1.0"
