"""The process that runs the solver: one problem at a time, over a pipe (``milp.protocol``), without torch.

Run as ``python -m milp.worker``. Its stdin and stdout are the channel, moved to private descriptors first, so that
nothing that prints gets between two messages. It ends when its parent does, which the end of stdin says: a thread
reads there, and the solver lets threads run.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from dataclasses import fields, replace
from queue import SimpleQueue
from typing import IO, Any, Literal

from milp import protocol
from milp.engine import Buffer, Engine, Limits, Outcome, Problem
from milp.model import Status

_INDICES = ("start", "index")
Message = tuple[protocol.Header, protocol.Arrays]


def serve() -> None:
    """Answer requests until the parent is gone."""
    requests, channel = _open_channel()
    inbox: SimpleQueue[Message] = SimpleQueue()
    threading.Thread(target=_take_in, args=(requests, inbox), daemon=True).start()
    linear: Engine | None = None
    while True:
        header, arrays = inbox.get()
        if header["type"] == "load":
            linear = Engine(unpacked(header, arrays)[0], linear=True)
            continue
        if header["type"] == "relax":
            assert linear is not None
            outcome = relaxed(linear, header, arrays)
        else:
            outcome = answer(header, arrays, channel)
        said = {"value": outcome.value, "bound": outcome.bound, "reason": outcome.reason}
        protocol.send(channel, {"type": "outcome", "status": outcome.status.value, **said}, [outcome.x, outcome.dual])


def answer(header: protocol.Header, arrays: protocol.Arrays, channel: IO[bytes]) -> Outcome:
    """Solve what a request describes; progress goes to ``channel``."""
    problem, start = unpacked(header, arrays)
    limits = _until(header["stop"], Limits(**header["limits"]))
    if limits is None:
        return Outcome(Status.LIMIT, reason="time limit")

    def hear(bound: float, value: float, seconds: float, x: bytes | None) -> None:
        protocol.send(channel, {"type": "progress", "bound": bound, "value": value, "seconds": seconds}, [x])

    return Engine(problem).run(limits, start=start, hear=hear)


def relaxed(linear: Engine, header: protocol.Header, arrays: protocol.Arrays) -> Outcome:
    """Change the linear program at hand as a request says, and solve it from the last basis."""
    kinds: tuple[Literal["i", "d"], ...] = ("i", "d", "d", "i", "d")
    parts: list[Any] = [memoryview(part or b"").cast(kind) for part, kind in zip(arrays, kinds, strict=True)]
    columns, lower, upper, priced, cost = parts
    if len(columns):
        linear.change(array("i", columns), ends=(array("d", lower), array("d", upper)))
    if len(priced):
        linear.change(array("i", priced), cost=array("d", cost))
    limits = _until(header["stop"], Limits())
    return Outcome(Status.LIMIT, reason="time limit") if limits is None else linear.run(limits)


def _until(stop: float | None, limits: Limits) -> Limits | None:
    """These limits with the seconds that are left until a moment; None where none are."""
    if stop is None:
        return limits
    left = stop - time.monotonic()
    return replace(limits, seconds=left) if left > 0 else None


def unpacked(header: protocol.Header, arrays: protocol.Arrays) -> tuple[Problem, Buffer | None]:
    """The problem and the point to begin with that a request holds."""
    *parts, start = (None if part is None else memoryview(part) for part in arrays)
    names = [field.name for field in fields(Problem)][1:]
    typed = {}
    for name, part in zip(names, parts, strict=True):
        assert part is not None
        typed[name] = part.cast("q" if name in _INDICES else "B" if name == "integer" else "d")
    return Problem(offset=header["offset"], **typed), None if start is None else start.cast("d")


def _open_channel() -> tuple[IO[bytes], IO[bytes]]:
    """Move the channel to descriptors of its own; prints go to stderr, stdin is empty."""
    requests, channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, channel


def _take_in(requests: IO[bytes], inbox: SimpleQueue[Message]) -> None:
    """Read requests; when the parent is gone there is nobody to work for."""
    while (message := protocol.receive(requests)) is not None:
        inbox.put(message)
    os._exit(0)


if __name__ == "__main__":
    serve()
