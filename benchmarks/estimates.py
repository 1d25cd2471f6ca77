"""Statistical estimates against truth: how often the stated confidence covers it, over many repetitions.

    python -m benchmarks.estimates                      (200 repetitions, tables in Markdown)
    python -m benchmarks.estimates --repetitions 20 --only corner

The truth of each case is known: half-spaces in boxes and balls by formulas, a ReLU network by cutting the square into
the polygons on which it is linear, minimal distortions by ``milp.distortion``, and the greatest gradients of ridge
functions by calculus. Everything is seeded; a repetition is a seed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch
from scipy.stats import beta
from torch import Tensor, nn

from bounds import Box, Graph, LpBall, trace
from milp import distortion
from verifier.statistics import Estimate, clever, clopper_pearson, monte_carlo, splitting, violation_volume

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Chance:
    """A network, a region, and the known probability that ``rows . output <= threshold`` for some row."""

    name: str
    graph: Graph
    region: Box | LpBall
    rows: Tensor
    threshold: float
    truth: float


def linear(weight: list[float]) -> Graph:
    """``x -> weight . x``."""
    layer = nn.Linear(len(weight), 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:] = torch.tensor([weight])
    return trace(layer, torch.zeros(len(weight), dtype=torch.float64))


def corner(size: int, reach: float, twice: bool = False) -> Chance:
    """``sum x <= reach`` in the unit box (``reach <= 1``): the simplex, ``reach^d / d!``; twice: the far corner too."""
    rows = torch.tensor([[1.0]], dtype=torch.float64)
    box = Box(torch.zeros(1, size, dtype=torch.float64), torch.ones(1, size, dtype=torch.float64))
    truth = reach**size / math.factorial(size)
    if not twice:
        return Chance(f"corner of a box, d = {size}", linear([1.0] * size), box, rows, reach, truth)
    centred = Box(box.lower - 0.5, box.upper - 0.5)  # |sum x| >= d/2 - reach
    both = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    name = f"two opposite corners of a box, d = {size}"
    return Chance(name, linear([1.0] * size), centred, both, reach - size / 2, 2 * truth)


def cap(size: int, height: float, p: int) -> Chance:
    """``x_0 <= -height`` in the unit ball of L1 or L2."""
    ball = LpBall(torch.zeros(1, size, dtype=torch.float64), torch.ones(1, dtype=torch.float64), p)
    truth = (1 - height) ** size / 2 if p == 1 else float(beta.sf(height**2, 0.5, (size + 1) / 2)) / 2
    rows = torch.tensor([[1.0]], dtype=torch.float64)
    return Chance(f"cap of an L{p} ball, d = {size}", linear([1.0] + [0.0] * (size - 1)), ball, rows, -height, truth)


def relu_square(seed: int, truth: float) -> Chance:
    """A random ReLU network with 12 neurons on a square, with the threshold at which a share ``truth`` violates."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 1)).to(torch.float64)
    low, high = -100.0, 100.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if relu_share(module, middle) < truth else (low, middle)
    box = Box(-torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64))
    graph = trace(module, torch.zeros(2, dtype=torch.float64))
    rows = torch.ones(1, 1, dtype=torch.float64)
    return Chance("ReLU network on a square", graph, box, rows, high, relu_share(module, high))


Polygon = list[tuple[float, float]]


def clipped(polygon: Polygon, a: float, b: float, c: float) -> Polygon:
    """What of a convex polygon has ``a x + b y + c >= 0`` (Sutherland and Hodgman, 1974)."""
    found: Polygon = []
    for (px, py), (qx, qy) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        p, q = a * px + b * py + c, a * qx + b * qy + c
        if p >= 0:
            found.append((px, py))
        if p * q < 0:
            found.append((px + (qx - px) * p / (p - q), py + (qy - py) * p / (p - q)))
    return found


