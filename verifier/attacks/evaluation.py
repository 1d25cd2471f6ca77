"""Robust accuracy over a data set: an ensemble of attacks, each on the examples that the ones before left.

An attack can only lower the robust accuracy: the share of examples that keep their class is at most what is found
here. A point counts once onnxruntime has confirmed another class there; where it refuses one, a larger lead is demanded
of the attacks that follow. Examples are attacked in chunks, so that a run that is stopped has lost little, and what was
found until then stands.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from verifier import limits
from verifier.attacks.classifier import Classifier, best_other, lead
from verifier.attacks.goals import Misclassified
from verifier.attacks.problems import ball
from verifier.attacks.threats import Threat
from verifier.attacks.trial import Attack, Problem, attack
from verifier.errors import InputError
from verifier.examples import Examples, check_labels

CHUNK = 256
"""Examples attacked at once."""


@dataclass(frozen=True, slots=True)
class Row:
    """One attack of an evaluation: it was run on ``tried`` examples and broke ``found`` of them; onnxruntime refused
    the points of ``refused`` more. ``evaluations``: of the model, for all of them together; ``seconds``: of processor
    time."""

    attack: str
    tried: int = 0
    found: int = 0
    refused: int = 0
    evaluations: int = 0
    seconds: float = 0.0

    def plus(self, more: Row) -> Row:
        """Both together."""
        return Row(
            self.attack, self.tried + more.tried, self.found + more.found, self.refused + more.refused,
            self.evaluations + more.evaluations, self.seconds + more.seconds,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What attacks found for N examples.

    ``labels`` ``[N]``; ``clean`` ``[N]`` bool: the label has the highest score of all at the example itself; ``broken``
    ``[N]`` bool: at ``points`` ``[N, n]``, inside the threat model exactly, onnxruntime gives some other class
    (``others`` ``[N]``) at least as much; for an example that is not clean the point is the example itself. ``by``: the
    number of the row that broke it (-1: none). ``rows``: one an attack; ``finished``: all were run to their end.
    """

    labels: np.ndarray
    clean: np.ndarray
    broken: np.ndarray
    points: np.ndarray
    others: np.ndarray
    by: np.ndarray
    rows: tuple[Row, ...]
    finished: bool

    @property
    def accuracy(self) -> float:
        """The share of examples that are classified rightly."""
        return float(self.clean.mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of examples that are, and were not broken: the true one is at most this."""
        return float((~self.broken).mean())


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """Which attack is at work (number ``number`` of ``count``), and how many examples are ``left`` of ``examples``."""

    attack: str
    number: int
    count: int
    left: int
    examples: int


@dataclass(frozen=True, slots=True, eq=False)
class _Chunk:
    """What attack ``number`` did with some examples: ``broken`` ``[K]`` (numbers) at ``points`` ``[K, n]``."""

    number: int
    row: Row
    broken: np.ndarray
    points: np.ndarray
    others: np.ndarray


class Evaluator:
    """An evaluation under way; ``run`` may be interrupted anywhere, and ``result`` says what is known: a chunk of
    examples counts from the moment at which all that is known of it is appended."""

    def __init__(
        self,
        classifier: Classifier,
        examples: Examples,
        threat: Callable[[np.ndarray], Threat],
        attacks: Sequence[Attack],
        seed: int = 0,
    ) -> None:
        """``threat`` gives the sets of some of the examples ``[K, n]``, on the device where attacks are to run. Raises
        ``InputError``, for an example outside of a declared range too."""
        x, labels = examples.x, examples.labels
        if labels is not None:
            check_labels(labels, classifier.classes)
        device = threat(x).centre.device  # what is wrong with any example is said before others are attacked
        self._classifier, self._x, self._threat = classifier, x, threat
        self._oracle = classifier.oracle(device)
        self._attacks, self._seed = tuple(attacks), seed
        scores = classifier.scores(x)
        if not np.isfinite(scores).all():
            raise InputError(
                f"example {int(np.flatnonzero(~np.isfinite(scores).all(1))[0])}: the model's scores are not all finite"
            )
        self._labels = scores.argmax(1) if labels is None else labels
        self._clean = lead(scores, self._labels) > 0
        self._others = best_other(scores, self._labels)
        self._slack = np.zeros(len(x))
        self._chunks: list[_Chunk] = []
        self._finished = False

    def run(self, until: float = math.inf, *, report: Callable[[EvaluationProgress], None] | None = None) -> None:
        """Run the attacks one after the other, until the time ``until`` (of ``limits.now``)."""
        for number, method in enumerate(self._attacks):
            left = np.flatnonzero(~self._broken())
            for first in range(0, len(left), CHUNK):
                if limits.now() >= until:
                    return
                if report is not None:
                    known = len(self._x) - int(self._broken().sum())
                    report(EvaluationProgress(method.name, number, len(self._attacks), known, len(self._x)))
                self._attack(number, method, left[first : first + CHUNK], until)
        self._finished = limits.now() < until

    def result(self) -> Evaluation:
        """What is known by now."""
        chunks, broken = tuple(self._chunks), ~self._clean
        points, others, by = self._x.copy(), self._others.copy(), np.full(len(self._x), -1)
        rows = [Row(method.name) for method in self._attacks]
        for chunk in chunks:
            broken[chunk.broken], by[chunk.broken] = True, chunk.number
            points[chunk.broken], others[chunk.broken] = chunk.points, chunk.others
            rows[chunk.number] = rows[chunk.number].plus(chunk.row)
        return Evaluation(self._labels, self._clean, broken, points, others, by, tuple(rows), self._finished)

    def _broken(self) -> np.ndarray:
        """``[N]`` bool."""
        broken = ~self._clean
        for chunk in self._chunks:
            broken[chunk.broken] = True
        return broken

    def _attack(self, number: int, method: Attack, chosen: np.ndarray, until: float) -> None:
        started = time.process_time()
        threat = self._threat(self._x[chosen])
        slack = torch.from_numpy(self._slack[chosen]).to(threat.centre)
        labels = torch.from_numpy(self._labels[chosen]).to(threat.centre.device)
        problem = Problem(self._oracle, Misclassified(labels, slack), threat)
        seed = self._seed + 7919 * number + int(chosen[0])
        found = attack(problem, method, seed=seed, until=until)
        hit = found.found.cpu().numpy()
        which, points = chosen[hit], found.points.cpu().numpy()[hit]
        scores = self._classifier.scores(points) if len(which) else np.zeros((0, self._classifier.classes))
        true = lead(scores, self._labels[which]) <= 0  # NaN is no confirmation
        self._refused(which[~true], scores[~true], found.margin.cpu().numpy()[hit][~true])
        row = Row(
            method.name,
            tried=len(chosen),
            found=int(true.sum()),
            refused=int((~true).sum()),
            evaluations=int(found.evaluations.sum()),
            seconds=time.process_time() - started,
        )
        good = which[true]
        self._chunks.append(_Chunk(number, row, good, points[true], best_other(scores[true], self._labels[good])))

    def _refused(self, which: np.ndarray, scores: np.ndarray, margin: np.ndarray) -> None:
        """Demand more of the examples at whose points, of these claimed margins, onnxruntime keeps the class."""
        claimed = margin.astype(np.float64) - self._slack[which]
        least = 1e-6 * np.abs(scores).max(1, initial=1e-30)
        # What is not finite says nothing of how much more to ask for.
        wanted = np.where(np.isfinite(claimed), -2 * claimed, 0.0), np.where(np.isfinite(least), least, 0.0)
        self._slack[which] = np.maximum(2 * self._slack[which], np.maximum(*wanted))


def ball_threat(
    epsilon: Fraction, norm: str, data_range: tuple[Fraction, Fraction] | None, device: torch.device | str = "cpu"
) -> Callable[[np.ndarray], Threat]:
    """The balls of one radius around examples, for ``Evaluator``; see ``problems.ball``."""
    return lambda x: ball(x, epsilon, norm, data_range, device)
