"""What a network that is computed in float32 can return: each result is the exact function of the computed operands,
plus a perturbation that the error model of float32 bounds.

``semantics="float32"`` claims bounds of everything that any evaluation order of the graph in float32 can return, fused
operations or not. So each node's interval is widened by its perturbation, and backward walks are charged ``|A|`` times
it: the coin in which rounding is paid already (``interval.py``). All of this is computed in float64, with the error
terms of float64 on top.

The model, in one place (``Rounding`` in ``rounding.py`` holds its numbers):

- sums of products are plain dot products in any order (no Winograd, no FFT, no TF32): off by ``gamma_n sum |a||b|``,
  and each operation by an underflow of its result (numbers too small may be flushed to zero where they arise);
- maxima, ReLU and other selections, moving and counting are exact;
- a library's function of one variable (exp, tanh, erf, ...) is within ``LIBRARY_UNITS`` units of its exact value, or of
  1 where that is smaller; operators that are computed in several steps say so themselves (``Nonlinear.roundoff``);
- nothing is known where a partial sum can overflow: the bounds there are infinite.

The float32 network is the graph as it is given, with its constants rounded to float32. A reader that rewrites a model
(folding a normalisation into weights) gives another float32 network: read it as stored where the runtime's results are
meant. Constants that a model computes from others are taken as the exact result rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bounds.graph import Constant, Graph, Node
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Nonlinear, UnsupportedOperatorError
from bounds.plan import Plan
from bounds.rounding import Rounding

SINGLE = Rounding.of(torch.float32)
"""The error model of float32."""


def stored(graph: Graph) -> Graph:
    """The graph with an error for each constant that float32 has to round (or whose exact value is not known)."""
    return graph.with_constants({i: _rounded(c) for i, c in graph.constants.items()})


def _rounded(constant: Constant) -> Constant:
    value = constant.value
    if not value.is_floating_point() or (constant.error is None and bool((value.to(torch.float32) == value).all())):
        return constant
    value = value.to(torch.float64)
    error = torch.zeros_like(value) if constant.error is None else constant.error.to(torch.float64)
    exact = (value.to(torch.float32) == value) & (error == 0)
    rounding = (value.abs() + error) * (SINGLE.unit * (1 + 2**-20)) + SINGLE.tiny
    return Constant(constant.value, torch.where(exact, 0.0, error + rounding))


def roundoff(plan: Plan, node: Node, bounds: Mapping[int, Interval]) -> Tensor | None:
    """``[*shape]``: how far the machine can be off when it computes a node once from computed operands (those of all
    boxes within ``bounds``); None where it is exact.

    Raises ``UnsupportedOperatorError`` for an operator without a model.
    """
    assert plan.machine is not None
    constants = plan.operands[node.id]
    if isinstance(node.op, Affine):
        count = plan.accumulation(node)
        if not count:
            return None
        errors = plan.errors.get(node.id, (None,) * len(constants))
        sizes = [
            _size(bounds[i]) if c is None else c.abs() if e is None else c.abs() + e
            for i, c, e in zip(node.inputs, constants, errors, strict=True)
        ]
        return plan.machine.computed(count, node.op.absolute(*sizes))[0]
    assert isinstance(node.op, Nonlinear)
    operands = plan.ends(node.id, bounds)
    try:
        error = node.op.roundoff(operands, node.op.interval(operands, plan.rounding), plan.machine)
    except UnsupportedOperatorError as lacking:
        name = f", {node.name!r}" if node.name else ""
        raise UnsupportedOperatorError(f"node {node.id}{name}: {lacking}") from None
    return None if error is None else error.amax(0).expand(node.shape)


def added(plan: Plan, node: Node, bounds: Mapping[int, Interval], charge: Tensor) -> Tensor:
    """The charge of a nonlinear node's lines with what the machine can be off, where a machine is meant."""
    error = None if plan.machine is None else roundoff(plan, node, bounds)
    return charge if error is None else charge + error


def widened(plan: Plan, interval: Interval, error: Tensor | None) -> Interval:
    """The interval of the exact function, as far as the machine's result can leave it."""
    if error is None:
        return interval
    assert plan.rounding is not None
    return plan.rounding.down(interval[0] - error), plan.rounding.up(interval[1] + error)


def _size(interval: Interval) -> Tensor:
    return torch.maximum(interval[0].abs(), interval[1].abs()).amax(0, keepdim=True)
