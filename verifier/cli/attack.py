"""``verifier attack``: a counterexample, or nothing said. It prints as ``verify`` does, and never ``unsat``.

With ``--data`` it attacks a classifier at many examples (``attack_data``).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli import attack_data, options, verify
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.cli.session import Session

_USAGE = verify.USAGE + "\n       %(prog)s MODEL.onnx --data FILE.npz|FOLDER --epsilon R [OPTIONS]"
_OF_DATA = ("attacks", "pictures", "output")


class _List(argparse.Action):
    """``--attacks list`` prints the names and leaves, as ``--help`` does; other values are kept."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        """Called by argparse."""
        if values == "list":
            from verifier.attacks.portfolio import ATTACKS

            print("\n".join(ATTACKS))
            parser.exit()
        setattr(namespace, self.dest, values)


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "attack",
        allow_abbrev=False,
        usage=_USAGE,
        help="search for counterexamples of a property, or at the examples of a data set, and prove nothing",
        description="Search for a counterexample until the time is up. sat means that one was found (it is printed, "
        "and onnxruntime has replayed it); unknown that none was, which proves nothing. With --data: the accuracy of a "
        "classifier under attack, which is the true robust accuracy or more.",
    )
    verify.add_query(parser)
    verify.add_answer(parser)
    options.add_region_options(parser, (*options.NORMS, "0"))
    data = parser.add_argument_group("many examples", "robust accuracy over a data set")
    data.add_argument("--data", type=Path, metavar="FILE",
                      help="an .npz file with the arrays x and y (classes; default: the model's own), or a folder of "
                      ".png images in folders named by their class or with a labels.csv")
    data.add_argument("--attacks", metavar="NAMES", action=_List,
                      help="the attacks to run, with commas between, such as pgd,apgd-t; list prints their names "
                      "(default: an ensemble, the cheap ones first)")
    data.add_argument("--output", type=Path, metavar="FILE.npz", help="write what was found: arrays x, y, broken")
    data.add_argument("--pictures", type=Path, metavar="FOLDER",
                      help="write a picture of original, found input and difference for each broken example (PNG)")
    options.add_run_options(parser)
    parser.set_defaults(explain=False, record=None, checkpoint=None, attack=True)


def run(arguments: argparse.Namespace, session: Session | None = None) -> int:
    """Ask the worker of ``session``, or evaluate a data set in process; print the answer; the exit code."""
    if arguments.data is not None:
        return attack_data.run(arguments)
    for option in _OF_DATA:
        if getattr(arguments, option) is not None:
            raise InputError(f"--{option} goes with --data")
    if arguments.input is not None and arguments.norm != "inf":
        return attack_data.run(arguments)
    return verify.run(arguments, session)
