"""How many queries attacks need that only ask for outputs, and how near labels alone lead.

    python -m benchmarks.queries --instances BENCHMARKS --networks digits "mnist_fc 256x4" --count 100

``benchmarks/attack_data.py`` says which networks and images there are; ``BENCHMARKS`` is a folder of the competition's
benchmarks, without which the project's own network alone is attacked. Networks run in onnxruntime, except those whose
normalisation is put before them here. The first table has the attacks by scores: of the images that are classified
rightly, the share for which a counterexample was found with at most ``--budget`` queries each, and the median of the
queries up to it, where one was found; "APGD" is the share that Auto-PGD finds with 100 gradients. The second has the
attacks by labels: medians of the distance after some queries over the nearest that attacks with gradients know
(``nearest_examples``); images for which none is known, or nothing was found, count as infinitely far.

The column "published" is there for the order of magnitude (other networks, other radii), where a median is known.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import sys
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch

from benchmarks import train_digits
from benchmarks.attack_data import NORMALISATIONS, SOURCES, Source, Subject, subject
from verifier.attacks import problems
from verifier.attacks.apgd import apgd_ce
from verifier.attacks.blackbox.boundary import Boundary
from verifier.attacks.blackbox.estimate import Zoo, nes, spsa
from verifier.attacks.blackbox.hopskipjump import HopSkipJump
from verifier.attacks.blackbox.sparse import SparseRs
from verifier.attacks.blackbox.square import Square
from verifier.attacks.nearby.measure import Distance
from verifier.attacks.nearby.portfolio import nearest_examples
from verifier.attacks.oracle import GraphOracle, Oracle
from verifier.attacks.session import SessionOracle
from verifier.attacks.trial import Attack, Problem, Trial, attack

RANGE = Fraction(0), Fraction(1)
RADII: Mapping[str, Fraction] = MappingProxyType({"digits": Fraction(3, 5), "mnist_fc 256x4": Fraction(3, 2)})
"""Of the norm 2; of other networks half a pixel's range."""

ELEMENTS = Fraction(5)
"""That may change in the norm 0."""

AFTER = (1000, 5000, 10_000)
"""Labels asked for, of the columns of the second table."""

PUBLISHED: Mapping[tuple[str, str], str] = MappingProxyType({
    ("square", "inf"): "1 to 24 (ImageNet, 0.05: Andriushchenko et al. 2020, table 2)",
    ("square", "2"): "109 to 385 (ImageNet, 5: Andriushchenko et al. 2020, table 2)",
})  # fmt: skip
"""Medians on three networks, from the paper's own table."""


def main() -> None:
    """Measure, and print both tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=Path, metavar="BENCHMARKS")
    parser.add_argument("--networks", nargs="+", default=["digits"], choices=[s.name for s in SOURCES])
    parser.add_argument("--count", type=int, default=100, help="images of each network that are looked at")
    parser.add_argument("--budget", type=int, default=5000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [s for s in SOURCES if s.name in options.networks]
    subjects = [(s, subject(s, options.instances, None)[0].only(torch.arange(options.count))) if s.name == "digits"
                else (s, subject(s, options.instances, options.count)[0]) for s in chosen]  # fmt: skip
    print("| network | norm, radius | APGD | attack | found | median queries | published |")
    print("| --- | --- | ---: | --- | ---: | ---: | --- |")
    for source, images in subjects:
        for row in by_scores(source, images, oracle_of(source, images, options.instances), options.budget):
            print(row, flush=True)
    print("\n| network | norm | attack | nearest known | " + " | ".join(f"after {n:,}" for n in AFTER) + " |")
    print("| --- | --- | --- | ---: |" + " ---: |" * len(AFTER))
    for source, images in subjects:
        for row in by_labels(source, images, oracle_of(source, images, options.instances)):
            print(row, flush=True)


def oracle_of(source: Source, images: Subject, instances: Path | None) -> Oracle:
    """An onnxruntime session on the network, or the graph where the images are normalised here."""
    if source.benchmark in NORMALISATIONS:
        return GraphOracle.of(images.model.graph)
    if not source.benchmark or instances is None:
        return SessionOracle.of((train_digits.FOLDER / source.model).read_bytes())
    return SessionOracle.of(
        gzip.decompress((instances / source.benchmark / "onnx" / f"{source.model}.gz").read_bytes())
    )


def problem_of(images: Subject, oracle: Oracle, radius: Fraction, norm: str) -> Problem:
    """Some other class within the radius."""
    points, labels = images.images.flatten(1).numpy(), images.labels.numpy()
    return problems.classification(oracle, points, labels, problems.ball(points, radius, norm, RANGE))


def score_attacks(norm: str, images: Subject, budget: int) -> list[Attack]:
    """Those that know the norm."""
    shape = tuple(images.images.shape[1:])
    if norm == "0":
        return [SparseRs(steps=budget)]
    channels, height, width = shape if len(shape) == 3 else (1, 1, images.images[0].numel())
    return [Square(shape=(channels, height, width), steps=budget), nes(), spsa(), Zoo()]


def by_scores(source: Source, images: Subject, oracle: Oracle, budget: int) -> Iterator[str]:
    """A line for each norm and attack."""
    for norm, radius in (("inf", source.epsilon), ("2", RADII.get(source.name, Fraction(1, 2))), ("0", ELEMENTS)):
        graph = GraphOracle.of(images.model.graph)
        white = attack(problem_of(images, graph, radius, norm), apgd_ce(100)).found.double().mean()
        for method in score_attacks(norm, images, budget):
            found = attack(problem_of(images, oracle, radius, norm), method, budget=budget)
            print(source.name, norm, method.name, file=sys.stderr, flush=True)
            share, needed = float(found.found.double().mean()), found.needed[found.found].tolist()
            median = f"{statistics.median(needed):,.0f}" if needed else "-"
            known = PUBLISHED.get((method.name, norm), "")
            yield (
                f"| {source.name} ({len(images.images)}) | {norm}, {float(radius):.3g} | {100 * float(white):.0f} % | "
                f"{method.name} | {100 * share:.0f} % | {median} | {known} |"
            )


def by_labels(source: Source, images: Subject, oracle: Oracle) -> Iterator[str]:
    """A line for each norm and attack."""
    for norm, methods in (("2", (Boundary(), HopSkipJump())), ("inf", (HopSkipJump(norm="inf"),))):
        graph = GraphOracle.of(images.model.graph)
        best = nearest_examples(problem_of(images, graph, Fraction(1), "inf"), "2" if norm == "2" else "inf").distance
        for method in methods:
            ratios = []
            for budget in AFTER:
                problem = problem_of(images, oracle, Fraction(1), "inf")
                distance = Distance(problem.threat.centre, "2" if norm == "2" else "inf")
                trial = Trial(problem, budget=budget, distance=distance)
                method.run(trial)
                far = torch.where(trial.margin <= 0, trial.rank.double(), torch.inf)
                ratios.append(statistics.median((far / best).tolist()))
                print(source.name, norm, method.name, budget, file=sys.stderr, flush=True)
            cells = " | ".join(f"{r:.2f}" for r in ratios)
            yield f"| {source.name} ({len(best)}) | {norm} | {method.name} | {float(best.median()):.3f} | {cells} |"


if __name__ == "__main__":
    main()
