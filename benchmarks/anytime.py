"""How soon the range of an output is known to 10 %, 1 % and 0.1 %: the refiner, and two baselines.

    python benchmarks/anytime.py --instances BENCHMARKS

``BENCHMARKS`` is a folder of the VNN-COMP benchmarks (acasxu, rl_benchmarks, dist_shift, tllverifybench). Of each
network the first output is bounded over the box of its first property: with all inputs by the refiner
(``verifier/anytime``) and by best-first input splitting with interval bounds, and with 2 and 3 inputs (those with the
largest product of slope and width; the others stay at the centre) by the refiner and by the nested Lipschitz search
(``verifier/anytime/nested.py``) with constants from ``jacobian_bounds``.

A range is known to a share where ``[lower, upper]`` is wider than ``[least, greatest]`` by at most that share of the
latter (``Enclosure.excess``). A cell has the evaluations up to there (boxes bounded, points evaluated, linear programs
solved) and processor seconds in one thread; ``> N``: not within the limit, which allowed N evaluations; the nested
search goes on beyond it until it has had ten times as many as the refiner at 1 %. It has to be told a gap, and is run
once for each share: it gets the one that the refiner's answer says is needed. Its function values are taken as
computed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from benchmarks.bounding.case import load  # noqa: E402
from bounds import Box, Graph, Interval, compute_bounds, jacobian_bounds, prepare  # noqa: E402
from verifier.anytime.enclosure import Enclosure  # noqa: E402
from verifier.anytime.functional import with_expression  # noqa: E402
from verifier.anytime.nested import nested_minimum  # noqa: E402
from verifier.anytime.refinement import refine  # noqa: E402

NETWORKS = (
    ("acasxu", "1_1"),
    ("acasxu", "2_2"),
    ("acasxu", "3_3"),
    ("acasxu", "4_4"),
    ("acasxu", "5_5"),
    ("rl_benchmarks", "cartpole"),
    ("rl_benchmarks", "dubinsrejoin"),
    ("rl_benchmarks", "lunarlander"),
    ("dist_shift", ""),
    ("tllverifybench", "N=M=8_m=1_instance_0_0"),
    ("tllverifybench", "N=M=16_m=1_instance_1_0"),
)
SHARES = (0.1, 0.01, 0.001)
VARIED = (2, 3)

TOLD, TIMES = 0.01, 10
"""The nested search is not stopped before it has had so many times the refiner's evaluations at this share."""

