"""Ascent of a whole layer with one set of parameters, for layers whose rows cannot have parameters of their own.

Unstable neurons of a wide layer over a deep network would need ``[R, P]`` parameters, with moments and gradients: for
10,000 rows over 100,000 neurons many gigabytes. Where that exceeds the memory budget, the rows of one node of one box
share one set of P (Xu et al., ICLR 2021, share in a similar way): it climbs the sum of the rows' bounds, with the sum
of their gradients, chunk by chunk. Every row's bound holds for any parameters, so each row keeps the best of all steps
and of CROWN, which comes first: rows that it settles do not climb. A step costs the walks of separate steps, and gains
less.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.ascent import INNER, optimised, sign_decides
from bounds.backward import State
from bounds.climb import Pace, Slope, climb
from bounds.condensed import Condensed
from bounds.condensed_walk import CondensedRows
from bounds.dual import each, freedoms, initial, recast, with_slopes
from bounds.layouts import Selection, flat
from bounds.patches import frames
from bounds.plan import Plan
from bounds.propagate import MEMORY, Tighten, chunk_rows, crown, open_rows
from bounds.views import of_box
from bounds.work import Account, climbing

HELD = 6
"""Copies of ``[R, P]`` that an ascent holds: the point, the best one, two moments, the gradient, a step."""

USUAL = 1 << 30
"""Bytes for parameters of the rows of one node of one box, where no budget is given."""


def optimised_within_memory(search: Plan, steps: int, until: float = math.inf) -> Tighten:
    """``optimised``, but neurons of one node of one box share their parameters where their own would not fit.

    What fits: ``HELD`` copies of ``[R, P]`` within ``memory`` of the plan given (``USUAL`` bytes where it has none).
    Networks with coupled operators (softmax, maxima over axes) never share, and nor do rows over patches. A layer that
    would take too many products (``work.py``) keeps CROWN's bounds.
    """
    account, pace = Account(), replace(INNER, steps=steps, patience=0, until=until)
    own = optimised(search, steps, until, account)
    sharing = Condensed.fits(search)

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        limit = USUAL if plan.memory is None else plan.memory
        relaxed = [plan.graph.nodes[k].shape for k in state.relaxations]
        most = owner.shape[0] * sum(map(math.prod, relaxed)) * HELD * search.dtype.itemsize
        few = most <= limit or (state.ball is None and frames(search, node) is not None)  # patches hold few parameters
        if not sharing or not units.mirrored or few:
            return own(plan, state, node, units, owner)
        rough, count = state if plan is search else recast(search, state), units.count()
        needed = (
            torch.bincount(owner, minlength=state.box.size) * _choices(search, rough) * HELD * search.dtype.itemsize
        )
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        tight = (needed <= limit)[owner[:count]].nonzero().flatten()
        if tight.shape[0]:
            places = torch.cat([tight, tight + count])
            result[places] = own(plan, state, node, units.take(tight), owner[places])
        for box in (needed > limit).nonzero().flatten().tolist():
            mine = (owner[:count] == box).nonzero().flatten()
            part, one = units.take(mine), of_box(state, box)
            places, both = torch.zeros_like(owner[: 2 * mine.shape[0]]), torch.cat([mine, mine + count])
            result[both] = found = crown(plan, one, node, part, places, until)
            left = open_rows(plan, one, node, part, places, found).shape[0]
            if not account.grants(state, climbing(search, node, None, 2 * left, steps)):
                continue
            layer = Layer(
                replace(search, memory=plan.memory), of_box(rough, box), node, part, found.to(search.dtype)
            )
            better = layer.climbed(pace)
            if plan is not search:
                better = layer.decided(plan, one, until)
            result[both] = torch.maximum(found, better)
        return result

    return tighten


def _choices(plan: Plan, state: State) -> Tensor:
    """``[N]``: parameters that something depends on, box by box."""
    total = torch.zeros(state.box.size, dtype=torch.int64, device=plan.device)
    for sides in freedoms(plan, state).values():
        for side in sides:
            if side is not None:
                total = total + flat(side.greatest > side.least).sum(1)
    return total


@dataclass(slots=True)
class Layer(Slope):
    """Mirrored unit rows (2c of them) of a node over one box as one function of P parameters: the sum of the lower
    bounds of those rows whose sign is still open (of all, where more than the sign matters).

    ``best`` ``[2c]`` is each row's best bound so far, and ``when`` the number of the point among ``points`` that gave
    it (-1: it was known before); ``one`` is the first unit alone, which knows where the parameters stand.
    """

    plan: Plan
    state: State
    node: int
    units: Selection
    best: Tensor
    points: list[Tensor] = field(default_factory=list)
    network: Condensed = field(init=False)
    when: Tensor = field(init=False)
    slope: Tensor = field(init=False)
    one: CondensedRows = field(init=False)
    until: float = math.inf

    def __post_init__(self) -> None:
        count = 2 * self.units.count()
        self.units = replace(self.units, sign=self.units.sign.to(self.plan.dtype))
        self.network = Condensed(self.plan, self.state)
        self.best = self.best.clone()
        self.when = torch.full((count,), -1, dtype=torch.int64, device=self.plan.device)
        self.one = self._rows(torch.arange(1, device=self.plan.device))

    def climbed(self, pace: Pace) -> Tensor:
        """``[2c]``: the best bounds of all steps."""
        self.until = pace.until
        climb(self, self.one.point.clone(), self.one.scale(), pace, None)
        return self.best

    def value(self, point: Tensor) -> Tensor:
        """The sum ``[1]`` of the best bounds so far; takes the gradient along, chunk by chunk."""
        self.points.append(point.clone())
        self.slope = torch.zeros_like(point)
        rows, count = self._open(), self.units.count()
        for part in rows.split(self._chunk(point.shape[1])):
            if time.monotonic() > self.until:
                break
            walk, places = self._rows(part), torch.cat([part, part + count])
            found = walk.value(point.expand(places.shape[0], -1))
            better = found > self.best[places]
            self.best[places] = torch.where(better, found, self.best[places])
            self.when[places] = torch.where(better, len(self.points) - 1, self.when[places])
            self.slope += torch.nan_to_num(walk.gradient().sum(0, keepdim=True), posinf=0.0, neginf=0.0)
        return self.best.sum().unsqueeze(0)

    def _open(self) -> Tensor:
        """Places among the c units that are worth another walk."""
        low, high = self.best.chunk(2)
        done = torch.maximum(low, high) > 0
        return (~done if sign_decides(self.plan, self.node) else torch.ones_like(done)).nonzero().flatten()

    def _rows(self, part: Tensor) -> CondensedRows:
        units = self.units.take(part)
        return CondensedRows.of(self.network, self.network.rays(self.node, units))

    def _chunk(self, parameters: int) -> int:
        """Units that are walked at once: beside their rows there are their parts at every choice, and a gradient."""
        memory = MEMORY if self.plan.memory is None else self.plan.memory
        every = sum(s.index.shape[0] for s in self.network.stages.values()) + parameters
        row = memory // chunk_rows(self.plan, self.node) + 4 * every * self.plan.dtype.itemsize
        return max(1, memory // (2 * row))

    def gradient(self) -> Tensor:
        """The sum over the rows that were walked at the last point."""
        return self.slope

    def project(self, point: Tensor) -> None:
        """To the range of useful parameters."""
        self.one.project(point)

    def take(self, index: Tensor) -> Layer:
        """There is one function only, which never leaves."""
        return self

    def decided(self, plan: Plan, state: State, until: float) -> Tensor:
        """``[2c]``: walks of the given plan with the parameters that were best for each row (proven, where it has a
        rounding model)."""
        count, width = self.units.count(), self.units.sign.shape[0]
        units = replace(self.units, sign=self.units.sign.to(plan.dtype))
        result = torch.full((width,), -torch.inf, dtype=plan.dtype, device=plan.device)
        for step in torch.unique(self.when[self.when >= 0]).tolist():
            slopes = initial(self.plan, self.state)
            self.one.write(self.points[step], slopes, torch.zeros(1, dtype=torch.int64, device=plan.device))
            chosen = with_slopes(plan, state, {n: each(p, lambda s: s.to(plan.dtype)) for n, p in slopes.items()})
            rows = (self.when.reshape(2, count) == step).any(0).nonzero().flatten()
            places = torch.cat([rows, rows + count])
            found = crown(plan, chosen, self.node, units.take(rows), torch.zeros_like(places), until)
            result[places] = torch.maximum(result[places], found)
        return result
