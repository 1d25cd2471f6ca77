"""Short descents beside branch and bound, from the points that its own bounds lead to.

Where a relaxation is least, the network is often small too: the minimising corners of open subproblems are better
starts than random points, and the better the further the tree has grown. They are kept as they come along, the least
values first, and every so often a few gradient steps start from them, for a fixed share of the search's time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attacks.descent import Style
from verifier.attacks.plan import AttackPlan, BesidePlan
from verifier.attacks.search import handed_out, prepare, run_descent
from verifier.attacks.starts import Starts
from verifier.query import Query


@dataclass(slots=True)
class Rhythm:
    """When it is time for the next attack, and from where: ``began`` is when the search did, ``spent`` the seconds that
    the ``count`` attacks so far took, ``last`` those of the last one, which the next one is expected to cost too."""

    plan: BesidePlan
    began: float
    spent: float = 0.0
    last: float = 0.0
    count: int = 0
    starts: Starts | None = None

    def hear(self, found: Starts | None) -> None:
        """Keep the best points since the last attack."""
        if found is not None and self.plan.share > 0:
            best = found.least(self.plan.points)
            self.starts = best if self.starts is None else self.starts.cat(best).least(self.plan.points)

    def due(self, now: float) -> bool:
        """Whether there is a point to start from, and room for an attack in the share of the time."""
        room = self.plan.share * (now - self.began) - self.spent
        return self.starts is not None and room >= max(self.last, self.plan.least)

    def take(self) -> Starts:
        """The points to start from; others are collected from now on."""
        assert self.starts is not None
        chosen, self.starts = self.starts, None
        return chosen

    def note(self, seconds: float) -> None:
        """An attack took that long."""
        self.last, self.spent, self.count = seconds, self.spent + seconds, self.count + 1


def near(
    query: Query, starts: Starts, plan: BesidePlan, *, deadline: float | None = None, seed: int = 0
) -> Iterator[Tensor]:
    """Points that make a clause true according to torch, ``[K, n]`` (K >= 1) in the model's dtype, each in its
    clause's box; see ``search.candidates``. From every start ``plan.restarts`` descents of ``plan.steps`` steps, with
    first steps of different lengths; all but one begin at a random point near it. Large networks get fewer starts."""
    effort = AttackPlan(seed=seed, batch=plan.points * plan.restarts)
    setting = prepare(query, effort, deadline=deadline, device=starts.x.device, indices=starts.clause.cpu().numpy())
    if setting is None:
        return
    count = max(1, setting.batch // plan.restarts)
    chosen = starts.least(count)
    turn = torch.arange(plan.restarts, device=starts.x.device).repeat_interleave(len(chosen.x))
    index = torch.searchsorted(setting.clauses.clause, chosen.clause).repeat(plan.restarts)
    box = setting.places(setting.clauses.box[index])
    known = chosen.x.to(setting.dtype).repeat(plan.restarts, 1)
    noise = (setting.uniform(box).x - box.x) * plan.near
    places = box.at(torch.where(turn.unsqueeze(1) == 0, known, known + noise))
    rate = plan.longest * (plan.shortest / plan.longest) ** (turn / max(1, plan.restarts - 1)).to(setting.dtype)
    style = Style(turn % 2 == 0, turn % 4 >= 2, rate, effort.decay, 3, effort.momentum)
    yield from handed_out(setting, run_descent(setting, index, places, (style, plan.steps), 0.0))
