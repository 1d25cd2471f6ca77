"""Smoothing measured: false certificates against known truth, samples saved by stopping early, throughput.

    python -m benchmarks.smoothing statistics --count 2000
    python -m benchmarks.smoothing savings --count 100 --plot FILE.png
    python -m benchmarks.smoothing throughput

``statistics``: classifiers whose probabilities under the noise are known (intervals of one element: two classes with p
uniform in [0.5, 1) or near 1, four classes with random shares). A certificate counts as false where its radius is above
that which the true probabilities of its class and the others give. ``savings``: the network and the test images of
``benchmarks/digits``; all procedures at the same radii. ``throughput``: noise, evaluation and counting against the
evaluation alone of as many points that are there already, alternating, the least of several runs.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binom, laplace, norm, uniform
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import train_digits
from verifier.smoothing import (
    Ball,
    Cubic,
    Fixed,
    Gaussian,
    Laplace,
    Noise,
    ProbablyRobust,
    Question,
    Sequential,
    Spherical,
    Uniform,
    Way,
    smooth,
)
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.curve import Line, certified_accuracy
from verifier.smoothing.estimation import Estimation
from verifier.smoothing.exact import GridNoise
from verifier.smoothing.noise import check_norm
from verifier.smoothing.plot import png
from verifier.smoothing.schedule import Terms, certify_all
from verifier.smoothing.shifts import among_first

ALPHA = 0.05
RADII = (0.0, 0.25, 0.5, 0.75)
AIMS = (0.1, 0.25, 0.5)
APART = 1000.0
"""Between the first elements of two inputs: they tell a shared batch which classifier is asked."""


def classifiers(count: int, several: bool) -> list[np.ndarray]:
    """The shares of the classes, by classifier."""
    random = np.random.default_rng(0)
    if several:
        return [np.sort(random.dirichlet(np.full(4, 0.7)))[::-1] for _ in range(count)]
    ps = [1 - 10 ** random.uniform(-4, -1) if k % 2 else random.uniform(0.5, 1) for k in range(count)]
    return [np.array([p, 1 - p]) for p in ps]


def certificates(
    noise: Noise, quantile: Callable[[np.ndarray], np.ndarray], shares: Sequence[np.ndarray], how: Estimation,
    question: Question, budget: int | None = None,
) -> list[ProbablyRobust]:  # fmt: skip
    """Of classifiers that give the class in whose interval the last element of ``x + noise`` is. Without a budget each
    input has one element."""
    cuts = torch.from_numpy(np.stack([quantile(np.cumsum(s)[:-1].clip(max=1)) for s in shares]))
    classes, size = len(shares[0]), 1 if budget is None else 2

    def scores(points: Tensor, who: Tensor) -> Tensor:
        chosen = (points[:, -1:] >= cuts[who]).sum(1)
        return nn.functional.one_hot(chosen, classes).double()

    terms = Terms(question, noise.shift(check_norm(question.norm), size), "real arithmetic")
    draws = [torch.Generator().manual_seed(k) for k in range(len(shares))]
    if budget is not None:
        whole = Sampler(lambda x: scores(x, (x[:, 0] / APART).round().long()), classes, noise, 5000, torch.float64)
        inputs = [
            (k, Stream(torch.tensor([k * APART, 0.0], dtype=torch.float64), d), None) for k, d in enumerate(draws)
        ]
        found = dict(certify_all(whole, inputs, how, terms, budget))
        return [found[k] for k in range(len(shares))]
    results = []
    for k, draw in enumerate(draws):
        one = Sampler(lambda x, k=k: scores(x, torch.full((len(x),), k)), classes, noise, 5000, torch.float64)
        stream = Stream(torch.zeros(1, dtype=torch.float64), draw)
        results += [found for _, found in certify_all(one, [(k, stream, None)], how, terms)]
    return results


def false(found: ProbablyRobust, shares: np.ndarray, noise: Noise, question: Question, size: int) -> bool:
    """Whether the radius is above that of the true probabilities."""
    if found.label is None:
        return False
    p, others = float(shares[found.label]), np.delete(shares, found.label).tolist()
    others = others if question.rivals or question.k == 1 else [1.0] * question.k
    return found.radius > among_first(noise.shift(check_norm(question.norm), size), p, others, question.k)


def statistics(count: int) -> Iterator[str]:
    """Shares of false certificates, a line for each noise and procedure."""
    yield f"| noise | norm | procedure | classifiers | false | allowed ({100 * ALPHA:g} %) | chance of more if exact |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    grid = GridNoise.of(Gaussian(0.5), Fraction(1, 16))
    steps = sorted(grid.chances())
    reached = np.cumsum([grid.chances()[k] / 2**62 for k in steps])

    def normal(p: np.ndarray) -> np.ndarray:
        return np.asarray(0.5 * norm.ppf(p))

    def double(p: np.ndarray) -> np.ndarray:
        return np.asarray(0.5 * laplace.ppf(p))

    def flat(p: np.ndarray) -> np.ndarray:
        return np.asarray(uniform.ppf(p)) - 0.5

    def stepped(p: np.ndarray) -> np.ndarray:
        return np.array([steps[int(np.searchsorted(reached, v).clip(max=len(steps) - 1))] + 0.5 for v in p])

    two = ("2", False, False, 1)
    cases = [
        (Gaussian(0.5), normal, *two), (Gaussian(0.5), normal, "2", True, True, 1),
        (Gaussian(0.5), normal, "2", True, True, 2), (Gaussian(0.5), normal, "2", True, False, 2),
        (Laplace(0.5), double, "1", False, False, 1), (Uniform(0.5), flat, "1", False, False, 1),
        (Uniform(0.5), flat, "inf", False, False, 1), (Cubic(0.5), double, "inf", False, False, 1),
        (Spherical(0.5), double, *two), (Ball(0.5), flat, *two), (grid, stepped, *two),
    ]  # fmt: skip
    for noise, quantile, measure, several, rivals, k in cases:
        shares = classifiers(count, several)
        if noise is grid:  # what the grid makes of the thresholds
            shares = [_on_grid(s, stepped, steps, reached) for s in shares]
        asked = Question(measure, ALPHA, k=k, rivals=rivals)
        unit = 16 if noise is grid else 1
        for name, how in (
            ("fixed, 1,000", Fixed(1000)),
            ("sequential, up to 5,000", Sequential([unit * r for r in AIMS], 5000)),
        ):
            found = certificates(noise, quantile, shares, how, asked)
            wrong = sum(false(f, s, noise, asked, 1) for f, s in zip(found, shares, strict=True))
            words = name + ", rivals" * rivals + f", first {k}" * (k > 1)
            yield _row(noise.words, measure, words, count, wrong)
    shares, asked = classifiers(count, False), Question("2", ALPHA)
    found = certificates(Gaussian(0.5), normal, shares, Sequential(AIMS, 5000), asked, 500 * count)
    wrong = sum(false(f, s, Gaussian(0.5), asked, 2) for f, s in zip(found, shares, strict=True))
    yield _row("gaussian sigma=0.5", "2", "sequential, shared budget of 500 each", count, wrong)


def _on_grid(
    shares: np.ndarray, quantile: Callable[[np.ndarray], np.ndarray], steps: list[int], reached: np.ndarray
) -> np.ndarray:
    ends = [float(reached[steps.index(int(cut - 0.5))]) for cut in quantile(np.cumsum(shares)[:-1].clip(max=1))]
    return np.diff([0.0, *ends, 1.0])


def _row(noise: str, measure: str, name: str, count: int, wrong: int) -> str:
    tail = float(binom.sf(wrong, count, ALPHA))
    return f"| {noise} | {measure} | {name} | {count} | {wrong} | {math.floor(ALPHA * count)} | {tail:.3f} |"


def savings(count: int, plot: Path | None) -> Iterator[str]:
    """Certified accuracies and samples of all procedures, with 100,000 samples at most and alpha 0.001."""
    digits = load_digits()
    start = train_digits.TRAINED_ON
    x = (digits.images[start : start + count] / 16).astype(np.float32)
    y = digits.target[start : start + count]
    model = smooth(train_digits.FOLDER / "digits.onnx", 0.25)
    fixed, early = Fixed(100_000), Sequential(RADII, 100_000)
    single = Question(rivals=False)
    ways: tuple[tuple[str, Estimation, Question, int | None], ...] = (
        ("fixed, one-sided", fixed, single, None), ("sequential, one-sided", early, single, None),
        ("fixed", fixed, Question(), None), ("sequential", early, Question(), None),
        ("sequential, shared budget", early, Question(), 2_000 * count),
    )  # fmt: skip
    yield "| procedure | samples an image | " + " | ".join(f"radius {r:g}" for r in RADII) + " | processor s |"
    yield "| --- |" + " ---: |" * (len(RADII) + 2)
    logs = {}
    for name, how, asked, budget in ways:
        begin = time.process_time()
        found = model.certify(x, how, asked, budget=budget)
        seconds = time.process_time() - begin
        logs[name] = [
            Line(k, int(label), -1 if f.label is None else f.label, f.radius, 0.0)
            for k, (f, label) in enumerate(zip(found, y, strict=True))
        ]
        shares = " | ".join(f"{100 * share:.1f} %" for share in certified_accuracy(logs[name], RADII))
        yield f"| {name} | {np.mean([f.samples for f in found]):.0f} | {shares} | {seconds:.1f} |"
    if plot is not None:
        png(logs, plot, f"{count} digits, gaussian 0.25, 99.9 % each", norm="2")


def plain() -> nn.Module:
    """Three convolutions: 5 million multiplications, as small networks of verification benchmarks have."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(given, made, 3, stride=made // given, padding=1)
        self.two = nn.Conv2d(made, made, 3, padding=1)
        self.around = nn.Conv2d(given, made, 1, stride=made // given) if made > given else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Of ``[B, given, h, w]``."""
        return torch.relu(self.two(torch.relu(self.one(x))) + self.around(x))


def residual() -> nn.Module:
    """ResNet-20 (He et al., 2016), batch normalisation folded: 41 million multiplications. Published smoothing of these
    images takes ResNet-110, six times as many."""
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [Block(a, b) for a, b in pairwise(widths)]
    ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *blocks, *ends)


