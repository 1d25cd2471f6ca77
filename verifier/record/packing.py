"""Small arrays: masks as bits, whole numbers in as few bytes as hold them; and back, with every length looked at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.record.frames import RecordError


def bits(mask: Tensor) -> Tensor:
    """A mask of any shape as bytes, eight elements each."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1)))


def unpacked(packed: Tensor, *shape: int) -> Tensor:
    """The mask that ``bits`` packed. Raises ``RecordError`` where the length is another."""
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.shape != (-(-count // 8),):
        raise RecordError(f"{packed.numel()} bytes of a mask of {count} elements")
    flags = np.unpackbits(packed.numpy(), count=count).astype(bool)
    return torch.from_numpy(flags).reshape(shape)


def narrow(numbers: Tensor) -> Tensor:
    """Whole numbers >= 0 in the smallest type that holds them."""
    greatest = int(numbers.max()) if numbers.numel() else 0
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if greatest <= torch.iinfo(dtype).max:
            return numbers.to(dtype)
    return numbers


def whole(numbers: Tensor, count: int, below: int) -> Tensor:
    """``[count]`` whole numbers as int64, checked to lie in ``[0, below)``. Raises ``RecordError``."""
    if numbers.dtype.is_floating_point or numbers.dtype == torch.bool or numbers.shape != (count,):
        raise RecordError(f"{count} whole numbers expected, found {tuple(numbers.shape)} of {numbers.dtype}")
    found = numbers.long()
    if count and not 0 <= int(found.min()) <= int(found.max()) < below:
        raise RecordError(f"a number outside of 0 to {below - 1}")
    return found
