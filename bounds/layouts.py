"""How coefficient rows are held, and whose box each row belongs to.

``Selection`` names unit rows, ``Dense`` is rows over a whole node, and ``Windows`` holds, for each row over an image,
only a patch that contains all its coefficients, at a place of its own: what a neuron sees of a convolution's operand.
Whatever belongs to the node (slopes, charges, biases) is gathered at the patches.

Rows are flat, ``[R, *node shape]``. ``Owner`` says which of the N boxes a row speaks about: by an index ``[R]``, or,
where every box has equally many rows, by position (a broadcast instead of a copy).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

COVER = 0.6
"""The share of an image from which on a window is no longer worth its bookkeeping."""


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whose box a row belongs to. ``index`` ``[R]``, or None: rows are ``groups`` blocks of ``per_box`` rows.

    ``groups`` is the number of boxes, or 1 while all boxes still share the same rows (before the first nonlinear
    operator on the way back nothing depends on the box).
    """

    index: Tensor | None
    groups: int
    per_box: int

    @staticmethod
    def by_index(index: Tensor) -> Owner:
        """Rows with explicit owners."""
        return Owner(index, 0, 0)

    @staticmethod
    def shared(rows: int) -> Owner:
        """The same rows for every box."""
        return Owner(None, 1, rows)

    def spread(self, rows: Tensor, boxes: int) -> tuple[Tensor, Owner]:
        """Give every box its own copy of shared rows (a view until it is written)."""
        if self.index is not None or self.groups == boxes:
            return rows, self
        spread = rows.unsqueeze(0).expand(boxes, *rows.shape).reshape(boxes * self.per_box, *rows.shape[1:])
        return spread, replace(self, groups=boxes)

    def of(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows, values)`` viewed so that they broadcast row by row: values ``[N, *shape]`` belong to boxes."""
        if self.index is not None:
            return rows, values if values.shape[0] == 1 else values[self.index]
        boxes = values.shape[0]
        return rows.reshape(self.groups, self.per_box, *rows.shape[1:]), values.reshape(boxes, 1, *values.shape[1:])

    def take(self, rows: Tensor) -> Owner:
        """Of some of the rows; without an index there must be a single group of rows."""
        if self.index is not None:
            return Owner.by_index(self.index[rows])
        assert self.groups == 1, "rows of several boxes are taken by index"
        return Owner.shared(rows.shape[0])

    def halved(self) -> Owner:
        """Of the first half of mirrored rows."""
        if self.index is not None:
            return Owner.by_index(self.index[: self.index.shape[0] // 2])
        return replace(self, per_box=self.per_box // 2)

    def repeated(self) -> Owner:
        """Of rows that come twice, one after the other; without an index there must be a single group of rows."""
        if self.index is not None:
            return Owner.by_index(self.index.repeat(2))
        assert self.groups == 1, "rows of several boxes are mirrored by index"
        return Owner.shared(2 * self.per_box)

    def boxes(self, rows: int, device: torch.device) -> Tensor:
        """``[R]``: the box of each row (0 for shared rows)."""
        if self.index is not None:
            return self.index
        return torch.arange(self.groups, device=device).repeat_interleave(rows // self.groups)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """Coefficient rows over a whole node, ``[R, *shape]``.

    Where ``columns`` ``[K]`` are given they are held over these flat elements alone, ``[R, K]``: the coefficients of
    all others are zero, or meet elements that are zero on every box.
    """

    values: Tensor
    columns: Tensor | None = None

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The rows over the whole node."""
        if self.columns is None:
            return self.values
        rows = self.values.new_zeros((self.values.shape[0], max(1, int(torch.Size(shape).numel()))))
        return rows.index_copy(1, self.columns, self.values).reshape(-1, *shape)

    def take(self, rows: Tensor) -> Dense:
        """Some of the rows."""
        return replace(self, values=self.values[rows])

    def mirrored(self) -> Dense:
        """All rows, then their negatives."""
        return replace(self, values=torch.cat([self.values, -self.values]))

    def crop(self, values: Tensor) -> Tensor:
        """What belongs to the node ``[N, *shape]``, where these rows are."""
        return values if self.columns is None else flat(values).index_select(1, self.columns)

    def scaled(self, owner: Owner, positive: Tensor, below: Tensor, above: Tensor) -> Dense:
        """``A+ below + A- above`` elementwise, for slopes ``[N, *shape]``; ``positive`` is where A is."""
        viewed, slope = owner.of(self.crop(below), self.values)
        if above is not below:
            slope = torch.where(positive.reshape(viewed.shape), slope, owner.of(self.crop(above), self.values)[1])
        return replace(self, values=(viewed * slope).reshape(self.values.shape))

    def dot(self, owner: Owner, coefficients: Tensor, values: Tensor) -> Tensor:
        """``[R]``: ``coefficients . values`` for coefficients placed as these rows are and values ``[N or 1, *shape]``
        of boxes."""
        return dot(owner, coefficients, self.crop(values))


