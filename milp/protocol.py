"""What ``milp.process`` and its worker say to each other: a JSON object and arrays as bytes, each after its length.

Parent to worker, one at a time: ``{"type": "solve", "offset", "limits": {...}, "stop": t | null}`` with the arrays of a
``milp.engine.Problem`` in the order of its fields, and the point to begin with; ``t`` is a moment on the monotonic
clock, which the processes of a machine share, at which the worker should stop by itself. Or ``{"type": "load",
"offset"}`` with such arrays, which has no answer: a linear program to be solved again and again; and ``{"type":
"relax", "stop"}`` with columns (int32) that get other ends, their lower and upper ends, columns (int32) that get other
costs, and these: solve it now, from the last basis. Worker to parent:
``{"type": "progress", "bound", "value", "seconds"}`` with x, and at the end ``{"type": "outcome", "status", "value",
"bound", "reason"}`` with x and dual. There is no pickle: a message cannot run code. Python's spelling of infinities in
JSON is used on both sides.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

Header = dict[str, Any]
Arrays = list[bytes | None]

_LENGTH = struct.Struct(">I")
_SIZES = "sizes"


def send(stream: IO[bytes], header: Header, arrays: Sequence[bytes | None] = ()) -> None:
    """Write one message and flush. Raises ``OSError`` (broken pipe) where nobody reads any more."""
    sizes = [None if array is None else len(array) for array in arrays]
    data = json.dumps({**header, _SIZES: sizes}).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    for array in arrays:
        if array:
            stream.write(array)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Header, Arrays] | None:
    """The next message; None at the end of the stream, also where it ends inside a message. Raises ``ValueError`` at
    anything that is no message."""
    head = _exactly(stream, _LENGTH.size)
    data = None if head is None else _exactly(stream, *_LENGTH.unpack(head))
    if data is None:
        return None
    header = json.loads(data)
    if not isinstance(header, dict) or not isinstance(header.get(_SIZES), list):
        raise ValueError("a message is a JSON object with the sizes of its arrays")
    arrays: Arrays = []
    for size in header.pop(_SIZES):
        array = None if size is None else _exactly(stream, int(size))
        if size is not None and array is None:
            return None
        arrays.append(array)
    return header, arrays


def _exactly(stream: IO[bytes], count: int) -> bytes | None:
    data = stream.read(count)
    return data if len(data) == count else None