Cost = tuple[int, float]
"""Evaluations, processor seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """The first output of a network over a box ``[1, *input shape]``."""

    name: str
    graph: Graph
    box: Box

    @property
    def free(self) -> Tensor:
        """The inputs that vary."""
        return (self.box.lower < self.box.upper).flatten().nonzero().flatten()

    def slopes(self) -> Tensor:
        """``[n]``: certified Lipschitz constants by each input over the box."""
        found = jacobian_bounds(self.graph, self.box)
        return torch.maximum(found.lower.abs(), found.upper.abs()).flatten()

    def with_inputs(self, count: int) -> Problem:
        """Only so many inputs vary, the others are at the centre."""
        low, high = self.box.lower.flatten(), self.box.upper.flatten()
        kept = (self.slopes() * (high - low)).argsort(descending=True)[:count]
        middle = low / 2 + high / 2
        ends = (middle.index_copy(0, kept, end[kept]).reshape(self.box.lower.shape) for end in (low, high))
        return Problem(f"{self.name}, {count} inputs", self.graph, Box(*ends))


class Watch:
    """State: the processor time and what has been reached so far, share by share."""

    def __init__(self, limit: float) -> None:
        self.start, self.limit = time.process_time(), limit
        self.reached: dict[float, Cost] = {}
        self.evaluations = 0

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.process_time() - self.start

    def sees(self, excess: float, evaluations: int) -> bool:
        """Note the shares that are reached; whether to go on."""
        self.evaluations = evaluations
        for share in SHARES:
            if excess <= share:
                self.reached.setdefault(share, (evaluations, self.spent))
        return len(self.reached) < len(SHARES) and self.spent < self.limit


def by_refiner(problem: Problem, limit: float) -> tuple[Watch, Enclosure]:
    """The refiner until the last share is reached, and what it found."""
    watch = Watch(limit)
    for found in refine(problem.graph, problem.box, gap=0.0):
        if not watch.sees(found.excess, found.boxes + found.points + found.programs):
            break
    return watch, found


def by_intervals(problem: Problem, limit: float) -> Watch:
    """Best-first splits along the longest edge, interval bounds, values at the centres."""
    watch, prepared = Watch(limit), prepare(problem.graph, torch.float64)
    plain, shape = problem.graph.to(torch.float64), problem.box.lower.shape[1:]
    low, high = problem.box.lower.flatten(1), problem.box.upper.flatten(1)
    ends, evaluations, inner = torch.zeros(0, 2, dtype=torch.float64), 0, (float("inf"), -float("inf"))
    lows, highs = low[:0], high[:0]
    while True:
        lower, upper = (end.reshape(-1, *shape) for end in (low, high))
        found = compute_bounds(prepared, Box(lower, upper), Interval())
        with torch.no_grad():
            values = plain.evaluate(lower / 2 + upper / 2)[0].flatten()
        inner = min(inner[0], float(values.min())), max(inner[1], float(values.max()))
        evaluations += 2 * low.shape[0]
        lows, highs = torch.cat([lows, low]), torch.cat([highs, high])
        ends = torch.cat([ends, torch.stack([found.lower.flatten(), found.upper.flatten()], 1)])
        outer, width = (float(ends[:, 0].min()), float(ends[:, 1].max())), inner[1] - inner[0]
        excess = (outer[1] - outer[0] - width) / width if width > 0 else float("inf")
        if not watch.sees(excess, evaluations):
            return watch
        kept = (ends[:, 0] < inner[0]) | (ends[:, 1] > inner[1])
        lows, highs, ends = lows[kept], highs[kept], ends[kept]
        count = min(max(16, min(512, lows.shape[0] // 4)), lows.shape[0])
        promise = torch.maximum(inner[0] - ends[:, 0], ends[:, 1] - inner[1])
        order = promise.argsort(descending=True)
        chosen, rest = order[:count], order[count:]
        axis = (highs[chosen] - lows[chosen]).argmax(1)
        rows = torch.arange(count)
        low, high = lows[chosen].repeat(2, 1), highs[chosen].repeat(2, 1)
        middle = (low[rows, axis] + high[rows, axis]) / 2
        high[rows, axis] = low[rows + count, axis] = middle
        lows, highs, ends = lows[rest], highs[rest], ends[rest]


def by_nested(problem: Problem, limit: float, width: float, least: int) -> Watch:
    """One search from below and one from above for each share; ``width`` is that of the range. It ends after the
    limit, and not before ``least`` evaluations."""
    watch, graph, free = Watch(limit), problem.graph.to(torch.float64), problem.free
    point = (problem.box.lower / 2 + problem.box.upper / 2).clone()
    low, high = problem.box.lower.flatten()[free].tolist(), problem.box.upper.flatten()[free].tolist()
    constants = problem.slopes()[free].tolist()

    def value(sign: float, at: Sequence[float]) -> tuple[float, float]:
        if watch.spent > limit and watch.evaluations > least:
            raise TimeoutError
        watch.evaluations += 1
        point.view(-1)[free] = torch.tensor(at, dtype=torch.float64)
        found = sign * float(graph.evaluate(point)[0])
        return found, found

    for share in SHARES:
        watch.start, watch.evaluations = time.process_time(), 0
        try:
            for sign in (1.0, -1.0):
                ends = list(zip(low, high, strict=True))
                nested_minimum(lambda at, s=sign: value(s, at), ends, constants, share * width / 2, 1 << 60)
        except TimeoutError:
            break
        watch.reached[share] = watch.evaluations, watch.spent
    return watch


def rows(problem: Problem, limit: float) -> Iterator[list[str]]:
    """The lines of the table for one network."""
    count = problem.free.shape[0]
    watch, _ = by_refiner(problem, limit)
    yield line(problem.name, count, "refiner", watch)
    yield line(problem.name, count, "interval splits", by_intervals(problem, limit))
    for varied in VARIED:
        if varied > count:
            continue
        part = problem.with_inputs(varied) if varied < count else problem
        watch, found = by_refiner(part, limit)
        if varied < count:
            yield line(problem.name, varied, "refiner", watch)
        least = TIMES * watch.reached.get(TOLD, (0, 0.0))[0]
        with torch.no_grad():
            yield line(problem.name, varied, "nested", by_nested(part, limit, found.greatest - found.least, least))


def line(name: str, inputs: int, method: str, watch: Watch) -> list[str]:
    """One line of the table."""
    cells = [
        f"{watch.reached[s][0]:,} / {watch.reached[s][1]:.2f} s" if s in watch.reached else f"> {watch.evaluations:,}"
        for s in SHARES
    ]
    return [name, str(inputs), method, *cells]


def main() -> None:
    """The table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, required=True, help="folder of the VNN-COMP benchmarks")
    parser.add_argument("--limit", type=float, default=20.0, help="processor seconds for each run")
    parser.add_argument("--only", default="", help="benchmarks whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | inputs | method | " + " | ".join(f"{100 * s:g} %" for s in SHARES) + " |")
    print("| --- | ---: | --- |" + " ---: |" * len(SHARES))
    for benchmark, part in NETWORKS:
        if args.only not in benchmark:
            continue
        case = load(args.instances, benchmark, part)
        graph = with_expression(case.graph, "y[0]")
        problem = Problem(f"{benchmark} {part}".strip(), graph, case.box.to(torch.float64))
        for cells in rows(problem, args.limit):
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
