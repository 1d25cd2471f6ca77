"""What is asked of a box, as a mixed-integer program whose minimum answers it.

A literal's value is ``sign * form - threshold``; it is true where that is at most 0. A clause is as far from true as
the largest value of its literals, a box as the least such number over its clauses: its *margin*. A program minimises
the margin over the box. Where the minimum is above 0, there is no counterexample in the box.

One literal is minimised directly. The largest of several is a column t with ``t >= value`` for each, and the least over
clauses is t with ``t >= value - M (1 - z)`` for every literal of the clause of the binary z, exactly one of which is 1.
Thresholds and M are rounded so that the true margin never lies below the minimum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bounds import Bounds, Box, Crown, DomainError, Prepared, compute_bounds
from bounds.compute import Method
from bounds.constraints import Row
from bounds.graph import Graph
from bounds.ops.base import UnsupportedOperatorError
from milp.encode import UnboundedError, encode
from milp.extend import with_columns, with_rows
from milp.model import Model
from verifier.errors import InputError, UnsupportedError
from verifier.query import Cases, Query


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The margin of some clauses of one box as a model; ``named``: the columns that a reader will look for."""

    model: Model
    graph: Graph
    box: int
    clauses: tuple[int, ...]
    named: Mapping[int, str]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBox:
    """A query's graph on its box ``number``: ``model`` without a cost, ``forms`` ``[F]`` the columns of the forms (-1:
    the form is 0 there); ``bounds``: those that it rests on, where they are of use to someone."""

    query: Query
    number: int
    graph: Graph
    model: Model
    forms: Tensor
    bounds: Bounds | None = None

    @staticmethod
    def of(
        query: Query,
        prepared: Prepared,
        number: int,
        method: Method = Crown(),  # noqa: B008 - a frozen value
        envelope: float | None = None,
    ) -> EncodedBox:
        """Bound the box and encode it. ``prepared``: the query's graph, for ``semantics="real"``; ``envelope``: how
        loose operators without an exact form may be enclosed (None: they are refused).

        Raises ``UnsupportedError`` for an operator without an exact form and for a neuron without finite bounds (both
        are named), ``InputError`` where the box reaches points at which an operator has no value.
        """
        try:
            bounds = compute_bounds(prepared, box_of(query, number), method, keep=prepared.plan.watched)
        except DomainError as error:
            raise InputError(str(error)) from error
        return EncodedBox.over(query, prepared, number, bounds, envelope)

    @staticmethod
    def over(
        query: Query, prepared: Prepared, number: int, bounds: Bounds, envelope: float | None = None
    ) -> EncodedBox:
        """Encode the box with proven bounds that are there already. Raises ``UnsupportedError`` as ``of``."""
        try:
            model = encode(prepared, box_of(query, number), bounds, envelope)
        except (UnsupportedOperatorError, UnboundedError) as error:
            raise UnsupportedError(str(error)) from error
        graph, output = prepared.plan.graph, prepared.plan.output
        return EncodedBox(query, number, graph, model, model.columns[output], bounds)

    @property
    def clauses(self) -> range:
        """The numbers of the box's clauses in the query."""
        first, last = self.query.cases.clauses_of[self.number : self.number + 2].tolist()
        return range(first, last)

    def literals(self, clause: int) -> int:
        """How many literals a clause of the query has."""
        first, last = self.query.cases.literals_of[clause : clause + 2].tolist()
        return int(last - first)


def box_of(query: Query, number: int) -> Box:
    """A query's box."""
    ends = (query.cases.lower[number], query.cases.upper[number])
    return Box(*(torch.from_numpy(end)[None] for end in ends))


def clause_program(encoded: EncodedBox, clause: int) -> Program:
    """The program whose minimum is the margin of one clause of the box.

    ``InputError`` for a clause without literals, which is true everywhere.
    """
    literals = _Literals.of(encoded, clause)
    if literals.column.shape[0] == 1:
        column, sign = literals.column, literals.sign
        cost = torch.zeros_like(encoded.model.lower).index_add_(0, column.clamp(min=0), sign * (column >= 0))
        model = replace(encoded.model, cost=cost, offset=-float(literals.threshold[0]))
        return _program(encoded, model, (clause,), {})
    low, high = (ends.max().reshape(1) for ends in literals.ends(encoded.model))
    model, margin = with_columns(encoded.model, low, high)
    model = with_rows(model, [literals.below(margin)])
    return _program(encoded, _minimising(model, margin), (clause,), {int(margin): "margin"})


