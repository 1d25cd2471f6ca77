"""Many inputs at once: batches filled with the samples of several, and a budget that they share.

Each input is a job: it chooses its class with the first samples (unless it is given one) and then samples as long as
its estimation wants. A batch takes whole requests in order, so that the results do not depend on what shares a batch;
first come the inputs that are nearly done, so that little is lost when a run is interrupted. With a shared budget first
come those that are guessed to gain most cheaply: sequential limits hold however samples are given out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import cast

from torch import Tensor

from verifier.errors import InputError
from verifier.smoothing.certificates import Claim, ProbablyRobust, check_samples, confidence_of
from verifier.smoothing.counting import Sampler, Stream
from verifier.smoothing.estimation import Estimation, Sequential, Tally
from verifier.smoothing.noise import check_norm
from verifier.smoothing.shifts import Shift

_ACTIVE = 64
"""Inputs that may share a batch."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every input: the ``norm`` of the radius; the probability ``alpha`` that its certificate is false
    (``together``: that any of all inputs' is; each then has its share of alpha); the number ``n0`` of samples that
    choose the class; how many classes (``k``) count as right; whether each other class gets a limit of its own
    (``rivals``; see ``Claim``), which certifies more where several share the rest, and hardly less where none is left.
    Raises ``InputError``."""

    norm: str = "2"
    alpha: float = 0.001
    n0: int = 100
    k: int = 1
    rivals: bool = True
    together: bool = False

    def __post_init__(self) -> None:
        check_norm(self.norm)
        if not 0 < self.alpha < 1:
            raise InputError(f"alpha: {self.alpha} is not between 0 and 1")

    def each(self, count: int) -> Question:
        """As it is asked of each of ``count`` inputs (Bonferroni)."""
        return replace(self, alpha=self.alpha / count, together=False) if self.together else self


@dataclass(frozen=True, slots=True)
class Terms:
    """A question with what ``shift`` s in its norm do, and the ``arithmetic`` that results name."""

    question: Question
    shift: Shift
    arithmetic: str


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One input on its way. ``waiting``: counts on the device, of samples that ``tally`` does not have yet; ``drawn``
    are both. Without a ``label`` they choose one; ``spent`` went into that. ``goal``: samples at the next look."""

    number: int
    stream: Stream
    label: int | None
    tally: Tally
    goal: int
    need: float = 0.0
    drawn: int = 0
    spent: int = 0
    waiting: Tensor | None = None

    def claim(self, terms: Terms) -> Claim:
        """Of a job with a label."""
        assert self.label is not None
        asked = terms.question
        return Claim(self.label, terms.shift, asked.alpha, asked.k, asked.rivals)

    def fed(self, counts: Tensor, samples: int) -> _Job:
        """With more samples."""
        return replace(
            self, drawn=self.drawn + samples, waiting=counts if self.waiting is None else self.waiting + counts
        )


def certify_all(
    sampler: Sampler,
    inputs: Iterable[tuple[int, Stream, int | None]],
    estimation: Estimation,
    terms: Terms,
    budget: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, ProbablyRobust]]:
    """Certificates of numbered inputs, each as soon as it is done. An input has a class that is to be certified, or
    None: the one that ``n0`` samples show most often.

    ``budget``: samples for all inputs together, for sequential limits alone. ``report`` is called after every batch
    with the samples so far. Raises ``InputError`` for numbers that make no sense.
    """
    _check(sampler, estimation, terms, budget)
    source = (_begun(number, stream, label, sampler.classes, estimation, terms) for number, stream, label in inputs)
    jobs = list(source if budget is not None else islice(source, _ACTIVE))
    spent = 0
    while jobs and spent != budget:
        if budget is not None:
            jobs.sort(key=lambda job: job.need)
        parts = _filled(jobs, sampler.block, None if budget is None else budget - spent)
        counts = sampler.batch([(jobs[k].stream, count) for k, count in parts])
        spent += sum(count for _, count in parts)
        if report is not None:
            report(spent)
        for (k, count), found in zip(parts, counts, strict=True):
            jobs[k] = jobs[k].fed(found, count)
        there = [k for k, _ in parts if jobs[k].drawn == jobs[k].goal]
        for k in there:
            jobs[k] = _looked(jobs[k], estimation, terms)
            if budget is not None:
                jobs[k] = replace(jobs[k], need=estimation.need(jobs[k].claim(terms), jobs[k].tally))
        done = [k for k in there if jobs[k].drawn >= jobs[k].goal]
        for k in done:
            yield jobs[k].number, _result(jobs[k], sampler, terms)
        jobs = [job for k, job in enumerate(jobs) if k not in done] + list(islice(source, len(done)))
    for job in jobs:  # the budget is spent
        yield job.number, _result(_looked(job, estimation, terms), sampler, terms)


