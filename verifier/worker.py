"""The process that reads, bounds and searches: one query at a time, over a pipe.

Run as ``python -m verifier.worker PARENT_PID``. Its stdin and stdout are the channel (``verifier.protocol``). The
channel is moved to private descriptors first, so that nothing that prints can get between two messages. The worker
ends when its parent does: the system is asked for it, and the end of stdin says so as well.

The libraries are loaded before any query is looked at, so that a worker that is kept has nothing left to load.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any

from verifier import limits, protocol
from verifier.errors import VerifierError

if TYPE_CHECKING:
    from verifier.verdict import Progress, Verdict

Send = Callable[[protocol.Message], None]
Respond = Callable[[protocol.Message, Send], protocol.Message]
_PROGRESS_INTERVAL = 0.25
_KINDS = MappingProxyType({2: "input", 3: "unsupported"})
_SHORT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


def serve(arguments: list[str], load: Callable[[], None], respond: Respond) -> None:
    """Load, then respond to requests until the parent is gone. ``arguments``: the parent's process id, or nothing."""
    requests, channel = _open_channel()
    if arguments:
        limits.die_with_parent(int(arguments[0]))
    inbox: SimpleQueue[protocol.Message] = SimpleQueue()
    threading.Thread(target=_take_in, args=(requests, inbox), daemon=True).start()
    load()
    protocol.send(channel, {"type": "ready"})
    while True:
        protocol.send(channel, respond(inbox.get(), lambda message: protocol.send(channel, message)))


def answer(request: protocol.Message, send: Send) -> protocol.Message:
    """The closing message to a request; ``send`` carries progress. Never raises: an error is a message too."""
    if request["verbose"]:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        return _verify(request, send)
    except VerifierError as error:
        return failure(_KINDS.get(error.exit_code, "internal"), error.exit_code, " ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it; it is never a verdict
        if _is_memory(error):
            from verifier.report.result import record

            return _verdict(record("unknown", stage="memory", seconds=0.0, reason="out of memory"))
        return failure("internal", 4, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _verify(request: protocol.Message, send: Send) -> protocol.Message:
    from verifier.lending import Lender
    from verifier.pipeline import attack, verify
    from verifier.report.result import verdict_record
    from verifier.strategy import choose, explain, features
    from verifier.tasks import read_task, write_witness
    from verifier.verdict import Violated

    start, deadline = limits.now(), request["deadline"]
    send(_progress_message("load", 0.0))
    query = read_task(request["task"])
    known = features(query)
    strategy = choose(known, request["seed"], request.get("cores", 1))
    if request.get("explain"):
        send({"type": "explanation", "lines": explain(known, strategy)})
    timeout = None if deadline is None else max(deadline - limits.now(), 0.0)
    heard = throttled(send, start)
    verdict: Verdict
    if request.get("attack"):
        verdict = attack(query, timeout=timeout, seed=request["seed"], device=request["device"], report=heard)
    else:
        verdict = verify(
            query,
            timeout=timeout,
            device=request["device"],
            report=heard,
            strategy=strategy,
            record=request.get("record"),
            checkpoint=request.get("checkpoint"),
            lender=Lender(request["task"], send) if strategy.workers > 1 else None,
        )
    witness = ""
    if isinstance(verdict, Violated):
        witness = write_witness(verdict.counterexample, query, request["task"].get("assignments"))
    record = verdict_record(verdict, query if request["evidence"] else None)
    return _verdict(record | {"seconds": round(limits.now() - start, 3)}, witness)


def throttled(send: Send, start: float) -> Callable[[Progress], None]:
    """Pass progress on, at most once an interval for each stage."""
    last: dict[str, float] = {}

    def report(progress: Progress) -> None:
        moment = limits.now()
        if moment - last.get(progress.stage, float("-inf")) < _PROGRESS_INTERVAL:
            return
        last[progress.stage] = moment
        send(
            {
                "type": "progress",
                "stage": progress.stage,
                "lower_bound": float(progress.lower_bound),
                "upper_bound": float(progress.upper_bound),
                "open_subproblems": int(progress.open_subproblems),
                "open_share": float(progress.open_share),
                "seconds": moment - start,
            }
        )

    return report


def _progress_message(stage: str, seconds: float) -> protocol.Message:
    return {"type": "progress", "stage": stage, "seconds": seconds}


def _verdict(record: dict[str, Any], witness: str = "") -> protocol.Message:
    return {"type": "verdict", "record": record, "witness": witness}


def failure(kind: str, exit_code: int, message: str) -> protocol.Message:
    """The closing message that says of the error being handled what kind it is."""
    trace = traceback.format_exc()
    return {"type": "failure", "kind": kind, "exit_code": exit_code, "message": message, "traceback": trace}


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SHORT_OF_MEMORY)


def _open_channel() -> tuple[IO[bytes], IO[bytes]]:
    """Move the channel to descriptors of its own; prints go to stderr, stdin is empty."""
    requests, channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, channel


def _take_in(requests: IO[bytes], inbox: SimpleQueue[protocol.Message]) -> None:
    """Read requests; when the parent is gone there is nobody to work for."""
    while (message := protocol.receive(requests)) is not None:
        inbox.put(message)
    os._exit(0)


def load_libraries() -> None:
    """Import what every query needs."""
    import gc

    # Imports allocate hundreds of thousands of objects that all stay: collecting among them only costs time (a
    # tenth to a fifth of it).
    gc.disable()
    import verifier.pipeline
    import verifier.property.witness
    import verifier.regions
    import verifier.report.result
    import verifier.tasks  # noqa: F401

    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    serve(sys.argv[1:], load_libraries, answer)
