"""The ascent of many rows over condensed networks: walks, corners and gradients as products of small matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from bounds.backward import LinearBounds
from bounds.climb import Slope
from bounds.concretize import minimiser
from bounds.layouts import Owner, flat
from bounds.links import Network, Rays, Stage
from bounds.ops.base import Interval, Line, Parameters

CAREFUL = 0.12
"""Steps of parameters that move both slope and offset of a line, as a share of those of a slope alone: near the best
one such a bound bends, where that of a ReLU is piecewise linear (measured on sigmoids)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a node's parameters stand among all P: those of the lower and of the upper line (None: no choice)."""

    lower: slice | None
    upper: slice | None


@dataclass(frozen=True, slots=True, eq=False)
class _Passed:
    """What a walk leaves at a stage for the way forward: the positive and the negative part of the rows at the choices
    and the lines there, and the ``rest`` of the rows."""

    positive: Tensor
    negative: Tensor
    lines: tuple[Line, Line]
    rest: Tensor


@dataclass(slots=True)
class CondensedRows(Slope):
    """Lower bounds of R rows as functions of the P parameters of the lines below them.

    ``order``: the stages from the last to the first; ``bounds``: least and greatest parameters ``[1 or R, P]``. After a
    walk ``corner`` ``[R, inputs that vary]`` is where each row's line is least.
    """

    network: Network
    order: tuple[Stage, ...]
    columns: Mapping[int, Columns]
    bounds: Interval
    target: Rays
    point: Tensor
    corner: Tensor
    passed: dict[int, _Passed] = field(default_factory=dict)

    @staticmethod
    def of(network: Network, target: Rays) -> CondensedRows:
        """The rows of ``target``, at the lines' own parameters."""
        start_at, order = network.plan.input, list[Stage]()
        waiting = {n for n in target.parts if n != start_at}
        while waiting:
            stage = network.stage(max(waiting))
            order.append(stage)
            waiting |= {n for link in stage.sources for n in link.sources if n != start_at}
            waiting.discard(stage.node)
        columns, ranges, first = dict[int, Columns](), [target.bias.new_zeros((3, network.lines, 0))], 0
        for stage in order:
            places: list[slice | None] = []
            for side in stage.free:
                places.append(None if side is None else slice(first, first + stage.choices))
                if side is not None:
                    first += stage.choices
                    ranges.append(torch.stack((side.start, side.least, side.greatest)))
            columns[stage.node] = Columns(*places)
        start, least, greatest = torch.cat(ranges, 2).unbind()
        return CondensedRows(network, tuple(order), columns, (least, greatest), target, start, start)

    def scale(self) -> Tensor:
        """How far a step of size 1 goes for each parameter, ``[1 or R, P]``."""
        least, greatest = self.bounds
        scale = greatest - least
        for stage in self.order:
            for place in (self.columns[stage.node].lower, self.columns[stage.node].upper):
                if place is not None and not stage.op.through_origin:
                    scale[:, place] *= CAREFUL
        return scale

    def take(self, index: Tensor) -> CondensedRows:
        """Some of the rows."""
        target = Rays({n: a[index] for n, a in self.target.parts.items()}, self.target.bias[index])
        if self.network.lines == 1:
            return replace(self, target=target, passed={})
        network, (least, greatest) = self.network.take(index), self.bounds
        order = tuple(network.stage(stage.node) for stage in self.order)
        bounds = least[index], greatest[index]
        return replace(self, network=network, order=order, target=target, bounds=bounds, passed={})

    def project(self, point: Tensor) -> None:
        """To the range of useful parameters."""
        torch.clamp(point, *self.bounds, out=point)

    def value(self, point: Tensor) -> Tensor:
        """The rows' lower bounds: one backward walk."""
        rows = dict(self.target.parts)
        bias, self.point = self.target.bias, point
        for stage in self.order:
            lost, pieces = self._over(stage, rows.pop(stage.node))
            bias = bias + lost
            for piece, link in zip(pieces, stage.sources, strict=True):
                found = link.down(piece)
                bias = bias + found.bias
                for source, part in found.parts.items():
                    rows[source] = rows[source] + part if source in rows else part
        return self._at_input(rows.get(self.network.plan.input), bias)

    def _at_input(self, rows: Tensor | None, bias: Tensor) -> Tensor:
        state = self.network.state
        count = bias.shape[0]
        if rows is None:
            rows = bias.new_zeros((count, self.network.ends()[0].shape[1]))
        if state.ball is None:
            low, high = self.network.ends()
            self.corner = torch.where(rows > 0, low, high)
        else:
            shaped = rows.reshape(count, *state.box.lower.shape[1:])
            lines = LinearBounds(shaped, bias, bias, Owner.shared(count))
            self.corner = flat(minimiser(lines, state.box, state.ball))
        return bias + torch.linalg.vecdot(rows, self.corner)

    def _over(self, stage: Stage, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Over one stage: what is added to the bias, and the rows of each variable operand."""
        count = stage.choices
        free, rest = rows[:, :count], rows[:, count:]
        positive = free.clamp(min=0)
        negative = free - positive
        lower, upper = lines = self._lines(stage)
        self.passed[stage.node] = _Passed(positive, negative, lines, rest)
        lost = _dot(negative, upper.offset)
        if not stage.op.through_origin:
            lost = lost + _dot(positive, lower.offset)
        pieces = []
        for below, above in zip(lower.slopes, upper.slopes, strict=True):
            piece = torch.empty_like(rows)
            torch.mul(positive, below, out=piece[:, :count])
            piece[:, :count].addcmul_(negative, above)
            pieces.append(piece)
        if stage.fixed is None:
            pieces[0][:, count:] = rest
            return lost, pieces
        positive, negative = rest.clamp(min=0), rest.clamp(max=0)
        lower, upper = stage.fixed
        for piece, below, above in zip(pieces, lower.slopes, upper.slopes, strict=True):
            torch.mul(positive, below, out=piece[:, count:])
            piece[:, count:].addcmul_(negative, above)
        return lost + _dot(positive, lower.offset) + _dot(negative, upper.offset), pieces

    def _lines(self, stage: Stage) -> tuple[Line, Line]:
        """The lines of the elements with a choice, at the current point."""
        below, above = self._chosen(stage)
        if below is None and above is None:
            return stage.lines
        if stage.op.through_origin and below is not None:
            return Line((below,), stage.lines[0].offset), stage.lines[1]
        relaxation = stage.op.relaxation(stage.operands, None, (below, above))
        return relaxation.lower[0], relaxation.upper[0]

    def _chosen(self, stage: Stage) -> Parameters:
        places = self.columns[stage.node]
        return (
            None if places.lower is None else self.point[:, places.lower],
            None if places.upper is None else self.point[:, places.upper],
        )

    def read(self, slopes: Mapping[int, Parameters], rows: Tensor) -> Tensor:
        """The point ``[R, P]`` that dense parameters ``[all rows, *shape]`` say at the given rows."""
        point = self.point.repeat(rows.shape[0], 1)  # the lines' own, where nothing is said
        for stage, place, full in self._sides(slopes):
            point[:, place] = flat(full)[rows.unsqueeze(1), stage.index[: stage.choices]]
        self.project(point)
        return point

    def write(self, point: Tensor, slopes: Mapping[int, Parameters], rows: Tensor) -> None:
        """Enter a point into dense parameters at the given rows."""
        for stage, place, full in self._sides(slopes):
            flat(full)[rows.unsqueeze(1), stage.index[: stage.choices]] = point[:, place]

    def _sides(self, slopes: Mapping[int, Parameters]) -> Iterator[tuple[Stage, slice, Tensor]]:
        for stage in self.order:
            columns = self.columns[stage.node]
            for full, place in zip(slopes.get(stage.node, (None, None)), (columns.lower, columns.upper), strict=True):
                if full is not None and place is not None:
                    yield stage, place, full

    def gradient(self) -> Tensor:
        """From one forward pass of each row's minimising corner through the lines that its walk met."""
        outputs = {self.network.plan.input: self.corner}
        result = torch.zeros_like(self.point)
        for stage in reversed(self.order):
            values = [link.up(outputs) for link in stage.sources]
            self._derive(stage, [v[:, : stage.choices] for v in values], result)
            if stage is not self.order[0]:
                outputs[stage.node] = self._forward(stage, values)
        return result

    def _derive(self, stage: Stage, values: list[Tensor], result: Tensor) -> None:
        """``A+ d lower / d parameter`` and ``A- d upper / d parameter``, into their columns."""
        places, passed = self.columns[stage.node], self.passed[stage.node]
        if places.lower is not None and stage.op.through_origin:
            torch.mul(passed.positive, values[0], out=result[:, places.lower])
            return
        below, above = stage.op.ascent(stage.operands, self._chosen(stage), values)
        if places.lower is not None and below is not None:
            torch.mul(passed.positive, below, out=result[:, places.lower])
        if places.upper is not None and above is not None:
            torch.mul(passed.negative, above, out=result[:, places.upper])

    def _forward(self, stage: Stage, values: list[Tensor]) -> Tensor:
        """The node's value on the lines that the walk met."""
        passed, count = self.passed[stage.node], stage.choices
        result = torch.empty_like(values[0])
        _along(passed.positive > 0, passed.lines, [v[:, :count] for v in values], result[:, :count])
        if stage.fixed is None:
            result[:, count:] = values[0][:, count:]
        else:
            _along(passed.rest > 0, stage.fixed, [v[:, count:] for v in values], result[:, count:])
        return result


def _dot(rows: Tensor, offset: Tensor) -> Tensor:
    """``[R]``: rows ``[R, U]`` times offsets ``[1 or R, U]``."""
    return rows @ offset[0] if offset.shape[0] == 1 else torch.linalg.vecdot(rows, offset)


def _along(positive: Tensor, lines: tuple[Line, Line], values: list[Tensor], out: Tensor) -> None:
    """The value on the lower line where a coefficient was positive, else on the upper one."""
    lower, upper = lines
    torch.where(positive, lower.offset, upper.offset, out=out)
    for below, above, value in zip(lower.slopes, upper.slopes, values, strict=True):
        out.addcmul_(torch.where(positive, below, above), value)
