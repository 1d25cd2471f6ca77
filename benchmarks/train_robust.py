"""What training does for certificates: three comparisons on the digits that scikit-learn carries, as Markdown tables.

Images 8 x 8 with pixels in [0, 1]; the first 1,400 train, the last 397 (of other writers) test. One architecture (two
convolutions, two linear layers), the seeds 0, 1 and 2, means over them and the smallest and largest in parentheses.

1. Certified accuracy of smoothed classifiers at four radii in the norm 2, sigma 0.25 (99.9 % each, at most 10,000
   samples): natural training, Gaussian noise (Cohen et al.), SmoothAdv (Salman et al.).
2. Accuracy under the ensemble of ``verifier.robust_accuracy``, norm inf: natural, adversarial training (Madry et al.)
   and TRADES (Zhang et al.) for the same radius.
3. What ``verifier.verify`` proves of networks from adversarial and from certified training (IBP, CROWN-IBP, MTL-IBP),
   norm inf, at the radius that they were trained for, one grey level of the 16: the share of all test images, those of
   the wrong class among the failures.

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
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import verifier
from bounds import Box, Interval, compute_bounds, margins, trace
from verifier.smoothing import Sequential, smooth
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


def smoothed(module: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """The accuracy without noise, and the certified one at each of ``RADII``."""
    found = smooth(module, SIGMA, shape=images.shape[1:]).certify(images, Sequential(RADII, 10_000))
    reached = [one.radius if one.label == label else -1.0 for one, label in zip(found, labels.tolist(), strict=True)]
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


@dataclass(frozen=True)
class Part:
    """One table: a row for each of ``losses``, trained as ``settings`` say (with the seed of the row), and a column for
    each of what ``measure`` gives."""

    heads: list[str]
    losses: dict[str, Make]
    settings: Settings
    measure: Callable[[nn.Module, Tensor, Tensor], list[float]]

    def row(self, name: str, seed: int) -> list[float]:
        """Train on the first images, measure on the last."""
        images, labels = data()
        module, settings = network(), replace(self.settings, seed=seed)
        initialise(module, seed)
        started = time.process_time()
        loss = self.losses[name](module, images[:1])
        train(module, images[:TRAINED_ON], labels[:TRAINED_ON], loss, settings)
        between = time.process_time()
        found = self.measure(module.eval(), images[TRAINED_ON:], labels[TRAINED_ON:])
        took = f"trained in {between - started:.1f} s, measured in {time.process_time() - between:.1f} s"
        print(f"  {name}, seed {seed}: {took}: {[round(v, 4) for v in found]}", file=sys.stderr)
        return found


def smoothing() -> Part:
    """The first table."""
    losses: dict[str, Loss] = {
        "natural": Plain(),
        "Gaussian": Plain(SIGMA),
        "SmoothAdv": SmoothAdversarial(SIGMA, Adversary(0.25, 4, "2"), samples=2),
    }
    heads = ["accuracy %", *(f"certified at {r:g}" for r in RADII)]
    return Part(heads, _always(losses), Settings(epochs=60, batch=100, rate=2e-3), smoothed)


def robustness() -> Part:
    """The second table."""
    losses: dict[str, Loss] = {
        "natural": Plain(),
        "adversarial training": Adversarial(Adversary(EPSILON, 10, within=PIXELS)),
        "TRADES, beta 6": Trades(Adversary(EPSILON, 10, within=PIXELS, start=0.1), 6.0),
    }
    heads = ["accuracy %", f"under attack, {EPSILON:g}"]
    return Part(heads, _always(losses), Settings(epochs=25, batch=100, rate=2e-3), attacked)


def certified() -> Part:
    """The third table."""
    adversarial = Adversarial(Adversary(CERTIFIED, 4, within=PIXELS))

    def make(share: float) -> Make:
        return lambda module, x: ramp(Certified.of(module, x, CERTIFIED, PIXELS), share=share)

    def mixed(module: nn.Module, x: Tensor) -> Scheduled:
        return ramp(Expressive(adversarial, Certified.of(module, x, CERTIFIED, PIXELS, kappa=0.0)))

    losses = _always({"adversarial training": adversarial})
    losses |= {"IBP": make(0.0), "CROWN-IBP": make(1.0), "MTL-IBP, weight 0.1": mixed}
    heads = ["accuracy %", "by intervals", f"proven, {CERTIFIED:g}", "counterexample"]
    return Part(heads, losses, Settings(epochs=60, batch=100, rate=8e-3), proven)


def _always(losses: dict[str, Loss]) -> dict[str, Make]:
    """Losses that need no module."""
    return {name: lambda *_, loss=loss: loss for name, loss in losses.items()}


PARTS = {1: smoothing, 2: robustness, 3: certified}


def row(part: int, name: str, seed: int) -> list[float]:
    """What a process does."""
    torch.set_num_threads(1)
    return PARTS[part]().row(name, seed)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--parts", type=int, nargs="+", choices=PARTS, default=[*PARTS], help="tables (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training (default: 0 1 2)")
    parser.add_argument("--processes", type=int, default=2, help="at a time (default: 2)")
    given = parser.parse_args()
    started = time.monotonic()
    tasks = [(part, name, seed) for part in given.parts for name in PARTS[part]().losses for seed in given.seeds]
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        found = {task: pool.submit(row, *task) for task in reversed(tasks)}  # the long ones first
        for part in given.parts:
            table = PARTS[part]()
            print(f"\n| training | {' | '.join(table.heads)} |\n| --- |{' ---: |' * len(table.heads)}")
            for name in table.losses:
                columns = zip(*(found[part, name, seed].result() for seed in given.seeds), strict=True)
                cells = [f"{100 * mean(c):.1f} ({100 * min(c):.1f} to {100 * max(c):.1f})" for c in columns]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)
    used = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    print(f"  {time.monotonic() - started:.0f} s, {used:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
