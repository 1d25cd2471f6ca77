"""Smoothing measured: false certificates against known truth, samples saved by stopping early, throughput.

    python -m benchmarks.smoothing statistics --count 2000
    python -m benchmarks.smoothing savings --count 100
    python -m benchmarks.smoothing throughput

``statistics``: classifiers whose probability p under the noise is known (half-spaces; p uniform in [0.5, 1), and near
1). A limit above p, or another class, counts as false: a stricter count than that of false radii. ``savings``: the
network and the test images of ``benchmarks/digits``; both procedures at the same radii. ``throughput``: noise,
evaluation and counting against the evaluation alone of as many points that are there already, alternating, the least
of several runs. """

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.stats import binom, laplace, norm, uniform
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import train_digits
from verifier.smoothing.certify import Estimation, Fixed, Sequential, certify
from verifier.smoothing.counting import Sampler
from verifier.smoothing.curve import Line, certified_accuracy
from verifier.smoothing.noise import Gaussian, Laplace, Noise, Norm, Uniform
from verifier.smoothing.smoothed import smooth

ALPHA = 0.05
RADII = (0.0, 0.25, 0.5, 0.75)


def half_space(threshold: float) -> Callable[[Tensor], Tensor]:
    """Class 0 where the first element is below the threshold."""
    return lambda x: torch.stack([(x[:, 0] < threshold).double(), (x[:, 0] >= threshold).double()], 1)


def statistics(count: int) -> Iterator[str]:
    """Shares of false certificates, a line for each noise and procedure."""
    yield f"| noise | procedure | classifiers | false | allowed ({100 * ALPHA:g} %) | probability of more if exact |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    quantiles: tuple[tuple[Noise, Norm, Callable[[float], float]], ...] = (
        (Gaussian(0.5), "2", lambda p: 0.5 * float(norm.ppf(p))),
        (Laplace(0.5), "1", lambda p: 0.5 * float(laplace.ppf(p))),
        (Uniform(0.5), "1", lambda p: float(uniform.ppf(p)) - 0.5),
    )
    procedures: tuple[tuple[str, Estimation], ...] = (
        ("fixed, 1,000", Fixed(1000)),
        ("sequential, up to 5,000", Sequential((0.1, 0.25, 0.5), 5000)),
    )
    for noise, measure, quantile in quantiles:
        for name, how in procedures:
            random = np.random.default_rng(0)
            false = 0
            for k in range(count):
                p = 1 - 10 ** random.uniform(-4, -1) if k % 2 else random.uniform(0.5, 1)
                draw = torch.Generator().manual_seed(k)
                source = Sampler(half_space(quantile(p)), 2, noise, 5000, draw, torch.float64)
                found = certify(source, torch.zeros(1, dtype=torch.float64), how, norm=measure, alpha=ALPHA)
                false += found.label == 1 or (found.guess == 0 and found.p > p)
            tail = float(binom.sf(false, count, ALPHA))
            yield f"| {noise.words} | {name} | {count} | {false} | {ALPHA * count:.0f} | {tail:.3f} |"


def savings(count: int) -> Iterator[str]:
    """Certified accuracies and samples of both procedures, with 100,000 samples at most and alpha 0.001."""
    digits = load_digits()
    start = train_digits.TRAINED_ON
    x = (digits.images[start : start + count] / 16).astype(np.float32)
    y = digits.target[start : start + count]
    model = smooth(train_digits.FOLDER / "digits.onnx", 0.25)
    yield "| procedure | samples an image | " + " | ".join(f"radius {r:g}" for r in RADII) + " | processor s |"
    yield "| --- |" + " ---: |" * (len(RADII) + 2)
    for name, how in (("fixed", Fixed(100_000)), ("sequential", Sequential(RADII, 100_000))):
        begin = time.process_time()
        found = model.certify(x, how)
        seconds = time.process_time() - begin
        lines = [
            Line(k, int(label), -1 if f.label is None else f.label, f.radius, 0.0)
            for k, (f, label) in enumerate(zip(found, y, strict=True))
        ]
        shares = " | ".join(f"{100 * share:.1f} %" for share in certified_accuracy(lines, RADII))
        yield f"| {name} | {np.mean([f.samples for f in found]):.0f} | {shares} | {seconds:.1f} |"


def throughput(device: str) -> Iterator[str]:
    """Ratios to the bare forward pass, for a convolutional network of images 3 x 32 x 32."""
    place = torch.device(device)
    draw = torch.Generator(place).manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 10),
    ).to(place).eval()  # fmt: skip
    yield "| batch | bare, points/s | smoothed, points/s | ratio |"
    yield "| ---: | ---: | ---: | ---: |"
    x = torch.rand(3072, generator=draw, device=place)
    for rows in (1, 4, 16, 64, 256, 1024, 4096):
        source = Sampler(lambda p: net(p.reshape(-1, 3, 32, 32)), 10, Gaussian(0.25), rows, draw)
        points = torch.rand((rows, 3072), generator=draw, device=place)
        batches = max(1, 1024 // rows)
        bare, full = [], []
        for _ in range(5):
            bare.append(_seconds(place, lambda: [_forward(net, points) for _ in range(batches)]))  # noqa: B023
            full.append(_seconds(place, lambda: source.counts(x, rows * batches)))  # noqa: B023
        one, two = (rows * batches / min(times) for times in (bare, full))
        yield f"| {rows} | {one:.0f} | {two:.0f} | {two / one:.3f} |"


def _forward(net: nn.Module, points: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = net(points.reshape(-1, 3, 32, 32))
        return found


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
    options = parser.parse_args()
    torch.set_num_threads(1)
    match options.what:
        case "statistics":
            lines = statistics(options.count)
        case "savings":
            lines = savings(options.count)
        case _:
            lines = throughput(options.device)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
