"""Linear relaxations solved again and again: the same rows, other column ends or costs, each from the last basis."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from milp.engine import NO_LIMITS, Engine, Limits, LinearEngine, Problem
from milp.highs import flaw, flaw_of_columns, problem, solution
from milp.model import Model, Solution


class Simplex:
    """The linear relaxation of a model: its rows, and no column need be whole.

    State: the solver's last basis, and nothing that a result depends on beyond which of several optima is found, so
    calls may come in any order. Values go in and come out; a call names all that differs from the model, not from the
    call before. One thread at a time.
    """

    def __init__(self, model: Model, load: Callable[[Problem], LinearEngine] | None = None) -> None:
        """Load the model, with ``load`` elsewhere (``ProcessRunner.load``). Raises ``ValueError`` as
        ``milp.highs.solve`` does."""
        self.model, self._flaw = model, flaw(model)
        given = problem(model)
        self._engine: LinearEngine = Engine(given, linear=True) if load is None else load(given)
        self._lower, self._upper, self._cost = model.lower.clone(), model.upper.clone(), model.cost.clone()

    def extend(self, model: Model) -> None:
        """Go on with ``model``: the one at hand with more rows behind its own. ``ValueError`` as from ``__init__``, and
        where the solver runs elsewhere."""
        if not isinstance(self._engine, Engine):
            raise ValueError("rows can be added to a relaxation that is solved in this process, not to one elsewhere")
        before = self.model
        problem(model)  # its arrays fit together
        rows, entries = before.row_lower.shape[0], before.index.shape[0]
        self.model, self._flaw = model, flaw(model)
        self._engine.extend(
            (model.row_lower[rows:].numpy(), model.row_upper[rows:].numpy()),
            (model.start[rows:-1] - entries).int().numpy(),
            model.index[entries:].int().numpy(),
            model.value[entries:].numpy(),
        )

    def solve(
        self,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        cost: Tensor | None = None,
        *,
        limits: Limits = NO_LIMITS,
    ) -> Solution:
        """Minimise ``cost . x + offset`` over the model's rows and ``lower <= x <= upper``, each ``[C]`` float64, by
        default the model's own.

        OPTIMAL: ``value`` and ``bound`` are the solver's minimum, ``x`` a point, ``dual`` ``[R]`` the multipliers y of
        the rows, positive at a lower side and negative at an upper one: ``sum_j min over the ends of (cost - A'y)_j
        x_j + y+ . row_lower - y- . row_upper + offset`` is the minimum too, up to the solver's tolerances
        (``milp.recheck.lower_bound``). INFEASIBLE: ``dual`` is a ray, for which the same sum with neither cost nor
        offset exceeds 0 (``milp.recheck.refuted``); None where the solver has none, or the ends of a column cross
        (``reason`` says so). LIMIT after ``limits.seconds``, with no bound. FAILED with a reason.
        """
        low, high, price = (
            own if given is None else self._full(given)
            for own, given in ((self.model.lower, lower), (self.model.upper, upper), (self.model.cost, cost))
        )
        found = self._flaw or flaw_of_columns(low, high, price)
        if found is not None:
            return found
        self._change(low, high, price)
        return solution(self._engine.run(limits))

    def _full(self, given: Tensor) -> Tensor:
        if given.shape != self.model.cost.shape or given.dtype != torch.float64:
            raise ValueError(f"ends and costs are float64 {list(self.model.cost.shape)}")
        return given.cpu()

    def _change(self, lower: Tensor, upper: Tensor, cost: Tensor) -> None:
        """Tell the solver what differs from the last call."""
        moved = ((lower != self._lower) | (upper != self._upper)).nonzero().flatten()
        priced = (cost != self._cost).nonzero().flatten()
        if priced.numel():
            self._engine.change(priced.int().numpy(), cost=cost[priced].numpy())
        if moved.numel():
            self._engine.change(moved.int().numpy(), ends=(lower[moved].numpy(), upper[moved].numpy()))
        self._lower, self._upper, self._cost = lower.clone(), upper.clone(), cost.clone()
