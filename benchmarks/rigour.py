"""What rigour costs: how much wider proven bounds are, and the share of time that proving takes.

    python benchmarks/rigour.py --instances BENCHMARKS

``BENCHMARKS`` is a folder of the VNN-COMP benchmarks. For the first property of each network its margins are bounded
over the property's box by CROWN in float64, as the file stores the network (nothing merged): without error terms, with
semantics "real", and with semantics "float32". The added width of a bound is what it is wider than without error terms,
as a fraction of that width; the table holds the greatest over all margins. The last columns are process seconds of 20
ascent steps in float32 without a proof, and with one ("real"): for each row one walk in float64, and all intervals.

The table is printed in Markdown. Networks that cannot be bounded say why.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this file is called like a package beside it would be

import verifier  # noqa: E402
from benchmarks.bounding.case import Case, instance, load  # noqa: E402
from bounds import Alpha, Bounds, Crown, compute_bounds, prepare  # noqa: E402
from bounds.methods import Method  # noqa: E402

NETWORKS = (
    ("acasxu", ""),
    ("mnist_fc", "256x2"),
    ("mnist_fc", "256x4"),
    ("mnist_fc", "256x6"),
    ("oval21", "base"),
    ("oval21", "deep"),
    ("cifar10_resnet", "2b"),
    ("cifar10_resnet", "4b"),
    ("sri_resnet_a", ""),
    ("dist_shift", ""),
    ("collins_rul_cnn", ""),
    ("metaroom", ""),
    ("rl_benchmarks", ""),
    ("tllverifybench", ""),
    ("safenlp", ""),
    ("vit", "pgd"),
)
"""Benchmark, and a part of the file name of the network meant."""

HEADER = ("network", "margins", "method", "width", "real", "float32", "crown s", "real s", "float32 s")
ASCENT = ("alpha s", "proven s", "share of the proof")
Semantics = Literal["real", "float32"]


def timed(call: Callable[[], Bounds]) -> tuple[Bounds, float]:
    """The result and the process seconds of one call."""
    start = time.process_time()
    return call(), time.process_time() - start


def widths(case: Case, method: Method) -> list[str]:
    """Greatest width without error terms, the greatest added widths, and the times."""
    found: dict[Semantics | None, tuple[Bounds, float]] = {}
    for semantics in (None, "real", "float32"):
        ready = prepare(case.graph, torch.float64, semantics=semantics)  # type: ignore[arg-type]
        found[semantics] = timed(
            lambda: compute_bounds(ready, case.box, method, rows=case.rows, semantics=semantics)  # type: ignore[arg-type] # noqa: B023
        )
    plain = found[None][0]
    width = plain.upper - plain.lower
    added = [float((((b := found[s][0]).upper - b.lower - width) / width).max()) for s in ("real", "float32")]
    return [f"{float(width.max()):.3g}", *(f"{a:.1e}" for a in added), *(f"{t:.2f}" for _, t in found.values())]


def share(case: Case, steps: int) -> list[str]:
    """Seconds of the ascent alone and with its proof, and the part of the proof in the whole."""
    box = case.box.to(torch.float32)
    _, search = timed(lambda: compute_bounds(case.graph, box, Alpha(steps=steps), rows=case.rows, semantics=None))
    _, whole = timed(lambda: compute_bounds(case.graph, box, Alpha(steps=steps), rows=case.rows))
    return [f"{search:.2f}", f"{whole:.2f}", f"{max(0.0, 1 - search / whole):.0%}"]


def as_stored(folder: Path, benchmark: str, part: str) -> Case:
    """The case with the network as its file stores it."""
    case = load(folder, benchmark, part)
    model, _ = instance(folder, benchmark, part)
    return Case(case.name, verifier.load(model, normalised=False), case.box, case.rows, case.limits)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--instances", type=Path, required=True, help="folder of the VNN-COMP benchmarks")
    parser.add_argument("--only", default="", help="networks whose benchmark contains this")
    parser.add_argument("--steps", type=int, default=20, help="ascent steps (0: none)")
    options = parser.parse_args()
    columns = HEADER + (ASCENT if options.steps else ())
    print(f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", sep="\n", flush=True)
    for benchmark, part in NETWORKS:
        if options.only not in benchmark:
            continue
        title = " ".join(filter(None, (benchmark, part)))
        try:
            case = as_stored(options.instances, benchmark, part)
            cells = [title, str(case.rows.shape[0]), "crown", *widths(case, Crown())]
            cells += share(case, options.steps) if options.steps else []
        except (ValueError, FileNotFoundError, verifier.VerifierError) as error:
            cells = [title, str(error).splitlines()[0]] + [""] * (len(columns) - 2)
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
