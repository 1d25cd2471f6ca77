"""The geometry of sliding windows, shared by convolutions and pooling.

Output ``o`` of an axis sees the places ``o stride - begin + t dilation`` for ``t`` in ``range(kernel)``; ``auto_pad``
and ``ceil_mode`` are resolved to plain numbers when a node is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from bounds.ops import reading
from bounds.ops.base import OnnxNode, Shape


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: ``size`` elements, ``begin`` and ``end`` of padding, ``count`` windows."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    count: int

    def places(self, output: int) -> range:
        """What a window sees, padding included (places outside ``[0, size)``)."""
        start = output * self.stride - self.begin
        return range(start, start + self.extent, self.dilation)

    @property
    def extent(self) -> int:
        """How many places a window spans."""
        return (self.kernel - 1) * self.dilation + 1


def read_axes(node: OnnxNode, spatial: Shape, kernel: Shape) -> tuple[Axis, ...]:
    """The axes of a Conv or pooling node over ``spatial`` sizes."""
    rank = len(spatial)
    strides = reading.ints(node, "strides", (1,) * rank)
    dilations = reading.ints(node, "dilations", (1,) * rank)
    pads = reading.ints(node, "pads", (0,) * 2 * rank)
    if not len(kernel) == len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        raise reading.invalid(node, f"kernel {kernel}, strides {strides}, pads {pads} do not fit {rank} spatial axes")
    if min((*strides, *dilations, *kernel)) < 1:
        raise reading.invalid(node, f"kernel {kernel}, strides {strides} and dilations {dilations} must be positive")
    auto, ceil = reading.text(node, "auto_pad", "NOTSET"), bool(reading.flag(node, "ceil_mode"))
    axes = []
    for k, size in enumerate(spatial):
        begin, end = (pads[k], pads[k + rank]) if auto in ("NOTSET", "") else (0, 0)
        extent = (kernel[k] - 1) * dilations[k] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = (-(-size // strides[k]) - 1) * strides[k] + extent - size
            # Negative where strides skip the end: convolutions leave it aside, poolings skip at both ends.
            total = max(0, total) if node.op_type == "Conv" else total
            begin = int(total / 2) if auto == "SAME_UPPER" else int((total + 1) / 2)
            end = total - begin
        count = _count(size + begin + end - extent, strides[k], ceil, size + begin)
        if count < 1:
            raise reading.invalid(node, f"a window of {extent} does not fit an axis of {size} with pads {begin}, {end}")
        axes.append(Axis(size, kernel[k], strides[k], dilations[k], begin, end, count))
    return tuple(axes)


def _count(room: int, stride: int, ceil: bool, limit: int) -> int:
    """How many windows there are; with ``ceil`` the last one must start before the padding at the end."""
    if room < 0 and not ceil:
        return 0
    if not ceil:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= limit else count
