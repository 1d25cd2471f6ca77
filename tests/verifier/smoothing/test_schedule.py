"""Sampling of classifiers that are known: false certificates, early stops, shared batches and budgets."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from verifier.errors import InputError
from verifier.smoothing.certificates import ProbablyRobust
from verifier.smoothing.counting import Sampler, Scores, Stream
from verifier.smoothing.estimation import Estimation, Fixed, Sequential
from verifier.smoothing.noise import Gaussian
from verifier.smoothing.schedule import Question, Terms, certify_all

SIGMA = 0.5
NOISE = Gaussian(SIGMA)


def half_spaces(thresholds: list[float]) -> Scores:
    """Class 0 where the second element is below a threshold that the first, rounded, names."""
    cuts = torch.tensor(thresholds, dtype=torch.float64)

    def scores(x: Tensor) -> Tensor:
        low = x[:, 1] < cuts[(x[:, 0] / 1000).round().long()]
        return torch.stack([low.double(), 1 - low.double(), torch.full_like(x[:, 0], -1)], 1)

    return scores


def inputs(number: int, seed: int = 0, label: int | None = None) -> list[tuple[int, Stream, int | None]]:
    """Input k is the point (1000 k, 0, 0)."""
    found = []
    for k in range(number):
        x = torch.tensor([1000.0 * k, 0, 0], dtype=torch.float64)
        found.append((k, Stream(x, torch.Generator().manual_seed(1000 * seed + k)), label))
    return found


def certified(
    thresholds: list[float],
    estimation: Estimation,
    question: Question = Question(),  # noqa: B008 - a frozen value
    rows: int = 5000,
    budget: int | None = None,
    label: int | None = None,
) -> dict[int, ProbablyRobust]:
    source = Sampler(half_spaces(thresholds), 3, NOISE, rows, torch.float64)
    terms = Terms(question, NOISE.shift("2", 3), "real arithmetic")
    return dict(certify_all(source, inputs(len(thresholds), label=label), estimation, terms, budget))


@pytest.mark.parametrize("rivals", [False, True])
@pytest.mark.parametrize("estimation", [Fixed(1000), Sequential((0.1, 0.3, 0.5), 3000)], ids=["fixed", "sequential"])
def test_false_certificates_are_rarer_than_alpha(estimation: Estimation, rivals: bool) -> None:
    """Half-spaces, whose smoothed radius is sigma Phi^-1(p) exactly: a larger one or another class is false."""
    alpha, number = 0.05, 200
    cuts = (SIGMA * ndtri(np.random.default_rng(7).uniform(0.5, 0.999, number))).tolist()
    found = certified(cuts, estimation, Question(alpha=alpha, rivals=rivals))
    wrong = sum(one.label == 1 or (one.label == 0 and one.radius > cut) for one, cut in zip(
        (found[k] for k in range(number)), cuts, strict=True))  # fmt: skip
    assert wrong <= binom.ppf(0.9999, number, alpha)
    assert sum(one.label == 0 for one in found.values()) > 0.7 * number


def test_a_certificate_of_a_half_space() -> None:
    (found,) = certified([0.5], Fixed(20_000)).values()
    assert found.label == 0
    assert 0.45 < found.radius < 0.5
    assert found.p < float(ndtr(1))
    assert found.samples == 20_100
    (other,) = certified([0.5], Fixed(20_000), label=0).values()
    assert (other.label, other.samples) == (0, 20_000)
    (other,) = certified([0.5], Fixed(20_000), label=1).values()
    assert (other.label, other.guess) == (None, 1)


def test_sequential_sampling_stops_when_enough_is_known() -> None:
    (easy,) = certified([2.0], Sequential((0.25, 0.5), 100_000)).values()
    assert easy.label == 0
    assert easy.radius >= 0.5
    assert easy.samples < 2000
    (even,) = certified([0.0], Sequential((0.25,), 100_000)).values()
    assert even.label is None or even.radius < 0.25
    (between,) = certified([0.3], Sequential((0.25, 0.5), 100_000)).values()
    assert 0.25 <= between.radius < 0.3
    assert between.samples < 50_000


@pytest.mark.parametrize("estimation", [Fixed(700), Sequential((0.2, 0.6), 4000)], ids=["fixed", "sequential"])
def test_results_do_not_depend_on_what_shares_a_batch(estimation: Estimation) -> None:
    cuts = [0.5, 0.05, -0.7, 1.4, 0.2, -0.1, 0.9]
    together = certified(cuts, estimation, rows=5000)
    source = Sampler(half_spaces(cuts), 3, NOISE, 5000, torch.float64)
    terms = Terms(Question(), NOISE.shift("2", 3), "real arithmetic")
    for one in inputs(len(cuts)):
        ((number, alone),) = certify_all(source, [one], estimation, terms)
        assert alone == together[number]


def test_batches_are_full_and_none_is_too_large() -> None:
    sizes: list[int] = []
    scores = half_spaces([0.4] * 30)

    def watched(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return scores(x)

    source = Sampler(watched, 3, NOISE, 1000, torch.float64)
    terms = Terms(Question(), NOISE.shift("2", 3), "real arithmetic")
    told: list[int] = []
    found = list(certify_all(source, inputs(30), Fixed(250), terms, report=told.append))
    assert max(sizes) <= 1000
    assert sum(sizes) == sum(one.samples for _, one in found) == 30 * 350
    assert len(sizes) <= 13
    assert told == np.cumsum(sizes).tolist()


def test_inputs_are_taken_as_they_are_needed() -> None:
    """An endless stream of inputs: the first results come before all are begun."""
    taken = []

    def endless() -> object:
        for k in count():
            taken.append(k)
            yield k, Stream(torch.zeros(3, dtype=torch.float64), torch.Generator().manual_seed(k)), None

    source = Sampler(half_spaces([1.0]), 3, NOISE, 100, torch.float64)
    found = certify_all(source, endless(), Fixed(200), Terms(Question(), NOISE.shift("2", 3), ""))  # type: ignore[arg-type]
    first = [next(found)[0] for _ in range(3)]
    assert first == [0, 1, 2]
    assert len(taken) < 100


def test_a_shared_budget_is_kept_and_goes_where_it_gains() -> None:
    cuts = [1.5] * 20 + [0.02] * 5
    aims = Sequential((0.25, 0.5), 100_000)
    alone, shared = certified(cuts, aims), certified(cuts, aims, budget=12_000)
    assert sum(one.samples for one in shared.values()) == 12_000 < sum(one.samples for one in alone.values())
    assert all(shared[k].radius >= 0.5 for k in range(20))
    assert sorted(shared) == sorted(alone) == list(range(25))
    small = certified(cuts, aims, budget=60)
    assert sum(one.samples for one in small.values()) == 60
    assert all(one.label is None for one in small.values())


def test_false_certificates_are_rare_under_a_shared_budget() -> None:
    """The budget looks at all counts to choose: sequential limits must not mind."""
    alpha, number = 0.05, 150
    cuts = (SIGMA * ndtri(np.random.default_rng(9).uniform(0.5, 0.9, number))).tolist()
    found = certified(cuts, Sequential((0.1, 0.3, 0.5), 3000), Question(alpha=alpha), budget=100_000)
    wrong = sum(found[k].label == 1 or (found[k].label == 0 and found[k].radius > cuts[k]) for k in range(number))
    assert wrong <= binom.ppf(0.9999, number, alpha)


def test_scores_that_are_not_finite_are_of_no_class() -> None:
    def broken(x: Tensor) -> Tensor:
        scores = torch.zeros(len(x), 2, dtype=torch.float64)
        scores[:, 0] = torch.where(x[:, 0] < 0, torch.nan, 1.0)
        return scores

    source = Sampler(broken, 2, NOISE, 3000, torch.float64)
    stream = Stream(torch.zeros(1, dtype=torch.float64), torch.Generator().manual_seed(0))
    counts = source.counts(stream, 10_000)
    assert int(counts.sum()) == 10_000
    assert 4_500 < int(counts[2]) < 5_500
    terms = Terms(Question(), NOISE.shift("2", 1), "")
    ((_, found),) = certify_all(source, [(0, stream, None)], Fixed(5000), terms)
    assert found.label is None


def test_all_together_takes_more_confidence_of_each() -> None:
    assert Question(alpha=0.01, together=True).each(10) == Question(alpha=0.001)
    assert Question(alpha=0.01).each(10) == Question(alpha=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": Question(k=3)}, "from 1 to 2"),
        ({"question": Question(k=0)}, "from 1 to 2"),
        ({"estimation": Fixed(9)}, "10 are needed"),
        ({"budget": 0}, "at least one sample"),
        ({"budget": 100}, "sequential limits"),
        ({"label": 3}, "class 3 of input 0"),
    ],
)
def test_questions_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        certified(**{"thresholds": [0.5], "estimation": Fixed(100), **change})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one sample"):
        Sequential((0.1,), first=0)
    with pytest.raises(InputError, match="norm"):
        Question(norm="3")
    with pytest.raises(InputError, match="alpha"):
        Question(alpha=1.0)
