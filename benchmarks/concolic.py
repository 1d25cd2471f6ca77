"""Coverage against the number of inputs: concolic generation, gradient search and random sampling.

    python benchmarks/concolic.py --instances BENCHMARKS [--inputs 100] [--start 10] [--case acasxu]

``BENCHMARKS`` is a folder of the competition's benchmarks (acasxu, mnist_fc). All three go on from the same random
inputs of a property's box, and add to them one at a time; the table says how many requirements are met after so many
inputs have been added. "random, best of 100" adds the one of 100 samples that meets most; concolic generation looks at
as many samples for each input, "programs only" at none. Processor seconds are of one thread. Nothing depends on time,
so that the counts are the same in every run on one machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)  # a file beside this one is called like a package

import numpy as np  # noqa: E402
import torch  # noqa: E402

import verifier  # noqa: E402
from bounds import Box  # noqa: E402
from verifier import coverage  # noqa: E402

CASES = (
    ("acasxu", "ACASXU_run2a_1_1_batch_2000.onnx", "prop_1.vnnlib"),
    ("mnist_fc", "mnist-net_256x2.onnx", "prop_11_0.05.vnnlib"),
)
"""Benchmark, network and property: its first box is the region."""

Ask = Callable[[coverage.Subject, Box], coverage.Requirements]


def criteria(reference: int = 100) -> dict[str, Ask]:
    """By name; boundaries are those of so many random inputs."""

    def boundary(subject: coverage.Subject, region: Box) -> coverage.Requirements:
        low, high = (end[0].numpy() for end in (region.lower, region.upper))
        shares = np.random.default_rng(2).random((reference, *low.shape))
        return coverage.BoundaryCoverage((low + shares * (high - low)).astype(subject.dtype)).requirements(
            subject, region
        )

    return {
        "neuron": coverage.NeuronCoverage().requirements,
        "boundary": boundary,
        "sign-sign": coverage.SignSignCoverage().requirements,
        "layer": coverage.TopCoverage().requirements,
    }


Generate = Callable[..., Iterator[coverage.Generated]]
GENERATORS: tuple[tuple[str, Generate, int], ...] = (
    ("random", coverage.sampled, 0),
    ("random, best of 100", partial(coverage.sampled, draws=100), 0),
    ("gradient", coverage.descended, 0),
    ("concolic, programs only", coverage.concolic, 0),
    ("concolic", coverage.concolic, 100),
)
"""With ``Budget.samples``."""


def curve(
    generate: Generate, requirements: coverage.Requirements, inputs: np.ndarray, budget: coverage.Budget
) -> list[int]:
    """Requirements met after 0, 1, ... inputs have been added; shorter where the generator finds no more."""
    counts = [requirements.report(inputs).covered]
    counts += [g.report.covered for g in generate(requirements, inputs, budget=budget)]
    return counts


def start_of(requirements: coverage.Requirements, count: int) -> np.ndarray:
    """The random inputs that all begin with."""
    low, high = requirements.domain.lower.astype(np.float64), requirements.domain.upper.astype(np.float64)
    shares = np.random.default_rng(1).random((count, *low.shape))
    return requirements.domain.moved(low + shares * (high - low))


def show(folder: Path, case: tuple[str, str, str], options: argparse.Namespace) -> None:
    """The tables of one network."""
    model, prop = folder / case[0] / "onnx" / case[1], folder / case[0] / "vnnlib" / case[2]
    subject = coverage.subject(model)
    region = coverage.region_of(verifier.read(model, prop), subject)
    marks = [m for m in (0, 3, 10, 30, 100, 300) if m <= options.inputs]
    for name, ask in criteria().items():
        if options.criterion not in (None, name):
            continue
        requirements = ask(subject, region)
        inputs = start_of(requirements, options.start)
        print(f"\n{case[0]} {case[1]} {case[2]}, {name} coverage: {requirements.report(inputs)}\n")
        print("| inputs added | " + " | ".join(map(str, marks)) + " | inputs | s |")
        print("| --- |" + " ---: |" * (len(marks) + 2))
        for generator, generate, samples in GENERATORS:
            if options.generator not in (None, generator):
                continue
            budget = coverage.Budget(inputs=options.inputs, samples=samples, nodes=options.nodes)
            begin = time.process_time()
            counts = curve(generate, requirements, inputs, budget)
            seconds, ends = time.process_time() - begin, [str(counts[min(m, len(counts) - 1)]) for m in marks]
            print(f"| {generator} | {' | '.join(ends)} | {len(counts) - 1} | {seconds:.1f} |", flush=True)


def main() -> None:
    """Read the options, show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, required=True, help="folder of the competition's benchmarks")
    parser.add_argument("--inputs", type=int, default=100, help="how many inputs are added at most (100)")
    parser.add_argument("--start", type=int, default=10, help="random inputs that all begin with (10)")
    parser.add_argument("--case", help="one benchmark only")
    parser.add_argument("--criterion", choices=list(criteria()), help="one criterion only")
    parser.add_argument("--generator", choices=[g[0] for g in GENERATORS], help="one generator only")
    parser.add_argument(
        "--nodes", type=int, default=0, help="of branch and bound for one program (0: linear ones only)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        if options.case in (None, case[0]):
            show(options.instances, case, options)


if __name__ == "__main__":
    main()
