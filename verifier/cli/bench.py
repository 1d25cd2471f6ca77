"""``verifier bench``: many instances, a table of results that can be continued, and what it amounts to."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli import INTERRUPTED, options
from verifier.cli.display import Display, choose_mode
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.bench import Done, Pool
    from verifier.instances import Instance, Table
    from verifier.process import Command

FOUND_WRONG = 1


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "bench",
        allow_abbrev=False,
        usage="%(prog)s FOLDER_OR_CSV ... --out FILE.csv [OPTIONS]",
        help="run many instances",
        description="Run the instances of lists with the columns network,property,timeout[,expected] (no header), "
        "write a table of results and print a summary. Exit code 1 where a result is the opposite of the expected "
        "one. An instance's clock starts when it is handed to a worker that has loaded its libraries; with --cold "
        "when a process is started for it.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="FOLDER_OR_CSV",
                        help="a list, a folder with an instances.csv, or a folder of such folders")
    parser.add_argument("--timeout", type=options.positive, metavar="S",
                        help="seconds an instance; its own limit where that is smaller")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv", help="the table of results")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="keep the rows that the table has, run the others")
    existing.add_argument("--overwrite", action="store_true", help="replace the table where it exists")
    parser.add_argument("--jobs", type=options.count, default=1, metavar="N", help="workers at once (default: 1)")
    parser.add_argument("--cold", action="store_true", help="start a process for each instance and count its start")
    parser.add_argument("--witness-dir", type=Path, metavar="FOLDER", help="write every counterexample to a file")
    parser.add_argument("--record-dir", type=Path, metavar="FOLDER",
                        help="write for every unsat what is needed to prove it again, leaf by leaf")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON; - for stdout, in place "
                        "of the table")
    options.add_run_options(parser)


def run(arguments: argparse.Namespace, command: Command | None = None) -> int:
    """Run what is left to run, print the summary; the exit code. ``command`` replaces the worker's program (tests)."""
    from verifier.bench import Plan, Pool
    from verifier.instances import Table, read_instances

    instances = read_instances(arguments.sources)
    options.output_files({"--out": arguments.out, "--json": arguments.json}, arguments.sources)
    options.output_folder(arguments.witness_dir, "--witness-dir")
    options.output_folder(arguments.record_dir, "--record-dir")
    plan = Plan(
        timeout=arguments.timeout,
        jobs=arguments.jobs,
        cold=arguments.cold,
        seed=arguments.seed,
        device=arguments.device,
        max_bytes=arguments.max_bytes,
        memory=arguments.memory,
        verbose=arguments.verbose,
        records=arguments.record_dir,
        command=command,
    )
    table = Table(arguments.out, resume=arguments.resume, overwrite=arguments.overwrite)
    try:
        pool = Pool(_left(instances, table), plan)
        interrupted = _fill(table, pool, arguments)
    finally:
        table.close()
    return _close(table, arguments, interrupted)


def _left(instances: list[Instance], table: Table) -> list[Instance]:
    """The instances without a row; one that is listed twice needs two rows."""
    rows = Counter(row.key for row in table.rows)
    left = []
    for instance in instances:
        if rows[instance.key] > 0:
            rows[instance.key] -= 1
        else:
            left.append(instance)
    return left


def _fill(table: Table, pool: Pool, arguments: argparse.Namespace) -> bool:
    """Run the instances and write their rows; True where Ctrl-C ended it."""
    total = len(table.rows) + len(pool.waiting)
    results = pool.run(lambda: display.show(_state(table, total)))
    with Display(choose_mode(arguments.quiet)) as display:
        try:
            for done in results:
                _keep_witness(done, arguments.witness_dir)  # before its row: --resume would not come back for it
                table.append(done.row)
                if done.row.wrong:
                    row = done.row
                    print(f"verifier: WRONG: {' '.join(row.key)}: {row.result}, expected {row.expected}",
                          file=sys.stderr)
        except KeyboardInterrupt:
            return True
        finally:
            results.close()  # type: ignore[attr-defined]
    return False


def _state(table: Table, total: int) -> str:
    solved, wrong = sum(row.solved for row in table.rows), sum(row.wrong for row in table.rows)
    return f"{len(table.rows)} of {total} done: {solved} solved, {wrong} wrong, {total - len(table.rows)} left"


def _keep_witness(done: Done, folder: Path | None) -> None:
    """Write the counterexample as the competition's results file has it: the word, then the assignment."""
    if folder is None or not done.witness:
        return
    from verifier.bench import evidence_file

    path = evidence_file(folder, done.row.key, "counterexample")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{done.row.result}\n{done.witness.rstrip()}\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--witness-dir {folder}: {path}: {error.strerror}; --resume goes on from there") from error


def _close(table: Table, arguments: argparse.Namespace, interrupted: bool) -> int:
    from verifier.report.summary import as_data, as_text, summarise_rows

    summaries = summarise_rows(table.rows)
    data = json.dumps(as_data(summaries), indent=1)
    if arguments.json is not None and str(arguments.json) == "-":
        print(data)
    else:
        if arguments.json is not None:
            arguments.json.write_text(data + "\n", encoding="utf-8")
        print(as_text(summaries))
    if interrupted:
        print(f"verifier: interrupted; continue with --resume --out {table.path}", file=sys.stderr)
        return INTERRUPTED
    return FOUND_WRONG if any(row.wrong for row in table.rows) else 0
