"""Networks as a neuron of an image sees them: of every image before it one patch, the same size for all neurons.

What a neuron at place (y, x) of a convolution depends on lies, at every image before, in the patch that begins at
``(y, x) factor - shift``. Over such patches convolutions need no padding, so one link serves neurons at all places;
what belongs to a place (bounds, lines) is gathered there once. An ascent over patches costs what they hold, instead of
what the images do. Where a patch sticks out of its image the values are zero, as padding wants it.

Nothing here carries error terms. ``frames`` says where this works, else everything is as in ``condensed.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from bounds.backward import State
from bounds.layouts import Selection, flat, is_image
from bounds.links import DENSER, Link, Matrices, Network, Rays, Stage, operands_of
from bounds.ops.affine import Affine, Slide
from bounds.ops.base import Freedom, Interval, Line, Nonlinear
from bounds.plan import Plan

SHARE = 0.4
"""The share of all images up to which patches of them are worth it: dead neurons stay in them."""

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Frame:
    """Patches of a node's image: that of a neuron at (y, x) begins at ``(y, x) factor - shift``; ``size`` (h, w)."""

    factor: Pair
    shift: Pair
    size: Pair

    def before(self, slide: Slide) -> Frame:
        """What the operand of a sliding operator needs for this patch of its result."""
        factor, shift, size = zip(
            *(
                (f * s, d * s + b, (n - 1) * s + e)
                for f, d, n, s, b, e in zip(
                    self.factor, self.shift, self.size, slide.stride, slide.begin, slide.extent, strict=True
                )
            ),
            strict=True,
        )
        return Frame((factor[0], factor[1]), (shift[0], shift[1]), (size[0], size[1]))

    def joined(self, other: Frame) -> Frame | None:
        """The least frame around both; None where their patches do not move alike."""
        if self.factor != other.factor:
            return None
        shift = [max(a, b) for a, b in zip(self.shift, other.shift, strict=True)]
        ends = [max(f.size[k] - f.shift[k] for f in (self, other)) for k in (0, 1)]
        return Frame(self.factor, (shift[0], shift[1]), (ends[0] + shift[0], ends[1] + shift[1]))

    def margins(self, inner: Frame) -> tuple[int, int, int, int]:
        """Left, right, top, bottom: what is around a smaller frame."""
        top, left = (self.shift[k] - inner.shift[k] for k in (0, 1))
        bottom, right = self.size[0] - inner.size[0] - top, self.size[1] - inner.size[1] - left
        return left, right, top, bottom


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The frames of all nodes that the elements of ``target`` depend on, and how affine nodes slide over their operands
    (by node and position)."""

    plan: Plan
    target: int
    frames: Mapping[int, Frame]
    slides: Mapping[tuple[int, int], Slide]

    def channels(self, node: int) -> int:
        """Of the image."""
        return self.plan.graph.nodes[node].shape[1]

    def shape(self, node: int) -> tuple[int, int, int, int]:
        """Of a patch of a node: ``(1, C, h, w)``."""
        return 1, self.channels(node), *self.frames[node].size

    def elements(self) -> int:
        """How many numbers a neuron sees at relaxed nodes and the input."""
        return sum(math.prod(self.shape(n)) for n in self.frames if n in self.plan.relaxed or n == self.plan.input)


def frames(plan: Plan, target: int) -> Geometry | None:
    """The patches that elements of ``target`` see; None where that is not how the network works, or not worth it."""
    found, slides = {target: Frame((1, 1), (0, 0), (1, 1))}, dict[tuple[int, int], Slide]()
    for node in range(target, -1, -1):
        if node not in found:
            continue
        if not is_image(plan.graph.nodes[node].shape):
            return None
        for position, (source, constant) in enumerate(operands_of(plan, node) if node != plan.input else []):
            if constant is not None:
                continue
            slide = _slide(plan, node, position)
            if slide is None:
                return None
            frame: Frame | None = found[node].before(slide)
            if source in found and frame is not None:
                frame = found[source].joined(frame)
            if frame is None:
                return None
            found[source], slides[node, position] = frame, slide
    geometry = Geometry(plan, target, found, slides)
    whole = sum(math.prod(plan.graph.nodes[n].shape) for n in found if n in plan.relaxed or n == plan.input)
    return geometry if geometry.elements() <= SHARE * whole else None


def _slide(plan: Plan, node: int, position: int) -> Slide | None:
    """How a node slides over an operand; None where it does not, or not alike at all places of the image."""
    op, shape = plan.graph.nodes[node].op, plan.graph.nodes[node].shape
    same = plan.graph.nodes[plan.graph.nodes[node].inputs[position]].shape == shape
    itself = Slide(op, (1, 1), (0, 0), (1, 1))
    if isinstance(op, Nonlinear):
        return itself if op.elementwise and same else None
    assert isinstance(op, Affine)
    if node in plan.offset and not _level(plan.offset[node]):
        return None
    if op.elementwise:
        level = all(c is None or (c.ndim == len(shape) + 1 and _level(c)) for c in plan.operands[node])
        return itself if same and level else None
    return op.slide(plan.operands[node])


def _level(values: Tensor) -> bool:
    """Whether values ``[..., H, W]`` are the same at all places."""
    return bool((values == values[..., :1, :1]).all())


@dataclass(slots=True)
class Ground:
    """P places of a geometry: of the boxes ``owner`` ``[P]`` of a state at ``place`` ``[P, 2]``, with what is gathered
    there as it is asked for; ``ends``: the input's box, zeros outside the image."""

    geometry: Geometry
    state: State
    owner: Tensor
    place: Tensor
    stages: dict[int, Stage] = field(default_factory=dict)
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    ends: Interval = field(init=False)

    def __post_init__(self) -> None:
        box, entry = self.state.box, self.geometry.plan.input
        self.ends = self.within(entry, box.lower), self.within(entry, box.upper)

    def _along(self, node: int, axis: int) -> Tensor:
        """``[P, size]``: rows (axis 0) or columns of the image under the patches."""
        frame = self.geometry.frames[node]
        first = self.place[:, axis : axis + 1] * frame.factor[axis] - frame.shift[axis]
        return first + torch.arange(frame.size[axis], device=self.place.device)

    def at(self, node: int, values: Tensor) -> Tensor:
        """``[P, C h w]``: values ``[N or 1, *shape]`` of boxes at the patches; outside the image any."""
        shape = self.geometry.plan.graph.nodes[node].shape
        values = values.expand(-1, *shape)
        y, x = (self._along(node, k).clamp(0, shape[k + 2] - 1) for k in (0, 1))
        if values.shape[0] > 1:
            y = y + self.owner.unsqueeze(1) * shape[2]
        index = (y.unsqueeze(2) * shape[3] + x.unsqueeze(1)).flatten()
        table = values.squeeze(1).permute(0, 2, 3, 1).reshape(-1, shape[1])
        found = table.index_select(0, index).reshape(self.place.shape[0], -1, shape[1])
        return found.transpose(1, 2).flatten(1)

    def inside(self, node: int) -> Tensor | None:
        """``[P, 1, 1, h, w]``: 1 in the image and 0 outside; None where all patches lie inside."""
        if node not in self.masks:
            shape, kept = self.geometry.plan.graph.nodes[node].shape, []
            for axis in (0, 1):
                along = self._along(node, axis)
                kept.append((along >= 0) & (along < shape[axis + 2]))
            mask = None
            if not (bool(kept[0].all()) and bool(kept[1].all())):
                mask = (kept[0].unsqueeze(2) & kept[1].unsqueeze(1)).to(self.geometry.plan.dtype)[:, None, None]
            self.masks[node] = mask
        return self.masks[node]

    def within(self, node: int, values: Tensor) -> Tensor:
        """``at``, with zeros outside the image."""
        found, mask = self.at(node, values), self.inside(node)
        return found if mask is None else flat(found.reshape(-1, *self.geometry.shape(node)) * mask)

    def outlying(self, node: int) -> Tensor | None:
        """``inside`` of a node where rows or values outside the image would count.

        At the input they meet a box of zeros, and where lines pass through the origin, lines of zeros.
        """
        op = self.geometry.plan.graph.nodes[node].op
        harmless = node == self.geometry.plan.input or (isinstance(op, Nonlinear) and op.through_origin)
        return None if harmless else self.inside(node)

    def stage(self, node: int) -> Stage:
        """The stage of a relaxed node, with lines for every place."""
        if node in self.stages:
            return self.stages[node]
        plan, state, op = self.geometry.plan, self.state, self.geometry.plan.graph.nodes[node].op
        assert isinstance(op, Nonlinear)
        ends, relaxation = plan.ends(node, state.bounds), state.relaxations[node]

        def line(value: Line) -> Line:
            return Line(tuple(self.within(node, s) for s in value.slopes), self.within(node, value.offset))

        def narrowed(side: Freedom | None) -> Freedom | None:
            if side is None:
                return None
            return Freedom(*(self.within(node, v) for v in (side.start, side.least, side.greatest)))

        below, above = op.freedom(ends)
        elements = math.prod(self.geometry.shape(node))
        self.stages[node] = Stage(
            node,
            op,
            torch.arange(elements, device=plan.device),
            elements,
            (line(relaxation.lower[0]), line(relaxation.upper[0])),
            None,
            tuple((self.at(node, low), self.at(node, high)) for low, high in ends),
            (narrowed(below), narrowed(above)),
            tuple(self.link(i) for i, c in operands_of(plan, node) if c is None),
        )
        return self.stages[node]

    def link(self, operand: int) -> Link:
        """A matrix where that is quicker and patches do not stick out on the way, else the operators."""
        plan, reached, nodes, sources = self.geometry.plan, {operand}, list[int](), list[int]()
        native = 0
        for node in range(operand, -1, -1):
            if node not in reached:
                continue
            if node == plan.input or node in plan.relaxed:
                sources.append(node)
                continue
            nodes.append(node)
            reached.update(i for i, c in operands_of(plan, node) if c is None)
            native += plan.accumulation(plan.graph.nodes[node]) * math.prod(self.geometry.shape(node))
        link = Sliding(self, operand, tuple(nodes), tuple(sources), None)
        elements = math.prod(self.geometry.shape(operand))
        dense = elements * sum(math.prod(self.geometry.shape(n)) for n in sources)
        if not nodes or dense > DENSER * native or any(self.outlying(n) is not None for n in (*nodes[1:], *sources)):
            return link
        return Matrices(link.down(torch.eye(elements, dtype=plan.dtype, device=plan.device)))


