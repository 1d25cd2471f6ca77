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
    import numpy as np

    from verifier.attacks.classifier import Classifier
    from verifier.examples import Examples
    from verifier.smoothing.base import Way
    from verifier.smoothing.curve import Line
    from verifier.smoothing.dataset import Plan
    from verifier.smoothing.noise import Noise

_SPREAD = 200  # images of 8 bits in [0, 255] have 255 for a noise of 1; in [0, 1] it would be a noise of 0.005
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

    classifier = _classifier(arguments)
    limit = arguments.max_bytes or arrays.MAX_BYTES
    examples = read_examples(arguments.data, classifier.shape, classifier.dtype, limit)
    if examples.labels is None:
        raise InputError(f"{arguments.data}: certified accuracy needs the classes of the inputs, the array y")
    make = _without_chance if arguments.noise == "splitting" else _sampled
    plan, radii = make(arguments, classifier, examples)
    return Begun(plan, radii, (*examples.notes, *_scale(examples.x, arguments.sigma)), _asked(arguments))


def _sampled(
    arguments: argparse.Namespace, classifier: Classifier, examples: Examples
) -> tuple[Plan, tuple[float, ...]]:
    """The plan for noise that is drawn, and the radii of the table, which sampling aims at."""
    from verifier.smoothing import Fixed, Question, Sequential, smooth
    from verifier.smoothing.dataset import sampled

    norm = arguments.norm or "2"
    question = Question(
        norm, arguments.alpha, arguments.n0, arguments.top, not arguments.one_sided, arguments.together
    )
    smoothed = smooth(
        classifier, _noise(arguments), layer=arguments.layer, step=arguments.exact_noise, way=_way(arguments)
    )
    radii = _radii(arguments, smoothed.default_radii(norm))
    how = Fixed(arguments.n) if arguments.fixed else Sequential(radii, arguments.n)
    return sampled(smoothed, examples, question, how, budget=arguments.budget, seed=arguments.seed), radii


def _without_chance(
    arguments: argparse.Namespace, classifier: Classifier, examples: Examples
) -> tuple[Plan, tuple[float, ...]]:
    """The plan for splitting noise, and the radii of the table."""
    from verifier.smoothing import derandomise
    from verifier.smoothing.dataset import without_chance

    splitting = derandomise(
        classifier, Fraction(arguments.sigma), levels=arguments.levels, seed=arguments.seed, way=_way(arguments)
    )
    width = splitting.cells / (2 * splitting.levels)
    return without_chance(splitting, examples), _radii(arguments, tuple(width * k / 8 for k in range(9)))


def certify(arguments: argparse.Namespace, begun: Begun) -> tuple[list[Line], bool]:
    """The lines of all inputs that were done, in order, and whether Ctrl-C ended it."""
    from verifier.smoothing.curve import ABSTAIN, Line, Log

    labels = begun.plan.labels
    log = None if arguments.log is None else Log(arguments.log, {**begun.asked, "guarantee": begun.plan.guarantee})
    lines = {} if log is None else dict(log.lines)
    interrupted, before = False, limits.now()
    with Display(choose_mode(arguments.quiet)) as display:
        try:
            left, last = [k for k in range(len(labels)) if k not in lines], ""

            def report(samples: int) -> None:
                display.show(f"{len(lines)} of {len(labels)} inputs, {samples} samples{last}")

            for k, label, radius, words in begun.plan.certify(left, report):
                seconds, before = limits.now() - before, limits.now()
                line = Line(k, int(labels[k]), ABSTAIN if label is None else label, radius, seconds)
                if log is not None:
                    log.add(line)
                lines[k] = line
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


def _scale(x: np.ndarray, sigma: float) -> tuple[str, ...]:
    """A warning where noise is so small beside the values that it is likely meant for images in [0, 1]."""
    least, most = float(x.min()), float(x.max())
    if most - least <= _SPREAD * sigma:
        return ()
    return (
        f"warning: the examples lie in [{least:g}, {most:g}], and noise of {sigma:g} hardly changes them; noise and "
        "radii are in these units: if the model wants values in [0, 1], scale the examples",
    )


def _radii(arguments: argparse.Namespace, default: tuple[float, ...]) -> tuple[float, ...]:
    return default if arguments.radii is None else tuple(sorted({0.0, *arguments.radii}))


def _asked(arguments: argparse.Namespace) -> Mapping[str, Any]:
    asked = {name: getattr(arguments, name) for name in _ASKED}
    asked["norm"] = arguments.norm or ("1" if arguments.noise == "splitting" else "2")  # said or not, it is the same
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items() if v is not None and v is not False}
    return {**asked, "sha256": {"model": _digest(arguments.model), "data": _digest(arguments.data)}}


def _digest(path: Path) -> str:
    """Of a file, or of the names and digests of the images and tables in a folder."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in (".png", ".csv"):  # what is read of a folder; a log may lie in it too
                digest.update(f"{file.relative_to(path)}\0{_digest(file)}\0".encode())
    else:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
