"""What training does for certificates: three comparisons on the digits that scikit-learn carries, as Markdown tables.

Images 8 x 8 with pixels in [0, 1]; the first 1,400 train, the last 397 (of other writers) test. One architecture (two
convolutions, two linear layers), the seeds 0, 1 and 2, means over them and the smallest and largest in parentheses.

1. Certified accuracy of smoothed classifiers at four radii in the norm 2, sigma 0.25 (99.9 % each, at most 10,000
   samples): natural training, Gaussian noise (Cohen et al.), SmoothAdv (Salman et al.).
2. Accuracy under the ensemble of ``verifier.robust_accuracy``, norm inf: natural, adversarial training (Madry et al.)
   and TRADES (Zhang et al.) for the same radius.
3. What ``verifier.verify`` proves of networks from certified training (IBP, CROWN-IBP, MTL-IBP), and of others, norm
   inf, at the radius that they were trained for, one grey level of the 16: the share of all test images, those of the
   wrong class among the failures.

``python -m benchmarks.train_robust`` prints all three, two processes at a time; ``--parts 2``, ``--seeds 0`` make less
of it. What each step took stands on stderr. Same seeds, versions and machine, same tables (but for what ``verify`` does
not decide within its ten seconds).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
    Expressive,
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
CERTIFIED = 1 / 16
PIXELS = (0.0, 1.0)

Make = Callable[[nn.Module, Tensor], Loss | Scheduled]
"""The loss for a module, given one input."""
Rows = dict[str, list[float]]
"""By the way of training, what was measured."""


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


def trained(make: Make, seed: int, settings: Settings) -> nn.Sequential:
    """The network after training on the first images."""
    images, labels = data()
    module = network()
    initialise(module, seed)
    train(module, images[:TRAINED_ON], labels[:TRAINED_ON], make(module, images[:1]), settings)
    return module.eval()


def rows(
    losses: dict[str, Make], settings: Settings, measure: Callable[[nn.Module, Tensor, Tensor], list[float]]
) -> Rows:
    """Train with each loss, and measure on the last images."""
    images, labels = data()
    found = {}
    for name, make in losses.items():
        started = time.process_time()
        module = trained(make, settings.seed, settings)
        between = time.process_time()
        found[name] = measure(module, images[TRAINED_ON:], labels[TRAINED_ON:])
        print(
            f"  {name}, seed {settings.seed}: trained in {between - started:.1f} s, "
            f"measured in {time.process_time() - between:.1f} s: {found[name]}", file=sys.stderr,
        )  # fmt: skip
    return found


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
        found = verifier.robust_accuracy(path, images.numpy(), labels.numpy(), epsilon=str(EPSILON), data_range=(0, 1))
    return [found.accuracy, found.robust_accuracy]


def proven(module: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The accuracy, and the shares of images that one pass of intervals proves (with error terms, in exact arithmetic),
    that ``verify`` proves and that it finds a counterexample for."""
    graph, words = trace(module, images[:1]), []
    low, high = ((images + side * CERTIFIED).clamp(*PIXELS).unsqueeze(1) for side in (-1, 1))
    least = torch.stack(
        [compute_bounds(graph, Box(low, high), Interval(), rows=margins(graph, k)).lower.amin(1) for k in range(10)]
    )
    alone = float((least[labels, torch.arange(len(labels))] > 0).double().mean())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, path, (1, 8, 8))
        for image, label in zip(images, labels.tolist(), strict=True):
            query = verifier.robustness(path, image.numpy(), str(CERTIFIED), label=label, data_range=(0, 1))
            words.append(verifier.verify(query, timeout=10).word)
    return [accuracy(module, images, labels), alone, *(words.count(w) / len(words) for w in ("unsat", "sat"))]


def smoothing(seed: int) -> Rows:
    """Of the first table."""
    losses: dict[str, Loss] = {
        "natural": Plain(),
        "Gaussian": Plain(SIGMA),
        "SmoothAdv": SmoothAdversarial(SIGMA, Adversary(0.25, 4, "2"), samples=2),
    }
    return rows(_always(losses), Settings(epochs=60, batch=100, rate=2e-3, seed=seed), smoothed)


def robustness(seed: int) -> Rows:
    """Of the second table."""
    losses: dict[str, Loss] = {
        "natural": Plain(),
        "adversarial training": Adversarial(Adversary(EPSILON, 10, within=PIXELS)),
        "TRADES, beta 6": Trades(Adversary(EPSILON, 10, within=PIXELS, start=0.1), 6.0),
    }
    return rows(_always(losses), Settings(epochs=25, batch=100, rate=2e-3, seed=seed), attacked)


def certified(seed: int) -> Rows:
    """Of the third table."""
    adversarial = Adversarial(Adversary(CERTIFIED, 4, within=PIXELS))

    def make(share: float) -> Make:
        return lambda module, x: ramp(Certified.of(module, x, CERTIFIED, PIXELS), share=share)

    def mixed(module: nn.Module, x: Tensor) -> Scheduled:
        return ramp(Expressive(adversarial, Certified.of(module, x, CERTIFIED, PIXELS, kappa=0.0)))

    losses = _always({"natural": Plain(), "adversarial training": adversarial})
    losses |= {"IBP": make(0.0), "CROWN-IBP": make(1.0), "MTL-IBP, weight 0.1": mixed}
    return rows(losses, Settings(epochs=60, batch=100, rate=8e-3, seed=seed), proven)


def _always(losses: dict[str, Loss]) -> dict[str, Make]:
    """Losses that need no module."""
    return {name: lambda *_, loss=loss: loss for name, loss in losses.items()}


PARTS: dict[int, tuple[list[str], Callable[[int], Rows]]] = {
    1: (["accuracy %", *(f"certified at {r:g}" for r in RADII)], smoothing),
    2: (["accuracy %", f"under attack, {EPSILON:g}"], robustness),
    3: (["accuracy %", "by intervals", f"proven, {CERTIFIED:g}", "counterexample"], certified),
}


def run(part: int, seed: int) -> Rows:
    """What a process does."""
    torch.set_num_threads(1)
    return PARTS[part][1](seed)


def table(heads: list[str], found: list[Rows]) -> None:
    """One row a way of training, one column a measure, in percent; ``found`` by seed."""
    print(f"\n| training | {' | '.join(heads)} |\n| --- |{' ---: |' * len(heads)}")
    for name in found[0]:
        columns = zip(*(one[name] for one in found), strict=True)
        cells = [f"{100 * mean(c):.1f} ({100 * min(c):.1f} to {100 * max(c):.1f})" for c in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=[*PARTS], help="tables (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training (default: 0 1 2)")
    parser.add_argument("--processes", type=int, default=2, help="at a time (default: 2)")
    given = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {(part, seed): pool.submit(run, part, seed) for part in given.parts for seed in given.seeds}
        for part in given.parts:
            table(PARTS[part][0], [jobs[part, seed].result() for seed in given.seeds])
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    print(f"  {time.monotonic() - started:.0f} s, {used:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
