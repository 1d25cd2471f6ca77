"""One tool on one network in a process of its own, so that its memory can be measured.

Requests come as JSON lines on stdin, answers go to stdout. The first line names the case and the tool; each further
one asks for one call, and is answered by its seconds, the memory that it needed above what was there before, the sum
of the lower bounds and how many margins it proves (of the first box). A call that takes milliseconds is repeated, and
the median counts: right after the other tool's turn caches and clocks are cold for whoever comes next.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.bounding import tools
from benchmarks.bounding.case import Case, load
from bounds.box import Box

MEGABYTE = 1 << 20
BLOCK = 0.3


class Memory:
    """Memory in MB above what was there before the first call: of the card where there is one, else the process's
    resident set (Linux). Blocks that a call frees may stay with the process, so they are counted from there on."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = torch.cuda.memory_allocated() / MEGABYTE if device != "cpu" else _resident("VmRSS")

    def begin(self) -> None:
        """Look at what is used from now on."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def peak(self) -> float:
        """The most that was held beside what was there before the first call."""
        after = _resident("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated() / MEGABYTE
        return after - self.before


def _resident(entry: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def call(tool: tools.Tool, case: Case, memory: Memory, request: dict[str, Any]) -> dict[str, Any]:
    """One measured call, or the median of as many as fit into ``BLOCK`` seconds."""
    boxes = case.boxes(request["batch"])
    dtype = torch.float64 if getattr(tool, "semantics", None) else torch.float32
    boxes = Box(boxes.lower.to(memory.device, dtype), boxes.upper.to(memory.device, dtype))
    memory.begin()
    clock = time.process_time if request.get("clock") == "cpu" else time.perf_counter
    seconds: list[float] = []
    while not seconds or sum(seconds) + seconds[-1] < BLOCK:
        start = clock()
        lower = tool.lower(boxes, request["method"], request["steps"])
        first = lower[0].cpu()  # waits for the card
        seconds.append(clock() - start)
    peak = memory.peak()
    margins = first.double() - case.limits
    proven = int((margins > 0).sum())
    return {"seconds": statistics.median(seconds), "peak": peak, "sum": float(margins.sum()), "proven": proven}


def main() -> None:
    """Serve until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    setup = json.loads(sys.stdin.readline())
    torch.set_num_threads(setup["threads"])
    tool: tools.Tool | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if tool is None:
                case = load(Path(setup["folder"]), setup["benchmark"], setup["part"])
                tool = tools.make(setup["tool"], case, setup["device"])
                memory = Memory(setup["device"])
            answer = call(tool, case, memory, request)
        except Exception as error:  # noqa: BLE001 - what another tool raises is the result here
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
