"""How near minimum-distortion attacks come to the exact distortion.

    python -m benchmarks.distortions

Networks: random ones of two layers of ReLUs, and the digits of ``benchmarks/digits`` on images that it was not trained
on (by scikit-learn). What attacks find is divided by what is proven: exact distances of ``verifier.exact_radius`` in
the norms inf and 1, the lower ends of brackets that ``verifier.radius`` closes to within 1 % in the norm 2, and in the
norm 0 one element where the change of one to an end of the range suffices. All examples are also compared with the
nearest counterexample that anything found (in the norm 0 also by trying all pairs of elements at ends of the range).
All in one thread; evaluations are those of the model, with or without a gradient.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor

import verifier
from benchmarks.train_digits import FOLDER, TRAINED_ON
from verifier.attacks import problems
from verifier.attacks.nearby.measure import Norm
from verifier.attacks.nearby.portfolio import known_attacks, nearest_examples
from verifier.attacks.oracle import GraphOracle
from verifier.attacks.trial import Attack, Problem
from verifier.network import Network, read_network

RANGE = (Fraction(0), Fraction(1))
SHAPES = ((4, 12, 12, 3), (6, 16, 16, 4), (10, 20, 20, 5))
GAP = 1e-6
"""Of exact distances; a found one below the proven end less this is an error."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A network and examples ``[N, n]`` that it classifies as it should."""

    title: str
    network: Network
    x: np.ndarray
    labels: np.ndarray

    def problem(self, dtype: torch.dtype = torch.float32) -> Problem:
        """In an element type."""
        x = self.x.astype(np.float64 if dtype == torch.float64 else np.float32)
        oracle = GraphOracle.of(self.network.graph, dtype)
        return problems.classification(oracle, x, self.labels, problems.whole_range(x, RANGE))