def throughput(device: str, half: bool) -> Iterator[str]:
    """Ratios to the bare forward pass, for two convolutional networks of images 3 x 32 x 32."""
    place = torch.device(device)
    draw = torch.Generator(place).manual_seed(0)
    yield "| network | batch | bare, points/s | smoothed, points/s | ratio |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, net in (("three convolutions", plain()), ("ResNet-20", residual())):
        net = net.to(place).eval()
        x = torch.rand((1, 3, 32, 32), generator=draw, device=place)
        for rows in (1, 4, 16, 64, 256, 1024, 4096):
            way = Way(rows=rows, half=half)
            model = smooth(net, 0.25, shape=(3, 32, 32), way=way)
            source, stream = model.sampler, Stream(x.flatten(), draw)
            points = torch.rand((rows, 3072), generator=draw, device=place)
            count = rows * max(1, 512 // rows)
            bare, full = [], []
            for _ in range(3):
                bare.append(_seconds(place, lambda: _forward(source, points, count)))  # noqa: B023
                full.append(_seconds(place, lambda: source.counts(stream, count)))  # noqa: B023
            one, two = (count / min(times) for times in (bare, full))
            yield f"| {name} | {rows} | {one:.0f} | {two:.0f} | {two / one:.3f} |"


def _forward(source: Sampler, points: Tensor, count: int) -> None:
    with torch.inference_mode():
        for _ in range(count // len(points)):
            source.scores(points)


def _seconds(place: torch.device, work: Callable[[], object]) -> float:
    """Of the clock: a device works beside the processor."""
    begin = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("statistics", "savings", "throughput"))
    parser.add_argument("--count", type=int, default=100, help="classifiers, or images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--half", action="store_true", help="half precision on a GPU")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves of savings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    match options.what:
        case "statistics":
            lines = statistics(options.count)
        case "savings":
            lines = savings(options.count, options.plot)
        case _:
            lines = throughput(options.device, options.half)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
