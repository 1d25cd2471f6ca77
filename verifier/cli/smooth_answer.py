"""What ``verifier smooth`` answers: a table, a record, a picture, and several logs side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from verifier import __version__
from verifier.cli.smooth_run import Begun
from verifier.cli.text import aligned, answered
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.smoothing.curve import Line

SCHEMA = "nn-verifier/smooth/1"
_OF_LOGS = ("as certified when each log was written, about the smoothed classifier; probabilistic unless the noise was "
            "splitting")  # fmt: skip


def answer(arguments: argparse.Namespace, begun: Begun, lines: list[Line]) -> None:
    """Print and write what was found."""
    plan = begun.plan
    title = f"certified accuracy, {arguments.noise} {arguments.sigma:g}; {plan.guarantee.split(':')[0]}"
    _draw(arguments, {"": lines}, title, plan.norm)
    table = [*aligned(_table({"certified": lines}, begun.radii)), plan.guarantee]
    answered(table, _record(begun, lines), arguments.json)


def compare(arguments: argparse.Namespace) -> int:
    """Certified accuracies of logs; the exit code. Raises ``InputError``."""
    from verifier.smoothing.curve import certified_accuracy, read_log

    for path in arguments.compare:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    logs = {str(path): read_log(path) for path in arguments.compare}
    most = max((line.radius for lines in logs.values() for line in lines), default=0.0)
    radii = sorted({0.0, *(arguments.radii or [most * k / 8 for k in range(1, 9)])})
    _draw(arguments, logs, "certified accuracy of smoothed classifiers", "")
    data = {name: certified_accuracy(lines, radii) for name, lines in logs.items()}
    record = {"schema": SCHEMA, "verifier": __version__, "guarantee": _OF_LOGS, "radii": radii, "logs": data}
    if not arguments.quiet:
        print(f"verifier: {_OF_LOGS}; sampling aimed at the radii of each run: compare runs with the same --radii",
              file=sys.stderr)
    answered(aligned(_table(logs, radii)), record, arguments.json)
    return 0


def _draw(arguments: argparse.Namespace, logs: Mapping[str, Sequence[Line]], title: str, norm: str) -> None:
    if arguments.plot is None:
        return
    from verifier.smoothing.plot import png, svg

    if arguments.plot.suffix.lower() == ".png":
        png(logs, arguments.plot, title, norm=norm)
    else:
        arguments.plot.write_text(svg(logs, title, norm=norm), encoding="utf-8")


def _table(logs: Mapping[str, Sequence[Line]], radii: Sequence[float]) -> Iterator[tuple[str, ...]]:
    from verifier.smoothing.curve import certified_accuracy

    yield ("radius", *logs)
    columns = [certified_accuracy(lines, radii) for lines in logs.values()]
    for k, radius in enumerate(radii):
        yield (f"{radius:.4g}", *(f"{100 * column[k]:.1f} %" for column in columns))


def _record(begun: Begun, lines: list[Line]) -> dict[str, Any]:
    """The result as data (``report/smooth-1.schema.json``)."""
    from verifier.smoothing.curve import ABSTAIN, certified_accuracy

    plan = begun.plan
    sure = {} if plan.confidence is None else {"confidence": plan.confidence}
    return {
        "schema": SCHEMA,
        "verifier": __version__,
        "query": dict(begun.asked),
        "guarantee": plan.guarantee,
        **sure,
        "norm": plan.norm,
        "radii": list(begun.radii),
        "total": len(plan.labels),
        "certified_accuracy": certified_accuracy(lines, begun.radii),
        "inputs": [
            {"number": line.number, "label": line.label, "class": None if line.predict == ABSTAIN else line.predict,
             "radius": line.radius, "seconds": round(line.seconds, 3)}
            for line in lines
        ],
    }  # fmt: skip