def main() -> None:
    """Measure, and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10, help="of each network")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each exact distance")
    parser.add_argument("--networks", nargs="+", choices=("random", "digits"), default=["random", "digits"])
    parser.add_argument("--norms", nargs="+", choices=("inf", "2", "1", "0"), default=["inf", "2", "1", "0"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| networks | norm | attack | to the proven end: median | worst | to the nearest known: median |", end="")
    print(" worst | not found | evaluations |\n| --- | --- | --- |" + " ---: |" * 6)
    for title in options.networks:
        cases = [digits(options.examples)] if title == "digits" else random_cases(options.examples)
        for norm in options.norms:
            for line in measured(title, cases, norm, options.timeout):
                print(line, flush=True)


def random_cases(count: int) -> list[Case]:
    """Two networks of each shape, with their own classes at random points."""
    found = []
    for seed, shape in enumerate(SHAPES + SHAPES):
        random = np.random.default_rng(seed)
        network = read_network(dense(random, shape))
        x = random.uniform(0, 1, (count, shape[0])).astype(np.float32)
        scores = GraphOracle.of(network.graph).outputs(torch.from_numpy(x))
        found.append(Case(f"random {seed}", network, x, scores.argmax(1).numpy()))
    return found


def dense(random: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """A model of fully connected layers with ReLUs between them; scores are shifted so that all classes occur."""
    nodes, values, at, y = [], [], "x", random.uniform(0, 1, (1000, shape[0]))
    for k, (before, after) in enumerate(itertools.pairwise(shape)):
        weight, bias = random.standard_normal((before, after)), random.standard_normal(after) / 2
        y = y @ weight + bias
        if k == len(shape) - 2:
            bias = bias - y.mean(0)
        values += [numpy_helper.from_array(a.astype(np.float32), f"{n}{k}") for n, a in (("w", weight), ("b", bias))]
        nodes.append(helper.make_node("Gemm", [at, f"w{k}", f"b{k}"], [at := f"y{k}"]))
        if k < len(shape) - 2:
            nodes.append(helper.make_node("Relu", [at], [at := f"z{k}"]))
            y = y.clip(0)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, d]) for n, d in (("x", shape[0]), (at, shape[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def digits(count: int, folder: Path = FOLDER) -> Case:
    """The first images behind those of the training that the network classifies as they are labelled."""
    network, data = read_network(folder / "digits.onnx"), load_digits()
    x = (data.images[TRAINED_ON:] / 16).astype(np.float32).reshape(-1, 64)
    labels = data.target[TRAINED_ON:]
    right = GraphOracle.of(network.graph).outputs(torch.from_numpy(x)).argmax(1).numpy() == labels
    return Case("digits", network, x[right][:count], labels[right][:count].astype(np.int64))


def measured(title: str, cases: list[Case], norm: Norm, timeout: float) -> Iterator[str]:
    """A line for each attack, and for the portfolio."""
    known = [references(case, norm, timeout) for case in cases]
    lower, best, closed = (torch.cat(column) for column in zip(*known, strict=True))
    methods: list[tuple[str, list[Attack] | None]] = [(a.name, [a]) for a in known_attacks(norm)]
    found = {}
    for name, attacks in (*methods, ("portfolio", None)):
        parts = [nearest_examples(case.problem(), norm, attacks) for case in cases]
        found[name] = torch.cat([p.distance for p in parts]), torch.cat([p.evaluations for p in parts])
        if bool((found[name][0] < lower - 10 * GAP).any()):
            raise AssertionError(f"{title}, {norm}, {name}: nearer than proven")
        best = torch.minimum(best, found[name][0])
    gap = ", the nearest known to the proven end: | {} | {} | | |".format(*shares(best, lower, lower > 0))
    yield f"| {title} | {norm} | {len(best)} examples, {int(closed.sum())} closed{gap} {int(best.isinf().sum())} | |"
    for name, (distance, spent) in found.items():
        near = best.isfinite()
        lost = int(distance[near].isinf().sum())
        ends = shares(distance, lower, closed) + shares(distance, best, near)
        yield f"| {title} | {norm} | {name} | {' | '.join(ends)} | {lost} | {float(spent.double().median()):.0f} |"


def shares(distance: Tensor, least: Tensor, which: Tensor) -> list[str]:
    """The median and the greatest of the ratios, where something was found."""
    which = which & distance.isfinite()
    if not bool(which.any()):
        return ["", ""]
    ratio = (distance / least)[which]
    return [f"{float(ratio.quantile(0.5)):.4f}", f"{float(ratio.max()):.4f}"]


def references(case: Case, norm: Norm, timeout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Proven lower ends ``[N]``, distances that are reached (inf: none), and whether these brackets are closed."""
    if norm == "0":
        few = few_elements(case)
        return torch.ones_like(few), few, few == 1
    ends = []
    for row, label in zip(case.x, case.labels.tolist(), strict=True):
        if norm == "2":
            *_, bracket = verifier.radius(case.network, row, "2", label=label, data_range=RANGE, timeout=timeout)
        else:
            bracket = verifier.exact_radius(case.network, row, norm, label, data_range=RANGE, gap=GAP, timeout=timeout)
        ends.append((bracket.lower, bracket.upper, bracket.status == "exact"))
    lower, upper, closed = torch.tensor(ends, dtype=torch.float64).unbind(1)
    return lower, upper, closed == 1


def few_elements(case: Case) -> Tensor:
    """The least number of elements, up to two, whose change to ends of their range changes the class (inf: more)."""
    problem, low_high = case.problem(), (0.0, 1.0)
    size, found = case.x.shape[1], torch.full((len(case.x),), float("inf"), dtype=torch.float64)
    for i, row in enumerate(torch.from_numpy(case.x)):
        for count in (1, 2):
            places = torch.tensor(list(itertools.combinations(range(size), count)))
            ends = torch.tensor(list(itertools.product(low_high, repeat=count)))
            points = row.repeat(len(places) * len(ends), 1)
            points.scatter_(1, places.repeat_interleave(len(ends), 0), ends.repeat(len(places), 1))
            scores = problem.oracle.outputs(points)
            who = torch.full((len(points),), i)
            if bool((problem.goal.margin(scores, who) <= 0).any()):
                found[i] = count
                break
    return found


if __name__ == "__main__":
    main()
