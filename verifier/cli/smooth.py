"""``verifier smooth``: certificates of the classifier smoothed with noise, with a log, a table and a plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import __version__, limits
from verifier.cli import INTERRUPTED, options
from verifier.cli.display import Display, choose_mode
from verifier.cli.text import aligned, answered
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.examples import Examples
    from verifier.smoothing.certify import Estimation
    from verifier.smoothing.curve import Line
    from verifier.smoothing.noise import Noise
    from verifier.smoothing.smoothed import Smoothed

SCHEMA = "nn-verifier/smooth/1"
NOISES = ("gaussian", "laplace", "uniform", "cubic")
_ASKED = ("model", "data", "noise", "sigma", "norm", "n", "n0", "alpha", "fixed", "radii", "mean", "std", "seed")


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "smooth",
        allow_abbrev=False,
        usage="%(prog)s MODEL.onnx --data FILE.npz --sigma S [OPTIONS]\n"
        "       %(prog)s --compare LOG.tsv ... [OPTIONS]",
        help="probabilistic certificates of a classifier smoothed with noise",
        description="The smoothed classifier gives the class that the model gives most often under noise. Its class is "
        "certified within a radius with a stated probability, in real arithmetic; nothing is said of the model itself.",
    )
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL.onnx")
    parser.add_argument("--data", type=Path, metavar="FILE", help="an .npz file with x and y, or a folder of images")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="LOG.tsv",
                        help="certified accuracies of logs, side by side; nothing is sampled")
    parser.add_argument("--noise", choices=NOISES, default="gaussian", help="the distribution (default: gaussian)")
    parser.add_argument("--sigma", type=options.positive, metavar="S",
                        help="deviation of gaussian noise; the scale of laplace and cubic, the half-width of uniform")
    parser.add_argument("--norm", choices=options.NORMS, default="2", help="the norm of the radius (default: 2)")
    parser.add_argument("--n", type=options.count, default=100_000, metavar="N",
                        help="samples at most (default: 100000)")
    parser.add_argument("--n0", type=options.count, default=100, metavar="N",
                        help="samples that choose the class (default: 100)")
    parser.add_argument("--alpha", type=options.positive, default=0.001, metavar="A",
                        help="probability that a certificate is false (default: 0.001)")
    parser.add_argument("--fixed", action="store_true",
                        help="draw all N samples (without it: until the next radius is certified or out of reach)")
    parser.add_argument("--radii", type=options.positive, nargs="+", metavar="R",
                        help="the radii of the table, which sampling aims at (default: steps of half a deviation)")
    parser.add_argument("--log", type=Path, metavar="FILE.tsv",
                        help="a line for each input as soon as it is done; a run with the same options goes on with it")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw certified accuracy against radius")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write the result as JSON; - for stdout, in place of the plain answer")
    parser.add_argument("--mean", type=options.exact, nargs="+", metavar="M",
                        help="normalisation (x - mean) / std in front of the model; noise is in image units")
    parser.add_argument("--std", type=options.exact, nargs="+", metavar="S")
    parser.add_argument("--rows", type=options.count, metavar="N", help="noisy copies evaluated at once")
    parser.add_argument("--half", action="store_true", help="half precision on a GPU")
    parser.add_argument("--device", type=options.device, default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")
    options.add_size_limit(parser)
    options.add_amount(parser)


def run(arguments: argparse.Namespace) -> int:
    """Certify a data set, or compare logs; the exit code."""
    if arguments.compare is not None:
        return _compare(arguments)
    _check(arguments)
    start = limits.process_start()
    smoothed, examples, how = _begin(arguments)
    lines, interrupted = _certify(arguments, smoothed, examples, how)
    radii = _radii(arguments, smoothed)
    if arguments.plot is not None:
        from verifier.smoothing.plot import svg

        arguments.plot.write_text(svg({"": lines}, _title(arguments)), encoding="utf-8")
    if not arguments.quiet:
        seconds = limits.now() - start
        print(f"verifier: {len(lines)} of {len(examples.x)} inputs after {seconds:.1f} s; {_honest(arguments)}",
              file=sys.stderr)
        if arguments.norm == "inf":
            print(f"verifier: {_hardness(smoothed, examples.x.shape[1])}", file=sys.stderr)
    answered(aligned(_table({"certified": lines}, radii)), _record(arguments, lines, radii), arguments.json)
    return INTERRUPTED if interrupted else 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` where options do not fit together."""
    for name in ("model", "data", "sigma"):
        if getattr(arguments, name) is None:
            raise InputError(f"{'MODEL.onnx' if name == 'model' else '--' + name} is needed: "
                             "verifier smooth MODEL.onnx --data FILE.npz --sigma S")
    if arguments.alpha >= 1:
        raise InputError(f"--alpha {arguments.alpha:g}: a probability below 1 is needed, such as 0.001")
    options.check_normalisation(arguments)
    options.input_files(arguments.model)
    if not arguments.data.exists():
        raise InputError(f"{arguments.data}: no such file or folder")
    written = {"--log": arguments.log, "--plot": arguments.plot, "--json": arguments.json}
    options.output_files(written, (arguments.model, arguments.data))


