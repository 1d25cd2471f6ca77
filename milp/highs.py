"""Models solved by HiGHS in this process: checked, handed over in one call, stopped as soon as enough is known.

What comes back holds to the solver's tolerances (1e-6) and is no proof (``milp.recheck``).

A time limit is looked at by the solver and, in callbacks, by us: at every iteration of the simplex method and between
the nodes of branch and bound. Where it calls nobody it cannot be stopped in the process that called it: in presolve and
in the factorisation of a basis, which on large models take seconds, and at the root of a mixed program, where cuts,
reduced costs and the search of a smaller program for good points (a sub-MIP) look at its own clock alone. Known never
to come back are programs with whole columns beyond 32 bits; they are refused. ``milp.process`` solves in a process of
its own, which is killed: there the limit is kept whatever the solver does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from milp.engine import NO_LIMITS, Engine, Hear, Limits, Outcome, Problem
from milp.model import Model, Solution, Status

__all__ = ["Limits", "Progress", "Runner", "Watch", "problem", "solve"]

_MOST = 2**31 - 1  # the solver counts in 32 bits
_HUGE = 1e20  # what the solver takes for infinite
_WIDEST = float(2**30)  # it walks over the values of whole columns in 32 bits, and over an overflow without an end


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How a search stands after ``seconds``: the solver's lower ``bound`` of the minimum (-inf: none), the ``value`` of
    the best point (inf: none), and that point ``x`` ``[C]`` where it is new."""

    bound: float
    value: float
    seconds: float
    x: Tensor | None = None


Watch = Callable[[Progress], None]


class Runner(Protocol):
    """What solves a model: ``InProcess`` in this process, ``milp.process.ProcessRunner`` in a killable one."""

    def __call__(
        self, model: Model, limits: Limits = ..., *, start: Tensor | None = None, watch: Watch | None = None
    ) -> Solution:
        """As ``milp.highs.solve``."""


def solve(
    model: Model, limits: Limits = NO_LIMITS, *, start: Tensor | None = None, watch: Watch | None = None
) -> Solution:
    """Minimise by branch and bound (by the simplex method where no column is whole), on one thread.

    ``start`` ``[C]``: a point to begin with; its whole columns, rounded, decide, and the solver finds the others.
    ``watch`` is told of every new best point, and of the bound about ten times a second.

    ``Solution.status``: OPTIMAL to the solver's tolerances; INFEASIBLE; STOPPED where ``limits.bound`` or
    ``limits.value`` was met; LIMIT on time or nodes; FAILED where the solver refuses the model (nan, coefficients from
    1e15, whole columns that reach 2**30, an unbounded program), crashes in a way that can be caught, or contradicts
    itself. ``limits.seconds`` can be overrun, as the module says. ``bound`` is the best one
    that the solver has named, whatever the status. A linear program has row multipliers too (``milp.simplex``).

    Raises ``ValueError`` where the model's arrays do not fit together, or ``start`` is not C finite numbers.
    """
    given = problem(model)
    begin = None if start is None else first(model, start).numpy()
    answer = refused(model)
    if answer is not None:
        return answer
    outcome = Engine(given).run(limits, start=begin, hear=relay(watch))
    return solution(outcome)