@dataclass(frozen=True, slots=True, eq=False)
class Sliding(Link):
    """A link by the operators over patches: ``nodes`` from the operand down; row r is at place ``where[r]``."""

    ground: Ground
    operand: int
    nodes: tuple[int, ...]
    ends: tuple[int, ...]
    where: Tensor | None

    @property
    def sources(self) -> Collection[int]:
        return self.ends

    def down(self, rows: Tensor) -> Rays:
        geometry = self.ground.geometry
        plan, bias = geometry.plan, rows.new_zeros(rows.shape[0])
        walk = {self.operand: rows.reshape(-1, *geometry.shape(self.operand))}
        for node in self.nodes:
            here = walk.pop(node)
            if node != self.operand:
                here = self._masked(node, here)
            if node in plan.offset:
                bias = bias + here.sum((1, 3, 4)) @ plan.offset[node][0, :, 0, 0]
            for position, (source, constant) in enumerate(operands_of(plan, node)):
                if constant is None:
                    pulled = self._pulled(node, position, here)
                    walk[source] = walk[source] + pulled if source in walk else pulled
        return Rays({n: flat(self._masked(n, walk[n])) for n in self.ends}, bias)

    def up(self, values: Mapping[int, Tensor]) -> Tensor:
        geometry = self.ground.geometry
        full = {n: self._masked(n, values[n].reshape(-1, *geometry.shape(n))) for n in self.ends}
        for node in reversed(self.nodes):
            inputs = [
                self._cropped(node, k, full[i]) if c is None else c
                for k, ((i, _), c) in enumerate(
                    zip(operands_of(geometry.plan, node), self._constants(node), strict=True)
                )
            ]
            position = next(k for k, c in enumerate(geometry.plan.operands[node]) if c is None)
            full[node] = geometry.slides[node, position].op.forward(*inputs)
            if node != self.operand:
                full[node] = self._masked(node, full[node])
        return flat(full[self.operand])

    def _masked(self, node: int, values: Tensor) -> Tensor:
        mask = self.ground.outlying(node)
        if mask is None:
            return values
        return values * (mask if self.where is None else mask.index_select(0, self.where))

    def _constants(self, node: int) -> list[Tensor | None]:
        """Constants as operators over patches take them: of elementwise ones a single place."""
        plan, op = self.ground.geometry.plan, self.ground.geometry.plan.graph.nodes[node].op
        single = isinstance(op, Affine) and op.elementwise
        return [c if c is None or not single else c[..., :1, :1] for c in plan.operands[node]]

    def _pulled(self, node: int, position: int, rows: Tensor) -> Tensor:
        """The transposed step, laid into the frame of the operand."""
        geometry = self.ground.geometry
        slide, source = geometry.slides[node, position], geometry.plan.graph.nodes[node].inputs[position]
        inner = geometry.frames[node].before(slide)
        shape = (1, geometry.channels(source), *inner.size)
        assert isinstance(slide.op, Affine)
        pulled = slide.op.pullback(rows, position, self._constants(node), shape)
        margins = geometry.frames[source].margins(inner)
        return functional.pad(pulled, margins) if any(margins) else pulled

    def _cropped(self, node: int, position: int, values: Tensor) -> Tensor:
        """The part of an operand's patch that a node reads."""
        geometry = self.ground.geometry
        source = geometry.plan.graph.nodes[node].inputs[position]
        inner = geometry.frames[node].before(geometry.slides[node, position])
        left, _, top, _ = geometry.frames[source].margins(inner)
        return values[..., top : top + inner.size[0], left : left + inner.size[1]]


