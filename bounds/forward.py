"""Forward linear bounds: for every node two affine functions of a few inputs, one below it and one above.

A box is written ``x = c + r e`` with ``e`` in ``[-1, 1]``; the variables of the functions are the ``e`` of k chosen
inputs. What other inputs and all relaxations contribute is part of the distance between the two functions. They are
held as middle and half-distance, since then an affine node (weights W) takes ``(M, D)`` to ``(W M, |W| D)``: the lower
function ``W+ lower + W- upper`` without ever splitting W. All functions of a node are its operator run on
``2 (k + 1)`` images, however wide the node is; backward bounds walk once for every neuron. In return errors of
different neurons never cancel.

With a rounding model the functions are true bounds in exact arithmetic: coefficients are taken as they are, and since
``|e| <= 1`` whatever they are off by is added to the constant of the half-distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Node
from bounds.interval import affine_charge, finite_or_infinite, rounds
from bounds.layouts import flat
from bounds.ops.affine import Affine
from bounds.ops.base import Interval, Nonlinear, Relaxation
from bounds.plan import Plan
from bounds.rounding import Rounding


@dataclass(frozen=True, slots=True, eq=False)
class Functions:
    """``|node - M(e)| <= D(e)`` for N boxes: ``middle, distance`` ``[N, k + 1, *shape]``, the constants last."""

    middle: Tensor
    distance: Tensor

    @staticmethod
    def of_box(box: Box, chosen: Tensor, rounding: Rounding | None) -> Functions:
        """Of the input itself; ``chosen`` ``[k]`` are flat places of inputs."""
        shape = box.lower.shape
        low, high = flat(box.lower), flat(box.upper)
        centre = (low + high) / 2
        radius = torch.maximum(high - centre, centre - low)
        radius = radius if rounding is None else rounding.up(radius)
        count = chosen.shape[0]
        middle = centre.new_zeros((shape[0], count + 1, centre.shape[1]))
        distance = torch.zeros_like(middle)
        places = torch.arange(count, device=chosen.device)
        middle[:, places, chosen] = radius[:, chosen]
        middle[:, count] = centre
        distance[:, count] = radius.index_fill(1, chosen, 0.0)
        return Functions(*(v.reshape(*v.shape[:2], *shape[1:]) for v in (middle, distance)))

    def size(self) -> Tensor:
        """``[N, *shape]``: ``sum |M_i| + sum |D_i|``, which no value of the node exceeds (up to rounding)."""
        return self.middle.abs().sum(1) + self.distance.abs().sum(1)

    def interval(self, rounding: Rounding | None) -> Interval:
        """The least value of the lower function and the greatest of the upper one, ``[N, *shape]``."""
        below, above = self.middle - self.distance, self.middle + self.distance
        low = below[:, -1] - below[:, :-1].abs().sum(1)
        high = above[:, -1] + above[:, :-1].abs().sum(1)
        if rounding is not None:
            slack = rounding.affine(2 * self.middle.shape[1], self.size())
            low, high = rounding.down(low - slack), rounding.up(high + slack)
        return finite_or_infinite(low, high)

    def over_rows(self, rows: Tensor, rounding: Rounding | None) -> Functions:
        """Of the forms ``rows . node`` for rows ``[R, *shape]`` (exact numbers): ``[N, k + 1, R]`` each."""
        weights = flat(rows)
        middle, distance = (flat(v, 2) for v in (self.middle, self.distance))
        found = Functions(middle @ weights.T, distance @ weights.abs().T)
        if rounding is not None:
            count, size = weights.shape[1], flat(self.size()) @ weights.abs().T
            lost = rounding.affine(2 * count, size) * 2 + self.middle.shape[1] * (count * 16 * rounding.tiny)
            found.distance[:, -1] += rounding.up(lost)
        return found

    def lines(self, box: Box, chosen: Tensor, rounding: Rounding | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The two functions in the inputs themselves: lower rows ``[N, *shape, *input shape]``, lower bias
        ``[N, *shape]``, and the same of the upper one; valid in exact arithmetic where there is a rounding model."""
        inputs = box.lower.shape[1:]
        low, high = (flat(end)[:, chosen] for end in (box.lower, box.upper))
        centre = (low + high) / 2
        radius = torch.maximum(high - centre, centre - low)
        radius = radius if rounding is None else rounding.up(radius)
        result = []
        for sign in (-1, 1):
            ends = self.middle + sign * self.distance
            steps = ends[:, :-1].movedim(1, -1)
            shape = (centre.shape[0], *[1] * (steps.ndim - 2), -1)
            slopes = torch.where(radius.reshape(shape) > 0, steps / radius.reshape(shape), 0.0)
            moved = slopes * centre.reshape(shape)
            bias = ends[:, -1] - moved.sum(-1)
            if rounding is not None:
                size = ends[:, -1].abs() + self.size() + steps.abs().sum(-1) + moved.abs().sum(-1)
                slack = rounding.affine(2 * steps.shape[-1] + 8, size) * 2
                bias = rounding.up(bias + slack) if sign > 0 else rounding.down(bias - slack)
            rows = slopes.new_zeros((*slopes.shape[:-1], int(inputs.numel())))
            rows[..., chosen] = slopes
            result += [rows.reshape(*slopes.shape[:-1], *inputs), bias]
        return result[0], result[1], result[2], result[3]