def box_program(encoded: EncodedBox, clauses: Sequence[int] | None = None) -> Program:
    """The program whose minimum is the margin of the box: the least one of some of its clauses (default: all).

    ``InputError`` for a clause without literals, which is true everywhere.
    """
    chosen = tuple(encoded.clauses if clauses is None else clauses)
    if len(chosen) == 1:
        return clause_program(encoded, chosen[0])
    literals = [_Literals.of(encoded, k) for k in chosen]
    ends = [part.ends(encoded.model) for part in literals]
    low, high = (torch.stack([end[side].max() for end in ends]).min().reshape(1) for side in (0, 1))
    model, margin = with_columns(encoded.model, low, high)
    zeros = torch.zeros(len(chosen), dtype=torch.float64)
    model, choice = with_columns(model, zeros, zeros + 1, integer=True)
    rows = [Row([(choice[k : k + 1], 1.0) for k in range(len(chosen))], 1.0, 1.0)]
    for part, z, (_, highest) in zip(literals, choice.split(1), ends, strict=True):
        # Where z is 0 a value may lie above t by this much.
        rows.append(part.below(margin, z, _up(highest - low).clamp(min=0)))
    named = {int(margin): "margin"} | {int(z): f"clause_{k}" for z, k in zip(choice, chosen, strict=True)}
    return _program(encoded, _minimising(with_rows(model, rows), margin), chosen, named)


@dataclass(frozen=True, slots=True, eq=False)
class _Literals:
    """The literals of a clause, one for each form and sign: the one with the least threshold has the largest value.

    ``column`` ``[L]`` of the model (-1: the form is 0), ``sign, threshold`` ``[L]`` float64.
    """

    column: Tensor
    sign: Tensor
    threshold: Tensor

    @staticmethod
    def of(encoded: EncodedBox, clause: int) -> _Literals:
        cases: Cases = encoded.query.cases
        if clause not in encoded.clauses:
            raise ValueError(f"box {encoded.number} has the clauses {encoded.clauses}, not {clause}")
        part = slice(*cases.literals_of[clause : clause + 2].tolist())
        form, sign, threshold = cases.form[part], cases.sign[part], cases.threshold[part]
        if not len(form):
            raise InputError(f"clause {clause} has no literals: every input of its box is a counterexample")
        order = np.lexsort((threshold, sign, form))
        form, sign, threshold = form[order], sign[order], threshold[order]
        first = np.append(True, (np.diff(form) != 0) | (np.diff(sign) != 0))
        places = torch.from_numpy(form[first].astype(np.int64))
        numbers = (torch.from_numpy(part[first].astype(np.float64)) for part in (sign, threshold))
        return _Literals(encoded.forms[places], *numbers)

    def ends(self, model: Model) -> tuple[Tensor, Tensor]:
        """``[L]`` each: proven bounds of the literals' values, rounded outward."""
        low, high = (torch.where(self.column >= 0, end[self.column], 0.0) for end in (model.lower, model.upper))
        positive = self.sign > 0
        lowest, highest = torch.where(positive, low, -high), torch.where(positive, high, -low)
        return -_up(self.threshold - lowest), _up(highest - self.threshold)

    def below(self, margin: Tensor, choice: Tensor | None = None, most: Tensor | None = None) -> Row:
        """``value <= t`` for each, or ``value <= t + most (1 - z)``."""
        count = self.column.shape[0]
        terms: list[tuple[Tensor, Tensor | float]] = [(margin.expand(count), 1.0), (self.column, -self.sign)]
        if choice is None or most is None:
            return Row(terms, lower=-self.threshold)
        return Row([*terms, (choice.expand(count), -most)], lower=-_up(self.threshold + most))


def _minimising(model: Model, margin: Tensor) -> Model:
    return replace(model, cost=torch.zeros_like(model.lower).index_fill_(0, margin, 1.0), offset=0.0)


def _program(encoded: EncodedBox, model: Model, clauses: tuple[int, ...], named: dict[int, str]) -> Program:
    """With the inputs called as the property declares them."""
    inputs = model.columns[encoded.graph.inputs[0]].tolist()
    for variable in encoded.query.specification.inputs:
        for k in range(variable.size):
            named[inputs[variable.start + k]] = f"{variable.name}_{k}"
    return Program(model, encoded.graph, encoded.number, clauses, named)


def _up(value: Tensor) -> Tensor:
    """A number above the exact result of the operation before it."""
    return torch.nextafter(value, torch.full_like(value, torch.inf))
