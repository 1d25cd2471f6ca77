"""``verifier smooth``: certificates of the classifier smoothed with noise, with a log, a table and a plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import limits
from verifier.cli import INTERRUPTED, options
from verifier.cli.smooth_answer import answer, compare
from verifier.cli.smooth_run import Begun, begin, certify
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.smoothing.curve import Line

NOISES = ("gaussian", "laplace", "uniform", "cubic", "spherical", "ball", "splitting")
_PICTURES = (".svg", ".png")


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
    _add_noise(parser.add_argument_group("noise"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_output(parser)
    options.add_size_limit(parser)
    options.add_amount(parser)


def _add_noise(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--noise", choices=NOISES, default="gaussian",
                       help="the distribution (default: gaussian); splitting is evaluated completely, without chance")
    group.add_argument("--sigma", type=options.positive, metavar="S",
                       help="deviation of gaussian noise; the scale of laplace, cubic and spherical, the half-width of "
                       "uniform, ball and splitting")
    group.add_argument("--norm", choices=options.NORMS, help="the norm of the radius (default: 2; of splitting 1)")
    group.add_argument("--exact-noise", type=options.exact, nargs="?", const="1/255", metavar="STEP",
                       help="draw noise on a grid that the inputs are on, so that rounding cannot make a certificate "
                       "false (default STEP: 1/255, that of images)")
    group.add_argument("--layer", action="store_true", help="add the noise after the first layer, not to the input")
    group.add_argument("--levels", type=options.count, default=255, metavar="N",
                       help="splitting: inputs are multiples of 1/N in [0, 1] (default: 255)")
    group.add_argument("--mean", type=options.exact, nargs="+", metavar="M",
                       help="normalisation (x - mean) / std in front of the model; noise is in image units")
    group.add_argument("--std", type=options.exact, nargs="+", metavar="S")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--n", type=options.count, default=100_000, metavar="N",
                       help="samples of an input at most (default: 100000)")
    group.add_argument("--n0", type=options.count, default=100, metavar="N",
                       help="samples that choose the class (default: 100)")
    group.add_argument("--alpha", type=options.positive, default=0.001, metavar="A",
                       help="probability that a certificate is false (default: 0.001)")
    group.add_argument("--together", action="store_true",
                       help="alpha is the probability that any of all certificates is false")
    group.add_argument("--fixed", action="store_true",
                       help="draw all N samples (without it: until the next radius is certified or out of reach)")
    group.add_argument("--budget", type=options.count, metavar="N", help="samples for all inputs together")
    group.add_argument("--one-sided", action="store_true",
                       help="no limits of the other classes: these have what the class does not, as published "
                       "procedures have it (smaller radii where several share that)")
    group.add_argument("--top", type=options.count, default=1, metavar="K",
                       help="certify that the right class is among the K most probable ones (default: 1)")
    group.add_argument("--radii", type=options.positive, nargs="+", metavar="R",
                       help="the radii of the table, which sampling aims at (default: up to that of 99.9 %%)")
    group.add_argument("--rows", type=options.count, metavar="N", help="noisy copies evaluated at once")
    group.add_argument("--half", action="store_true", help="half precision on a GPU")
    group.add_argument("--device", type=options.device, default="auto", help="auto (default), cpu, cuda or cuda:N")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default: 0)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", type=Path, metavar="FILE.tsv",
                        help="a line for each input as soon as it is done; a run with the same options goes on with it")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="draw certified accuracy against radius, as .svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write the result as JSON; - for stdout, in place of the plain answer")


def run(arguments: argparse.Namespace) -> int:
    """Certify a data set, or compare logs; the exit code."""
    _check_files(arguments)
    if arguments.compare is not None:
        return compare(arguments)
    _check(arguments)
    begun = begin(arguments)
    for note in begun.notes if not arguments.quiet else ():
        print(f"verifier: {note}", file=sys.stderr)
    lines, interrupted = certify(arguments, begun)
    for remark in _remarks(arguments, begun, lines, interrupted) if not arguments.quiet else ():
        print(f"verifier: {remark}", file=sys.stderr)
    answer(arguments, begun, lines)
    return INTERRUPTED if interrupted else 0


def _remarks(
    arguments: argparse.Namespace, begun: Begun, lines: Sequence[Line], interrupted: bool
) -> Iterator[str]:
    plan, seconds = begun.plan, limits.now() - limits.process_start()
    yield f"{len(lines)} of {len(plan.labels)} inputs after {seconds:.1f} s, norm {plan.norm}; {plan.guarantee}"
    if interrupted:
        yield "interrupted: the table is of the inputs that are done, and those that need few samples come first"
    yield from plan.notes
    if lines and not any(line.radius for line in lines):
        yield (
            "nothing is certified, which says little of the model where samples are few: there were at most "
            f"{arguments.n} (--n), for an alpha of {arguments.alpha:g}"
        )


def _check_files(arguments: argparse.Namespace) -> None:
    read = arguments.compare or [arguments.model, arguments.data]
    if arguments.plot is not None and arguments.plot.suffix.lower() not in _PICTURES:
        raise InputError(f"--plot {arguments.plot}: pictures are .svg or .png files")
    written = {"--log": arguments.log, "--plot": arguments.plot, "--json": arguments.json}
    options.output_files(written, read)


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
    if arguments.fixed and arguments.budget is not None:
        raise InputError("--fixed and --budget: a fixed number of samples cannot be shared out")
    if arguments.noise == "splitting":
        _check_splitting(arguments)


def _check_splitting(arguments: argparse.Namespace) -> None:
    if arguments.norm not in (None, "1"):
        raise InputError(f"--noise splitting --norm {arguments.norm}: it certifies in the norm 1")
    given = {
        "--exact-noise": arguments.exact_noise is not None, "--layer": arguments.layer, "--fixed": arguments.fixed,
        "--together": arguments.together, "--one-sided": arguments.one_sided, "--top": arguments.top != 1,
        "--budget": arguments.budget is not None,
    }  # fmt: skip
    wrong = [name for name, there in given.items() if there]
    if wrong:
        raise InputError(f"--noise splitting draws no samples: {', '.join(wrong)} mean nothing there")
