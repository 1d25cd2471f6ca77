"""The parser of all commands, put together from one file a command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from verifier import __version__
from verifier.cli import attack, bench, completion, export, info, radius, range, supports, verify  # noqa: A004 - the command's name
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.cli.session import Session


def build() -> argparse.ArgumentParser:
    """The parser; the chosen command is in ``command``."""
    parser = argparse.ArgumentParser(
        prog="verifier",
        allow_abbrev=False,
        description="Formal verification of neural networks: an ONNX model and a property in, a verdict out.",
        epilog="exit codes: 0 an answer, 1 bench found a wrong one, 2 wrong input or usage, 3 valid but not supported, "
        "4 internal error, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=__version__, help="print the version and exit")
    parser.add_argument("--name", action="version", version="nn-verifier", help="print the program's name and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in (verify, attack, bench, range, radius, export, info, supports):
        command.add_parser(commands)
    completion.add_parser(commands)
    return parser


def run(options: argparse.Namespace, early: Session | None = None) -> int:
    """Run the chosen command. ``early`` is the worker that was started before parsing."""
    match options.command:
        case "verify":
            return verify.run(options, early)
        case "attack":
            return attack.run(options, early)
        case "bench":
            return bench.run(options)
        case "range":
            return range.run(options)
        case "radius":
            return radius.run(options)
        case "export":
            return export.run(options)
        case "info":
            return info.run(options)
        case "completion":
            return completion.run(options, build())
        case None:
            raise InputError(
                "a command is missing: verify, attack, bench, range, radius, export, info, supports or completion "
                "(see verifier --help)"
            )
        case _:
            return supports.run(options)
