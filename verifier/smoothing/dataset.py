"""A data set and a smoothed classifier: what is asked of every input, in which words, and the certificates in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from verifier.errors import InputError
from verifier.examples import Examples, check_labels
from verifier.smoothing.certificates import Claim, ClopperPearson, check_samples, confidence_of, percent
from verifier.smoothing.derandomised import Splitting
from verifier.smoothing.estimation import Estimation, Sequential
from verifier.smoothing.hardness import largest_certifiable
from verifier.smoothing.noise import check_norm
from verifier.smoothing.places import AfterLayer
from verifier.smoothing.schedule import Question
from verifier.smoothing.smoothed import Smoothed

Found = tuple[int, int | None, float, str]
"""Number of an input, its certified class (None: it abstains), radius, and the certificate in words."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """``certify`` gives the certificates of inputs by their numbers, each as soon as it is done, and calls its second
    argument with the points evaluated so far; ``labels`` ``[N]`` are the right classes. ``guarantee``: what holds for
    each certificate, with its ``confidence`` (None: it is certain); ``notes`` for the user."""

    labels: np.ndarray
    certify: Callable[[Sequence[int], Callable[[int], None]], Iterator[Found]]
    norm: str
    guarantee: str
    confidence: float | None
    notes: tuple[str, ...] = ()


def sampled(
    smoothed: Smoothed,
    examples: Examples,
    question: Question,
    estimation: Estimation,
    *,
    budget: int | None = None,
    seed: int = 0,
) -> Plan:
    """Certificates that hold with a probability. Where several classes count, it is the right one that is certified: a
    choice made before sampling. Raises ``InputError``."""
    labels, each = _labels(examples, smoothed.classes), question.each(len(examples.x))
    check_samples(each.n0, estimation.most, each.alpha)
    inputs = smoothed.inputs(examples.x)

    def certify(numbers: Sequence[int], report: Callable[[int], None]) -> Iterator[Found]:
        given = ((k, inputs[k], int(labels[k]) if each.k > 1 else None) for k in numbers)
        for k, one in smoothed.certify_each(given, estimation, each, budget=budget, seed=seed, report=report):
            yield k, one.label, one.radius, str(one)

    who = "all certificates are about the smoothed classifier and hold together"
    if not question.together:
        who = "each certificate is about the smoothed classifier and holds"
    guarantee = f"probabilistic, {smoothed.place.arithmetic}, {percent(question.alpha)}: {who} with that probability"
    notes = _reach(smoothed, each, estimation) + (
        _hardness(smoothed, each, estimation.most) if each.norm == "inf" else ()
    )
    return Plan(labels, certify, each.norm, guarantee, confidence_of(each.alpha), notes)


def without_chance(splitting: Splitting, examples: Examples) -> Plan:
    """Certificates that are certain. Raises ``InputError``."""

    def certify(numbers: Sequence[int], report: Callable[[int], None]) -> Iterator[Found]:
        for done, k in enumerate(numbers, start=1):
            one = splitting.certified(examples.x[k])
            report(done * splitting.cells)
            yield k, one.label, one.radius, str(one)

    guarantee = (
        f"deterministic: each certificate is about the smoothed classifier ({splitting.words}, all {splitting.cells} "
        f"points evaluated) and inputs on the grid of 1/{splitting.levels}"
    )
    return Plan(_labels(examples, splitting.base.classes), certify, "1", guarantee, None)


def _labels(examples: Examples, classes: int) -> np.ndarray:
    if examples.labels is None:
        raise InputError("certified accuracy needs the classes of the inputs, the array y")
    check_labels(examples.labels, classes)
    return examples.labels


def _reach(smoothed: Smoothed, question: Question, estimation: Estimation) -> tuple[str, ...]:
    """A warning where samples that all agree would not show what is aimed at."""
    shift = smoothed.place.shift(check_norm(question.norm), int(np.prod(smoothed.shape)))
    claim = Claim(0, shift, question.alpha, question.k, question.rivals)
    most = claim.radius((estimation.most, *[0] * smoothed.classes), estimation.limits)[0]
    aim = max(estimation.radii, default=0.0) if isinstance(estimation, Sequential) else 0.0
    if aim <= most:
        return ()
    return (
        f"{estimation.most} samples that all agree show a radius of {most:.4g} at this confidence, and nothing of "
        f"{aim:.4g}: take more samples, more noise or a larger alpha",
    )


def _hardness(smoothed: Smoothed, question: Question, samples: int) -> tuple[str, ...]:
    """How little any noise can do in the norm inf, from the most that this many samples can show."""
    if isinstance(smoothed.place, AfterLayer):
        return ()
    size, norm = int(np.prod(smoothed.shape)), check_norm("inf")
    p = ClopperPearson().lower(samples, samples, question.alpha)
    shift = smoothed.place.shift(norm, size)
    most = largest_certifiable(smoothed.place.noise.variance(size) * smoothed.place.unit**2, norm, size, p)
    return (
        f"in the norm inf no noise of this variance in {size} inputs certifies a radius above {most:.4g}, even if all "
        f"{samples} samples agree (in the manner of Blum et al., 2020); this one certifies "
        f"{shift.radius(p, 1 - p):.4g} then",
    )
