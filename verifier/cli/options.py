"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from verifier.errors import InputError
from verifier.paths import existing_file

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
# An exponent of more digits would be written out, and nobody's radius has one.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,4000}(?:\.[0-9]{0,4000})?|\.[0-9]{1,4000})(?:[eE][+-]?[0-9]{1,4})?")
_NEGATIVE = re.compile(r"-\.?[0-9]")
NORMS = ("inf", "2", "1")
"""Norms of balls that are bounded; attacks know 0 too."""


def shield_negative_numbers(arguments: list[str]) -> list[str]:
    """The arguments with a blank before negative numbers: the parser would take -1/2 or -1e-3 for an option."""
    return [f" {a}" if _NEGATIVE.match(a) else a for a in arguments]


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Limits, seed, device, and how much is said."""
    limits = parser.add_argument_group("limits and devices")
    limits.add_argument("--memory", type=positive, metavar="GB", help="memory limit of a worker (default: none)")
    add_size_limit(limits)
    limits.add_argument("--device", type=device, default="auto", help="auto (default), cpu, cuda or cuda:N")
    limits.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    add_amount(parser)


def add_amount(parser: argparse.ArgumentParser) -> None:
    """How much is said."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("-v", "--verbose", action="store_true", help="log more on stderr; tracebacks of errors")
    amount.add_argument("-q", "--quiet", action="store_true", help="only errors on stderr")


def add_size_limit(parser: argparse._ActionsContainer) -> None:
    """How big a decompressed file may be."""
    parser.add_argument("--max-bytes", type=byte_count, metavar="N",
                        help="limit of a file's size after decompression (default: 1G for models, 2G for properties); "
                        "K, M, G may follow")


def add_region_options(parser: argparse.ArgumentParser, norms: Sequence[str] = NORMS) -> None:
    """A region without a property file: robustness of a class around a point or in a box."""
    region = parser.add_argument_group(
        "a region without a property file", "the class LABEL wins everywhere: around a point, or in a box"
    )
    _add_region(region, norms)
    region.add_argument("--label", type=int, metavar="N", help="the class (default: the model's own at the point)")


def add_range_options(parser: argparse.ArgumentParser) -> None:
    """A region, or several, whose outputs are bounded."""
    region = parser.add_argument_group("the region", "around a point, around each of several points, or in boxes")
    _add_region(region)
    region.add_argument("--data", type=Path, metavar="FILE.npz", help="several points: the array x, one a row")
    region.add_argument("--label", type=int, metavar="N",
                        help="a class: bounds of its margins over the others, in place of the outputs")


def add_point_options(parser: argparse.ArgumentParser) -> None:
    """A point and its class, whose surroundings are looked at."""
    point = parser.add_argument_group("the input")
    _add_point(point)
    point.add_argument("--label", type=int, metavar="N", help="its class (default: the model's own)")


def add_exactness(parser: argparse._ActionsContainer, timeout: str, gap: str) -> None:
    """How exact an answer from both sides has to be, and how long it may take: an exact one, or an anytime one, whose
    defaults are named."""
    parser.add_argument("--timeout", type=positive, metavar="S",
                        help="seconds, counted from the start of the process "
                        f"(default: {timeout}; with exact: none); what is proven by then is printed")
    parser.add_argument("--gap", type=positive, metavar="G",
                        help="how far a proven end may be from what was found "
                        f"(default: {gap}; with exact: 1e-6)")
    parser.add_argument("--envelope", type=positive, metavar="ERROR",
                        help="with exact: enclose operators that have no exact form (Sigmoid, Tanh, ...), with this "
                        "much between least and greatest result where that can be had; bounds are proven all the same, "
                        "but need not come within the gap")


def _add_region(region: argparse._ArgumentGroup, norms: Sequence[str] = NORMS) -> None:
    region.add_argument("--epsilon", type=exact, metavar="R", help="radius: a decimal or a fraction (8/255), exact")
    region.add_argument("--box", type=Path, metavar="FILE.npz", help="the box: arrays lower and upper")
    _add_point(region, norms)


def _add_point(region: argparse._ArgumentGroup, norms: Sequence[str] = NORMS) -> None:
    region.add_argument("--input", type=Path, metavar="FILE", help="the point: .npy, .npz or .png")
    region.add_argument("--norm", choices=norms, default="inf", help="the norm of the ball (default: inf)")
    region.add_argument("--data-range", type=exact, nargs=2, metavar=("LO", "HI"), help="values a pixel can take")
    region.add_argument("--mean", type=exact, nargs="+", metavar="M",
                        help="normalisation (x - mean) / std in front of the model, one value or one a channel; "
                        "the radius is then in image units")
    region.add_argument("--std", type=exact, nargs="+", metavar="S")


def positive(text: str) -> float:
    """A positive finite number, such as seconds."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a positive number")
    return value


def count(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a whole number from 1")
    return int(text)


def number(text: str) -> int:
    """A whole number from 0, as things are counted here."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text.strip()!r} is not a whole number from 0")
    return int(text)


def byte_count(text: str) -> int:
    """A number of bytes; K, M and G stand for powers of 1024."""
    match = re.fullmatch(r"([0-9]{1,15})([KMG]?)", text.upper())
    if match is None or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 500000 or 2G")
    return int(match[1]) << 10 * " KMG".index(match[2] or " ")


def exact(text: str) -> str:
    """An exact number, a decimal or a fraction, kept as text for the worker."""
    text = text.strip()
    top, bar, bottom = text.partition("/")
    parts = [top, bottom] if bar else [top]
    if not all(_DECIMAL.fullmatch(part) for part in parts) or (bar and Fraction(bottom) == 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a decimal or a fraction such as 8/255")
    return text


def device(text: str) -> str:
    """The name of a device; whether it exists is the worker's to say."""
    if _DEVICE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def check_normalisation(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` for a mean without a deviation, and the other way round."""
    if (arguments.mean is None) != (arguments.std is None):
        raise InputError("--mean and --std belong together")


def enclosed(arguments: argparse.Namespace) -> dict[str, float]:
    """What a record says of ``--envelope``."""
    return {} if arguments.envelope is None else {"envelope": arguments.envelope}


def input_files(model: Path, *others: Path | None) -> None:
    """Raise ``InputError`` for a file that is not there, before anything heavy is loaded."""
    existing_file(model, ".onnx")
    for path in others:
        if path is not None and not path.is_file():
            raise InputError(f"{path}: " + ("is a folder; name a file" if path.is_dir() else "no such file"))


def output_files(named: Mapping[str, Path | None], read: Iterable[str | Path | None]) -> None:
    """Raise ``InputError`` now, not after the work, where a file could not be written, where it is one of those that
    are ``read``, and where two options name one file."""
    taken = {Path(path).resolve(): "is read as well" for path in read if path is not None}
    for option, path in named.items():
        if path is None or str(path) == "-":
            continue
        _output_file(path, option)
        place = path.resolve()
        if place in taken:
            raise InputError(f"{option} {path}: {taken[place]}; name another file")
        taken[place] = f"is named by {option} as well"


def output_folder(path: Path | None, option: str) -> None:
    """Raise ``InputError`` where a folder cannot be, or be made."""
    if path is not None and path.exists() and not path.is_dir():
        raise InputError(f"{option} {path}: is a file; name a folder")


def _output_file(path: Path, option: str) -> None:
    if path.is_dir():
        raise InputError(f"{option} {path}: is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: the folder {path.absolute().parent} does not exist")
