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
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from verifier import limits
from verifier.attacks.classifier import Classifier, best_other, lead
from verifier.attacks.goals import Misclassified
from verifier.attacks.problems import ball
from verifier.attacks.threats import Threat
from verifier.attacks.trial import Attack, Attacked, Problem, attack
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


class Evaluator:
    """An evaluation under way; ``run`` may be interrupted anywhere, and ``result`` says what is known."""

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
        self._broken, self._points = ~self._clean, x.copy()
        self._others = best_other(scores, self._labels)
        self._by = np.full(len(x), -1)
        self._slack = np.zeros(len(x))
        self._rows = [Row(method.name) for method in self._attacks]
        self._finished = False

    def run(self, until: float = math.inf, *, report: Callable[[EvaluationProgress], None] | None = None) -> None:
        """Run the attacks one after the other, until the time ``until`` (of ``limits.now``)."""
        for number, method in enumerate(self._attacks):
            left = np.flatnonzero(~self._broken)
            for first in range(0, len(left), CHUNK):
                if limits.now() >= until:
                    return
                if report is not None:
                    known = len(self._x) - int(self._broken.sum())
                    report(EvaluationProgress(method.name, number, len(self._attacks), known, len(self._x)))
                self._attack(number, method, left[first : first + CHUNK], until)
        self._finished = limits.now() < until

    def result(self) -> Evaluation:
        """What is known by now."""
        return Evaluation(
            self._labels, self._clean, self._broken.copy(), self._points.copy(), self._others.copy(),
            self._by.copy(), tuple(self._rows), self._finished,
        )  # fmt: skip

    def _attack(self, number: int, method: Attack, chosen: np.ndarray, until: float) -> None:
        started = time.process_time()
        threat = self._threat(self._x[chosen])
        slack = torch.from_numpy(self._slack[chosen]).to(threat.centre)
        labels = torch.from_numpy(self._labels[chosen]).to(threat.centre.device)
        problem = Problem(self._oracle, Misclassified(labels, slack), threat)
        seed = self._seed + 7919 * number + int(chosen[0])
        found = attack(problem, method, seed=seed, until=until)
        confirmed, refused = self._confirm(number, chosen, found)
        row = self._rows[number]
        self._rows[number] = replace(
            row,
            tried=row.tried + len(chosen),
            found=row.found + confirmed,
            refused=row.refused + refused,
            evaluations=row.evaluations + int(found.evaluations.sum()),
            seconds=row.seconds + time.process_time() - started,
        )

    def _confirm(self, number: int, chosen: np.ndarray, found: Attacked) -> tuple[int, int]:
        """Ask onnxruntime about what was found; how many points it confirms and refuses."""
        hit = found.found.cpu().numpy()
        if not hit.any():
            return 0, 0
        which, points = chosen[hit], found.points.cpu().numpy()[hit]
        scores = self._classifier.scores(points)
        true = lead(scores, self._labels[which]) <= 0  # NaN is no confirmation
        good = which[true]
        self._broken[good], self._by[good], self._points[good] = True, number, points[true]
        self._others[good] = best_other(scores[true], self._labels[good])
        claimed = found.margin.cpu().numpy()[hit][~true].astype(np.float64) - self._slack[which[~true]]
        least = 1e-6 * np.abs(scores[~true]).max(1, initial=1e-30)
        self._slack[which[~true]] = np.maximum(2 * self._slack[which[~true]], np.maximum(-2 * claimed, least))
        return int(true.sum()), int((~true).sum())


def ball_threat(
    epsilon: Fraction, norm: str, data_range: tuple[Fraction, Fraction] | None, device: torch.device | str = "cpu"
) -> Callable[[np.ndarray], Threat]:
    """The balls of one radius around examples, for ``Evaluator``; see ``problems.ball``."""
    return lambda x: ball(x, epsilon, norm, data_range, device)
