"""HiGHS behind a narrow door: buffers go in, bytes come out, and every known trap of the solver is dealt with here.

Nothing here needs torch, so the worker process starts in the time that the solver itself takes to load. What is
known of HiGHS (1.15) and shapes the code: its option ``objective_bound`` cuts off optima, so a bound that is asked for
is watched from a callback; its clock runs on from one solve to the next, and it overlooks its time limit in places, so
the callback looks at the clock too; a request to interrupt counts in interrupt callbacks only, and an exception must
not pass through the solver; nan is taken for a number and ends in "optimal"; after a model that it refuses it solves an
empty one. Callers check what they hand over (``milp.highs.problem``): an entry twice in a row corrupts its memory.
"""

from __future__ import annotations

import math
import time
from array import array
from dataclasses import dataclass
from typing import Any, Protocol

import highspy

from milp.model import Status

_ROW_WISE, _MINIMISE = 2, 1
_INTERVAL = 0.1
_SEED = 0
_HIGHS: Any = highspy.Highs  # its own types leave out some of what it offers
_CALLBACK = highspy.cb.HighsCallbackType
_END = highspy.HighsModelStatus
_LIMITS = (_END.kTimeLimit, _END.kIterationLimit, _END.kSolutionLimit, _END.kMemoryLimit)
Buffer = Any
"""Anything with the buffer protocol and the right type of elements: an array, a cast memoryview."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: after ``seconds`` or ``nodes`` of branch and bound (None: never), as soon as the lower bound of
    the minimum exceeds ``bound``, or as soon as a point of value at most ``value`` is known. Linear programs heed
    ``seconds`` alone.
    """

    seconds: float | None = None
    bound: float | None = None
    value: float | None = None
    nodes: int | None = None

    def met(self, bound: float, value: float) -> bool:
        """Whether these lower bound and value are what was asked for."""
        return (self.bound is not None and bound > self.bound) or (self.value is not None and value <= self.value)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The arrays of a ``milp.model.Model``: float64, but ``start, index`` int64 and ``integer`` bool or uint8."""

    offset: float
    cost: Buffer
    lower: Buffer
    upper: Buffer
    row_lower: Buffer
    row_upper: Buffer
    start: Buffer
    index: Buffer
    value: Buffer
    integer: Buffer


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A ``milp.model.Solution`` whose ``x, dual`` are the bytes of float64 numbers."""

    status: Status
    value: float = math.inf
    bound: float = -math.inf
    x: bytes | None = None
    dual: bytes | None = None
    reason: str = ""


class Hear(Protocol):
    """Told how a search stands; ``x``: the point of value ``value``, where it is new."""

    def __call__(self, bound: float, value: float, seconds: float, x: bytes | None) -> None:
        """Lower bound of the minimum, value of the best point (inf: none), seconds since the start."""


class LinearEngine(Protocol):
    """What solves a linear program again and again: ``Engine`` in this process, ``milp.process`` in another one."""

    def change(self, columns: Buffer, *, ends: tuple[Buffer, Buffer] | None = None, cost: Buffer | None = None) -> None:
        """As ``Engine.change``."""

    def run(self, limits: Limits) -> Outcome:
        """As ``Engine.run``."""


