"""``verifier range``: bounds of a model's outputs over a region, as a table and as arrays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import __version__, limits
from verifier.cli import anytime_range, exact_range, four_ends, options
from verifier.cli.search import in_time, not_written, too_short
from verifier.cli.text import aligned, answered, outward
from verifier.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from bounds import Bounds, Box, LpBall
    from bounds.compute import Method
    from verifier.network import Network

METHODS = ("interval", "forward", "crown", "alpha")
SCHEMA = "nn-verifier/range/1"


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "range",
        allow_abbrev=False,
        usage="%(prog)s MODEL.onnx (--input FILE --epsilon R | --data FILE.npz --epsilon R | --box FILE.npz) [OPTIONS]",
        help="bounds of a model's outputs over a region",
        description="Bounds that every output keeps to for every input in the region: proven, all rounding included.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument(
        "--method",
        choices=("anytime", *METHODS, "exact"),
        default="anytime",
        help="how bounds are computed (default: anytime, which closes in from both sides until the time is up); exact: "
        "the ends themselves, by mixed-integer programming whose every step is proven; the others give one bound",
    )
    parser.add_argument(
        "--functional", metavar="EXPR",
        help="with anytime: the range of an expression in y, the outputs, in place of each output, such as "
        "'y[0] - max(y[1:])' or 'softmax(y)[2]'",
    )
    parser.add_argument("--steps", type=options.count, metavar="N", help="ascent steps of --method alpha (default: 20)")
    options.add_exactness(parser, timeout=f"{anytime_range.SECONDS:g} of refinement", gap=f"{anytime_range.GAP:g}")
    parser.add_argument(
        "--memory", type=options.positive, metavar="GB", help="with anytime: what open boxes may take (default: 1)"
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="with anytime, one value and one region: write the state there, and go on from it",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.svg",
        help="with anytime, one value and one region: draw how the ends closed in over time",
    )
    parser.add_argument(
        "--semantics",
        choices=("real", "float32"),
        default="real",
        help="what the bounds hold for: exact arithmetic over the stored weights (default), or also "
        "every way to compute the model in float32",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.npz", help="write the arrays lower and upper, one entry a region"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the result as JSON; - for stdout, in place of the table"
    )
    options.add_range_options(parser)
    options.add_size_limit(parser)
    parser.add_argument("--device", type=options.device, default="auto", help="auto (default), cpu, cuda or cuda:N")
    options.add_amount(parser)


def run(arguments: argparse.Namespace) -> int:
    """Bound, write, print; the exit code."""
    _check(arguments)
    read = arguments.model, arguments.input, arguments.data, arguments.box
    options.input_files(arguments.model, arguments.input, arguments.data, arguments.box)
    named = ("output", "json", "plot", "checkpoint")
    options.output_files({f"--{name}": getattr(arguments, name) for name in named}, read)
    start = limits.now()
    _load(arguments.method)
    loaded = limits.now() - limits.process_start()
    begun = in_time(limits.process_start(), arguments.timeout, lambda: _read(arguments))
    if begun is None:
        return _nothing(arguments, loaded)
    network, region = begun
    from verifier.ranges import output_range

    names = _names(network, arguments)
    if arguments.method in ("anytime", "exact"):
        method_answer = anytime_range.answer if arguments.method == "anytime" else exact_range.answer
        return method_answer(arguments, network, region, names, _head(arguments, names, "real"))
    method = method_of(arguments.method, arguments.steps)
    found = output_range(network, region, method, label=arguments.label, semantics=arguments.semantics)
    if arguments.output is not None:
        _save(arguments.output, found)
    seconds = limits.now() - start
    if not arguments.quiet:
        print(
            f"verifier: {arguments.method} bounds of {len(names)} values over {_count(found)} in {seconds:.1f} s; "
            f"they hold in {arguments.semantics} arithmetic",
            file=sys.stderr,
        )
    answered(aligned(_table(found, names)), _record(arguments, found, names, seconds), arguments.json)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ``InputError`` where options do not fit together."""
    given = [name for name in ("input", "data", "box") if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise InputError("a region is needed: one of --input FILE, --data FILE.npz (with --epsilon R), --box FILE.npz")
    options.check_normalisation(arguments)
    if arguments.steps is not None and arguments.method != "alpha":
        raise InputError(f"--steps goes with --method alpha: {arguments.method} takes no steps")
    anytime_range.check(arguments)
    exact_range.check(arguments)
    if given == ["box"]:
        if arguments.epsilon is not None or arguments.data_range is not None:
            raise InputError("--epsilon and --data-range go with --input and --data; a box has its bounds already")
    elif arguments.epsilon is None:
        raise InputError(f"--{given[0]} needs --epsilon, the radius of the ball around a point")


def _read(arguments: argparse.Namespace) -> tuple[Network, Box | LpBall]:
    network = _network(arguments)
    return network, _region(arguments, network)


def _load(method: str) -> None:
    import verifier.network.reader

    if method == "anytime":
        import verifier.anytime.turns
    elif method == "exact":
        import verifier.exact.ranges  # noqa: F401 - loaded before the clock may interrupt


def _nothing(arguments: argparse.Namespace, loaded: float) -> int:
    """The answer where the time was up before the model was read: no value is known by name."""
    if not arguments.quiet:
        unwritten = (not_written(path) for path in (arguments.output, arguments.plot) if path is not None)
        for line in (too_short(arguments.timeout, loaded, "its outputs"), *unwritten):
            print(f"verifier: {line}", file=sys.stderr)
    gap = anytime_range.GAP if arguments.gap is None else arguments.gap
    record = _head(arguments, [], "real") | {side: list[str]() for side in (*four_ends.SIDES, "status")}
    record |= {"gap": gap, "ending": "limit", "seconds": round(limits.now() - limits.process_start(), 3)}
    answered(aligned([four_ends.head(False)]), record, arguments.json)
    return 0


def _network(arguments: argparse.Namespace) -> Network:
    from verifier.network import read_network
    from verifier.ranges import single
    from verifier.regions import normalised

    limit: dict[str, Any] = {} if arguments.max_bytes is None else {"max_bytes": arguments.max_bytes}
    # What float32 returns depends on how the model is written down: it must not be rewritten then.
    as_stored = arguments.semantics == "float32"
    if as_stored and arguments.mean is not None:
        raise UnsupportedError("--semantics float32 with --mean and --std: put the normalisation into the model")
    network = single(read_network(arguments.model, normalised=not as_stored, **limit))
    return network if arguments.mean is None else normalised(network, arguments.mean, arguments.std)


def _region(arguments: argparse.Namespace, network: Network) -> Box | LpBall:
    """The boxes or balls, on the device."""
    import torch

    from verifier import arrays, ranges
    from verifier.pipeline import choose_device

    limit = arguments.max_bytes or arrays.MAX_BYTES
    device = choose_device(arguments.device)
    if arguments.box is not None:
        return ranges.box(network, *arrays.read_box(arguments.box, limit)).to(torch.float64, device)
    if arguments.data is not None:
        point = arrays.read_data(arguments.data, limit)
    else:
        point = arrays.read_point(arguments.input, network.inputs[0].shape, limit)
        if point.size != network.inputs[0].size:
            point = point.reshape(-1)  # one point, whose size is then complained about
    found = ranges.ball(network, point, arguments.epsilon, arguments.norm, arguments.data_range)
    return found.to(torch.float64, device)


def method_of(name: str, steps: int | None = None) -> Method:
    """The method of that name, with so many steps where it takes them."""
    from bounds import Alpha, Crown, Forward, Interval

    match name:
        case "interval":
            return Interval()
        case "forward":
            return Forward()
        case "alpha":
            return Alpha() if steps is None else Alpha(steps=steps)
        case _:
            return Crown()


def _save(path: Path, found: Bounds) -> None:
    import numpy as np

    with open(path, "wb") as target:  # numpy would add its own ending to a name
        np.savez(target, lower=found.lower.cpu().numpy(), upper=found.upper.cpu().numpy())


def _names(network: Network, arguments: argparse.Namespace) -> list[str]:
    """What each value is: an output element by its index, a margin, or the expression."""
    variable, label = network.outputs[0], arguments.label
    if arguments.functional is not None:
        return [arguments.functional]
    if label is not None:
        return [f"{label} - {c}" for c in range(variable.size) if c != label]
    import numpy as np

    return [",".join(map(str, index)) or "0" for index in np.ndindex(*variable.shape)]


def _count(found: Bounds) -> str:
    boxes = found.lower.shape[0]
    return "1 region" if boxes == 1 else f"{boxes} regions"


def _record(arguments: argparse.Namespace, found: Bounds, names: list[str], seconds: float) -> dict[str, Any]:
    """The result as data (``report/range-1.schema.json``): exact decimals; an end without information is null."""
    from verifier.report.result import number

    lower, upper = (_numbers(ends) for ends in (found.lower, found.upper))
    return {
        **_head(arguments, names, found.semantics),
        "lower": [[number(v) for v in row] for row in lower],
        "upper": [[number(v) for v in row] for row in upper],
        "seconds": round(seconds, 3),
    }


def _head(arguments: argparse.Namespace, names: list[str], semantics: str | None) -> dict[str, Any]:
    """What is asked, as data."""
    region = {
        name: getattr(arguments, name)
        for name in ("input", "data", "box", "epsilon", "norm", "data_range", "mean", "std", "label", "functional")
    }
    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "model": str(arguments.model),
        "region": {k: str(v) if isinstance(v, Path) else v for k, v in region.items() if v is not None},
        "method": arguments.method,
        "semantics": semantics,
        "values": names,
    }


def _numbers(ends: Any) -> list[list[float]]:
    return ends.flatten(1).tolist()


def _table(found: Bounds, names: list[str]) -> Iterator[tuple[str, ...]]:
    """A line for each value, ends rounded outward to 9 digits; several regions are numbered in front."""
    lower, upper = _numbers(found.lower), _numbers(found.upper)
    many = len(lower) > 1
    yield ("region",) * many + ("output", "lower", "upper")
    for k, (low, high) in enumerate(zip(lower, upper, strict=True)):
        for name, a, b in zip(names, low, high, strict=True):
            yield (str(k),) * many + (name, outward(a, ROUND_FLOOR), outward(b, ROUND_CEILING))