@dataclass(slots=True)
class Patches(Network):
    """What R rows go through, row r at place ``where[r]`` of a ground."""

    plan: Plan
    state: State
    ground: Ground
    where: Tensor
    stages: dict[int, Stage] = field(default_factory=dict)
    box: Interval = field(init=False)

    def __post_init__(self) -> None:
        low, high = self.ground.ends
        self.box = self._spread(low), self._spread(high)

    @staticmethod
    def of(geometry: Geometry, state: State, units: Selection, owner: Tensor) -> Patches:
        """Of unit rows of the geometry's target, row r over box ``owner[r]``."""
        height, width = units.shape[2:]
        keys, where = torch.unique(owner * (height * width) + units.index % (height * width), return_inverse=True)
        place = torch.stack([keys % (height * width) // width, keys % width], 1)
        return Patches(geometry.plan, state, Ground(geometry, state, keys // (height * width), place), where)

    @property
    def lines(self) -> int:
        return self.where.shape[0]

    def take(self, rows: Tensor) -> Patches:
        return Patches(self.plan, self.state, self.ground, self.where[rows])

    def ends(self) -> Interval:
        return self.box

    def rays(self, units: Selection) -> Rays:
        """The rows of ``of`` as functions of what is relaxed before the target."""
        target, (_, channels, height, width) = self.ground.geometry.target, units.shape
        rows = units.sign.new_zeros((units.index.shape[0], channels))
        rows.scatter_(1, (units.index // (height * width)).unsqueeze(1), units.sign.unsqueeze(1))
        if target in self.plan.relaxed:
            return Rays({target: rows}, rows.new_zeros(rows.shape[0]))
        return self._placed(self.ground.link(target)).down(rows)

    def stage(self, node: int) -> Stage:
        if node not in self.stages:
            known = self.ground.stage(node)
            below, above = (Line(tuple(map(self._spread, v.slopes)), self._spread(v.offset)) for v in known.lines)
            self.stages[node] = replace(
                known,
                lines=(below, above),
                operands=tuple((self._spread(low), self._spread(high)) for low, high in known.operands),
                free=(self._spread_range(known.free[0]), self._spread_range(known.free[1])),
                sources=tuple(map(self._placed, known.sources)),
            )
        return self.stages[node]

    def _spread(self, values: Tensor) -> Tensor:
        """From places ``[P, ...]`` to rows ``[R, ...]``."""
        return values.index_select(0, self.where)

    def _spread_range(self, side: Freedom | None) -> Freedom | None:
        return None if side is None else Freedom(*map(self._spread, (side.start, side.least, side.greatest)))

    def _placed(self, link: Link) -> Link:
        return replace(link, where=self.where) if isinstance(link, Sliding) else link
