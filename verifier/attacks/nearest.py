"""The point that comes nearest to making one clause true: not a counterexample, but a good point to begin with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from verifier.attacks.descent import Style
from verifier.attacks.plan import AttackPlan
from verifier.attacks.search import prepare, run_descent
from verifier.query import Query

RESTARTS = 16


def nearest(query: Query, clause: int, plan: AttackPlan, *, deadline: float | None = None) -> Tensor | None:
    """The point ``[n]`` of the clause's box with the least margin that one descent finds (``plan.steps`` steps from its
    centre and from some random points), in the dtype of the search; None where the box is empty or the ``deadline``
    (``time.monotonic()``) came before the first step."""
    effort = AttackPlan(seed=plan.seed, steps=plan.steps, batch=RESTARTS)
    with torch.enable_grad():
        setting = prepare(query, effort, deadline=deadline, device="cpu", indices=np.array([clause]))
        if setting is None:
            return None
        index = torch.zeros(setting.batch, dtype=torch.int64)
        centre = setting.places(setting.clauses.box[index])
        turn = torch.arange(setting.batch)
        places = centre.at(torch.where(turn.unsqueeze(1) == 0, centre.x, setting.uniform(centre).x))
        rate = plan.longest * (plan.shortest / plan.longest) ** (turn / max(1, setting.batch - 1)).to(setting.dtype)
        style = Style(turn % 2 == 0, turn % 4 >= 2, rate, plan.decay, plan.patience, plan.momentum)
        try:
            # No margin is low enough for it to be handed out.
            next(run_descent(setting, index, places, (style, plan.steps), math.inf))
        except StopIteration as end:
            state, _ = end.value
            best = state.best.argmin()
            return state.best_x[best].detach() if bool(state.best[best].isfinite()) else None
    return None  # a margin of -inf, which meets every demand