class Engine:
    """A problem inside the solver. State: the solver keeps its last basis, from which ``run`` goes on after
    ``change``."""

    def __init__(self, problem: Problem, *, linear: bool = False) -> None:
        """Load the problem; ``linear``: without the demand that columns be whole. A refusal shows in ``run``."""
        self._solver = _HIGHS()
        self._mixed = not linear and any(problem.integer)
        for name, choice in _options(self._mixed).items():
            self._solver.setOptionValue(name, choice)
        self._columns, self._rows = len(problem.cost), len(problem.row_lower)
        whole = problem.integer if self._mixed else array("i", bytes(4 * self._columns))
        self._refused = self._solver.passModel(
            self._columns,
            self._rows,
            len(problem.index),
            _ROW_WISE,
            _MINIMISE,
            problem.offset,
            problem.cost,
            problem.lower,
            problem.upper,
            problem.row_lower,
            problem.row_upper,
            problem.start,
            problem.index,
            problem.value,
            whole,
        )

    def change(self, columns: Buffer, *, ends: tuple[Buffer, Buffer] | None = None, cost: Buffer | None = None) -> None:
        """Give ``columns`` ``[K]`` (int32) other ends or other costs ``[K]``."""
        if ends is not None:
            self._solver.changeColsBounds(len(columns), columns, *ends)
        if cost is not None:
            self._solver.changeColsCost(len(columns), columns, cost)

    def extend(self, ends: tuple[Buffer, Buffer], start: Buffer, index: Buffer, value: Buffer) -> None:
        """Add K rows between ``ends``: ``start`` ``[K]``, ``index`` ``[E]`` (int32) and ``value`` ``[E]``."""
        self._rows += len(start)
        done = self._solver.addRows(len(start), *ends, len(index), start, index, value)
        if done == highspy.HighsStatus.kError:
            self._refused = done

    def run(self, limits: Limits, *, start: Buffer | None = None, hear: Hear | None = None) -> Outcome:
        """Solve. ``start`` ``[C]``: a point to begin with (a mixed program only); whole columns of it count alone."""
        if self._refused == highspy.HighsStatus.kError:
            return Outcome(Status.FAILED, reason="the solver refuses the model")
        if start is not None and self._mixed:
            first = highspy.HighsSolution()
            first.col_value, first.value_valid = list(start), True
            self._solver.setSolution(first)
        observer = _Observer(limits, hear)
        try:
            self._solve(limits, observer)
            outcome = self._outcome(limits, observer)
            if outcome.status is Status.FAILED and not self._mixed and not observer.stopped:
                self._solver.clearSolver()  # a basis can be too ill-conditioned to go on from
                self._solve(limits, observer)
                outcome = self._outcome(limits, observer)
        except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
            if observer.error is error:
                raise
            return Outcome(Status.FAILED, bound=observer.bound, reason=f"solver: {type(error).__name__}: {error}")
        return outcome

    def _solve(self, limits: Limits, observer: _Observer) -> None:
        solver = self._solver
        left = math.inf if limits.seconds is None else solver.getRunTime() + max(limits.seconds - observer.age(), 0.0)
        solver.setOptionValue("time_limit", left)
        if limits.nodes is not None:
            solver.setOptionValue("mip_max_nodes", limits.nodes)
        solver.setCallback(observer.call, None)
        for kind in (_CALLBACK.kCallbackSimplexInterrupt, _CALLBACK.kCallbackIpmInterrupt):
            solver.startCallback(kind)
        for kind in (_CALLBACK.kCallbackMipInterrupt, _CALLBACK.kCallbackMipImprovingSolution):
            solver.startCallback(kind)
        try:
            done = solver.run()
            if done == highspy.HighsStatus.kError and solver.getModelStatus() == _END.kNotset:
                # Something else in this thread has used the solver with more threads than one.
                _HIGHS.resetGlobalScheduler(True)
                solver.run()
        finally:
            solver.setCallback(None, None)
        if observer.error is not None:
            raise observer.error

    def _outcome(self, limits: Limits, observer: _Observer) -> Outcome:
        ended, found = self._solver.getModelStatus(), self._found(observer)
        x, value, bound, dual = found.x, found.value, found.bound, None
        if ended == _END.kOptimal:
            status, reason = Status.OPTIMAL, ""
            if x is None or not (math.isfinite(value) and math.isfinite(bound)):
                status, reason = Status.FAILED, "the solver says optimal and has no feasible point"
            elif not self._mixed:
                dual = _bytes(self._solver.getSolution().row_dual)
        elif ended == _END.kInfeasible:
            if x is not None and self._mixed:
                return Outcome(Status.FAILED, value, -math.inf, x, None, "called infeasible in spite of a known point")
            return Outcome(Status.INFEASIBLE, math.inf, math.inf, None, None if self._mixed else self._ray())
        elif (ended == _END.kInterrupt and observer.stopped) or ended in _LIMITS:
            status, reason = Status.LIMIT, observer.stopped or self._solver.modelStatusToString(ended).lower()
            if self._mixed and limits.met(bound, value):
                status, reason = Status.STOPPED, ""
            elif not self._mixed:
                x, value = None, math.inf
        else:
            status, reason = Status.FAILED, f"solver: {self._solver.modelStatusToString(ended).lower()}"
            x, value = (x, value) if self._mixed else (None, math.inf)
        return Outcome(status, value, bound, x, dual, reason)

    def _found(self, observer: _Observer) -> Outcome:
        """The best point and the best bound, of those at the end and those on the way."""
        info, value, x = self._solver.getInfo(), observer.value, observer.x
        if info.primal_solution_status == highspy.kSolutionStatusFeasible:
            last = info.objective_function_value
            if math.isfinite(last) and (x is None or last <= value):
                value, x = last, _bytes(self._solver.getSolution().col_value)
        optimal = self._solver.getModelStatus() == _END.kOptimal
        if self._mixed:
            known = optimal or self._solver.getModelStatus() in (*_LIMITS, _END.kInterrupt)
            bound = max(observer.bound, info.mip_dual_bound if known else -math.inf)
        else:
            bound = value if optimal else -math.inf
        return Outcome(Status.LIMIT, value, min(bound, value), x)

    def _ray(self) -> bytes | None:
        if not self._rows:
            return None
        done, there, ray = self._solver.getDualRay()
        return ray.tobytes() if done != highspy.HighsStatus.kError and there else None


