"""``verifier supports`` (also ``capabilities``): what the VNN-LIB 2.0 standard lets other programs ask.

One answer a line; a note follows after `` * ``. Abbreviations are the standard's: NH no hidden nodes; SIO, MIO single,
multiple inputs and outputs; SNET, MNET, MENET, MINET one network, several, several equal, several isomorphic ones; SNC,
MNC single, multiple node comparisons; BND bounds on inputs, OUTC output constraints, LIN linear arithmetic.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from types import MappingProxyType
from typing import Any

ELEMENT_TYPE = "real"

# What does not depend on the installed packages. Only what the property reader accepts may stand here.
_FIXED = MappingProxyType({
    # No claim for floating-point types: unsat speaks of the stored weights in exact arithmetic.
    "onnx_element_types": (ELEMENT_TYPE,),
    "vnnlib_versions": ("1.0", "2.0"),
    "hidden_node_theories": ("NH",),
    "multiple_input_output_theories": ("SIO", "MIO"),
    "multiple_network_theories": ("SNET", "MNET", "MENET", "MINET * the models are not compared with each other"),
    "multiple_node_comparison_theories": ("SNC", "MNC"),
    "arithmetic_complexity_theories": ("BND", "OUTC", "LIN"),
    "optimised_disjunctive_reasoning": ("true",),
    "serialise_assignments": ("true",),
})
_LOOKED_UP = ("onnx_opset_versions", "onnx_operators")


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "supports",
        allow_abbrev=False,
        usage="%(prog)s --QUESTION",
        aliases=["capabilities"], help="what is supported, for other programs",
        description="Answer one question of the VNN-LIB standard's command line, one answer a line.",
    )
    questions = parser.add_mutually_exclusive_group(required=True)
    for name in sorted((*_FIXED, *_LOOKED_UP)):
        flags = [f"--{name.replace('_', '-')}"] + (["--assignments"] if name == "serialise_assignments" else [])
        questions.add_argument(*flags, action="store_const", const=name, dest="capability")


def run(arguments: argparse.Namespace) -> int:
    """Print the answers; the exit code."""
    print("\n".join(answers(arguments.capability)))
    return 0


def answers(capability: str) -> tuple[str, ...]:
    """The answers to one question."""
    match capability:
        case "onnx_opset_versions":
            return _opset_versions()
        case "onnx_operators":
            operators = resources.files("verifier").joinpath("operators.json").read_text(encoding="utf-8")
            return tuple(f"{name} {ELEMENT_TYPE}" for name in sorted(json.loads(operators)))
        case _:
            return _FIXED[capability]


def _opset_versions() -> tuple[str, str]:
    from onnx.defs import onnx_opset_version

    from verifier.network.files import MIN_OPSET

    return str(MIN_OPSET), str(onnx_opset_version())
