"""Gradients through jumps: for the search alone, a jump passes on the slope of a smooth function near it.

The derivative of a function with jumps is zero wherever it exists, so descent would never leave its start. As in the
training of binarised networks (straight-through estimators, Bengio et al., 2013) the values stay what they are and only
the gradient is replaced: that of a logistic step, 1 for a staircase, and for the place of the greatest element that of
the places' mean weighted by a softmax. Nothing of this is a claim: only a replay makes a point a counterexample.

How wide the logistic step is matters most. It is a quarter of how the operand's values are spread at the point, and a
quarter of how far its bounds over the box are apart where that is less: in the first layers of a binarised network few
elements can change their sign at all, and a wide step would have the descent follow all the others. (On a network of
traffic signs with 12,288 inputs that vary by 1 the wide step found nothing in a minute, this one needs nine gradients.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds import Box, Interval, compute_bounds
from bounds.graph import Graph
from bounds.ops.argmax import Leading, Place, pairs
from bounds.ops.base import Interval as Ends
from bounds.ops.base import Op
from bounds.ops.jumps import Jumping, Step
from bounds.rounding import Rounding

_NARROW = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class StraightThrough(Op):
    """``jump`` with another gradient. It stands in no graph that is bounded. ``reach``: by how much each element of the
    operand can differ from the middle of its values (None: unknown)."""

    jump: Jumping | Place
    reach: Tensor | None = None

    def forward(self, *operands: Tensor) -> Tensor:
        (x,) = operands
        value = self.jump.forward(x)
        if not x.requires_grad:
            return value
        smooth = _smooth(self.jump, x, self.reach)
        return value + (smooth - smooth.detach())

    def is_affine(self, variable: Sequence[bool]) -> bool:
        return False

    def interval(self, operands: Sequence[Ends], rounding: Rounding | None) -> Ends:
        return self.jump.interval(operands, rounding)


def _smooth(jump: Jumping | Place, x: Tensor, reach: Tensor | None) -> Tensor:
    if isinstance(jump, Place):
        return _mean_place(_scores(jump, x))
    if not isinstance(jump, Step):
        return x
    width = x.detach().reshape(len(x), -1).abs().mean(1).reshape(-1, *[1] * (x.ndim - 1))
    width = width if reach is None else torch.minimum(width, reach.to(x))
    scaled = x / (_NARROW * width).clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
    bump = torch.exp(-scaled.square()) * (jump.at - (jump.left + jump.right) / 2)
    return torch.sigmoid(2 * scaled) * (jump.right - jump.left) + bump


def _scores(jump: Place, x: Tensor) -> Tensor:
    """The elements that compete, less their mean."""
    if not isinstance(jump, Leading):
        return x - x.mean(-1, keepdim=True)
    one, two = (torch.tensor(side, device=x.device) for side in zip(*pairs(jump.size), strict=True))
    nothing = x.new_zeros((*x.shape[:-1], jump.size))
    return nothing.index_add(-1, two, x).index_add(-1, one, -x) / jump.size


def _mean_place(scores: Tensor) -> Tensor:
    spread = scores.detach().abs().mean(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny ** 0.5)
    return torch.softmax(2 * scores / spread, -1) @ torch.arange(scores.shape[-1]).to(scores)


def has_jumps(graph: Graph) -> bool:
    """Whether a node of the graph has jumps."""
    return any(isinstance(node.op, Jumping | Place) for node in graph.nodes)


def surrogate(graph: Graph, box: Box | None = None) -> Graph:
    """The same function with gradients that pass through its jumps; the graph itself where it has none. ``box`` (one,
    float64): where points will lie, if that is known."""
    if not has_jumps(graph):
        return graph
    reach = {} if box is None else _reach(graph, box)
    nodes = [
        replace(n, op=StraightThrough(n.op, reach.get(n.inputs[0]))) if isinstance(n.op, Jumping | Place) else n
        for n in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def _reach(graph: Graph, box: Box) -> dict[int, Tensor]:
    """Half the widths ``[1, *shape]`` of the intervals of what jumps read; none where a function in the graph has no
    value on part of the box, which the points need not come near."""
    try:
        found = compute_bounds(graph.to(torch.float64, box.lower.device), box, Interval())
    except ValueError:  # ``DomainError`` and what else bounds refuse
        return {}
    read = {n.inputs[0] for n in graph.nodes if isinstance(n.op, Jumping)}
    ends = {index: found.at(index) for index in read if graph.variable[index]}
    return {index: ((upper - lower) / 2).nan_to_num(nan=torch.inf) for index, (lower, upper) in ends.items()}