class _Observer:
    """What the solver calls on its way. State: the best of what it has said, and why it was stopped."""

    def __init__(self, limits: Limits, hear: Hear | None) -> None:
        self._limits, self._hear = limits, hear
        self._start = self._spoke = time.monotonic()
        self.bound, self.value = -math.inf, math.inf
        self.x: bytes | None = None
        self.stopped = ""
        self.error: BaseException | None = None

    def age(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def call(self, kind: int, _message: str, said: Any, answer: Any, _data: object) -> None:
        """The callback."""
        improving = kind == int(_CALLBACK.kCallbackMipImprovingSolution)
        try:
            if not self.stopped:
                self._look(kind, said, improving)
        except BaseException as error:  # noqa: BLE001 - it must not unwind the solver; ``Engine`` raises it again
            self.error, self.stopped = error, "an error in a callback"
        if self.stopped and not improving:
            answer.user_interrupt = True

    def _look(self, kind: int, said: Any, improving: bool) -> None:
        age, new = self.age(), None
        if kind == int(_CALLBACK.kCallbackMipInterrupt) or improving:
            if said.mip_dual_bound > self.bound:
                self.bound = said.mip_dual_bound
            if improving and said.objective_function_value < self.value:
                self.value, self.x = said.objective_function_value, said.mip_solution.tobytes()
                new = self.x
            if self._hear is not None and (new is not None or time.monotonic() - self._spoke >= _INTERVAL):
                self._spoke = time.monotonic()
                self._hear(self.bound, self.value, age, new)
        if self._limits.met(self.bound, self.value):
            self.stopped = "met"
        elif self._limits.seconds is not None and age >= self._limits.seconds:
            self.stopped = "time limit"


def _options(mixed: bool) -> dict[str, bool | int | float | str]:
    common: dict[str, bool | int | float | str] = {
        "output_flag": False,
        "threads": 1,
        "random_seed": _SEED,
        "small_matrix_value": 1e-12,  # as small as it goes: what is smaller is dropped
    }
    if mixed:
        # By default rows may be missed by 1e-6, and several rows together move the optimum by more.
        return common | {"mip_rel_gap": 0.0, "mip_abs_gap": 1e-7, "mip_feasibility_tolerance": 1e-7}
    return common | {"solver": "simplex"}


def _bytes(numbers: list[float]) -> bytes:
    return array("d", numbers).tobytes()
