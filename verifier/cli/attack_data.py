"""``verifier attack MODEL --data``: robust accuracy over a data set, with a table of attacks, JSON and pictures.

One input (``--input``) in a ball of another norm than inf is attacked in the same way, and answered as ``verify``
would.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from verifier import __version__, limits
from verifier.cli import INTERRUPTED, attack_files, options
from verifier.cli.display import Display, choose_mode
from verifier.cli.search import Ending, OutOfTime, alarm, in_time
from verifier.cli.text import aligned, answered
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.attacks.classifier import Classifier
    from verifier.attacks.evaluation import Evaluation, EvaluationProgress, Evaluator
    from verifier.examples import Examples

SCHEMA = "nn-verifier/attack/1"
_SAT = 10
_HOW: Mapping[Ending, str] = MappingProxyType({
    "done": "all attacks were run", "limit": "the time was up", "interrupted": "interrupted"
})  # fmt: skip
_ASKED = ("data", "input", "label", "epsilon", "norm", "data_range", "mean", "std", "attacks")


def run(arguments: argparse.Namespace) -> int:
    """Read, attack, write, print; the exit code."""
    model = _check(arguments)
    start = limits.process_start()
    import verifier.attacks.evaluation
    import verifier.attacks.portfolio  # noqa: F401 - loaded before the clock may interrupt

    begun = in_time(start, arguments.timeout, lambda: _begin(arguments, model))
    if begun is None:
        raise InputError(
            f"--timeout {arguments.timeout:g}: the time was up before the model and the examples were read; give more"
        )
    classifier, examples, evaluator = begun
    ending = _follow(evaluator, arguments, start)
    found = evaluator.result()
    pictures = {}
    if arguments.pictures is not None:
        pictures = attack_files.write_pictures(arguments.pictures, classifier, examples, found, arguments.data_range)
    if arguments.output is not None:
        attack_files.write_points(arguments.output, classifier, found)
    seconds = limits.now() - start
    if not arguments.quiet:
        told = _explained if arguments.input is None else _explained_word
        print(f"verifier: {told(arguments, ending, seconds, found)}", file=sys.stderr)
    record = _record(arguments, model, examples, found, pictures)
    lines = _lines(found) if arguments.input is None else _word(classifier, found)
    answered(lines, record | {"ending": ending, "seconds": round(seconds, 3)}, arguments.json)
    if arguments.exit_code and arguments.input is not None and found.broken[0]:
        return _SAT
    return INTERRUPTED if ending == "interrupted" else 0


def _check(arguments: argparse.Namespace) -> Path:
    """The model's path. Raises ``InputError`` where options do not fit together."""
    if len(arguments.files) != 1 or arguments.network:
        raise InputError("a region goes with one model and no property file: verifier attack MODEL.onnx --data FILE")
    if sum(getattr(arguments, name) is not None for name in ("data", "input", "box")) > 1:
        raise InputError("--data, --input and --box each name a region: give one of them")
    if arguments.epsilon is None:
        raise InputError("--data and --input need --epsilon, the radius of the balls around the examples")
    if arguments.data is not None and arguments.label is not None:
        raise InputError("--label goes with --input; the classes of --data are its array y")
    if arguments.exit_code and arguments.data is not None:
        raise InputError("--exit-code goes with one question; a data set has no sat or unsat: see --json")
    if arguments.assignments is not None:
        raise InputError("--serialise-assignments goes with a property or a box; see --output and --json")
    options.check_normalisation(arguments)
    model = Path(arguments.files[0])
    options.input_files(model)
    if arguments.data is not None and not arguments.data.exists():
        raise InputError(f"{arguments.data}: no such file or folder")
    read = (model, arguments.data, arguments.input)
    options.output_files({"--json": arguments.json, "--output": arguments.output}, read)
    options.output_folder(arguments.pictures, "--pictures")
    return model


def _begin(arguments: argparse.Namespace, model: Path) -> tuple[Classifier, Examples, Evaluator]:
    import numpy as np

    from verifier import arrays
    from verifier.attacks import evaluation, portfolio
    from verifier.attacks.classifier import Classifier
    from verifier.examples import check_range, fit_examples, read_examples, scale_warning
    from verifier.pipeline import choose_device
    from verifier.property.numbers import exact
    from verifier.regions import exact_range

    classifier = Classifier.of(model, arguments.mean, arguments.std)
    limit = arguments.max_bytes or arrays.MAX_BYTES
    if arguments.data is not None:
        examples = read_examples(arguments.data, classifier.shape, classifier.dtype, limit)
    else:
        point = arrays.read_point(arguments.input, classifier.shape, limit)
        labels = None if arguments.label is None else np.array([arguments.label])
        name = str(arguments.input)
        examples = fit_examples(point.reshape(1, -1), labels, classifier.shape, classifier.dtype, name)
        examples = replace(examples, names=(name,))
    target = portfolio.Target.of(arguments.norm, classifier.shape)
    chosen = portfolio.ensemble(classifier.graph is not None, target)
    if arguments.attacks is not None:
        chosen = portfolio.named(arguments.attacks, target)
    ends = None if arguments.data_range is None else exact_range(tuple(arguments.data_range))
    check_range(examples, ends)
    place = choose_device(arguments.device)
    threat = evaluation.ball_threat(exact(arguments.epsilon, "epsilon"), arguments.norm, ends, place)
    evaluator = evaluation.Evaluator(classifier, examples, threat, chosen, arguments.seed)
    if arguments.pictures is not None:
        attack_files.check_pictures(arguments.pictures, classifier)
    if not arguments.quiet:
        missing = examples.labels is None and arguments.input is None
        for line in (*examples.notes, *_warnings(classifier, missing, scale_warning(classifier, examples, ends))):
            print(f"verifier: {line}", file=sys.stderr)
    return classifier, examples, evaluator