def relu_share(module: nn.Sequential, threshold: float) -> float:
    """The share of the square [-1, 1]^2 where a network with one hidden layer is at most ``threshold``."""
    (w1, b1), (w2, b2) = ((layer.weight.tolist(), layer.bias.tolist()) for layer in (module[0], module[2]))
    pieces = [([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)], (0.0, 0.0, b2[0] - threshold))]
    for (a, b), c, weight in zip(w1, b1, w2[0], strict=True):
        cut = []
        for polygon, (u, v, w) in pieces:
            cut.append((clipped(polygon, a, b, c), (u + weight * a, v + weight * b, w + weight * c)))
            cut.append((clipped(polygon, -a, -b, -c), (u, v, w)))
        pieces = [piece for piece in cut if len(piece[0]) > 2]
    return sum(area(clipped(polygon, -u, -v, -w)) for polygon, (u, v, w) in pieces) / 4


def area(polygon: Polygon) -> float:
    """The area of a convex polygon, counter-clockwise."""
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return sum(px * qy - qx * py for (px, py), (qx, qy) in pairs) / 2


def chances() -> Iterator[Chance]:
    """The cases of splitting and of plain sampling."""
    yield corner(2, 0.3)
    yield relu_square(1, 0.01)
    yield relu_square(1, 1e-6)
    yield corner(2, 1e-4)
    yield corner(5, 0.1)
    yield corner(5, 0.1, twice=True)
    yield cap(10, 0.9, 1)
    yield cap(10, 0.95, 2)
    yield cap(100, 0.35, 2)


@dataclass(frozen=True, slots=True)
class Slope:
    """A margin over a ball with its greatest gradient norm ``lipschitz`` and the minimal ``distance`` known."""

    name: str
    graph: Graph
    x: Tensor
    radius: float
    norm: str
    lipschitz: float
    distance: float


