"""The file: frames one after the other, each a header in JSON after its length, then the bytes of its arrays.

    8 bytes "nnrecord", then frames:  length of the header (4 bytes, big-endian) | header | arrays (little-endian)

A header is ``{"kind": text, "arrays": [[name, dtype, shape], ...]}``, the first one with ``"about": {...}``, the last
one of kind "end" with ``"counts": {...}``. Nothing is compressed and nothing is pickled; a file that was cut off is
readable up to there, and only one with an end may count as a proof. The reader believes nothing: types come from a
list, and nothing larger than what is left of the file is ever allocated.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from verifier.errors import InputError

MAGIC = b"nnrecord"
MOST_HEADER = 1 << 20
MOST_AXES, MOST_ELEMENTS = 8, 1 << 40
_LENGTH = struct.Struct(">I")
_TYPES = MappingProxyType({
    "uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "float16": torch.float16, "float32": torch.float32, "float64": torch.float64,
})  # fmt: skip
_NAMES = MappingProxyType({dtype: name for name, dtype in _TYPES.items()})


class RecordError(InputError):
    """A record is not one, or says something that cannot be."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One entry: its kind, its arrays by name, and further fields of its header."""

    kind: str
    arrays: Mapping[str, Tensor]
    more: Mapping[str, Any] = field(default_factory=dict)

    def array(self, name: str) -> Tensor:
        """One of the arrays. Raises ``RecordError`` where there is none."""
        if name not in self.arrays:
            raise RecordError(f"an entry of kind {self.kind!r} without {name!r}")
        return self.arrays[name]


class Sink(Protocol):
    """What frames are written to."""

    def write(self, data: bytes, /) -> int:
        """Append bytes."""
        ...


def write_frame(stream: Sink, frame: Frame) -> int:
    """Append one frame; how many bytes it has."""
    arrays = {name: values.detach().cpu().contiguous() for name, values in frame.arrays.items()}
    listed = [[name, _NAMES[values.dtype], list(values.shape)] for name, values in arrays.items()]
    header = json.dumps({"kind": frame.kind, "arrays": listed, **frame.more}, separators=(",", ":")).encode()
    data = b"".join(values.numpy().tobytes() for values in arrays.values())
    stream.write(_LENGTH.pack(len(header)) + header + data)
    return _LENGTH.size + len(header) + len(data)


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a file, to where it ends or was cut off. Raises ``RecordError`` where it is no record."""
    size = os.stat(path).st_size
    with open(path, "rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise RecordError(f"{path}: is not a record")
        while True:
            frame = _read_frame(stream, size)
            if frame is None:
                return
            yield frame


def _read_frame(stream: IO[bytes], size: int) -> Frame | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > MOST_HEADER:
        raise RecordError(f"a header of {length} bytes")
    text = stream.read(length)
    if len(text) < length:
        return None
    kind, listed, more = _header(text)
    arrays: dict[str, Tensor] = {}
    for name, dtype, shape in listed:
        count = math.prod(shape) * dtype.itemsize
        if count > size - stream.tell():
            return None
        data = bytearray(stream.read(count))
        if len(data) < count:
            return None
        arrays[name] = torch.frombuffer(data, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    return Frame(kind, arrays, more)


def _header(text: bytes) -> tuple[str, list[tuple[str, torch.dtype, list[int]]], dict[str, Any]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a header that is not JSON: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise RecordError("a header without a kind")
    listed = header.get("arrays")
    if not isinstance(listed, list):
        raise RecordError("a header that lists no arrays")
    found = [_listed(entry) for entry in listed]
    if len({name for name, *_ in found}) < len(found):
        raise RecordError("two arrays of one name")
    return header["kind"], found, {k: v for k, v in header.items() if k not in ("kind", "arrays")}


def _listed(entry: object) -> tuple[str, torch.dtype, list[int]]:
    if not isinstance(entry, list) or len(entry) != 3:
        raise RecordError("an array without name, type and shape")
    name, dtype, shape = entry
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in _TYPES:
        raise RecordError(f"an array of an unknown type {dtype!r}")
    possible = isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    if not possible or math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS:
        raise RecordError(f"an array of an impossible shape {shape!r}")
    return name, _TYPES[dtype], shape
