"""What is known of one box among several, without copies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bounds.backward import State, parallel
from bounds.box import Box
from bounds.ops.base import Line, Relaxation


def of_box(state: State, box: int) -> State:
    """Views of what is known of one box; charges and sizes stay those of all boxes."""

    def one(values: Tensor) -> Tensor:
        return values if values.shape[0] == 1 else values[box : box + 1]

    def line(of: Line, slopes: tuple[Tensor, ...]) -> tuple[Line, ...]:
        return (Line(slopes, one(of.offset)),)

    def lines(of: Relaxation) -> Relaxation:
        lower, upper = of.lower[0], of.upper[0]
        above = tuple(map(one, upper.slopes))
        below = above if parallel(of) else tuple(map(one, lower.slopes))  # the same ones, as ``parallel`` wants them
        return Relaxation(line(lower, below), line(upper, above))

    return replace(
        state,
        box=Box(one(state.box.lower), one(state.box.upper)),
        bounds={k: (one(low), one(high)) for k, (low, high) in state.bounds.items()},
        relaxations={k: lines(found) for k, found in state.relaxations.items()},
        ball=None if state.ball is None else state.ball.take(torch.tensor([box], device=state.box.lower.device)),
    )