class Ridge(nn.Module):
    """Scores ``(c, sigmoid(x_0 - 1))``, c = sigmoid(-0.3): the margin is 0 where ``x_0 = 0.7``. ``spike`` adds
    ``relu(spike (x_0 - 0.899))`` to the second score, steep close to ``x_0 = 0.9`` alone."""

    def __init__(self, size: int, spike: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(size, 2, dtype=torch.float64)
        self.last = nn.Linear(2, 2, dtype=torch.float64)
        with torch.no_grad():
            self.first.weight[:] = 0.0
            self.first.weight[:, 0] = 1.0
            self.first.bias[:] = torch.tensor([-1.0, -0.899])
            self.last.weight[:] = torch.tensor([[0.0, 0.0], [1.0, spike]])
            self.last.bias[:] = torch.tensor([1 / (1 + math.exp(0.3)), 0.0])

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.last(torch.cat([torch.sigmoid(z[..., :1]), torch.relu(z[..., 1:])], -1))


def slopes() -> Iterator[Slope]:
    """Ridge functions whose slope grows up to the end of the ball, at ``x_0 = 0.9``."""
    end = 1 / (1 + math.exp(0.1))
    for size, norm in ((2, "inf"), (2, "2"), (5, "inf"), (5, "2"), (10, "2"), (20, "2")):
        x = torch.zeros(size, dtype=torch.float64)
        yield Slope(f"ridge, d = {size}", trace(Ridge(size), x), x, 0.9, norm, end * (1 - end), 0.7)
    x = torch.zeros(5, dtype=torch.float64)
    yield Slope("ridge and a hidden spike, d = 5", trace(Ridge(5, 100.0), x), x, 0.9, "2", end * (1 - end) + 100, 0.7)


def covered(found: list[tuple[float, float]], truth: float) -> str:
    """The share of intervals that hold the truth, with the limits of that share."""
    hits = sum(low <= truth <= high for low, high in found)
    low, high = clopper_pearson(hits, len(found))
    return f"{100 * hits / len(found):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def chance_table(repetitions: int, only: str) -> None:
    """Splitting, plain sampling of 10,000, and the proven volume."""
    print(
        "| case | probability | splitting: median | covered | upper / lower | evaluations | s | sampled: covered "
        "| proven |"
    )
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | --- | --- |")
    for case in (c for c in chances() if only in c.name):
        asked = {"rows": case.rows, "threshold": case.threshold, "confidence": CONFIDENCE}
        start = time.process_time()
        found = [splitting(case.graph, case.region, seed=seed, **asked) for seed in range(repetitions)]
        seconds = (time.process_time() - start) / repetitions
        plain = [monte_carlo(case.graph, case.region, seed=seed, **asked) for seed in range(repetitions)]
        proven = "–"
        if isinstance(case.region, Box):
            volume = violation_volume(case.graph, case.region, rows=case.rows, threshold=case.threshold, boxes=20_000)
            assert volume.lower <= case.truth * (1 + 1e-9) and case.truth <= volume.upper * (1 + 1e-9)
            proven = f"{volume.lower:.4g} to {volume.upper:.4g}"
        print(
            f"| {case.name} | {case.truth:.4g} | {median(e.value for e in found):.4g} "
            f"| {covered([(e.lower, e.upper) for e in found], case.truth)} "
            f"| {median(e.upper / e.lower if e.lower else math.inf for e in found):.2f} "
            f"| {median(e.samples for e in found):,.0f} | {seconds:.2f} "
            f"| {covered([(e.lower, e.upper) for e in plain], case.truth)} | {proven} |",
            flush=True,
        )


def clever_table(repetitions: int, only: str) -> None:
    """CLEVER on ridge functions."""
    print("| case | norm | margin / constant | refused | median | constant covered | above the minimal distortion |")
    print("| --- | --- | ---: | ---: | ---: | --- | ---: |")
    for case in (c for c in slopes() if only in c.name):
        runs = [
            clever(case.graph, case.x, 0, case.radius, case.norm, seed=seed, confidence=CONFIDENCE)  # type: ignore[arg-type]
            for seed in range(repetitions)
        ]
        pairs = [(run.targeted[0].lipschitz, run.untargeted) for run in runs]
        kept = [(a, b) for a, b in pairs if isinstance(a, Estimate) and isinstance(b, Estimate)]
        margin = runs[0].targeted[0].margin
        row = f"| {case.name} | {case.norm} | {margin / case.lipschitz:.5f} | {repetitions - len(kept)} "
        if kept:
            row += (
                f"| {median(b.value for _, b in kept):.5f} "
                f"| {covered([(a.lower, a.upper) for a, _ in kept], case.lipschitz)} "
                f"| {sum(b.value > case.distance for _, b in kept)} |"
            )
        print(row if kept else row + "| – | – | – |", flush=True)


def exact_table(repetitions: int) -> None:
    """CLEVER on small ReLU networks whose minimal distortion a mixed-integer program proves."""
    print("| ReLU networks | given | refused: equal maxima | refused: no end point | refused: test | above the truth |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for width in (8, 32):
        given = above = 0
        why = dict.fromkeys(("same", "finite", "rejects"), 0)
        for seed in range(repetitions):
            graph, x, label = classifier(seed, width)
            found = clever(graph, x, label, 1.0, "inf", seed=seed).untargeted
            if isinstance(found, Estimate):
                given += 1
                truth = distortion(graph, x, label, within=Box.around(x, 1.0), most=1.0, gap=1e-4)
                above += found.value > truth.value * (1 + 1e-9) and truth.value <= 1.0
            else:
                for word in why:
                    why[word] += word in found.reason
        print(
            f"| 4 inputs, 2 x {width} neurons | {given} | {' | '.join(map(str, why.values()))} | {above} |", flush=True
        )


def classifier(seed: int, width: int) -> tuple[Graph, Tensor, int]:
    """A random ReLU network with two classes, an input, and its class."""
    torch.manual_seed(seed)
    layers = (nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    module, x = nn.Sequential(*layers).to(torch.float64), torch.randn(4, dtype=torch.float64)
    graph = trace(module, torch.zeros(4, dtype=torch.float64))
    return graph, x, int(graph.evaluate(x[None])[0].argmax())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--tables", nargs="+", default=["chances", "clever", "exact"])
    options = parser.parse_args()
    tables: dict[str, Callable[[], None]] = {
        "chances": lambda: chance_table(options.repetitions, options.only),
        "clever": lambda: clever_table(options.repetitions, options.only),
        "exact": lambda: exact_table(options.repetitions),
    }
    for name in options.tables:
        tables[name]()
        print()


if __name__ == "__main__":
    main()