def _begin(arguments: argparse.Namespace) -> tuple[Smoothed, Examples, Estimation]:
    from verifier import arrays
    from verifier.attacks.classifier import Classifier
    from verifier.examples import check_labels, read_examples
    from verifier.smoothing.certify import Fixed, Sequential, check
    from verifier.smoothing.smoothed import smooth

    check(arguments.n0, arguments.n, arguments.alpha)
    classifier = Classifier.of(arguments.model, arguments.mean, arguments.std)
    limit = arguments.max_bytes or arrays.MAX_BYTES
    examples = read_examples(arguments.data, classifier.shape, classifier.dtype, limit)
    if examples.labels is None:
        raise InputError(f"{arguments.data}: certified accuracy needs the classes of the inputs, the array y")
    check_labels(examples.labels, classifier.classes)
    noise = _noise(arguments)
    smoothed = smooth(classifier, noise, rows=arguments.rows, device=arguments.device, half=arguments.half)
    how = Fixed(arguments.n) if arguments.fixed else Sequential(_radii(arguments, smoothed), arguments.n)
    for note in examples.notes if not arguments.quiet else ():
        print(f"verifier: {note}", file=sys.stderr)
    return smoothed, examples, how


def _noise(arguments: argparse.Namespace) -> Noise:
    from verifier.smoothing.noise import Cubic, Gaussian, Laplace, Uniform

    match arguments.noise:
        case "gaussian":
            return Gaussian(arguments.sigma)
        case "laplace":
            return Laplace(arguments.sigma)
        case "uniform":
            return Uniform(arguments.sigma)
        case _:
            return Cubic(arguments.sigma)


def _radii(arguments: argparse.Namespace, smoothed: Smoothed) -> tuple[float, ...]:
    from verifier.smoothing.smoothed import default_radii

    if arguments.radii is not None:
        return tuple(sorted({0.0, *arguments.radii}))
    size = 1
    for axis in smoothed.shape:
        size *= axis
    return default_radii(smoothed.noise, size)


def _certify(
    arguments: argparse.Namespace, smoothed: Smoothed, examples: Examples, how: Estimation
) -> tuple[list[Line], bool]:
    """The lines of all inputs that were done, and whether Ctrl-C ended it."""
    import torch

    from verifier.smoothing.certify import certify
    from verifier.smoothing.curve import ABSTAIN, Line, Log

    assert examples.labels is not None
    log = None if arguments.log is None else Log(arguments.log, _asked(arguments))
    lines = {} if log is None else dict(log.lines)
    with Display(choose_mode(arguments.quiet)) as display:
        try:
            for k, (x, label) in enumerate(zip(examples.x, examples.labels, strict=True)):
                if k in lines:
                    continue
                start = limits.now()
                found = certify(
                    smoothed.sampler(arguments.seed, k), torch.from_numpy(x).to(smoothed.device), how,
                    norm=arguments.norm, n0=arguments.n0, alpha=arguments.alpha,
                )  # fmt: skip
                guess = ABSTAIN if found.label is None else found.label
                lines[k] = Line(k, int(label), guess, found.radius, limits.now() - start)
                if log is not None:
                    log.add(lines[k])
                display.show(f"{len(lines)} of {len(examples.x)} inputs, the last: {found}")
        except KeyboardInterrupt:
            return list(lines.values()), True
    return list(lines.values()), False


