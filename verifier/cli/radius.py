"""``verifier radius``: how far an input is from the nearest one of another class, from both sides."""

from __future__ import annotations

import argparse
import sys
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import __version__, limits
from verifier.cli import INTERRUPTED, options
from verifier.cli.search import Ending, follow, in_time, not_written, too_short
from verifier.cli.text import answered, outward
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.anytime.radius import BracketSearch
    from verifier.exact.radius import RadiusSearch
    from verifier.exact.witness import Confirmation
    from verifier.network import Network
    from verifier.radii import RadiusBracket, RadiusProgress

GAP = 1e-6
SHARE, SECONDS = 0.01, 60.0
"""Without --exact: the gap as a share of the radius, and the time."""
SCHEMA = "nn-verifier/radius/1"


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "radius",
        allow_abbrev=False,
        usage="%(prog)s MODEL.onnx --input FILE [OPTIONS]",
        help="the distance from an input to the nearest one of another class",
        description="The least change of an input that changes the model's class: a proven lower end, and the distance "
        "of an input of another class that was found.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--exact", action="store_true",
                        help="the radius itself, by mixed-integer programming whose every step is proven (without it: "
                        "verdicts about single radii between what bounds prove and what an attack finds)")
    options.add_exactness(parser, timeout=f"{SECONDS:g}", gap=f"{SHARE:g} of the radius")
    parser.add_argument("--output", type=Path, metavar="FILE.npy", help="write the nearest input of another class")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write the result as JSON; - for stdout, in place of the plain answer")
    options.add_point_options(parser)
    options.add_size_limit(parser)
    options.add_amount(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search, check the point, write, print; the exit code."""
    _check(arguments)
    options.input_files(arguments.model, arguments.input)
    options.output_files({"--output": arguments.output, "--json": arguments.json}, (arguments.model, arguments.input))
    start = limits.process_start()
    _load(arguments.exact)
    loaded = limits.now() - start
    begun = in_time(start, arguments.timeout, lambda: _search(arguments))
    if begun is None:
        return _nothing(arguments, loaded)
    network, search = begun
    if arguments.label is None and not arguments.quiet:
        print(f"verifier: label {search.label}: the model's own class", file=sys.stderr)
    if arguments.timeout is None and not arguments.exact and not arguments.quiet:
        print(f"verifier: {SECONDS:g} s; --timeout gives more or less", file=sys.stderr)
    ending = follow(search, start, _timeout(arguments), arguments.quiet, _describe)
    found = search.found()
    confirmed = _confirmed(arguments, network, found)
    seconds = limits.now() - start
    if not arguments.quiet:
        for line in (*_explained(arguments, found, confirmed, ending, seconds), *_weaker(arguments, network)):
            print(f"verifier: {line}", file=sys.stderr)
        if arguments.output is not None and found.point is None:
            print(f"verifier: {not_written(arguments.output)}", file=sys.stderr)
        if search.failed:
            print(f"verifier: the solver's own search failed: {search.failed}", file=sys.stderr)
    answered(_lines(found), _record(arguments, found, confirmed, ending, seconds), arguments.json)
    return INTERRUPTED if ending == "interrupted" else 0


def _load(exact: bool) -> None:
    import verifier.network.reader
    import verifier.replay

    if exact:
        import verifier.exact.radius
    else:
        import verifier.anytime.radius  # noqa: F401 - loaded before the clock may interrupt


def _nothing(arguments: argparse.Namespace, loaded: float) -> int:
    """The answer where the time was up before the model was read and had said what class the input has."""
    if not arguments.quiet:
        print(f"verifier: {too_short(arguments.timeout, loaded, 'the radius')}", file=sys.stderr)
    if arguments.output is not None and not arguments.quiet:
        print(f"verifier: {not_written(arguments.output)}", file=sys.stderr)
    seconds = round(limits.now() - limits.process_start(), 3)
    known = {"label": arguments.label, "status": "limit", "ending": "limit", "semantics": "real",
             "lower": "0", "upper": None, "seconds": seconds}  # fmt: skip
    label = [] if arguments.label is None else [f"label {arguments.label}"]
    answered(["limit", "lower 0", "upper inf", *label], _asked(arguments) | known, arguments.json)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.exact and arguments.envelope is not None:
        raise InputError("--envelope goes with --exact: without it every operator is supported as it is")
    if not arguments.exact and arguments.gap is not None and arguments.gap >= 1:
        raise InputError(f"--gap {arguments.gap:g}: without --exact it is a share of the radius, below 1")
    if arguments.input is None:
        raise InputError("--input FILE is needed: the input whose distance to another class is asked for")
    options.check_normalisation(arguments)


def _timeout(arguments: argparse.Namespace) -> float | None:
    return SECONDS if arguments.timeout is None and not arguments.exact else arguments.timeout


def _gap(arguments: argparse.Namespace) -> float:
    if arguments.gap is not None:
        return float(arguments.gap)
    return GAP if arguments.exact else SHARE


def _search(arguments: argparse.Namespace) -> tuple[Network, RadiusSearch | BracketSearch]:
    from verifier import arrays
    from verifier.anytime.radius import BracketSearch
    from verifier.exact.radius import RadiusSearch, check_norm
    from verifier.network import read_network
    from verifier.ranges import single
    from verifier.regions import normalised

    if arguments.exact:
        check_norm(arguments.norm)
    limit: dict[str, Any] = {} if arguments.max_bytes is None else {"max_bytes": arguments.max_bytes}
    network = single(read_network(arguments.model, **limit))
    if arguments.mean is not None:
        network = normalised(network, arguments.mean, arguments.std)
    point = arrays.read_point(arguments.input, network.inputs[0].shape, arguments.max_bytes or arrays.MAX_BYTES)
    asked: dict[str, Any] = {
        "label": arguments.label, "data_range": arguments.data_range, "gap": _gap(arguments),
    }  # fmt: skip
    if arguments.exact:
        return network, RadiusSearch(network, point, arguments.norm, envelope=arguments.envelope, **asked)
    return network, BracketSearch(network, point, arguments.norm, **asked)


def _confirmed(arguments: argparse.Namespace, network: Network, found: RadiusBracket) -> Confirmation | None:
    """What onnxruntime says of the point, which is written where asked."""
    if found.point is None:
        return None
    from verifier.exact.witness import confirm

    if arguments.output is not None:
        import numpy as np

        with open(arguments.output, "wb") as target:  # numpy would add its own ending to a name
            np.save(target, found.point)
    return confirm(network, found.point, found.label)


def _describe(progress: RadiusProgress) -> str:
    return (
        f"proven {progress.lower:.6g}, found {progress.upper:.6g}, gap {progress.upper - progress.lower:.3g}, "
        f"{progress.open} open subproblems"
    )


def _weaker(arguments: argparse.Namespace, network: Network) -> list[str]:
    """Where something narrower than elsewhere is done, and what."""
    from verifier.strategy import MOST_FREE_INPUTS

    inputs = network.inputs[0].size
    if arguments.norm == "inf" or arguments.exact or inputs <= MOST_FREE_INPUTS:
        return []
    return [
        f"norm {arguments.norm} with {inputs} inputs: the lower end comes from bounds of whole balls alone (balls are "
        f"split for up to {MOST_FREE_INPUTS} inputs)"
    ]


def _explained(
    arguments: argparse.Namespace,
    found: RadiusBracket,
    confirmed: Confirmation | None,
    ending: Ending,
    seconds: float,
) -> list[str]:
    """The lines on stderr: how the answer came about, and what onnxruntime says where that is another thing."""
    match found.status:
        case "exact":
            text = "the radius is known to within the gap"
        case "none":
            text = "no input in the data range has another class"
        case "open":
            why = "nothing more could be proven"
            if arguments.envelope is not None:
                why += f" of operators that are enclosed to within {arguments.envelope:g} (--envelope)"
            text = f"{why}: the ends are those reached so far"
        case _:
            why = "interrupted" if ending == "interrupted" else "the time is up"
            text = f"{why}: the ends are those reached so far"
    lines = [f"{text}; {seconds:.1f} s; proven in real arithmetic over the stored weights"]
    if confirmed is not None and not confirmed.reached:
        lines.append(
            f"onnxruntime still gives label {found.label} at the point in {confirmed.dtype}, ahead by "
            f"{confirmed.lead:.3g}: the point lies where the classes meet, up to rounding"
        )
    return lines


def _lines(found: RadiusBracket) -> list[str]:
    """The answer: the lower end rounded down, the upper one up."""
    lines = [
        found.status,
        f"lower {outward(found.lower, ROUND_FLOOR)}",
        f"upper {outward(found.upper, ROUND_CEILING)}",
        f"label {found.label}",
    ]
    return lines + ([] if found.other is None else [f"other {found.other}"])


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is asked, as data."""
    asked = {name: getattr(arguments, name) for name in ("input", "norm", "data_range", "mean", "std")}
    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "model": str(arguments.model),
        "query": {k: str(v) if isinstance(v, Path) else v for k, v in asked.items() if v is not None},
        "method": "exact" if arguments.exact else "bracket",
        "gap": _gap(arguments),
        **options.enclosed(arguments),
    }


def _record(
    arguments: argparse.Namespace, found: RadiusBracket, confirmed: Confirmation | None, ending: Ending, seconds: float
) -> dict[str, Any]:
    """The result as data (``report/radius-1.schema.json``): exact decimals; an infinite end is null."""
    from verifier.report.result import number

    record: dict[str, Any] = {
        **_asked(arguments),
        "label": found.label,
        "status": found.status,
        "ending": ending,
        "semantics": "real",
        "lower": number(found.lower),
        "upper": number(found.upper),
        "seconds": round(seconds, 3),
    }
    if found.point is not None and confirmed is not None:
        record["other"] = found.other
        record["point"] = [number(v) for v in found.point.reshape(-1).tolist()]
        record["onnxruntime"] = {
            "version": confirmed.version, "dtype": confirmed.dtype, "class": confirmed.label,
            "reached": confirmed.reached, "lead": number(confirmed.lead),
        }  # fmt: skip
    return record
