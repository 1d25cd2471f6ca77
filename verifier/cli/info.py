"""``verifier info``: what a model file holds, without loading torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verifier.cli import options


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "info",
        allow_abbrev=False,
        help="what a model holds", description="Inputs, outputs, operators and size of an ONNX model."
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options.add_size_limit(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary of the model; the exit code."""
    from verifier.network import summarise

    limit = {} if arguments.max_bytes is None else {"max_bytes": arguments.max_bytes}
    summary = summarise(arguments.model, **limit)
    print(json.dumps(summary, indent=1) if arguments.json else "\n".join(lines(summary)))
    return 0


def lines(summary: Mapping[str, Any]) -> list[str]:
    """``key: value`` lines; what a key holds several of is indented below it."""
    text = []
    for key, value in summary.items():
        if isinstance(value, Mapping):
            text += [f"{key}:", *(f"  {name}: {_plain(entry)}" for name, entry in value.items())]
        elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(e, Mapping) for e in value):
            text += [f"{key}:", *(f"  {_plain(entry)}" for entry in value)]
        else:
            text.append(f"{key}: {'none' if value == [] else _plain(value)}")
    return text


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_plain(entry) for entry in value) + "]"
    return str(value)