def _compare(arguments: argparse.Namespace) -> int:
    from verifier.smoothing.curve import read_log
    from verifier.smoothing.plot import svg

    for path in arguments.compare:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    options.output_files({"--plot": arguments.plot, "--json": arguments.json}, arguments.compare)
    logs = {str(path): read_log(path) for path in arguments.compare}
    most = max((line.radius for lines in logs.values() for line in lines), default=0.0)
    radii = sorted({0.0, *(arguments.radii or [most * k / 8 for k in range(1, 9)])})
    if arguments.plot is not None:
        arguments.plot.write_text(svg(logs, "certified accuracy"), encoding="utf-8")
    from verifier.smoothing.curve import certified_accuracy

    data = {name: certified_accuracy(lines, radii) for name, lines in logs.items()}
    record = {"schema": SCHEMA, "verifier": __version__, "radii": radii, "logs": data}
    answered(aligned(_table(logs, radii)), record, arguments.json)
    return 0


def _table(logs: dict[str, list[Line]], radii: Sequence[float]) -> Iterator[tuple[str, ...]]:
    from verifier.smoothing.curve import certified_accuracy

    yield ("radius", *logs)
    columns = [certified_accuracy(lines, radii) for lines in logs.values()]
    for k, radius in enumerate(radii):
        yield (f"{radius:.4g}", *(f"{100 * column[k]:.1f} %" for column in columns))


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = {name: getattr(arguments, name) for name in _ASKED}
    return {k: str(v) if isinstance(v, Path) else v for k, v in asked.items() if v is not None}


def _honest(arguments: argparse.Namespace) -> str:
    from verifier.smoothing.certify import percent

    return (
        "probabilistic, real arithmetic: each certificate is about the smoothed classifier and holds with a "
        f"probability of {percent(arguments.alpha)}"
    )


def _hardness(smoothed: Smoothed, size: int) -> str:
    """How little any noise can do in the norm inf."""
    from verifier.smoothing.noise import largest_certifiable

    most = largest_certifiable(smoothed.noise.variance(size), "inf", size, 0.999)
    return (
        f"in the norm inf no noise of this variance in {size} inputs certifies a radius above {most:.4g} from a "
        "probability of 99.9 % (in the manner of Blum et al., 2020)"
    )


def _title(arguments: argparse.Namespace) -> str:
    from verifier.smoothing.certify import percent

    return f"certified accuracy, {arguments.noise} {arguments.sigma:g}, {percent(arguments.alpha)} each"


def _record(arguments: argparse.Namespace, lines: list[Line], radii: Sequence[float]) -> dict[str, Any]:
    """The result as data (``report/smooth-1.schema.json``)."""
    from verifier.smoothing.certify import confidence_of
    from verifier.smoothing.curve import ABSTAIN, certified_accuracy

    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "query": _asked(arguments),
        "guarantee": _honest(arguments),
        "confidence": confidence_of(arguments.alpha),
        "radii": list(radii),
        "certified_accuracy": certified_accuracy(lines, radii),
        "inputs": [
            {"number": line.number, "label": line.label, "class": None if line.predict == ABSTAIN else line.predict,
             "radius": line.radius, "seconds": round(line.seconds, 3)}
            for line in lines
        ],
    }  # fmt: skip
