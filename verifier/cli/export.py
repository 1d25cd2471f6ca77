"""``verifier export``: a query as mixed-integer programs, in files that other solvers read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier import limits
from verifier.cli import options
from verifier.cli.range import METHODS, method_of
from verifier.cli.verify import named_networks
from verifier.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from verifier.exact.programs import Program
    from verifier.query import Query

_ENDINGS = (".lp", ".mps")


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "export",
        allow_abbrev=False,
        usage="%(prog)s MODEL.onnx PROPERTY.vnnlib OUT.lp|OUT.mps [OPTIONS]\n"
        "       %(prog)s QUERY.vnnlib OUT.lp|OUT.mps --network NAME=MODEL.onnx [OPTIONS]",
        help="a property as a mixed-integer program for other solvers",
        description="Write a mixed-integer program whose minimum is above 0 only where the property holds: how far the "
        "nearest of the clauses that describe counterexamples is from true.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=str,
        metavar="FILE",
        help="the model, the property, and the file to write; the ending says in which format",
    )
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the model of a network that the query declares; once for each",
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--clause", type=options.number, metavar="N", help="this clause alone, counted from 0")
    parts.add_argument(
        "--each",
        choices=("box", "clause"),
        help="a file for each box (OUT-box0.lp, ...) or for each clause (OUT-clause0.lp, ...)",
    )
    parser.add_argument(
        "--envelope",
        type=options.positive,
        metavar="ERROR",
        help="enclose operators that have no exact form (Sigmoid, Tanh, ...), with this much between least and "
        "greatest result where that can be had; the program is an over-approximation then",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="crown",
        help="how neurons are bounded first (default: crown): tighter bounds make a tighter program",
    )
    options.add_size_limit(parser)
    options.add_amount(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read, encode, write, print the names of the files; the exit code."""
    networks, prop, out = _files(arguments)
    start = limits.now()
    from verifier.query import read

    query = read(networks, prop, max_bytes=arguments.max_bytes)
    _check(arguments, query, out)
    written, columns, whole, rows, exact = [], 0, 0, 0, True
    for path, program in _programs(arguments, query, out):
        _write(path, program, query, prop)
        model = program.model
        written.append(path)
        columns, rows = columns + len(model.lower), rows + len(model.row_lower)
        whole, exact = whole + int(model.integer.sum()), exact and model.exact
    if not arguments.quiet:
        count = "1 program" if len(written) == 1 else f"{len(written)} programs"
        print(
            f"verifier: {count}, {columns} columns ({whole} of whole numbers), {rows} rows in "
            f"{limits.now() - start:.1f} s; {'exact' if exact else 'an over-approximation'}",
            file=sys.stderr,
        )
    print("\n".join(map(str, written)))
    return 0


def _files(arguments: argparse.Namespace) -> tuple[str | dict[str, str], str, Path]:
    """The model or models, the property, and the file to write. Raises ``InputError`` where one cannot be it."""
    files: list[str] = arguments.files
    wanted = 2 if arguments.network else 3
    if len(files) != wanted:
        names = "QUERY.vnnlib OUT.lp" if arguments.network else "MODEL.onnx PROPERTY.vnnlib OUT.lp"
        raise InputError(f"expected {names} (or .mps), got {len(files)} file(s)")
    out = Path(files[-1])
    if out.suffix.lower() not in _ENDINGS:
        raise InputError(f"{out}: the last file is written, and its ending says how: .lp or .mps")
    networks = named_networks(arguments.network)
    options.output_files({"the file to write": out}, (*files[:-1], *networks.values()))
    return networks or files[0], files[-2], out


def _check(arguments: argparse.Namespace, query: Query, out: Path) -> None:
    """Raise ``InputError`` where there is nothing to write, or more than was asked for."""
    boxes, clauses = len(query.cases.lower), len(query.cases.literals_of) - 1
    if not clauses:
        why = f" ({'; '.join(query.notes)})" if query.notes else ""
        raise InputError(f"no clause is left that could be true: the property holds, there is nothing to write{why}")
    if arguments.clause is not None:
        if arguments.clause >= clauses:
            raise InputError(f"--clause {arguments.clause}: the property has the clauses 0 to {clauses - 1}")
    elif boxes > 1 and arguments.each is None:
        raise InputError(
            f"the property has {boxes} boxes with {clauses} clauses, and a program is about one box: --each box writes "
            f"a file for each ({_numbered(out, 'box', 0)}, ...), --each clause too, --clause N only one"
        )


def _programs(arguments: argparse.Namespace, query: Query, out: Path) -> Iterator[tuple[Path, Program]]:
    """Each program that was asked for, with its file; a box is encoded once."""
    import torch

    from bounds import prepare
    from verifier.exact.programs import EncodedBox, box_program, clause_program

    prepared, method = prepare(query.graph, torch.float64), method_of(arguments.method)
    clauses_of = query.cases.clauses_of.tolist()
    for number in range(len(clauses_of) - 1):
        clauses = range(clauses_of[number], clauses_of[number + 1])
        if not clauses or (arguments.clause is not None and arguments.clause not in clauses):
            continue
        try:
            box = EncodedBox.of(query, prepared, number, method, arguments.envelope)
        except UnsupportedError as error:
            hint = " (here: --envelope ERROR)" if arguments.envelope is None and "envelope" in str(error) else ""
            raise UnsupportedError(f"{error}{hint}") from error
        if arguments.clause is not None:
            yield out, clause_program(box, arguments.clause)
        elif arguments.each == "clause":
            yield from ((_numbered(out, "clause", k), clause_program(box, k)) for k in clauses)
        else:
            yield (_numbered(out, "box", number) if arguments.each else out), box_program(box)


def _numbered(out: Path, what: str, number: int) -> Path:
    return out.with_name(f"{out.stem}-{what}{number}{out.suffix}")


def _write(path: Path, program: Program, query: Query, prop: str) -> None:
    """The program under a head that says what it means."""
    from milp.export import write

    clauses = program.clauses
    several = f"{len(clauses)} clauses, {clauses[0]} to {clauses[-1]}"
    lines = [
        f"{prop}: box {program.box}, " + (f"clause {clauses[0]}" if len(clauses) == 1 else several),
        "The minimum bounds the margin of these clauses: above 0, no input of the box makes one of them true.",
        f"The network satisfies every row to within {float(program.model.row_error.max()):.3g}.",
        "Operators without an exact form are enclosed: the margin may lie above the minimum."
        if not program.model.exact
        else "Up to this nothing else satisfies the rows: the minimum is the margin itself.",
        *query.notes,
    ]
    write(program.model, path, program.graph, named=program.named, comment="\n".join(lines))