def _warnings(classifier: Classifier, labels_missing: bool, scale: str | None) -> Iterator[str]:
    if labels_missing:
        yield "no classes are given: an example's class is the model's own"
    if classifier.graph is None:
        yield f"attacked by queries alone, without gradients: {classifier.why}"
    if scale is not None:
        yield f"warning: {scale}"


def _follow(evaluator: Evaluator, arguments: argparse.Namespace, start: float) -> Ending:
    """Run the attacks and show how far they are; how it ended."""
    hard = None if arguments.timeout is None else start + arguments.timeout
    soft = float("inf") if hard is None else limits.soft_deadline(start, hard)
    with Display(choose_mode(arguments.quiet)) as display:
        try:
            with alarm(hard):
                evaluator.run(soft, report=lambda p: display.show(_describe(p, limits.now() - start)))
        except KeyboardInterrupt:
            return "interrupted"
        except OutOfTime:
            return "limit"
    return "done" if evaluator.result().finished else "limit"


def _describe(progress: EvaluationProgress, seconds: float) -> str:
    return (
        f"{seconds:.0f} s, {progress.attack} (attack {progress.number + 1} of {progress.count}), {progress.left} of "
        f"{progress.examples} examples left"
    )


def _explained(arguments: argparse.Namespace, ending: Ending, seconds: float, _: Evaluation) -> str:
    how = _HOW[ending]
    ball = f"epsilon {arguments.epsilon} in the norm {arguments.norm}"
    return (
        f"{how} after {seconds:.1f} s; {ball}; onnxruntime has replayed every point; the robust accuracy is at most "
        "what stands here, and nothing is proven of it from below"
    )


def _explained_word(arguments: argparse.Namespace, ending: Ending, seconds: float, found: Evaluation) -> str:
    """For one input: what ``verify`` would say."""
    label = f"label {found.labels[0]}" + (": the model's own class" if arguments.label is None else "")
    ball = f"{label}; epsilon {arguments.epsilon} in the norm {arguments.norm}"
    if not found.broken[0]:
        how = f"{_HOW[ending]}; no counterexample was found, which proves nothing"
        return f"unknown after {seconds:.1f} s, {how}; {ball}"
    who = "the input itself" if found.by[0] < 0 else f"attack {found.rows[found.by[0]].attack}"
    return f"sat after {seconds:.1f} s, {who}; onnxruntime gives class {found.others[0]} as much there; {ball}"


def _lines(found: Evaluation) -> Iterator[str]:
    count, clean, left = len(found.labels), int(found.clean.sum()), int((~found.broken).sum())
    yield f"robust accuracy at most {100 * found.robust_accuracy:.2f} % ({left} of {count})"
    yield f"clean accuracy {100 * found.accuracy:.2f} % ({clean} of {count})"
    yield ""
    rows = [("attack", "tried", "broken", "refused", "evaluations", "cpu s")]
    rows += [
        (r.attack, str(r.tried), str(r.found), str(r.refused), str(r.evaluations), f"{r.seconds:.2f}")
        for r in found.rows
    ]
    yield from aligned(rows)


def _word(classifier: Classifier, found: Evaluation) -> Iterator[str]:
    """For one input: sat and the point as VNN-LIB 1.0 writes it, or unknown; nothing is proven here."""
    from verifier.property.witness import witness_pairs

    if not found.broken[0]:
        yield "unknown"
        return
    yield "sat"
    scores = classifier.scores(found.points[:1])[0]
    named = {f"X_{k}": value for k, value in enumerate(found.points[0])}
    yield witness_pairs(named | {f"Y_{k}": value for k, value in enumerate(scores)})


def _record(
    arguments: argparse.Namespace, model: Path, examples: Examples, found: Evaluation, pictures: dict[int, str]
) -> dict[str, Any]:
    """The result as data (``report/attack-1.schema.json``)."""
    asked = {name: getattr(arguments, name) for name in _ASKED}
    listed = []
    for k, name in enumerate(examples.names):
        entry: dict[str, Any] = {"name": name, "label": int(found.labels[k]), "clean": bool(found.clean[k])}
        entry["broken"] = bool(found.broken[k])
        if found.broken[k]:
            entry["other"] = int(found.others[k])
        if found.by[k] >= 0:
            entry["attack"] = found.rows[found.by[k]].attack
        if k in pictures:
            entry["picture"] = pictures[k]
        listed.append(entry)
    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "model": str(model),
        "query": {k: str(v) if isinstance(v, Path) else v for k, v in asked.items() if v is not None},
        "seed": arguments.seed,
        "accuracy": found.accuracy,
        "robust_accuracy_at_most": found.robust_accuracy,
        "attacks": [
            {"attack": r.attack, "tried": r.tried, "broken": r.found, "refused": r.refused,
             "evaluations": r.evaluations, "cpu_seconds": round(r.seconds, 3)}
            for r in found.rows
        ],
        "examples": listed,
    }  # fmt: skip
