"""What training does for certificates: three comparisons on the digits that scikit-learn carries, as Markdown tables.

Images 8 x 8 with pixels in [0, 1]; the first 1,400 train, the last 397 (of other writers) test. One architecture (two
convolutions, two linear layers), the seeds 0, 1 and 2, means over them and the smallest and largest in parentheses.

1. Certified accuracy of smoothed classifiers at four radii in the norm 2, sigma 0.25 (99.9 % each, at most 10,000
   samples): natural training, Gaussian noise (Cohen et al.), SmoothAdv (Salman et al.).
2. Accuracy under the ensemble of ``verifier.robust_accuracy``, norm inf: natural, adversarial training (Madry et al.)
   and TRADES (Zhang et al.) for the same radius.
3. What ``verifier.verify`` proves of networks from certified training (IBP, CROWN-IBP), at their training radius: the
   share of every second test image, those of the wrong class among the failures.

``python -m benchmarks.train_robust`` prints all three; ``--parts 2``, ``--seeds 0`` make less of it. Beside each table,
on stderr, stands what it took. Same seeds, versions and machine, same table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import verifier
from bounds import Box, Interval, compute_bounds, margins, trace
from verifier.smoothing.certify import Sequential, certify
from verifier.smoothing.counting import Sampler
from verifier.smoothing.noise import Gaussian
from verifier.training import (
    Adversarial,
    Adversary,
    Certified,
    Loss,
    Plain,
    Scheduled,
    Settings,
    SmoothAdversarial,
    Trades,
    accuracy,
    export,
    initialise,
    ramp,
    train,
)

TRAINED_ON = 1400
SIGMA, RADII = 0.25, (0.125, 0.25, 0.375, 0.5)
EPSILON = 0.1
CERTIFIED, EVERY = 0.04, 2
PIXELS = (0.0, 1.0)

Make = Callable[[nn.Module, Tensor], Loss | Scheduled]
"""The loss for a module, given one input."""


def data() -> tuple[Tensor, Tensor]:
    """Images ``[1797, 1, 8, 8]`` in [0, 1] and labels ``[1797]``."""
    digits = load_digits()
    return torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1), torch.tensor(digits.target)


def network() -> nn.Sequential:
    """About 39,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def trained(make: Make, seed: int, epochs: int, batch: int = 100) -> nn.Sequential:
    """The network after training on the first images."""
    images, labels = data()
    module = network()
    initialise(module, seed)
    loss = make(module, images[:1])
    settings = Settings(epochs=epochs, batch=batch, rate=2e-3, seed=seed)
    started = time.process_time()
    train(module, images[:TRAINED_ON], labels[:TRAINED_ON], loss, settings)
    print(f"  trained in {time.process_time() - started:.1f} s", file=sys.stderr)
    return module.eval()


def smoothed(module: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The accuracy without noise, and the certified one at each of ``RADII``."""
    source = Sampler(
        lambda x: module(x.reshape(-1, 1, 8, 8)), 10, Gaussian(SIGMA), 1000, torch.Generator().manual_seed(0)
    )
    reached = []
    for image, label in zip(images, labels.tolist(), strict=True):
        found = certify(source, image.flatten(), Sequential(RADII, 10_000))
        reached.append(found.radius if found.label == label else -1.0)
    return [accuracy(module, images, labels), *(mean(r >= radius for r in reached) for radius in RADII)]


def attacked(module: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The accuracy, and that under the ensemble."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, path, (1, 8, 8))
        found = verifier.robust_accuracy(
            path, images.numpy(), labels.numpy(), epsilon=str(EPSILON), data_range=(0, 1)
        )
    return [found.accuracy, found.robust_accuracy]


def proven(module: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The accuracy, the share of all images that one pass of intervals proves (with error terms, in exact arithmetic),
    and the shares of every second one that ``verify`` proves and finds a counterexample for."""
    graph, words = trace(module, images[:1]), []
    low, high = ((images + side * CERTIFIED).clamp(*PIXELS).unsqueeze(1) for side in (-1, 1))
    least = torch.stack([
        compute_bounds(graph, Box(low, high), Interval(), rows=margins(graph, k)).lower.amin(1) for k in range(10)
    ])
    alone = float((least[labels, torch.arange(len(labels))] > 0).double().mean())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, path, (1, 8, 8))
        for image, label in zip(images[::EVERY], labels[::EVERY].tolist(), strict=True):
            query = verifier.robustness(path, image.numpy(), str(CERTIFIED), label=label, data_range=(0, 1))
            words.append(verifier.verify(query, timeout=10).word)
    return [accuracy(module, images, labels), alone, *(words.count(w) / len(words) for w in ("unsat", "sat"))]


def table(
    heads: Sequence[str],
    ways: Sequence[tuple[str, Callable[[int], nn.Sequential]]],
    measure: Callable[[nn.Module, Tensor, Tensor], list[float]],
    seeds: Sequence[int],
) -> None:
    """One row a way of training, one column a measure, in percent."""
    images, labels = data()
    tests, truth = images[TRAINED_ON:], labels[TRAINED_ON:]
    print(f"\n| training | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    for name, way in ways:
        rows = []
        for seed in seeds:
            module, started = way(seed), time.process_time()
            rows.append(measure(module, tests, truth))
            print(f"  {name}, {seed}: {rows[-1]}, {time.process_time() - started:.1f} s", file=sys.stderr)
        columns = [
            f"{100 * mean(c):.1f} ({100 * min(c):.1f} to {100 * max(c):.1f})" for c in zip(*rows, strict=True)
        ]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


def smoothing(seeds: Sequence[int]) -> None:
    """The first table."""
    against = SmoothAdversarial(SIGMA, Adversary(0.25, 4, "2"), samples=2)
    ways = [
        (name, lambda seed, loss=loss: trained(lambda *_: loss, seed, 60))
        for name, loss in (("natural", Plain()), ("Gaussian", Plain(SIGMA)), ("SmoothAdv", against))
    ]
    table(["accuracy %", *(f"certified at {r:g}" for r in RADII)], ways, smoothed, seeds)


def robustness(seeds: Sequence[int]) -> None:
    """The second table."""
    losses = (
        ("natural", Plain()),
        ("adversarial training", Adversarial(Adversary(EPSILON, 10, within=PIXELS))),
        ("TRADES, beta 6", Trades(Adversary(EPSILON, 10, within=PIXELS, start=0.1), 6.0)),
    )
    ways = [(name, lambda seed, loss=loss: trained(lambda *_: loss, seed, 25)) for name, loss in losses]
    table(["accuracy %", f"under attack, {EPSILON:g}"], ways, attacked, seeds)


def certified(seeds: Sequence[int]) -> None:
    """The third table."""

    def make(share: float) -> Make:
        return lambda module, x: ramp(Certified.of(module, x, CERTIFIED, PIXELS), share=share)

    ways = [
        ("natural", lambda seed: trained(lambda *_: Plain(), seed, 60)),
        ("IBP", lambda seed: trained(make(0.0), seed, 60, 200)),
        ("CROWN-IBP", lambda seed: trained(make(1.0), seed, 20, 200)),
    ]
    table(["accuracy %", "by intervals", f"proven, {CERTIFIED:g}", "counterexample"], ways, proven, seeds)


PARTS = (smoothing, robustness, certified)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3], help="which tables (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training (default: 0 1 2)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for part in given.parts:
        PARTS[part - 1](given.seeds)


if __name__ == "__main__":
    main()
