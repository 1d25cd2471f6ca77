"""A worker without an engine: it speaks the protocol and does what the property file's name says."""

import os
import signal
import sys
import time

from verifier import protocol
from verifier.report.result import record


def main() -> None:
    requests, channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    protocol.send(channel, {"type": "ready"})
    while (request := protocol.receive(requests)) is not None:
        assert "expected" not in str(request)
        act(request, channel)


def act(request: dict, channel) -> None:  # type: ignore[no-untyped-def,type-arg]
    def send(message: dict) -> None:  # type: ignore[type-arg]
        protocol.send(channel, message)

    def verdict(word: str, witness: str = "", **more: object) -> None:
        send({"type": "verdict", "record": record(word, stage="fake", seconds=0.1, **more), "witness": witness})

    def failure(kind: str, code: int) -> None:
        send({"type": "failure", "kind": kind, "exit_code": code, "message": f"{kind} trouble", "traceback": "TRACE"})

    def progress() -> None:
        send({"type": "progress", "stage": "splitting", "lower_bound": -0.25, "open_subproblems": 7,
              "open_share": 0.5, "seconds": 0.1})

    task = request["task"]
    match os.path.basename(task.get("property", "unsat")).partition(".")[0].partition("_")[0]:
        case "sat":
            verdict("sat", witness="((X_0 0.5)\n(Y_0 -1.25))", counterexample={
                "clause": 0, "margin": "0.25", "replayed_with": "onnxruntime 1", "real": "violated"})
        case "unsat":
            verdict("unsat", semantics="real", lower_bound="0.5", subproblems=3, notes=["1 of 2 inputs widened"])
        case "unknown":
            verdict("unknown", reason="nothing left to split", lower_bound="-0.5", open_share=0.25)
        case "slow":
            progress()
            time.sleep(120)
        case "crash":
            progress()
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "cut":  # a message that ends in the middle
            channel.write(b"\0\0\1\0{")
            channel.flush()
            os._exit(3)
        case "hungry":
            progress()
            held = bytearray(400_000_000)
            held[::4096] = b"x" * len(held[::4096])
            time.sleep(120)
        case "input":
            failure("input", 2)
        case "unsupported":
            failure("unsupported", 3)
        case "internal":
            failure("internal", 4)
        case other:
            sys.exit(f"unexpected request {other}")


if __name__ == "__main__":
    main()
