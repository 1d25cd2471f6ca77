"""Bounds of a scalar function on many boxes at once, each proven.

On every box ``f >= max(CROWN, interval, f(c) - sum max |J_i| r_i)``, with bounds J of the Clarke Jacobian on the same
box (Weng et al., Fast-Lip, ICML 2018; Lebourg's mean value theorem). Where the entries of J for an input have one sign,
f is monotone in it and its minimum over a box lies on one face: the box is collapsed onto that face and bounded again.
Where CROWN's line lies above what is attained already no point is of interest: such ends of a box are clipped off.

Boxes inherit the bounds of neurons from the box that they were cut from. They are bounded in float32 with error terms,
and once more in float64 where these terms are a part of what is missing that matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bounds import Box, LpBall, Prepared, prepare
from bounds.backward import LinearBounds, State, backward
from bounds.concretize import concretize, minimiser
from bounds.graph import Graph
from bounds.jacobian import JacobianBounds, derivative_ranges, walk
from bounds.layouts import Owner, flat
from bounds.ops.base import Interval, NoDerivativeError
from bounds.plan import Plan
from bounds.plan import prepare as plan_of
from bounds.propagate import crown, loose, propagate
from bounds.rounding import Rounding, cast_outward, plain_products
from verifier.anytime.domain import Domain
from verifier.branch.clip import clip
from verifier.strategy import FORWARD_ACTIVATIONS, FORWARD_ALONE

INHERITED_ELEMENTS = 4096
"""Neurons up to which boxes inherit their bounds (8 bytes each)."""

BLUR = 0.05
"""Of what is missing to what is attained, the share of error terms from which float64 is tried."""

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Of N boxes: ends ``[N, n]`` (collapsed where f is monotone; beyond what is clipped ``sign * f`` is at least the
    value that is attained), ``bound`` ``[N]`` of ``sign * f`` on what is left, the ``axis``
    ``[N]`` on which the bound depends most, ``points`` ``[N, n]`` where it may be attained, ``unstable`` ``[N]``:
    elements that are not linear there, ``inherited``: bounds of neurons in float32, ``lost`` ``[N]``: by rounding."""

    lower: Tensor
    upper: Tensor
    bound: Tensor
    axis: Tensor
    points: Tensor
    unstable: Tensor
    inherited: Mapping[int, Interval]
    lost: Tensor

    def with_boxes(self, index: Tensor, finer: Found) -> Found:
        """What ``finer`` knows of the boxes ``index``; of two bounds the better one."""

        def put(name: str) -> Tensor:
            return getattr(self, name).index_copy(0, index, getattr(finer, name))

        inherited = dict(self.inherited)
        for i, ends in finer.inherited.items():
            low, high = (old.index_copy(0, index, new) for old, new in zip(inherited[i], ends, strict=True))
            inherited[i] = low, high
        bound = self.bound.index_copy(0, index, torch.maximum(self.bound[index], finer.bound))
        return Found(
            put("lower"), put("upper"), bound, put("axis"), put("points"), put("unstable"), inherited, put("lost")
        )


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is wanted of boxes ``[N, n]``: bounds of ``sign * f``, of which ``value`` is attained somewhere, from bounds
    of neurons that are ``inherited``; after the time ``until`` nothing is tightened any more."""

    lower: Tensor
    upper: Tensor
    sign: float
    value: float = math.inf
    inherited: Mapping[int, Interval] = ()  # type: ignore[assignment]
    until: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A graph with one input and a scalar output, made ready. ``plans``: coarse and fine, with error terms; ``smooth``:
    it has a Jacobian (no jumps); ``free`` ``[k]``: inputs that vary in ``domain`` (``Domain.free``)."""

    graph: Graph
    prepared: Prepared
    plans: tuple[Plan, Plan]
    domain: Domain
    smooth: bool
    free: Tensor

    @staticmethod
    def of(graph: Graph, domain: Domain) -> Function:
        """Raises ``ValueError`` for another output than one number, and for a region of another shape."""
        wanted = graph.nodes[graph.inputs[0]].shape
        if domain.shape != wanted:
            raise ValueError(f"a region of shape {domain.shape} for an input of shape {wanted}")
        if torch.Size(graph.nodes[graph.outputs[0]].shape).numel() != 1:
            raise ValueError("a functional has one number as its value")
        fine = plan_of(graph, torch.float64, "cpu", Rounding.of(torch.float64))
        # A ball of other numbers is another ball: those are bounded in float64 alone.
        coarse = plan_of(graph, torch.float32, "cpu", Rounding.of(torch.float32)) if domain.is_box else fine
        plain, smooth = graph.to(torch.float64), _smooth(fine, domain)
        return Function(plain, prepare(graph), (coarse, fine), domain, smooth, domain.free)

    @property
    def activations(self) -> int:
        """Elements that nonlinear operators read."""
        plan = self.plans[1]
        return sum(torch.Size(plan.graph.nodes[i].shape).numel() for i in plan.watched)

    @property
    def inheritable(self) -> tuple[int, ...]:
        """The nodes whose bounds boxes inherit."""
        plan = self.plans[1]
        return tuple(i for i in plan.watched if i not in plan.direct) if self.activations <= INHERITED_ELEMENTS else ()

    def values(self, points: Tensor) -> Tensor:
        """f at points ``[N, n]``, as computed in float64."""
        return self.graph.evaluate(points.reshape(-1, *self.domain.shape))[0].flatten()

    def enclosed(self, points: Tensor) -> Ends:
        """Proven ends ``[N]`` of f at points ``[N, n]``."""
        at, plan = points.reshape(-1, *self.domain.shape), self.plans[1]
        with torch.no_grad(), plain_products():
            low, high = propagate(plan, Box(at, at))[0].bounds[plan.output]
        return low.flatten(), high.flatten()

    def bound(self, asked: Asked) -> Found:
        """Bounds by the coarse plan, and by the fine one where rounding matters."""
        with torch.no_grad(), plain_products():
            found = self._bound(self.plans[0], asked)
            if self.plans[0] is self.plans[1]:
                return found
            # An attained value that is not known yet (inf) asks for nothing.
            again = (found.lost > BLUR * (asked.value - found.bound - found.lost).abs()) | ~found.bound.isfinite()
            again |= (found.lower >= found.upper).all(1)  # nothing is left to split
            index = again.nonzero().flatten()
            if index.shape[0]:
                known = {i: (low[index], high[index]) for i, (low, high) in found.inherited.items()}
                part = replace(asked, lower=found.lower[index], upper=found.upper[index], inherited=known)
                found = found.with_boxes(index, self._bound(self.plans[1], part))
        return found

    def _bound(self, plan: Plan, asked: Asked) -> Found:
        state = self._state(plan, asked)
        found = self._lines(plan, state, asked)
        derivatives = self._jacobian(plan, state, asked.sign) if self.smooth else None
        if derivatives is None:
            return found
        low, high = derivatives
        radius, steepest = (found.upper - found.lower) / 2, torch.maximum(low.abs(), high.abs())
        rising, falling = (low >= 0) & (radius > 0), (high <= 0) & (radius > 0)
        turning = radius * ~(rising | falling) if self.domain.is_box else radius  # of a ball no face holds the minimum
        reach = torch.where(turning > 0, steepest * turning, 0.0)  # a slope may be infinite
        axis = torch.where(reach.amax(1, keepdim=True) > 0, reach, turning).argmax(1)
        left = replace(asked, lower=found.lower, upper=found.upper)
        found = replace(found, bound=torch.maximum(found.bound, self._mean_value(left, low, high)), axis=axis)
        some = (turning < radius).any(1).nonzero().flatten()
        if not some.shape[0]:
            return found
        known = {i: (state.bounds[i][0][some], state.bounds[i][1][some]) for i in plan.watched}
        upper = torch.where(rising, found.lower, found.upper)
        lower = torch.where(falling & ~rising, found.upper, found.lower)
        face = replace(asked, lower=lower[some], upper=upper[some], inherited=known)
        return found.with_boxes(some, replace(self._lines(plan, self._state(plan, face), face), axis=axis[some]))

    def _state(self, plan: Plan, asked: Asked) -> State:
        """Bounds of all neurons: forward ones first (or alone) in wide networks of few inputs, as ``strategy.py`` has
        it for searches."""
        if self.domain.is_box:
            box, ball = Box(*self._shaped(*cast_outward(asked.lower, asked.upper, plan.dtype))), None
        else:
            ball = self.domain.ball(asked.lower, asked.upper)
            box = ball.box()
        known = {i: (low.to(plan.dtype), high.to(plan.dtype)) for i, (low, high) in dict(asked.inherited).items()}
        functions = self.free.shape[0] + 1
        if self.activations >= FORWARD_ACTIVATIONS * functions:
            state, _ = propagate(plan, box, inherited=known, variables=self.free, ball=ball)
            if self.activations >= FORWARD_ALONE * functions:
                return state
            known = {i: state.bounds[i] for i in plan.watched}
        return propagate(plan, box, inherited=known, tighten=partial(crown, until=asked.until), ball=ball)[0]

    def _shaped(self, *ends: Tensor) -> tuple[Tensor, ...]:
        return tuple(end.reshape(-1, *self.domain.shape) for end in ends)

    def _lines(self, plan: Plan, state: State, asked: Asked) -> Found:
        """What one walk from the output says."""
        rows = torch.full((1, *plan.graph.nodes[plan.output].shape), asked.sign, dtype=plan.dtype)
        lines = backward(plan, state, plan.output, rows, Owner.shared(1))
        bound = concretize(plan, lines, state.box, state.ball).double()
        lower, upper = self._clipped(lines, bound, asked)
        raw = concretize(replace(plan, rounding=None), lines, state.box, state.ball).double()
        low, high = (end.flatten().double() for end in state.bounds[plan.output])
        bound = torch.maximum(bound, low if asked.sign > 0 else -high)
        bound = torch.where(bound.isfinite(), bound, -torch.inf)  # overflow says nothing
        unstable = torch.zeros_like(bound, dtype=torch.int64)
        for i in plan.watched:
            unstable += flat(loose(plan, state.bounds, i, state.bounds[i])).sum(1)
        width = upper - lower
        reach = flat(lines.rows).abs().double() * width
        tiny = torch.finfo(width.dtype).tiny
        score = sum(part / part.amax(1, keepdim=True).clamp(min=tiny) for part in (width, reach))
        assert isinstance(score, Tensor)
        known = {i: cast_outward(*state.bounds[i], torch.float32) for i in self.inheritable}
        points = flat(minimiser(lines, state.box, state.ball)).double().clamp(lower, upper)
        lost = (raw - bound).clamp(min=0)
        return Found(lower, upper, bound, score.argmax(1), points, unstable, known, lost)

    def _clipped(self, lines: LinearBounds, bound: Tensor, asked: Asked) -> Ends:
        """What is left of boxes without points that their lines, least at ``bound``, say are no better than what is
        attained."""
        if not self.domain.is_box:  # the least value is that on a part of the box
            return asked.lower, asked.upper
        slack = Rounding.of(torch.float64).down(bound - asked.value)
        return clip(flat(lines.rows).double().unsqueeze(1), slack.unsqueeze(1), asked.lower, asked.upper)

    def _jacobian(self, plan: Plan, state: State, sign: float) -> Ends | None:
        """Ends ``[N, n]`` of the derivatives of ``sign * f``; None where rounding takes bounds to where they have
        none."""
        seeds = torch.full((1, 1, *plan.graph.nodes[plan.output].shape), sign, dtype=plan.dtype)
        try:
            ranges = derivative_ranges(plan, state.bounds)
        except NoDerivativeError:
            return None
        low, high = walk(plan, ranges, seeds.expand(state.box.size, *seeds.shape[1:]))
        return flat(low).double(), flat(high).double()

    def _mean_value(self, asked: Asked, low: Tensor, high: Tensor) -> Tensor:
        """``[N]``: ``sign * f(c) - sup |J (x - c)|``, rounded down, around a point c of each part: the middle of a box,
        the centre of a ball (-inf where that lies in another part)."""
        rounding, region = Rounding.of(torch.float64), self.domain.region
        centre = asked.lower / 2 + asked.upper / 2 if isinstance(region, Box) else region.centre.flatten(1)
        reach = rounding.up(torch.maximum(asked.upper - centre, centre - asked.lower))
        falls = torch.maximum(low.abs(), high.abs()) * reach
        fall = rounding.up(falls.sum(1) + rounding.affine(falls.shape[1] + 2, falls.sum(1)))
        if isinstance(region, LpBall):
            steepest = JacobianBounds(low.unsqueeze(1), high.unsqueeze(1), "real").row_norms(region.p)[:, 0]
            fall = torch.minimum(fall, rounding.up(steepest * region.radius))
        least, most = self.enclosed(centre)
        value = rounding.down((least if asked.sign > 0 else -most) - fall)
        here = ((asked.lower <= centre) & (centre <= asked.upper)).all(1)
        return torch.where(here & value.isfinite(), value, -torch.inf)


def _smooth(plan: Plan, domain: Domain) -> bool:
    """Whether derivatives are bounded on the domain."""
    ends = [end.reshape(1, *domain.shape) for end in domain.ends()]
    with torch.no_grad(), plain_products():
        state, _ = propagate(plan, Box(ends[0], ends[1]))
        try:
            derivative_ranges(plan, state.bounds)
        except NoDerivativeError:
            return False
    return True


def without_bounds(graph: Graph, domain: Domain) -> str:
    """The first node whose interval bounds on the region are not finite, as it is called in messages ("": none)."""
    plan = plan_of(graph, torch.float64, "cpu", Rounding.of(torch.float64))
    low, high = (end.reshape(1, *domain.shape) for end in domain.ends())
    with torch.no_grad(), plain_products():
        known = propagate(plan, Box(low, high))[0].bounds
    for number, ends in sorted(known.items()):
        if not all(bool(end.isfinite().all()) for end in ends):
            node = plan.graph.nodes[number]
            return f"node {number} ({type(node.op).__name__}, {node.name!r})"
    return ""
