"""Bounds of the Jacobian over a box, and with them of how fast the output can change.

Coefficient rows go backward as in reverse differentiation, but each entry is an interval, held as centre and radius:
over an affine node ``M <- M W, R <- R |W|``; over a nonlinear one each entry times the range of the operator's
derivative on the bounds of its operands, which come from ``compute_bounds`` on the same box. A ReLU that may be on or
off multiplies by [0, 1]: at kinks Clarke's generalised Jacobian is meant, the hull of all limits of Jacobians nearby.
Products of intervals contain all products (Hansen's interval slopes; for networks Weng et al., Fast-Lip, ICML 2018, and
Zhang et al., RecurJac, AAAI 2019), so by Lebourg's mean value theorem

    f(x) - f(y) = J (x - y)   for some J within the bounds,   x and y anywhere in the box.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bounds.box import Box, LpBall
from bounds.compute import check_graph, compute_bounds
from bounds.graph import Graph, Node
from bounds.methods import Crown, Method
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import repetition, unbroadcast
from bounds.ops.base import Interval, NoDerivativeError, Nonlinear, Shape
from bounds.plan import Plan, prepare
from bounds.rounding import Rounding, plain_products

_CHUNK = 1 << 23
"""Entries of the rows that are pulled back at once, at the widest node."""

_POWER_STEPS = 8

_Rows = tuple[Tensor, Tensor]
"""Centre and radius, each ``[N, R, *shape]``: every entry lies within its radius of its centre."""


@dataclass(frozen=True, slots=True, eq=False)
class JacobianBounds:
    """``lower <= J <= upper`` elementwise, ``[N, R, *input shape]``, for every Clarke Jacobian J in the box.

    R counts the elements of the output in order, or the rows over it. ``semantics``: ``"real"`` (proven, all rounding
    included) or None (computed without error terms: no claim). An end that is not finite carries no information.
    """

    lower: Tensor
    upper: Tensor
    semantics: Literal["real"] | None

    def row_norms(self, p: float) -> Tensor:
        """``L`` ``[N, R]`` with ``|f_r(x) - f_r(y)| <= L_r |x - y|_p`` for all x and y in the box; p is 1, 2 or inf.

        The largest dual norm of a row: of its entries the greatest absolute value for p = 1, the root of the sum of
        squares for p = 2, the sum of absolute values for p = inf.
        """
        return _length(self._sizes(), _dual(p), 2)

    def norm(self, p: float) -> Tensor:
        """``L`` ``[N]`` with ``|f(x) - f(y)|_p <= L |x - y|_p`` for all x and y in the box; p is 1, 2 or inf.

        The induced norm of the matrix of the entries' largest absolute values: greatest column sum for p = 1, greatest
        row sum for p = inf; for p = 2 the spectral norm, from above (Collatz and Wielandt's bound).
        """
        sizes = self._sizes()
        if _dual(p) == 2:
            return _spectral(sizes)
        return _length(sizes, 1, 1 if p == 1 else 2).amax(1)

    def _sizes(self) -> Tensor:
        """``[N, R, inputs]``: the largest absolute value of each entry."""
        sizes = torch.maximum(self.lower.abs(), self.upper.abs())
        return sizes.reshape(*sizes.shape[:2], -1)  # an input that is one number has no axis to flatten


def jacobian_bounds(
    graph: Graph,
    box: Box | LpBall,
    method: Method = Crown(),  # noqa: B008 - a frozen value
    *,
    rows: Tensor | None = None,
    semantics: Literal["real"] | None = "real",
) -> JacobianBounds:
    """Bounds of the derivatives of every output element, or of ``rows`` ``[R, *output shape]`` over the output, by
    every input element, over each of N boxes or balls; without gradients.

    ``method`` bounds the operands of nonlinear operators on the same boxes: the tighter, the more of them have a known
    slope. Guarantees ``lower <= J <= upper`` for every Clarke Jacobian at every x in the box, ends included; with
    ``semantics="real"`` (computed in float64 with error terms) in exact real arithmetic over the stored weights, with
    None (computed in the box's dtype) up to rounding. ``NoDerivativeError`` names every node whose operator jumps or
    has no derivative here; ``ValueError`` as ``compute_bounds``, and for other semantics.
    """
    if semantics not in ("real", None):
        raise ValueError(f"semantics {semantics!r}: a Jacobian is bounded with 'real' or None")
    check_graph(graph)  # a prepared one is none: derivatives need a plan of their own
    found = compute_bounds(graph, box, method, semantics=semantics)
    dtype, device = found.lower.dtype, found.lower.device
    rounding = None if semantics is None else Rounding.of(dtype)
    with torch.no_grad(), nullcontext() if semantics is None else plain_products():
        plan = prepare(graph, dtype, device, rounding)
        ranges = derivative_ranges(plan, {i: found.at(i) for i in plan.watched})
        seeds = seed_rows(plan, rows)
        size = found.lower.shape[0]
        lower = torch.empty((size, seeds.shape[0], *graph.nodes[plan.input].shape), dtype=dtype, device=plan.device)
        upper = torch.empty_like(lower)
        for boxes, part in _chunks(plan, size, seeds.shape[0]):
            some = {i: tuple((low[boxes], high[boxes]) for low, high in pairs) for i, pairs in ranges.items()}
            centre = seeds[part].unsqueeze(0).expand(boxes.stop - boxes.start, *seeds[part].shape)
            lower[boxes, part], upper[boxes, part] = walk(plan, some, centre)
    return JacobianBounds(lower, upper, semantics)


def _dual(p: float) -> float:
    if p not in (1, 2, math.inf):
        raise ValueError(f"p = {p}: the norms 1, 2 and infinity are known")
    return math.inf if p == 1 else 2 if p == 2 else 1


def seed_rows(plan: Plan, rows: Tensor | None) -> Tensor:
    """The rows that the walk starts with, ``[R, *output shape]``: exact numbers."""
    shape = plan.graph.nodes[plan.output].shape
    if rows is None:
        size = torch.Size(shape).numel()
        return torch.eye(size, dtype=plan.dtype, device=plan.device).reshape(size, *shape)
    if tuple(rows.shape[1:]) != shape or not rows.shape[:1].numel():
        raise ValueError(f"rows of shape {tuple(rows.shape)} for an output of shape {shape}: R goes in front")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError("rows contain NaN or infinity")
    return rows.detach().to(device=plan.device, dtype=plan.dtype)


def derivative_ranges(plan: Plan, bounds: Mapping[int, Interval]) -> dict[int, tuple[Interval, ...]]:
    """Of every nonlinear node the ranges of its derivatives by each data operand."""
    found: dict[int, tuple[Interval, ...]] = {}
    failures: list[str] = []
    for index in sorted(plan.relaxed):
        node = plan.graph.nodes[index]
        operands, op = plan.ends(index, bounds), node.op
        try:
            if not isinstance(op, Nonlinear):
                raise NoDerivativeError(f"{type(op).__name__} has no derivative")
            pairs = _tried(op, node, operands, plan.rounding)
        except NoDerivativeError as error:
            failures.append(f"node {index} {node.name!r}: {error.why}".replace(" ''", ""))
            continue
        found[index] = tuple(_known(low, high) for low, high in pairs)
    if failures:
        raise NoDerivativeError("no bounds of the Jacobian: " + "; ".join(failures))
    return found


def _tried(op: Nonlinear, node: Node, operands: list[Interval], rounding: Rounding | None) -> Iterable[Interval]:
    """What the chain rule over a node needs: its derivatives; where it is not elementwise, bounds of its operands."""
    if op.elementwise:
        size = max(low.shape[0] for k, (low, _) in enumerate(operands) if k not in op.parameters)
        pairs = op.derivatives(operands, rounding)
        return [(low.expand(size, *node.shape), high.expand(size, *node.shape)) for low, high in pairs]
    first = operands[0][0]
    nothing = first.new_zeros((first.shape[0], 1, *node.shape))
    op.gradients((nothing, nothing), operands, rounding)  # raises where there are none
    return [o for k, o in enumerate(operands) if k not in op.parameters]


def _known(low: Tensor, high: Tensor) -> Interval:
    """NaN is no information."""
    inf = torch.inf
    return torch.nan_to_num(low, -inf, inf, -inf), torch.nan_to_num(high, inf, inf, -inf)


def _chunks(plan: Plan, boxes: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Boxes and rows that are walked together."""
    widest = max(torch.Size(plan.graph.nodes[i].shape).numel() for i in (*plan.operands, plan.input))
    budget = max(1, _CHUNK // max(1, widest))
    some = min(rows, budget)
    several = max(1, budget // some)
    for first in range(0, boxes, several):
        for start in range(0, rows, some):
            yield slice(first, min(first + several, boxes)), slice(start, min(start + some, rows))


def walk(
    plan: Plan,
    ranges: Mapping[int, tuple[Interval, ...]],
    seeds: Tensor,
    reached: Callable[[Node, Tensor, Tensor], None] | None = None,
) -> Interval:
    """Rows ``[N, R, *output shape]`` pulled back to the input, over the ranges of ``derivative_ranges``.

    ``reached`` is told centre and radius of the rows at every node on the way, before the step over it.
    """
    pending: dict[int, _Rows] = {plan.output: (seeds, torch.zeros_like(seeds))}
    for node in reversed(plan.graph.nodes):
        if node.id == plan.input or node.id not in pending:
            continue
        rows = pending.pop(node.id)
        if reached is not None:
            reached(node, *rows)
        parts = _over_nonlinear(plan, node, ranges[node.id], rows) if node.id in plan.relaxed else ()
        for position, (index, constant) in enumerate(zip(node.inputs, plan.operands[node.id], strict=True)):
            if constant is not None:
                continue
            shape = plan.graph.nodes[index].shape
            if node.id in plan.affine:
                part = _over_affine(plan, node, position, shape, rows)
            else:
                data = sum(k not in node.op.parameters for k in range(position))
                part = parts[data]
            pending[index] = part if index not in pending else _sum(plan.rounding, pending[index], part)
    centre, radius = pending[plan.input]
    low, high = centre - radius, centre + radius
    if plan.rounding is not None:
        low, high = plan.rounding.down(low), plan.rounding.up(high)
    return low, high


def _over_affine(plan: Plan, node: Node, position: int, shape: Shape, rows: _Rows) -> _Rows:
    """``M W`` and ``R |W|``, with what rounding and inexact constants can add to the radius."""
    op, constants = node.op, plan.operands[node.id]
    assert isinstance(op, Affine)
    centre, radius = (x.flatten(0, 1) for x in rows)
    lead, count = rows[0].shape[:2], plan.accumulation(node)
    moved = op.pullback(centre, position, constants, shape)
    if count == 0:
        radius = op.pullback(radius, position, constants, shape)
    else:
        sizes = [c.abs() if c is not None and c.is_floating_point() else c for c in constants]
        wide = radius
        if plan.rounding is not None:
            wide = plan.rounding.up(radius + plan.rounding.gamma(count + 8) * centre.abs())
        total = _absolute(op, wide, position, sizes, shape)
        if plan.rounding is not None:
            total = total + plan.rounding.affine(count, total)
            if node.id in plan.errors:
                full = plan.rounding.up(centre.abs() + radius)
                total = total + _inexact(plan, node, position, full, sizes)
            total = plan.rounding.up(total)
        radius = total
    return _finite(moved.reshape(*lead, *shape), radius.reshape(*lead, *shape))


def _inexact(plan: Plan, node: Node, position: int, rows: Tensor, sizes: list[Tensor | None]) -> Tensor:
    """``|G| dW`` for constants that are off by ``dW``: each of them in turn, the others at their largest.

    A constant that is only added has no part in the transposed step: with and without it that step is the same.
    """
    op, errors, shape = node.op, plan.errors[node.id], plan.graph.nodes[node.inputs[position]].shape
    assert isinstance(op, Affine) and plan.rounding is not None
    largest = [s if s is None or e is None else s + e for s, e in zip(sizes, errors, strict=True)]
    total = torch.zeros((), dtype=plan.dtype, device=plan.device)
    for k, error in enumerate(errors):
        if error is not None:
            through, without = (
                _absolute(op, rows, position, [*largest[:k], e, *largest[k + 1 :]], shape)
                for e in (error, torch.zeros_like(error))
            )
            total = total + (through - without).clamp(min=0) + plan.rounding.affine(plan.accumulation(node), through)
    return total


def _absolute(op: Affine, rows: Tensor, position: int, sizes: list[Tensor | None], shape: Shape) -> Tensor:
    """``|W|`` transposed, times rows that are not negative."""
    zero = rows.new_zeros((rows.shape[0], *shape))
    operands = [zero[:1] if s is None else s for s in sizes]
    # As in Affine.pullback: other ways to the transpose import torch's compiler.
    with torch.enable_grad():
        point = zero.requires_grad_()
        value = op.absolute(*(point if k == position else o.detach() for k, o in enumerate(operands)))
        (result,) = torch.autograd.grad((value * rows).sum(), point)
    return result


def _over_nonlinear(plan: Plan, node: Node, ranges: tuple[Interval, ...], rows: _Rows) -> tuple[_Rows, ...]:
    """The rows of all data operands: entries times the ranges of derivatives, or the operator's own chain rule."""
    op, rounding = node.op, plan.rounding
    assert isinstance(op, Nonlinear)
    low, high = rows[0] - rows[1], rows[0] + rows[1]
    if rounding is not None:
        low, high = rounding.down(low), rounding.up(high)
    if not op.elementwise:
        return tuple(_centred(rounding, *pair) for pair in op.gradients((low, high), ranges, rounding))
    shapes = [plan.graph.nodes[i].shape for k, i in enumerate(node.inputs) if k not in op.parameters]
    return tuple(
        _finite(*_unbroadcast(rounding, *_times(rounding, (low, high), pair), shape))
        for pair, shape in zip(ranges, shapes, strict=False)
    )


def _times(rounding: Rounding | None, rows: Interval, derivative: Interval) -> _Rows:
    """The hull of the four products of ends."""
    least, most = (d.unsqueeze(1) for d in derivative)
    low, high = rows
    products = [low * least, low * most, high * least, high * most]
    small, large = products[0], products[0]
    for product in products[1:]:
        small, large = torch.minimum(small, product), torch.maximum(large, product)  # NaN stays NaN
    return _centred(rounding, small, large)


def _centred(rounding: Rounding | None, low: Tensor, high: Tensor) -> _Rows:
    """Centre and radius of computed ends, each of which is off by one rounding."""
    centre = (low + high) / 2
    radius = torch.maximum(high - centre, centre - low)
    if rounding is not None:
        radius = rounding.up(radius) + rounding.unit * 8 * torch.maximum(low.abs(), high.abs()) + 4 * rounding.tiny
        radius = rounding.up(radius)
    return _finite(centre, radius)


def _unbroadcast(rounding: Rounding | None, centre: Tensor, radius: Tensor, shape: Shape) -> _Rows:
    """Sums over axes along which an operand was repeated."""
    if tuple(centre.shape[2:]) == shape:
        return centre, radius
    lead, terms = centre.shape[:2], repetition(tuple(centre.shape[2:]), shape)
    total, spread, size = (unbroadcast(x.flatten(0, 1), shape) for x in (centre, radius, centre.abs() + radius))
    if rounding is not None:
        spread = rounding.up(spread + rounding.affine(2 * terms, size))
    return total.reshape(*lead, *shape), spread.reshape(*lead, *shape)


def _sum(rounding: Rounding | None, one: _Rows, two: _Rows) -> _Rows:
    centre, radius = one[0] + two[0], one[1] + two[1]
    if rounding is not None:
        radius = rounding.up(radius + rounding.up(centre.abs()) * rounding.unit)
    return _finite(centre, radius)


def _finite(centre: Tensor, radius: Tensor) -> _Rows:
    """Entries that overflowed carry no information: an infinite radius around 0."""
    lost = ~(torch.isfinite(centre) & torch.isfinite(radius))
    return centre.masked_fill(lost, 0.0), radius.masked_fill(lost, torch.inf)


def _length(sizes: Tensor, q: float, axis: int) -> Tensor:
    """The q-norm along an axis of values that are not negative, rounded up."""
    largest = sizes.amax(axis)
    if q == math.inf:
        return largest
    rounding = Rounding.of(sizes.dtype)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    shares = sizes / scale.unsqueeze(axis)  # so that squares do not underflow where it counts
    total = shares.sum(axis) if q == 1 else shares.square().sum(axis).sqrt()
    return rounding.up(total * scale * (1 + 2 * rounding.gamma(sizes.shape[axis] + 8))) * (largest > 0)


def _spectral(sizes: Tensor) -> Tensor:
    """At least the spectral norm of each matrix ``[N, R, n]`` of entries >= 0.

    For any vector ``v > 0``, the largest eigenvalue of ``B = A' A`` is at most ``max_i (B v)_i / v_i``; a few steps of
    the power method make v a good one. The Frobenius norm bounds it too.
    """
    rounding = Rounding.of(sizes.dtype)
    largest = sizes.flatten(1).amax(1)
    scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    matrix = sizes / scale[:, None, None]
    v = torch.ones_like(matrix[:, :1]).transpose(1, 2)
    for _ in range(_POWER_STEPS):
        v = matrix.transpose(1, 2) @ (matrix @ v)
        v = v / v.amax((1, 2), keepdim=True).clamp(min=1e-30) + 1e-6
    image = matrix.transpose(1, 2) @ (matrix @ v)
    count = matrix.shape[1] + matrix.shape[2] + 16
    ratio = (image / v).amax((1, 2)) * (1 + 2 * rounding.gamma(count)) + count * rounding.tiny * 1e7
    collatz = rounding.up(ratio.sqrt() * scale * (1 + 4 * rounding.unit))
    frobenius = _length(sizes.flatten(1), 2, 1)
    return torch.where(torch.isfinite(collatz), torch.minimum(collatz, frobenius), frobenius)
