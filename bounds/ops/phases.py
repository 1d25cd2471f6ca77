"""Transposed convolutions by plain ones, which libraries know far better where channels are few.

The result of a transposed convolution with strides at every s-th place (a *phase*) is a plain convolution of the
operand with every s-th row and column of the kernel. All phases are computed at once, as s s times the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bounds.layouts import Owner, Windows

MANY = 512
"""From so many pairs of channels on, the libraries' own transposed convolutions are as fast (channels innermost)."""

PART = 1 << 18
"""Phases of so many elements are held at once: they stay in the cache, and their memory is used again."""


def reach(kernel: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    """Of how many places of the operand one phase is the sum, along each axis."""
    return tuple(-(-k // s) for k, s in zip(kernel, steps, strict=True))


def filters(weight: Tensor, steps: Sequence[int]) -> Tensor:
    """``[C s s, K, reach, reach]``: the plain convolutions of a transposed one with kernel ``[K, C, *kernel]``."""
    count, channels, *kernel = weight.shape
    (tall, wide), far = steps, reach(kernel, steps)
    even = functional.pad(weight, (0, wide * far[1] - kernel[1], 0, tall * far[0] - kernel[0]))
    found = even.reshape(count, channels, far[0], tall, far[1], wide).permute(1, 3, 5, 0, 2, 4)
    return found.flip(4, 5).flatten(0, 2)


def transposed(
    rows: Tensor, weight: Tensor, strides: tuple[int, ...], padding: Sequence[int], rest: Sequence[int]
) -> Tensor:
    """The transposed step ``[R, K, h, w]`` to ``[R, C, ...]``, cropped by ``padding`` at both ends, less ``rest``."""
    kernel = weight.shape[2:]
    if weight.shape[0] * weight.shape[1] >= MANY:
        held = rows if strides == (1, 1) else rows.contiguous(memory_format=torch.channels_last)
        return functional.conv_transpose2d(held, weight, None, strides, tuple(padding), tuple(rest)).contiguous()
    margin = tuple(k - 1 - p for k, p in zip(kernel, padding, strict=True))
    if strides == (1, 1) and min(margin) >= 0:
        return functional.conv2d(rows, filters(weight, strides), None, 1, margin)
    steps = [min(k, s) for k, s in zip(kernel, strides, strict=True)]  # places that no element of the kernel reaches
    plain, around = filters(weight, steps), tuple(r - 1 for r in reach(kernel, steps))
    size = [(rows.shape[k + 2] - 1) * strides[k] + kernel[k] + rest[k] - 2 * padding[k] for k in (0, 1)]
    found = rows.new_zeros((rows.shape[0], weight.shape[1], *size))
    count = _part(rows, plain, around)
    for first in range(0, rows.shape[0], count):
        part, result = rows[first : first + count], found[first : first + count]
        phases = functional.conv2d(part, plain, None, 1, around)
        phases = phases.reshape(part.shape[0], -1, *steps, *phases.shape[2:])
        _interleave(phases, result, strides, padding)
    return found


def _interleave(phases: Tensor, result: Tensor, strides: Sequence[int], padding: Sequence[int]) -> None:
    """Enter ``[R, C, *steps, ...]``, less ``padding`` at the beginning, into ``result`` ``[R, C, H, W]``."""
    for down in range(min(strides[0], result.shape[2])):
        for right in range(min(strides[1], result.shape[3])):
            y, x = down + padding[0], right + padding[1]
            if y % strides[0] < phases.shape[2] and x % strides[1] < phases.shape[3]:
                one = phases[:, :, y % strides[0], x % strides[1], y // strides[0] :, x // strides[1] :]
                part = result[:, :, down :: strides[0], right :: strides[1]]
                height, width = (min(a, b) for a, b in zip(one.shape[2:], part.shape[2:], strict=True))
                part[:, :, :height, :width].copy_(one[:, :, :height, :width])


def spans(rows: Windows, weight: Tensor, stride: int, pads: Sequence[int], radius: Tensor) -> Tensor:
    """``[R]``: ``|transposed step of rows| . radius``, up to rounding, for radii ``[N, 1, C, H, W]`` of the image that
    was padded by ``pads``: coefficients stay where a plain convolution leaves them, and the radii go there."""
    shape, kernel, steps = radius.shape[1:], weight.shape[2:], (stride, stride)
    far, plain = reach(kernel, steps), filters(weight, steps)
    # Block 0 begins where the padding does, and the last one is reached by the last place of the result.
    extents = [shape[k + 2] + pads[k] + pads[k + 2] - kernel[k] for k in (0, 1)]
    ends = [(extents[k] // stride + far[k]) * stride - shape[k + 2] - pads[k] for k in (0, 1)]
    laid = functional.pad(radius.squeeze(1), (pads[1], ends[1], pads[0], ends[0]))
    sizes = functional.pixel_unshuffle(laid, stride).unsqueeze(1)
    around, found = (far[0] - 1, far[1] - 1), []
    for part in rows.split(_part(rows.values, plain, around)):
        reached = functional.conv2d(part.values, plain, None, 1, around)
        taped = torch.is_grad_enabled() and reached.requires_grad
        spread = Windows(reached.abs() if taped else reached.abs_(), part.places)
        found.append(spread.dot(Owner.shared(reached.shape[0]), spread.values, sizes))
    return torch.cat(found)


def _part(rows: Tensor, plain: Tensor, around: Sequence[int]) -> int:
    """How many rows' phases are held at once."""
    height, width = (rows.shape[k + 2] + 2 * around[k] - plain.shape[k + 2] + 1 for k in (0, 1))
    return max(1, PART // (plain.shape[0] * height * width))