@dataclass(frozen=True, slots=True)
class InProcess:
    """The runner that solves in the caller's process. It cannot be killed: where the solver calls nobody it goes on
    beyond ``limits.seconds`` (the module says where), which ``milp.process.ProcessRunner`` never does."""

    def __call__(
        self,
        model: Model,
        limits: Limits = Limits(),  # noqa: B008 - a frozen value
        *,
        start: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Solution:
        """As ``solve``."""
        return solve(model, limits, start=start, watch=watch)


def filled(
    model: Model,
    columns: Tensor,
    values: Tensor,
    *,
    runner: Runner = InProcess(),
    seconds: float | None = None,
) -> Tensor | None:
    """``[C]``: values of all columns, phases too, where ``columns`` ``[K]`` (the inputs) have these values: a point for
    ``solve`` to begin with. None where the ``runner`` finds none (within ``seconds``)."""
    lower = model.lower.index_copy(0, columns, values)
    upper = model.upper.index_copy(0, columns, values)
    return runner(replace(model, lower=lower, upper=upper, cost=torch.zeros_like(model.cost)), Limits(seconds)).x


def problem(model: Model) -> Problem:
    """The model's arrays as the solver takes them. Raises ``ValueError`` where they do not fit together: lengths,
    types, row starts, column numbers, a column twice in a row."""
    columns, rows, entries = model.cost.shape[0], model.row_lower.shape[0], model.index.shape[0]
    if max(columns, rows, entries) > _MOST:
        raise ValueError(f"{columns} columns, {rows} rows, {entries} entries: the solver counts to {_MOST}")
    expected = {
        "cost": (columns, torch.float64),
        "lower": (columns, torch.float64),
        "upper": (columns, torch.float64),
        "integer": (columns, torch.bool),
        "row_lower": (rows, torch.float64),
        "row_upper": (rows, torch.float64),
        "start": (rows + 1, torch.int64),
        "index": (entries, torch.int64),
        "value": (entries, torch.float64),
    }
    arrays = {name: getattr(model, name) for name in expected}
    for name, (length, kind) in expected.items():
        array = arrays[name]
        if tuple(array.shape) != (length,) or array.dtype != kind:
            raise ValueError(f"a model's {name} is {kind} [{length}], not {array.dtype} {list(array.shape)}")
    _check_rows(model)
    return Problem(
        offset=float(model.offset), **{name: array.cpu().contiguous().numpy() for name, array in arrays.items()}
    )


def _check_rows(model: Model) -> None:
    """Raise ``ValueError`` unless the compressed rows are well formed."""
    columns, counts = model.cost.shape[0], model.start.diff()
    if int(model.start[0]) != 0 or int(model.start[-1]) != model.index.shape[0] or bool((counts < 0).any()):
        raise ValueError("a model's start rises from 0 to the number of entries")
    if model.index.numel() and not 0 <= int(model.index.min()) <= int(model.index.max()) < columns:
        raise ValueError(f"a model's index names columns that are not among its {columns}")
    place = torch.repeat_interleave(torch.arange(counts.shape[0]), counts) * columns + model.index
    if not bool((place.diff() > 0).all()):
        twice = (place.sort().values.diff() == 0).nonzero()
        if twice.numel():
            place = place.sort().values[twice[0]]
            raise ValueError(f"column {int(place) % columns} stands twice in row {int(place) // columns} of the model")


def refused(model: Model) -> Solution | None:
    """The answer to a mixed program that the solver must not be asked about; None: it may."""
    return flaw(model) or flaw_of_columns(model.lower, model.upper, model.cost) or _flaw_of_whole(model)


def _flaw_of_whole(model: Model) -> Solution | None:
    wide = model.integer & (torch.maximum(model.lower.abs(), model.upper.abs()) >= _WIDEST)
    if not bool(wide.any()):
        return None
    column = int(wide.nonzero()[0])
    ends = f"[{float(model.lower[column]):g}, {float(model.upper[column]):g}]"
    reason = f"column {column} takes whole numbers in {ends}: the solver walks over such values in 32 bits"
    return Solution(Status.FAILED, torch.inf, -torch.inf, reason=reason)


def flaw(model: Model) -> Solution | None:
    """The answer to a model whose rows the solver must not be asked about; None: it may.

    FAILED for numbers that are none or that the solver takes for infinite, INFEASIBLE where the sides of a row cross
    (there are no multipliers of that), and the answer itself where there is no column.
    """
    found = _infinite("value", model.value) or _infinite("offset", torch.tensor(model.offset))
    found = found or _crossed("row", model.row_lower, model.row_upper)
    return found or (_without_columns(model) if model.cost.shape[0] == 0 else None)


def flaw_of_columns(lower: Tensor, upper: Tensor, cost: Tensor) -> Solution | None:
    """The same of the ends and the costs of columns."""
    return _infinite("cost", cost) or _crossed("column", lower, upper)


def _infinite(name: str, array: Tensor) -> Solution | None:
    if bool((array.abs() < _HUGE).all()):
        return None
    return Solution(Status.FAILED, torch.inf, -torch.inf, reason=f"{name}: not a number, or beyond {_HUGE:g}")


def _crossed(name: str, lower: Tensor, upper: Tensor) -> Solution | None:
    if bool((lower <= upper).all()):
        return None
    if bool((lower.isnan() | upper.isnan()).any()):
        return Solution(Status.FAILED, torch.inf, -torch.inf, reason=f"the ends of a {name} are not numbers")
    number = int((lower > upper).nonzero()[0])
    return Solution(Status.INFEASIBLE, torch.inf, torch.inf, reason=f"the ends of {name} {number} cross")


def _without_columns(model: Model) -> Solution:
    nothing, dual = torch.zeros(0, dtype=torch.float64), torch.zeros_like(model.row_lower)
    wrong = (model.row_lower > 0).double() - (model.row_upper < 0).double()
    if bool(wrong.any()):
        return Solution(Status.INFEASIBLE, torch.inf, torch.inf, None, wrong)
    return Solution(Status.OPTIMAL, model.offset, model.offset, nothing, dual)


def first(model: Model, start: Tensor) -> Tensor:
    """A point to begin with, as near to the model as can be had without the solver."""
    if tuple(start.shape) != (model.cost.shape[0],) or not bool(start.isfinite().all()):
        raise ValueError(f"a start is one finite number for each of the {model.cost.shape[0]} columns")
    inside = start.double().cpu().clamp(model.lower, model.upper)
    return torch.where(model.integer, inside.round(), inside)


def relay(watch: Watch | None) -> Hear | None:
    """What passes the solver's words on to ``watch``."""
    if watch is None:
        return None

    def hear(bound: float, value: float, seconds: float, x: bytes | None) -> None:
        watch(Progress(bound, value, seconds, numbers(x)))

    return hear


def solution(outcome: Outcome) -> Solution:
    """The outcome with tensors in place of bytes."""
    return Solution(
        outcome.status, outcome.value, outcome.bound, numbers(outcome.x), numbers(outcome.dual), outcome.reason
    )


def numbers(data: bytes | None) -> Tensor | None:
    """The float64 numbers of these bytes."""
    if data is None:
        return None
    return torch.frombuffer(bytearray(data), dtype=torch.float64) if data else torch.zeros(0, dtype=torch.float64)
