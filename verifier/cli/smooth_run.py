"""What ``verifier smooth`` does: a plan for the data set from the options, and the certificates one by one."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import limits
from verifier.cli.display import Display, choose_mode
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.attacks.classifier import Classifier
    from verifier.smoothing.base import Way
    from verifier.smoothing.curve import Line
    from verifier.smoothing.dataset import Plan
    from verifier.smoothing.noise import Noise

_ASKED = (
    "model", "data", "noise", "sigma", "norm", "exact_noise", "layer", "levels", "mean", "std", "n", "n0", "alpha",
    "together", "fixed", "budget", "one_sided", "top", "radii", "rows", "half", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A ``plan``, the ``radii`` of the table, ``notes`` on the examples, and the options that were ``asked``, with
    digests of the files."""

    plan: Plan
    radii: tuple[float, ...]
    notes: tuple[str, ...]
    asked: Mapping[str, Any]


def begin(arguments: argparse.Namespace) -> Begun:
    """Read everything. Raises ``InputError`` and ``UnsupportedError``."""
    from verifier import arrays
    from verifier.examples import read_examples
    from verifier.smoothing.certificates import check_samples
    from verifier.smoothing.dataset import without_chance
    from verifier.smoothing.derandomised import derandomise

    check_samples(arguments.n0, arguments.n, arguments.alpha)
    classifier = _classifier(arguments)
    limit = arguments.max_bytes or arrays.MAX_BYTES
    examples = read_examples(arguments.data, classifier.shape, classifier.dtype, limit)
    if examples.labels is None:
        raise InputError(f"{arguments.data}: certified accuracy needs the classes of the inputs, the array y")
    if arguments.noise == "splitting":
        made = derandomise(
            classifier, Fraction(arguments.sigma), levels=arguments.levels, seed=arguments.seed, way=_way(arguments)
        )
        width = made.cells / (2 * made.levels)
        plan, default = without_chance(made, examples), tuple(width * k / 8 for k in range(9))
        radii = _radii(arguments, default)
    else:
        from verifier.smoothing.dataset import sampled
        from verifier.smoothing.estimation import Fixed, Sequential
        from verifier.smoothing.schedule import Question
        from verifier.smoothing.smoothed import smooth

        norm, step = arguments.norm or "2", arguments.exact_noise
        smoothed = smooth(classifier, _noise(arguments), layer=arguments.layer, step=step, way=_way(arguments))
        radii = _radii(arguments, smoothed.default_radii(norm))
        how = Fixed(arguments.n) if arguments.fixed else Sequential(radii, arguments.n)
        rivals = not arguments.one_sided
        asked = Question(norm, arguments.alpha, arguments.n0, arguments.top, rivals, arguments.together)
        plan = sampled(smoothed, examples, asked, how, budget=arguments.budget, seed=arguments.seed)
    return Begun(plan, radii, examples.notes, _asked(arguments))


def certify(arguments: argparse.Namespace, begun: Begun) -> tuple[list[Line], bool]:
    """The lines of all inputs that were done, in order, and whether Ctrl-C ended it."""
    from verifier.smoothing.curve import ABSTAIN, Line, Log

    labels = begun.plan.labels
    log = None if arguments.log is None else Log(arguments.log, begun.asked)
    lines = {} if log is None else dict(log.lines)
    interrupted, before = False, limits.now()
    with Display(choose_mode(arguments.quiet)) as display:
        try:
            left, last = [k for k in range(len(labels)) if k not in lines], ""

            def report(samples: int) -> None:
                display.show(f"{len(lines)} of {len(labels)} inputs, {samples} samples{last}")

            for k, label, radius, words in begun.plan.certify(left, report):
                seconds, before = limits.now() - before, limits.now()
                lines[k] = Line(k, int(labels[k]), ABSTAIN if label is None else label, radius, seconds)
                if log is not None:
                    log.add(lines[k])
                last = f", the last: {words}"
        except KeyboardInterrupt:
            interrupted = True
    return [lines[k] for k in sorted(lines)], interrupted


def _classifier(arguments: argparse.Namespace) -> Classifier:
    from verifier.attacks.classifier import Classifier
    from verifier.network import read_network
    from verifier.regions import normalised

    if not arguments.layer:
        return Classifier.of(arguments.model, arguments.mean, arguments.std)
    network = read_network(arguments.model, normalised=False)  # the layers of the file
    return Classifier.of(network if arguments.mean is None else normalised(network, arguments.mean, arguments.std))


def _noise(arguments: argparse.Namespace) -> Noise:
    from verifier.smoothing import Ball, Cubic, Gaussian, Laplace, Spherical, Uniform

    for kind in (Gaussian, Laplace, Uniform, Cubic, Spherical, Ball):
        if kind.__name__.lower() == arguments.noise:
            return kind(arguments.sigma)
    raise InputError(f"--noise {arguments.noise}: unknown")


def _way(arguments: argparse.Namespace) -> Way:
    from verifier.smoothing.base import Way

    return Way(arguments.rows, arguments.device, arguments.half)


def _radii(arguments: argparse.Namespace, default: tuple[float, ...]) -> tuple[float, ...]:
    return default if arguments.radii is None else tuple(sorted({0.0, *arguments.radii}))


def _asked(arguments: argparse.Namespace) -> Mapping[str, Any]:
    asked = {name: getattr(arguments, name) for name in _ASKED}
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items() if v is not None and v is not False}
    return {**asked, "sha256": {"model": _digest(arguments.model), "data": _digest(arguments.data)}}


def _digest(path: Path) -> str:
    """Of a file, or of the names and sizes in a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
    else:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
