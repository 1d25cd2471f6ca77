"""One page of images: digits that the network in ``benchmarks/digits`` gets right, and what attacks make of them.

    python -m benchmarks.pictures digits.png

Rows are digits that the network was not trained on, and columns are attacks: the image that was found, and how it
differs from the original (red: lighter, blue: darker, scaled as written). The classes below are onnxruntime's; "still
3" says that an attack found no other class. Needs scikit-learn for the data and pillow for the sheet.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from verifier.attacks.apgd import Apgd
from verifier.attacks.goals import Misclassified
from verifier.attacks.gradient import Centre, Pgd
from verifier.attacks.oracle import GraphOracle, Oracle
from verifier.attacks.problems import ball, classification
from verifier.attacks.session import SessionOracle
from verifier.attacks.transforms.flow import Flow, Roughness
from verifier.attacks.transforms.grid import Grid
from verifier.attacks.transforms.layout import Layout
from verifier.attacks.transforms.patches import Patched, patched, salient_corners
from verifier.attacks.transforms.spatial import Spatial
from verifier.attacks.transforms.universal import Mean, universal
from verifier.attacks.transforms.views import Additive, Transformed, parameter_box, transformed
from verifier.attacks.trial import Attack, Problem, attack
from verifier.network import read_network
from verifier.report.pictures import Picture, difference, picture, sheet

FOLDER = Path(__file__).with_name("digits")
LAYOUT = Layout(1, 8, 8)
TRAINED_ON, SHARED = 1400, 200
UNIT = (Fraction(0), Fraction(1))


def main() -> None:
    """Attack, and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="FILE.png")
    parser.add_argument("--digits", type=int, default=6, help="rows of the sheet")
    parser.add_argument("--size", type=int, default=64, help="pixels of a picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x, labels = examples(FOLDER / "digits.onnx", options.digits)
    judge = SessionOracle.of((FOLDER / "digits.onnx").read_bytes())
    columns = [column(x, labels, found, judge) for found in findings(x, labels)]
    rows: list[list[Picture]] = [
        [picture(x[k].numpy(), f"{labels[k]}"), *(shown for both in columns for shown in both[k])]
        for k in range(options.digits)
    ]
    headings = ["original"]
    for name, size in HEADINGS:
        headings += [f"{name}\n{size}", ""]
    sheet(rows, options.path, headings, options.size)


HEADINGS = (
    ("Linf", "each pixel by 0.15"), ("L2", "by 0.9"), ("L0", "4 pixels"), ("spatial", "35° and 1 pixel"),
    ("flow", "1 pixel"), ("patch", "3 x 3 pixels"), ("universal", "each pixel by 0.3"),
)  # fmt: skip


def examples(model: Path, rows: int) -> tuple[Tensor, Tensor]:
    """Images ``[SHARED, 64]`` that the network gets right, with their labels; the first ``rows`` are of different
    digits as far as there are."""
    digits = load_digits()
    x = torch.tensor(digits.images[TRAINED_ON:] / 16, dtype=torch.float32).flatten(1)
    labels = torch.tensor(digits.target[TRAINED_ON:])
    right = oracle_of(model).outputs(x).argmax(1) == labels
    x, labels = x[right], labels[right]
    first = [int(torch.nonzero(labels == digit)[0]) for digit in (4, 0, 7, 3, 9, 1, 6, 2, 5, 8)][:rows]
    rest = [k for k in range(len(x)) if k not in first]
    chosen = [*first, *rest][:SHARED]
    return x[chosen], labels[chosen]


def oracle_of(model: Path) -> GraphOracle:
    """The network as a graph."""
    return GraphOracle.of(read_network(model).graph)


def findings(x: Tensor, labels: Tensor) -> Sequence[Tensor]:
    """For each column the images that its attack found ``[K, 64]``."""
    oracle, few = oracle_of(FOLDER / "digits.onnx"), x[:10]
    goal = Misclassified(labels)
    view = Transformed(Spatial(LAYOUT), few, (0.0, 1.0))
    turns = torch.tensor([math.radians(35), 1.0, 1.0], dtype=torch.float64)
    flow = Transformed(Flow(LAYOUT), few, (0.0, 1.0))
    corners = salient_corners(oracle, Misclassified(labels[:10]), LAYOUT, few, (3, 3))
    balls = [
        classification(oracle, few.numpy(), labels[:10].numpy(), ball(few.numpy(), Fraction(radius), norm, UNIT))
        for norm, radius in (("inf", "0.15"), ("2", "0.9"), ("0", "4"))
    ]
    far, nearby = torch.tensor(1.0, dtype=torch.float64), Pgd(start=Centre(), steps=200, rate=0.01)
    problems: list[tuple[Problem, Attack]] = [
        *((problem, Apgd(restarts=5, rate=0.5)) for problem in balls),
        (transformed(oracle, goal, view, (-turns, turns)), Grid(15)),
        (transformed(oracle, goal, flow, (-far, far), Roughness(LAYOUT, 0.05)), nearby),
        (patched(oracle, goal, Patched.at(LAYOUT, few, corners, (3, 3)), (0.0, 1.0)), Apgd(restarts=3)),
    ]
    found = [problem.inputs(attack(problem, way).points, torch.arange(len(few))) for problem, way in problems]
    return [*found, one_for_all(oracle, x, labels)[: len(few)]]


def one_for_all(oracle: Oracle, x: Tensor, labels: Tensor) -> Tensor:
    """The images with the change that fools as many as possible; says how many."""
    view = Transformed(Additive(LAYOUT.size), x, (0.0, 1.0))
    far = torch.tensor(0.3, dtype=torch.float64)
    problem = universal(oracle, labels, view, parameter_box(view, (-far, far), rows=1))
    found = attack(problem, Apgd(loss=Mean(), start=Centre(), steps=300))
    print(f"one change for all: {1 - float(found.margin[0]) / len(x):.0%} of {len(x)} images are fooled")
    return view(found.points.expand(len(x), -1), torch.arange(len(x)))


def column(x: Tensor, labels: Tensor, found: Tensor, judge: Oracle) -> list[tuple[Picture, Picture]]:
    """The image found and its difference, for each example; the judge's class is written below."""
    shown = []
    for before, after, label, scores in zip(x, found, labels.tolist(), judge.outputs(found), strict=False):
        other = int(scores.argmax())
        text = f"{label} -> {other}" if other != label else f"still {label}"
        change = difference(before.numpy(), after.numpy())
        shown.append((picture(after.numpy(), text), replace(change, label=change.label.removeprefix("difference "))))
    return shown


if __name__ == "__main__":
    main()
