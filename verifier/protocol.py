"""What a parent and its workers say to each other: JSON objects, each after its length in four bytes.

Parent to worker, one at a time:

- ``{"type": "verify", "task": {...}, "deadline": t | null, "seed", "device", "evidence", "verbose"}``; ``t`` is a
  moment on the monotonic clock at which the worker should stop by itself; ``"explain": true`` asks for an explanation,
  ``"record": path`` for a record of the proof,
  ``"checkpoint": path`` for a file to go on from and to write to; ``"cores": n`` may be worked on.

Worker to parent:

- ``{"type": "ready"}`` once the libraries are loaded,
- ``{"type": "progress", "stage", "lower_bound", "upper_bound", "open_subproblems", "open_share", "seconds"}``,
- ``{"type": "explanation", "lines": [text, ...]}``, before the work starts, where it was asked for,
- ``{"type": "verdict", "record": {...}, "witness": text}``,
- ``{"type": "failure", "kind", "exit_code", "message", "traceback"}``,
- ``{"type": "second", "pid": number | null}``: the process that it has lent work to (``verifier/lending.py``).

A message with ``"attached": n`` is followed by n bytes, which its reader finds under ``"data"``.

There is no pickle: a message cannot run code. Python's spelling of infinities in JSON is used on both sides.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

Message = dict[str, Any]

_LENGTH = struct.Struct(">I")


def send(stream: IO[bytes], message: Message, attached: bytes = b"") -> None:
    """Write one message and flush. Raises ``OSError`` (broken pipe) where nobody reads any more."""
    data = json.dumps({**message, "attached": len(attached)} if attached else message).encode()
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.write(attached)
    stream.flush()


def receive(stream: IO[bytes]) -> Message | None:
    """The next message; None at the end of the stream, also where it ends inside a message."""
    head = _exactly(stream, _LENGTH.size)
    if head is None:
        return None
    data = _exactly(stream, *_LENGTH.unpack(head))
    if data is None:
        return None
    message = json.loads(data)
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    if "attached" in message:
        message["data"] = _exactly(stream, message["attached"])
        return None if message["data"] is None else message
    return message


def _exactly(stream: IO[bytes], count: int) -> bytes | None:
    data = stream.read(count)
    return data if len(data) == count else None
