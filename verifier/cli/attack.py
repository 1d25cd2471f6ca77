"""``verifier attack``: a counterexample, or nothing said. It prints as ``verify`` does, and never ``unsat``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from verifier.cli import options, verify

if TYPE_CHECKING:
    from verifier.cli.session import Session


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "attack",
        allow_abbrev=False,
        usage=verify.USAGE,
        help="search for a counterexample of one property, and prove nothing",
        description="Search for a counterexample until the time is up. sat means that one was found (it is printed, "
        "and onnxruntime has replayed it); unknown that none was, which proves nothing.",
    )
    verify.add_query(parser)
    verify.add_answer(parser)
    options.add_region_options(parser)
    options.add_run_options(parser)
    parser.set_defaults(explain=False, record=None, checkpoint=None, attack=True)


def run(arguments: argparse.Namespace, session: Session | None = None) -> int:
    """Ask the worker of ``session``, print the answer; the exit code."""
    return verify.run(arguments, session)
