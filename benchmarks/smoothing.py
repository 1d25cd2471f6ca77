"""Smoothing measured: false certificates against known truth, samples saved by stopping early, throughput.

    python -m benchmarks.smoothing statistics --count 2000
    python -m benchmarks.smoothing savings --count 100 --plot FILE.png
    python -m benchmarks.smoothing throughput

``statistics``: false certificates of classifiers whose probabilities are known (``smoothing_truth``). ``savings``: the
network and the test images of ``benchmarks/digits``; all procedures at the same radii. ``throughput``: noise,
evaluation and counting against the evaluation alone of as many points that are there already, alternating, the least of
several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks import train_digits
from benchmarks.smoothing_truth import statistics
from verifier.smoothing import Fixed, Question, Sequential, Way, smooth
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.curve import Line, certified_accuracy
from verifier.smoothing.estimation import Estimation
from verifier.smoothing.plot import png

RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


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
            for _ in range(9 if rows < 1024 else 3):
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
