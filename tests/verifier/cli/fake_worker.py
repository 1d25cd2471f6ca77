"""A worker without an engine: it speaks the protocol and does what the property file's name says."""

import os
import signal
import sys
import time
from typing import Any

from verifier import protocol
from verifier.report.result import record

COUNTEREXAMPLE = {"clause": 0, "margin": "0.25", "replayed_with": "onnxruntime 1", "real": "violated"}
VERDICTS: dict[str, dict[str, Any]] = {
    "sat": {"counterexample": COUNTEREXAMPLE},
    "unsat": {"semantics": "real", "lower_bound": "0.5", "subproblems": 3, "notes": ["1 of 2 inputs widened"]},
    "unknown": {"reason": "nothing left to split", "lower_bound": "-0.5", "open_share": 0.25},
}
FAILURES = {"input": 2, "unsupported": 3, "internal": 4}
PROGRESS = {
    "type": "progress",
    "stage": "splitting",
    "lower_bound": -0.25,
    "open_subproblems": 7,
    "open_share": 0.5,
    "seconds": 0.1,
}


def main() -> None:
    requests, channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    protocol.send(channel, {"type": "ready"})
    while (request := protocol.receive(requests)) is not None:
        assert "expected" not in str(request)
        kind = os.path.basename(request["task"]["property"]).partition(".")[0]
        if request.get("explain"):
            protocol.send(channel, {"type": "explanation", "lines": ["features: boxes 1", "choice = True: because"]})
        if kind in VERDICTS:
            made = record(kind, stage="fake", seconds=0.1, **VERDICTS[kind])
            witness = "((X_0 0.5)\n(Y_0 -1.25))" if kind == "sat" else ""
            protocol.send(channel, {"type": "verdict", "record": made, "witness": witness})
        elif kind in FAILURES:
            protocol.send(
                channel,
                {
                    "type": "failure",
                    "kind": kind,
                    "exit_code": FAILURES[kind],
                    "message": f"{kind} trouble",
                    "traceback": "TRACE",
                },
            )
        else:
            protocol.send(channel, PROGRESS)
            misbehave(kind, channel)


def misbehave(kind: str, channel: Any) -> None:
    match kind:
        case "slow":
            time.sleep(120)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cut":  # a message that ends in the middle
            channel.write(b"\0\0\1\0{")
            channel.flush()
            os._exit(3)
        case "hungry":
            held = bytearray(400_000_000)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(120)
        case _:
            sys.exit(f"unexpected request {kind}")


if __name__ == "__main__":
    main()
