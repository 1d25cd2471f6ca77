"""The functions of ``import verifier`` that put several parts together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from bounds.graph import Graph
    from verifier.attacks.classifier import Classifier
    from verifier.attacks.evaluation import Evaluation, EvaluationProgress
    from verifier.attacks.trial import Attack
    from verifier.network import Network
    from verifier.query import Query
    from verifier.regions import Number
    from verifier.verdict import Progress, Unknown, Verdict, Violated


def verify(  # noqa: PLR0913 - the questions that a caller may ask
    query: Query | str | Path | Mapping[str, str | Path],
    property: str | Path | None = None,  # noqa: A002 - the field's word
    *,
    timeout: float | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Progress], None] | None = None,
    record: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Verdict:
    """Decide a query, or a model and a VNN-LIB property given by their paths.

    ``timeout`` in seconds counts from the call, reading included, and is looked at between steps of the computation;
    the command line, which can kill its worker, keeps it to within a second. ``device`` is "auto", "cpu", "cuda" or
    "cuda:N"; ``report`` is called with a ``Progress`` now and then. ``record`` names a file: where the verdict is
    ``Verified`` it holds what ``verifier.record.recheck`` needs to prove every leaf again, otherwise it is removed.
    ``checkpoint`` names a file that the search is written to every ten seconds and at the time limit, and goes on from
    where it is there (a note of the verdict says so); one that was made for another query or seed is an error. What it
    says is trusted, and it is removed once nothing is left to do. A ``record`` beside it stays with it until then, and
    goes on with it.

    The verdict is ``Violated`` (sat: a counterexample that onnxruntime has replayed), ``Verified`` (unsat: none exists,
    for the stored weights in exact arithmetic), ``TimedOut`` or ``Unknown``. Raises ``InputError`` and
    ``UnsupportedError``.
    """
    from verifier import limits, pipeline

    start = limits.now()
    _check_numbers(timeout, seed)
    query = _query(query, property)
    if checkpoint is not None and not Path(checkpoint).absolute().parent.is_dir():
        raise InputError(f"checkpoint {checkpoint}: the folder {Path(checkpoint).absolute().parent} does not exist")
    left = None if timeout is None else max(timeout - (limits.now() - start), 0.0)
    return pipeline.verify(
        query, timeout=left, seed=seed, device=device, report=report, record=record, checkpoint=checkpoint
    )


def attack(  # noqa: PLR0913 - the questions that a caller may ask
    query: Query | str | Path | Mapping[str, str | Path],
    property: str | Path | None = None,  # noqa: A002 - the field's word
    *,
    attacks: Sequence[Attack] | None = None,
    timeout: float | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[Progress], None] | None = None,
) -> Violated | Unknown:
    """Search for a counterexample, and prove nothing; the arguments are those of ``verify``.

    ``attacks``: of ``verifier.attacks``, each run on those clauses (256 at most) that are nearest to being true at the
    centres of their boxes (None: the search that ``verify`` begins with).

    ``Violated`` has a counterexample that onnxruntime has replayed. ``Unknown`` says that none was found before the
    time was up (without a ``timeout``: in eight rounds of the attack that ``verify`` begins with), never that there is
    none. Raises ``InputError`` and ``UnsupportedError``.
    """
    from verifier import limits, pipeline

    start = limits.now()
    _check_numbers(timeout, seed)
    query = _query(query, property)
    left = None if timeout is None else max(timeout - (limits.now() - start), 0.0)
    return pipeline.attack(query, attacks=attacks, timeout=left, seed=seed, device=device, report=report)


def robust_accuracy(  # noqa: PLR0913 - the questions that a caller may ask
    model: str | Path | bytes | Network | Classifier,
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    epsilon: Number,
    norm: str = "inf",
    data_range: tuple[Number, Number] | None = None,
    attacks: Sequence[Attack] | None = None,
    timeout: float | None = None,
    seed: int = 0,
    device: str = "auto",
    report: Callable[[EvaluationProgress], None] | None = None,
) -> Evaluation:
    """Attack a classifier at many examples: what it gets right, and of that what no attack could change.

    ``x`` ``[N, *input shape]`` (or flat, ``[N, n]``) with classes ``y`` ``[N]`` (None: the model's own). The attacks
    stay within ``epsilon`` of an example in the ``norm`` "inf", "2", "1" or "0" (how many elements may change), and in
    ``data_range``, exactly. ``attacks``: of ``verifier.attacks`` (None: the ensemble of ``portfolio``), each on the
    examples that the ones before left. The result holds for onnxruntime, which has replayed every point; the true
    robust accuracy is at most what is found, and nothing is proven of it from below. Raises ``InputError`` and
    ``UnsupportedError``.
    """
    from verifier import limits
    from verifier.attacks import evaluation, portfolio
    from verifier.attacks.classifier import Classifier
    from verifier.examples import check_range, fit_examples
    from verifier.pipeline import choose_device
    from verifier.property.numbers import exact
    from verifier.regions import exact_range

    start = limits.now()
    _check_numbers(timeout, seed)
    classifier = model if isinstance(model, Classifier) else Classifier.of(model)
    examples = fit_examples(x, y, classifier.shape, classifier.dtype)
    place, ends = choose_device(device), None if data_range is None else exact_range(data_range)
    check_range(examples, ends)
    threat = evaluation.ball_threat(exact(epsilon, "epsilon"), norm, ends, place)
    target = portfolio.Target.of(norm, classifier.shape)
    chosen = portfolio.ensemble(classifier.graph is not None, target) if attacks is None else attacks
    evaluator = evaluation.Evaluator(classifier, examples, threat, chosen, seed)
    evaluator.run(math.inf if timeout is None else start + timeout, report=report)
    return evaluator.result()


def _query(query: Query | str | Path | Mapping[str, str | Path], given: str | Path | None) -> Query:
    """A query that may have to be read first."""
    from verifier.query import Query, read

    if not isinstance(query, Query):
        if given is None:
            raise InputError("a query is needed, or the paths of a model and a property")
        return read(query, given)
    if given is not None:
        raise InputError("a query has its property already")
    return query


def _check_numbers(timeout: object, seed: object) -> None:
    """Raises ``InputError``, for text too."""
    if timeout is not None and not (isinstance(timeout, Real) and float(timeout) >= 0):
        raise InputError(f"timeout: {timeout!r} is not a number of seconds")
    if not isinstance(seed, Integral):
        raise InputError(f"seed: {seed!r} is not a whole number")


def load(path: str | Path, *, normalised: bool = True) -> Graph:
    """The computation graph of an ONNX model (plain or gzip), for ``bounds``.

    ``normalised`` merges affine nodes and equal neurons: the same function of real numbers, with fewer nodes. With
    False the nodes and constants are those of the file, as ``semantics="float32"`` wants them for what runtimes
    return. Raises ``InputError``, ``UnsupportedError``.
    """
    from verifier.network import read_network

    return read_network(path, normalised=normalised).graph