def _begun(number: int, stream: Stream, label: int | None, classes: int, estimation: Estimation, terms: Terms) -> _Job:
    empty = Tally((0,) * (classes + 1))
    if label is None:
        return _Job(number, stream, None, empty, terms.question.n0)
    if not 0 <= label < classes:
        raise InputError(f"class {label} of input {number}: the classifier has the classes 0 to {classes - 1}")
    job = _Job(number, stream, label, empty, 0)
    return replace(job, goal=estimation.goal(job.claim(terms), empty))


def _filled(jobs: Sequence[_Job], rows: int, left: int | None) -> list[tuple[int, int]]:
    """Places of jobs and their samples for one batch: at most one request of each, and none is cut but by a budget."""
    room = rows if left is None else min(rows, left)
    parts: list[tuple[int, int]] = []
    for k, job in enumerate(jobs):
        wanted = min(job.goal - job.drawn, rows)
        if wanted <= room or not parts:
            parts.append((k, min(wanted, room)))
            room -= parts[-1][1]
        if not room:
            break
    return parts


def _looked(job: _Job, estimation: Estimation, terms: Terms) -> _Job:
    """With the counts of the device, and what they show."""
    fresh = [0] * len(job.tally.counts) if job.waiting is None else cast(list[int], job.waiting.tolist())
    tally = replace(job.tally, counts=tuple(a + b for a, b in zip(job.tally.counts, fresh, strict=True)))
    if job.label is None:
        chosen = max(range(len(fresh) - 1), key=tally.counts.__getitem__)
        empty = Tally((0,) * len(fresh))
        job = replace(job, label=chosen, tally=empty, drawn=0, spent=tally.samples, waiting=None)
        return replace(job, goal=estimation.goal(job.claim(terms), empty))
    claim = job.claim(terms)
    radius, p = claim.radius(tally.counts, estimation.limits) if tally.samples else (0.0, 0.0)
    if radius > tally.radius or not tally.radius:
        tally = replace(tally, radius=radius, p=p)
    return replace(job, tally=tally, goal=estimation.goal(claim, tally), waiting=None)


def _result(job: _Job, sampler: Sampler, terms: Terms) -> ProbablyRobust:
    assert job.label is not None
    tally, asked = job.tally, terms.question
    return ProbablyRobust(
        job.label if tally.radius > 0 else None, tally.radius, check_norm(asked.norm), confidence_of(asked.alpha),
        job.label, tally.p, job.spent + tally.samples, sampler.noise.words, asked.k, terms.arithmetic,
    )  # fmt: skip


def _check(sampler: Sampler, estimation: Estimation, terms: Terms, budget: int | None) -> None:
    asked = terms.question
    check_samples(asked.n0, estimation.most, asked.alpha)
    if not 1 <= asked.k < sampler.classes:
        raise InputError(f"k={asked.k}: from 1 to {sampler.classes - 1}, one less than there are classes")
    if budget is not None and budget < 1:
        raise InputError(f"budget={budget}: at least one sample is needed")
    if budget is not None and not isinstance(estimation, Sequential):
        raise InputError("a shared budget stops inputs early: that takes sequential limits, not a fixed number")
