"""The parser of all commands, put together from one file a command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from verifier import __version__
from verifier.cli import attack, bench, completion, export, info, radius, range, smooth, supports, verify  # noqa: A004 - the command's name
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.cli.session import Session


class _Command(Protocol):
    """A command's module."""

    def add_parser(self, commands: Any) -> None:
        """Add the command to the parser's commands."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run it; the exit code."""


_COMMANDS: Mapping[str, _Command] = MappingProxyType({
    "verify": verify, "attack": attack, "bench": bench, "range": range, "radius": radius, "smooth": smooth,
    "export": export, "info": info, "supports": supports,
})  # fmt: skip


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
    for command in _COMMANDS.values():
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
        case "completion":
            return completion.run(options, build())
        case None:
            raise InputError(f"a command is missing: {', '.join(_COMMANDS)} or completion (see verifier --help)")
        case name:
            return _COMMANDS.get(name, supports).run(options)  # the others are names of this one