def dot(owner: Owner, rows: Tensor, values: Tensor) -> Tensor:
    """``[R]``: ``rows . values`` for rows ``[R, *shape]`` and values ``[N, *shape]`` of their boxes (or of all)."""
    if values.shape[0] == 1:
        return flat(rows) @ values.flatten()
    viewed, offsets = owner.of(values, rows)
    if owner.index is None:
        return torch.matmul(flat(viewed, 2), flat(offsets, 2).transpose(1, 2)).reshape(-1)
    return (flat(rows) * flat(offsets)).sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where windows lie: P distinct places, ``origin`` ``[P, 2]`` (top, left) in the image of ``box`` ``[P]``, and for
    each row ``[R]`` its ``place``. ``whole``: the windows are the image.

    Neurons of all channels at one point of an image see the same window, so what belongs to the node is gathered once
    for all of them.
    """

    place: Tensor
    origin: Tensor
    box: Tensor
    whole: bool = False

    @staticmethod
    def of_units(units: Selection, owner: Owner) -> Places:
        """Of single elements of an image ``[1, C, H, W]``."""
        height, width = units.shape[2:]
        plane = height * width
        keys = owner.boxes(units.index.shape[0], units.index.device) * plane + units.index % plane
        found, place = torch.unique(keys, return_inverse=True)
        return Places(place, torch.stack([found % plane // width, found % width], 1), found // plane)

    @staticmethod
    def of_owner(owner: Owner, rows: Tensor) -> Places:
        """Of rows over the whole image."""
        box, place = torch.unique(owner.boxes(rows.shape[0], rows.device), return_inverse=True)
        return Places(place, box.new_zeros((box.shape[0], 2)), box, True)

    def moved(self, factors: tuple[int, ...], shift: tuple[int, ...]) -> Places:
        """With every origin multiplied and then moved back."""
        origin = self.origin * self.origin.new_tensor(factors) - self.origin.new_tensor(shift)
        return replace(self, origin=origin)

    def widened(self) -> Places:
        """Of the same rows over the whole image."""
        box, place = torch.unique_consecutive(self.box, return_inverse=True)
        return Places(place[self.place], self.origin.new_zeros((box.shape[0], 2)), box, True)

    def take(self, rows: Tensor) -> Places:
        """Of some of the rows."""
        return replace(self, place=self.place[rows])

    def twice(self) -> Places:
        """Of rows that come twice, one after the other."""
        return replace(self, place=self.place.repeat(2))

    def along(self, axis: int, size: int) -> Tensor:
        """``[P, size]``: rows (axis 0) or columns of the image under the windows."""
        return self.origin[:, axis : axis + 1] + torch.arange(size, device=self.origin.device)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Coefficient rows over an image ``[1, C, H, W]``: row r is ``values[r]`` ``[h, w, C]`` at its place, and zero
    elsewhere.

    Windows may stick out of the image; coefficients there are zero (``inside``).
    """

    values: Tensor
    places: Places

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[1], self.values.shape[2]

    @staticmethod
    def of_images(images: Tensor, places: Places, shape: tuple[int, ...]) -> Windows:
        """From ``[R, C, h, w]``; what lies outside the image is set to zero."""
        return Windows(images.permute(0, 2, 3, 1).contiguous(), places).inside(shape)

    @staticmethod
    def of_whole(rows: Tensor, places: Places) -> Windows:
        """From rows ``[R, 1, C, H, W]`` over the whole image."""
        return Windows(rows.squeeze(1).permute(0, 2, 3, 1).contiguous(), places)

    def images(self) -> Tensor:
        """``[R, C, h, w]``, a view."""
        return self.values.permute(0, 3, 1, 2)

    def inside(self, shape: tuple[int, ...]) -> Windows:
        """With zeros outside the image."""
        kept = []
        for axis in (0, 1):
            along = self.places.along(axis, self.size[axis])
            kept.append((along >= 0) & (along < shape[axis + 2]))
        if bool(kept[0].all()) and bool(kept[1].all()):
            return self
        mask = (kept[0].unsqueeze(2) & kept[1].unsqueeze(1)).to(self.values.dtype)
        return Windows(self.values * mask.index_select(0, self.places.place).unsqueeze(3), self.places)

    def grown(self, shape: tuple[int, ...], always: bool = False) -> Windows:
        """The same rows over the whole image where the windows are about as large, or ``always``."""
        height, width = self.size
        if self.places.whole or not (always or height * width >= COVER * shape[2] * shape[3]):
            return self
        return Windows(self._laid_out(shape), self.places.widened())

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The rows over the whole node ``[R, *shape]``."""
        values = self.values if self.places.whole else self._laid_out(shape)
        return values.permute(0, 3, 1, 2).contiguous().unsqueeze(1)

    def _laid_out(self, shape: tuple[int, ...]) -> Tensor:
        """``[R, H, W, C]``"""
        height, width = self.size
        rows, channels, device = self.values.shape[0], shape[1], self.values.device
        index, kept = [], []
        for axis, size in ((0, height), (1, width)):
            along = torch.arange(shape[axis + 2], device=device) - self.places.origin[:, axis : axis + 1]
            kept.append((along >= 0) & (along < size))
            index.append(along.clamp(0, size - 1))
        where = (index[0].unsqueeze(2) * width + index[1].unsqueeze(1)).flatten(1)
        mask = (kept[0].unsqueeze(2) & kept[1].unsqueeze(1)).flatten(1).to(self.values.dtype)
        base = torch.arange(rows, device=device).unsqueeze(1) * (height * width)
        where = (where.index_select(0, self.places.place) + base).flatten()
        found = self.values.reshape(-1, channels).index_select(0, where).reshape(rows, -1, channels)
        found = found * mask.index_select(0, self.places.place).unsqueeze(2)
        return found.reshape(rows, shape[2], shape[3], channels)

    def take(self, rows: Tensor) -> Windows:
        """Some of the rows."""
        return Windows(self.values[rows], self.places.take(rows))

    def mirrored(self) -> Windows:
        """All rows, then their negatives."""
        return Windows(torch.cat([self.values, -self.values]), self.places.twice())

    def gather(self, values: Tensor, planar: bool = False) -> Tensor:
        """``[R or 1, h, w, C]``: values ``[N or 1, 1, C, H, W]`` of boxes at the windows; outside the image any.

        ``planar``: as ``[R or 1, C, h, w]``.
        """
        boxes, _, channels, height, width = values.shape
        table = values.permute(0, 1, 3, 4, 2)
        if self.places.whole:
            found = table if boxes == 1 else table.index_select(0, self.places.box)
        else:
            y = self.places.along(0, self.size[0]).clamp(0, height - 1)
            x = self.places.along(1, self.size[1]).clamp(0, width - 1)
            if boxes > 1:
                y = y + self.places.box.unsqueeze(1) * height
            index = (y.unsqueeze(2) * width + x.unsqueeze(1)).flatten()
            found = table.reshape(-1, channels).index_select(0, index)
        found = found.reshape(-1, *self.size, channels)
        if planar:
            found = found.permute(0, 3, 1, 2)
        size = found.shape[1:]
        if found.shape[0] > 1:
            found = found.flatten(1).index_select(0, self.places.place)
        return found.reshape(-1, *size)

    def scaled(self, owner: Owner, positive: Tensor, below: Tensor, above: Tensor) -> Windows:
        """``A+ below + A- above`` elementwise, for slopes ``[N, *shape]``; ``positive`` is where A is."""
        slope = self.gather(below)
        if above is not below:
            slope = torch.where(positive, slope, self.gather(above))
        return Windows(self.values * slope, self.places)

    def dot(self, owner: Owner, coefficients: Tensor, values: Tensor) -> Tensor:
        """``[R]``: ``coefficients . values`` for coefficients placed as these rows are and values ``[N or 1, *shape]``
        of boxes."""
        found = self.gather(values)
        if found.shape[0] == 1:
            return coefficients.flatten(1) @ found.flatten()
        return found.mul_(coefficients).flatten(1).sum(1)

    def framed(self, places: Places, size: tuple[int, int], shift: tuple[int, int]) -> Windows:
        """The same rows in larger windows, which begin ``shift`` before these."""
        after = [size[k] - self.size[k] - shift[k] for k in (0, 1)]
        return Windows(functional.pad(self.values, (0, 0, shift[1], after[1], shift[0], after[0])), places)


Rows = Dense | Windows


def total(one: Rows, two: Rows, shape: tuple[int, ...]) -> Rows:
    """The sum of two sets of rows of one node: windows where those of both lie alike everywhere, else dense."""
    if isinstance(one, Windows) and isinstance(two, Windows):
        if one.places.whole or two.places.whole:
            one, two = one.grown(shape, always=True), two.grown(shape, always=True)
            return Windows(one.values + two.values, one.places)
        apart = two.places.origin - one.places.origin
        if bool((apart == apart[:1]).all()):
            dy, dx = apart[0].tolist()
            above, before = max(0, -dy), max(0, -dx)
            size = max(one.size[0], dy + two.size[0]) + above, max(one.size[1], dx + two.size[1]) + before
            places = one.places.moved((1, 1), (above, before))
            framed = one.framed(places, size, (above, before)).values
            return Windows(framed + two.framed(places, size, (dy + above, dx + before)).values, places)
    if isinstance(one, Dense) and isinstance(two, Dense) and one.columns is two.columns:
        return replace(one, values=one.values + two.values)
    return Dense(one.dense(shape) + two.dense(shape))


def flat(values: Tensor, leading: int = 1) -> Tensor:
    """All axes behind the leading ones as one (a scalar node has one element)."""
    return values.unsqueeze(-1).flatten(leading)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Unit rows: row r has ``sign[r]`` at flat element ``index[r]`` of a node of ``shape``, and zero elsewhere.

    ``mirrored`` says that the second half of the rows are the negatives of the first half.
    """

    index: Tensor
    sign: Tensor
    shape: tuple[int, ...]
    mirrored: bool = False

    def count(self) -> int:
        """How many rows there are, a row and its negative counted once."""
        return self.index.shape[0] // 2 if self.mirrored else self.index.shape[0]

    def take(self, part: Tensor | slice) -> Selection:
        """Some of the rows; of mirrored ones, these of the first half with their negatives."""
        if isinstance(part, slice):
            part = torch.arange(self.count(), device=self.index.device)[part]
        part = torch.cat([part, part + self.count()]) if self.mirrored else part
        return replace(self, index=self.index[part], sign=self.sign[part])

    def half(self) -> Selection:
        """The first half of mirrored rows."""
        return Selection(self.index[: self.count()], self.sign[: self.count()], self.shape)

    def windows(self, places: Places) -> Windows:
        """The rows of an image ``[1, C, H, W]`` as windows of one point."""
        _, channels, height, width = self.shape
        rows = torch.arange(self.index.shape[0], device=self.index.device)
        values = self.sign.new_zeros((rows.shape[0], channels))
        values[rows, self.index // (height * width)] = self.sign
        return Windows(values.reshape(-1, 1, 1, channels), places)

    def dense(self) -> Tensor:
        """The rows written out, ``[R, *shape]``."""
        rows = self.sign.new_zeros((self.index.shape[0], max(1, int(torch.Size(self.shape).numel()))))
        rows[torch.arange(self.index.shape[0], device=self.index.device), self.index] = self.sign
        return rows.reshape(-1, *self.shape)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether rows of a node of this shape can be held as windows."""
    return len(shape) == 4 and shape[0] == 1 and min(shape[2:]) > 1
