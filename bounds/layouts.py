"""How coefficient rows are held, and whose box each row belongs to.

``Selection`` names unit rows, ``Dense`` is rows over a whole node, and ``Windows`` holds, for each row over an image,
only a patch that contains all its coefficients, at a place of its own: what a neuron sees of a convolution's operand.
Whatever belongs to the node (slopes, charges, biases) is gathered at the patches.

Dense rows are ``[R, *node shape]``, windows ``[R, C, h, w]``. ``Owner`` says which of the N boxes a row speaks about:
by an index ``[R]``, or, where every box has equally many rows, by position (a broadcast instead of a copy).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from bounds.alignment import Aligned, inner

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
            return rows, values if values.shape[0] == 1 else values.index_select(0, self.index)
        boxes = values.shape[0]
        return rows.reshape(self.groups, self.per_box, *rows.shape[1:]), values.reshape(boxes, 1, *values.shape[1:])

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

    def mirrored(self) -> Dense:
        """All rows, then their negatives."""
        return replace(self, values=torch.cat([self.values, -self.values]))

    def crop(self, values: Tensor) -> Tensor:
        """What belongs to the node ``[N, *shape]``, where these rows are."""
        return values if self.columns is None else flat(values).index_select(1, self.columns)

    def aligned(self, owner: Owner, *values: Tensor) -> Aligned:
        """The rows, and what belongs to the node ``[N or 1, *shape]`` of boxes, so that they broadcast."""
        pairs = [owner.of(self.crop(v), self.values) for v in values]
        if owner.index is None:
            return Aligned(pairs[0][0], [v for _, v in pairs])
        return Aligned(self.values.unsqueeze(0), [v.unsqueeze(0) for _, v in pairs])

    def like(self, values: Tensor) -> Dense:
        """Rows of other values that are placed as these are."""
        return replace(self, values=values.reshape(self.values.shape))

    def dot(self, owner: Owner, coefficients: Tensor, values: Tensor) -> Tensor:
        """``[R]``: ``coefficients . values`` for coefficients placed as these rows are and values ``[N or 1, *shape]``
        of boxes."""
        rows, (found,) = self.like(coefficients).aligned(owner, values)
        return inner(rows, found)


def dot(owner: Owner, rows: Tensor, values: Tensor) -> Tensor:
    """``[R]``: ``rows . values`` for rows ``[R, *shape]`` and values ``[N, *shape]`` of their boxes (or of all)."""
    return Dense(rows).dot(owner, rows, values)


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where windows lie: P distinct places, ``origin`` ``[P, 2]`` (top, left) in the image of ``box`` ``[P]``, and for
    each row its ``place`` ``[K]``: rows may come several times over, in blocks of K. ``whole``: the windows are the
    image.

    Neurons of all channels at one point see the same window: what belongs to the node is gathered once for them.
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

    def of_rows(self, rows: int) -> Tensor:
        """``[R]``: the place of each of so many rows."""
        return self.place.repeat(rows // self.place.shape[0])

    def along(self, axis: int, size: int) -> Tensor:
        """``[P, size]``: rows (axis 0) or columns of the image under the windows."""
        return self.origin[:, axis : axis + 1] + torch.arange(size, device=self.origin.device)


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Coefficient rows over an image ``[1, C, H, W]``: row r is ``values[r]`` ``[C, h, w]`` at its place, and zero
    elsewhere.

    Windows may stick out of the image; coefficients there are zero, or, of ``ragged`` windows, mean nothing
    (``inside`` sets them to zero).
    """

    values: Tensor
    places: Places
    ragged: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.values.shape[2], self.values.shape[3]

    @staticmethod
    def of_images(images: Tensor, places: Places, shape: tuple[int, ...]) -> Windows:
        """From ``[R, C, h, w]``; what lies outside the image is set to zero."""
        return Windows(images.contiguous(), places, True).inside(shape)

    @staticmethod
    def of_whole(rows: Tensor, places: Places) -> Windows:
        """From rows ``[R, 1, C, H, W]`` over the whole image."""
        return Windows(rows.squeeze(1).contiguous(), places)

    def inside(self, shape: tuple[int, ...]) -> Windows:
        """With zeros outside the image."""
        if not self.ragged:
            return self
        kept = []
        for axis in (0, 1):
            along = self.places.along(axis, self.size[axis])
            kept.append((along >= 0) & (along < shape[axis + 2]))
        if bool(kept[0].all()) and bool(kept[1].all()):
            return replace(self, ragged=False)
        mask = (kept[0].unsqueeze(2) & kept[1].unsqueeze(1)).to(self.values.dtype)
        return self.like(self._in_blocks() * mask.index_select(0, self.places.place).unsqueeze(1))

    def grown(self, shape: tuple[int, ...], always: bool = False) -> Windows:
        """The same rows over the whole image where the windows are about as large, or ``always``."""
        height, width = self.size
        if self.places.whole or not (always or height * width >= COVER * shape[2] * shape[3]):
            return self
        return Windows(self._laid_out(shape), self.places.widened())

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The rows over the whole node ``[R, *shape]``."""
        values = self.values if self.places.whole else self._laid_out(shape)
        return values.unsqueeze(1)

    def _laid_out(self, shape: tuple[int, ...]) -> Tensor:
        """``[R, C, H, W]``"""
        height, width = self.size
        (rows, channels), device = self.values.shape[:2], self.values.device
        index, kept = [], []
        for axis, size in ((0, height), (1, width)):
            along = torch.arange(shape[axis + 2], device=device) - self.places.origin[:, axis : axis + 1]
            kept.append(((along >= 0) & (along < size)).unsqueeze(2 - axis))
            index.append(along.unsqueeze(2 - axis))
        # One element behind each image is zero.
        where = torch.where(kept[0] & kept[1], index[0] * width + index[1], height * width).flatten(1)
        where = where.index_select(0, self.places.of_rows(rows)).unsqueeze(1).expand(-1, channels, -1)
        found = functional.pad(self.values.flatten(2), (0, 1)).gather(2, where)
        return found.reshape(rows, channels, shape[2], shape[3])

    def split(self, count: int) -> list[Windows]:
        """The rows, so many at a time."""
        if (rows := self.values.shape[0]) <= count:
            return [self]
        parts = zip(self.values.split(count), self.places.of_rows(rows).split(count), strict=True)
        return [replace(self, values=v, places=replace(self.places, place=p)) for v, p in parts]

    def mirrored(self) -> Windows:
        """All rows, then their negatives."""
        return replace(self, values=torch.cat([self.values, -self.values]))

    def gather(self, *values: Tensor) -> list[Tensor]:
        """``[K or 1, C, h, w]`` each: values ``[N or 1, 1, C, H, W]`` of boxes at the windows; outside zero."""
        boxes, places = max(v.shape[0] for v in values), self.places
        if places.whole and boxes == 1:
            return [v.squeeze(1) for v in values]
        tables = torch.stack([v.squeeze(1).expand(boxes, *v.shape[2:]) for v in values])
        if places.whole:
            found = tables.flatten(2).index_select(1, places.box)
        else:
            high, wide = self.size
            padded = functional.pad(tables, (wide, wide, high, high))
            found = padded.flatten(1).index_select(1, self._index(padded.shape[1:]).flatten())
        found = found.reshape(len(values), places.box.shape[0], -1).index_select(1, places.place)
        return list(found.reshape(len(values), -1, *self.values.shape[1:]))

    def _index(self, shape: tuple[int, ...]) -> Tensor:
        """``[P, C h w]``: where windows are in values ``[N, C, H, W]`` that were padded by their size all around."""
        boxes, channels, height, width = shape
        along = [torch.arange(n, device=self.values.device) for n in (channels, *self.size)]
        patch = (along[0].reshape(-1, 1, 1) * height + along[1].reshape(-1, 1)) * width + along[2]
        corner = self.places.origin + self.places.origin.new_tensor(self.size)
        corners = corner[:, 0].clamp(0, height - self.size[0]) * width + corner[:, 1].clamp(0, width - self.size[1])
        if boxes > 1:
            corners = corners + self.places.box * (channels * height * width)
        return corners.unsqueeze(1) + patch.flatten()

    def _in_blocks(self) -> Tensor:
        return self.values.reshape(-1, self.places.place.shape[0], *self.values.shape[1:])

    def aligned(self, owner: Owner, *values: Tensor) -> Aligned:
        """The rows, and what belongs to the node ``[N or 1, *shape]`` of boxes, so that they broadcast; zero outside
        the image."""
        return Aligned(self._in_blocks(), [v.unsqueeze(0) for v in self.gather(*values)])

    def like(self, values: Tensor) -> Windows:
        """Rows of other values that are placed as these are, with zeros outside the image."""
        return Windows(values.reshape(self.values.shape), self.places)

    def dot(self, owner: Owner, coefficients: Tensor, values: Tensor) -> Tensor:
        """``[R]``: ``coefficients . values`` for coefficients placed as these rows are and values ``[N or 1, *shape]``
        of boxes."""
        rows, (found,) = self.like(coefficients).aligned(owner, values)
        return inner(rows, found)

    def framed(self, places: Places, size: tuple[int, int], shift: tuple[int, int]) -> Windows:
        """The same rows in larger windows, which begin ``shift`` before these."""
        after = [size[k] - self.size[k] - shift[k] for k in (0, 1)]
        values = functional.pad(self.values, (shift[1], after[1], shift[0], after[0]))
        return replace(self, values=values, places=places)


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
            both = framed + two.framed(places, size, (dy + above, dx + before)).values
            return Windows(both, places, one.ragged or two.ragged)
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
        return Windows(values.reshape(-1, channels, 1, 1), places)

    def dense(self) -> Tensor:
        """The rows written out, ``[R, *shape]``."""
        rows = self.sign.new_zeros((self.index.shape[0], max(1, int(torch.Size(self.shape).numel()))))
        rows[torch.arange(self.index.shape[0], device=self.index.device), self.index] = self.sign
        return rows.reshape(-1, *self.shape)


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether rows of a node of this shape can be held as windows."""
    return len(shape) == 4 and shape[0] == 1 and min(shape[2:]) > 1