def over_affine(plan: Plan, node: Node, operands: Sequence[Functions | None]) -> Functions:
    """Functions of an affine node from those of its operands (None: a constant)."""
    op, constants = node.op, plan.operands[node.id]
    assert isinstance(op, Affine)
    boxes, count = next(o.middle.shape[:2] for o in operands if o is not None)
    plain = [None if c is None else torch.zeros_like(c) if k in op.offsets else c for k, c in enumerate(constants)]

    def images(values: Sequence[Tensor | None], sizes: bool) -> Tensor:
        given = [
            (c.abs() if sizes else c) if c is not None else v.flatten(0, 1)  # type: ignore[union-attr]
            for c, v in zip(plain, values, strict=True)
        ]
        result = op.absolute(*given) if sizes else op.forward(*given)
        if node.id in plan.offset:  # what is added without being an offset operand
            zero = [torch.zeros_like(g[:1]) if c is None else g for c, g in zip(plain, given, strict=True)]
            result = result - (op.absolute(*zero) if sizes else op.forward(*zero))
        # Contiguous: the constants are changed in place, and a repeated operand is a view of few elements.
        return result.unflatten(0, (boxes, count)).contiguous()

    middle = images([None if o is None else o.middle for o in operands], sizes=False)
    distance = images([None if o is None else o.distance for o in operands], sizes=True)
    if node.id in plan.offset:
        middle[:, -1] += plan.offset[node.id]
    if plan.rounding is not None and rounds(plan, node):
        sizes = [
            c.abs() if o is None else o.size().amax(0, keepdim=True)  # type: ignore[union-attr]
            for o, c in zip(operands, constants, strict=True)
        ]
        charge = affine_charge(plan, plan.rounding, node, sizes) * 2
        if node.id in plan.offset:  # added to and taken from each image
            charge = charge + plan.rounding.affine(4, plan.offset[node.id].abs()) * (2 * count)
        distance[:, -1] += charge + count * plan.accumulation(node) * (8 * plan.rounding.tiny)
    return Functions(middle, distance)


def over_relaxed(plan: Plan, op: Nonlinear, relaxation: Relaxation, operands: Sequence[Functions]) -> Functions:
    """Functions of a nonlinear node from its lines and those of its variable operands."""
    ends = []
    for line, sign in ((relaxation.lower[0], -1.0), (relaxation.upper[0], 1.0)):
        slopes = [s.unsqueeze(1) for s in line.slopes]
        total = op.along(slopes, [o.middle for o in operands])
        total = total + sign * op.along([s.abs() for s in slopes], [o.distance for o in operands])
        total[:, -1] += line.offset
        ends.append(total)
    below, above = ends
    result = Functions((below + above) / 2, (above - below) / 2)
    if plan.rounding is not None:
        slopes = [
            torch.maximum(a.abs(), b.abs())
            for a, b in zip(relaxation.lower[0].slopes, relaxation.upper[0].slopes, strict=True)
        ]
        size = torch.maximum(relaxation.lower[0].offset.abs(), relaxation.upper[0].offset.abs())
        sizes = [o.size() for o in operands]
        size = size + op.along(slopes, sizes)
        terms = len(operands) * op.terms(*(tuple(m.shape[1:]) for m in sizes))
        lost = plan.rounding.affine(2 * terms + 8, size) * 2
        result.distance[:, -1] += lost + result.middle.shape[1] * terms * (8 * plan.rounding.tiny)
    return result


def step(plan: Plan, node: Node, known: Mapping[int, Functions], relaxations: Mapping[int, Relaxation]) -> Functions:
    """Functions of one variable node."""
    constants = plan.operands[node.id]
    operands = [known[i] if c is None else None for i, c in zip(node.inputs, constants, strict=True)]
    if node.id in plan.affine:
        return over_affine(plan, node, operands)
    assert isinstance(node.op, Nonlinear)
    return over_relaxed(plan, node.op, relaxations[node.id], [o for o in operands if o is not None])
