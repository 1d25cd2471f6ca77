"""Classifiers whose probabilities under noise are known, and how many of their certificates are false.

They are intervals of one element: two classes with p uniform in [0.5, 1) or near 1, or four with random shares. A
certificate counts as false where its radius is above that which the true probabilities of its class and the others
give. ``python -m benchmarks.smoothing statistics`` prints the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from scipy.stats import binom, laplace, norm, uniform
from torch import Tensor, nn

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
    smooth,
)
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.estimation import Estimation
from verifier.smoothing.exact import GridNoise
from verifier.smoothing.noise import check_norm
from verifier.smoothing.schedule import Terms, certify_all
from verifier.smoothing.shifts import among_first

ALPHA = 0.05
AIMS = (0.1, 0.25, 0.5)
APART = 1000.0
"""Between the first elements of two inputs: they tell a shared batch which classifier is asked."""

Quantile = Callable[[np.ndarray], np.ndarray]
"""Of one element of some noise."""


def classifiers(count: int, several: bool) -> list[np.ndarray]:
    """The shares of the classes, by classifier."""
    random = np.random.default_rng(0)
    if several:
        return [np.sort(random.dirichlet(np.full(4, 0.7)))[::-1] for _ in range(count)]
    ps = [1 - 10 ** random.uniform(-4, -1) if k % 2 else random.uniform(0.5, 1) for k in range(count)]
    return [np.array([p, 1 - p]) for p in ps]


def certificates(
    noise: Noise, quantile: Quantile, shares: Sequence[np.ndarray], how: Estimation,
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


@dataclass(frozen=True, eq=False)
class Case:
    """Noise and a question, the quantiles of an element of the noise, and whether there are several classes; ``unit``:
    of the noise, in that of ``AIMS``."""

    noise: Noise
    quantile: Quantile
    question: Question
    several: bool = False
    unit: float = 1.0


def cases() -> Iterator[Case]:
    """Noise of scale 1/2 on one element: that of ``Cubic`` and ``Spherical`` is Laplace, that of ``Ball`` uniform."""

    def quantiles(law: Any) -> Quantile:
        return lambda p: np.asarray(0.5 * law.ppf(p))

    normal, double, flat = (quantiles(law) for law in (norm, laplace, uniform(-1, 2)))
    alone = {measure: Question(measure, ALPHA, rivals=False) for measure in ("1", "2", "inf")}
    yield Case(Gaussian(0.5), normal, alone["2"])
    yield Case(Gaussian(0.5), normal, Question("2", ALPHA), several=True)
    yield Case(Gaussian(0.5), normal, Question("2", ALPHA, k=2), several=True)
    yield Case(Gaussian(0.5), normal, Question("2", ALPHA, k=2, rivals=False), several=True)
    yield Case(Laplace(0.5), double, alone["1"])
    yield Case(Uniform(0.5), flat, alone["1"])
    yield Case(Uniform(0.5), flat, alone["inf"])
    yield Case(Cubic(0.5), double, alone["inf"])
    yield Case(Spherical(0.5), double, alone["2"])
    yield Case(Ball(0.5), flat, alone["2"])
    grid = GridNoise.of(Gaussian(0.5), Fraction(1, 16))
    yield Case(grid, OnSteps.of(grid).quantile, alone["2"], unit=16)


@dataclass(frozen=True, eq=False)
class OnSteps:
    """The whole numbers of a grid's noise in order, and the probabilities that it is at most each. Classes change half
    way between two, so that their shares are not quite those asked for."""

    steps: list[int]
    reached: np.ndarray

    @staticmethod
    def of(noise: GridNoise) -> OnSteps:
        """Of the table's own chances."""
        chances = noise.chances()
        steps = sorted(chances)
        return OnSteps(steps, np.cumsum([chances[k] / 2**62 for k in steps]))

    def quantile(self, p: np.ndarray) -> np.ndarray:
        """The first place between two numbers that is reached with a probability of at least ``p``."""
        return np.array([self.steps[min(int(np.searchsorted(self.reached, v)), len(self.steps) - 1)] + 0.5 for v in p])

    def shares(self, asked: np.ndarray) -> np.ndarray:
        """Those that classes have."""
        ends = [self.reached[self.steps.index(int(cut - 0.5))] for cut in self.quantile(np.cumsum(asked)[:-1])]
        return np.diff([0.0, *ends, 1.0])


def layered(ps: np.ndarray, how: Estimation) -> int:
    """How many certificates are false of inputs of a network: a layer that doubles, noise, and a threshold."""
    net, cut = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).eval(), 16.0
    with torch.no_grad():
        net[0].weight.fill_(2)
        net[0].bias.fill_(0)
        net[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        net[2].bias.copy_(torch.tensor([cut, -cut]))
    x = ((cut - 0.5 * norm.ppf(ps)) / 2).astype(np.float32)
    asked = Question(alpha=ALPHA, rivals=False)
    found = smooth(net, 0.5, shape=(1,), layer=True).certify(x[:, None], how, asked)
    return sum(one.label == 1 or one.radius > cut / 2 - float(at) for one, at in zip(found, x, strict=True))


def statistics(count: int) -> Iterator[str]:
    """Shares of false certificates, a line for each noise and procedure."""
    yield f"| noise | norm | procedure | classifiers | false | allowed ({100 * ALPHA:g} %) | chance of more if exact |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for case in cases():
        shares, asked = classifiers(count, case.several), case.question
        if isinstance(case.noise, GridNoise):
            on_steps = OnSteps.of(case.noise)
            shares = [on_steps.shares(s) for s in shares]
        for name, how in (
            ("fixed, 1,000", Fixed(1000)),
            ("sequential, up to 5,000", Sequential([case.unit * r for r in AIMS], 5000)),
        ):
            found = certificates(case.noise, case.quantile, shares, how, asked)
            wrong = sum(false(f, s, case.noise, asked, 1) for f, s in zip(found, shares, strict=True))
            words = name + ", rivals" * (case.several and asked.rivals) + f", first {asked.k}" * (asked.k > 1)
            yield _row(case.noise.words, asked.norm, words, count, wrong)
    ps = np.array([s[0] for s in classifiers(count, False)])
    for name, how in (
        ("fixed, 1,000", Fixed(1000)),
        ("sequential, up to 5,000", Sequential([r / 2 for r in AIMS], 5000)),
    ):
        yield _row("gaussian sigma=0.5 after a layer", "2", name, count, layered(ps, how))
    first, shares, asked = next(cases()), classifiers(count, False), Question("2", ALPHA)
    found = certificates(first.noise, first.quantile, shares, Sequential(AIMS, 5000), asked, 500 * count)
    wrong = sum(false(f, s, first.noise, asked, 2) for f, s in zip(found, shares, strict=True))
    yield _row(first.noise.words, "2", "sequential, shared budget of 500 each", count, wrong)


def _row(noise: str, measure: str, name: str, count: int, wrong: int) -> str:
    tail = float(binom.sf(wrong, count, ALPHA))
    return f"| {noise} | {measure} | {name} | {count} | {wrong} | {math.floor(ALPHA * count)} | {tail:.3f} |"
