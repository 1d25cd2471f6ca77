"""This verifier and others on the same instances: what is solved, what is wrong, and how long whole processes take.

    python benchmarks/compare.py BENCHMARKS ... --out table.csv --timeout 60 --cores 1 \\
        --abcrown CHECKOUT --nnenum CHECKOUT --marabou-python PYTHON

``BENCHMARKS``: lists or folders in the competition's layout, as ``verifier bench`` takes them. Each instance is given
to all programs in turn, before the next one, in an order that rotates, so that whatever else the machine does hits all
alike. Every run is a process of its own, from its start to its end, held to the same cores (processor affinity and
thread counts) and killed with its children at the limit. Nothing else of the verifier's is warm either.

Programs take part where they are installed; for each missing one a line says why:

- alpha-beta-CROWN: a checkout (``--abcrown`` or ABCROWN_DIR) and a Python that has its requirements
  (``--abcrown-python`` or ABCROWN_PYTHON), with the configuration of its competition scripts for the benchmark.
- nnenum: a checkout (``--nnenum`` or NNENUM_DIR) and a Python (``--nnenum-python`` or NNENUM_PYTHON).
- Marabou: a Python with the package maraboupy (``--marabou-python`` or MARABOU_PYTHON; default: this one).

A ``sat`` with a counterexample is replayed with onnxruntime and exact fractions (``benchmarks/check_witness.py``). The
replay outdoes the label of the list. ``wrong``: the opposite of what is known; ``unconfirmed``: a counterexample that
fails by more than 1e-4 where nothing else says sat. PAR-2 is the mean of the seconds, twice the limit where nothing was
solved. The last two columns count the instances that all programs have solved, and the seconds on them.

Exit code 1 where a verdict of this verifier is wrong.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)  # a file beside this one is called like a package

from benchmarks.comparing import processes, table  # noqa: E402
from benchmarks.comparing.tools import AlphaBetaCrown, Answer, Job, Marabou, Nnenum, Ours, Tool  # noqa: E402
from verifier.errors import InputError  # noqa: E402
from verifier.instances import Instance, read_instances  # noqa: E402


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    assert __doc__ is not None
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="BENCHMARKS")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the table has, run the others")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S",
                        help="an instance's own limit counts where it is smaller (default: 60)")
    parser.add_argument("--cores", type=int, default=1, metavar="N", help="processor cores for each (default: 1)")
    parser.add_argument("--device", default="cpu", help="for the programs that know devices (default: cpu)")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only every K-th instance of a benchmark")
    known = os.environ.get
    parser.add_argument("--abcrown", type=Path, metavar="FOLDER", default=_path(known("ABCROWN_DIR")))
    parser.add_argument("--abcrown-python", metavar="PYTHON", default=known("ABCROWN_PYTHON", sys.executable))
    parser.add_argument("--abcrown-config", action="append", default=[], metavar="BENCHMARK=FILE")
    parser.add_argument("--nnenum", type=Path, metavar="FOLDER", default=_path(known("NNENUM_DIR")))
    parser.add_argument("--nnenum-python", metavar="PYTHON", default=known("NNENUM_PYTHON", sys.executable))
    parser.add_argument("--marabou-python", metavar="PYTHON", default=known("MARABOU_PYTHON", sys.executable))
    parser.add_argument("--programs", action="store_true", help="this verifier's mixed-integer programs alone, too")
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave a program out")
    made = parser.parse_args(arguments)
    if made.timeout <= 0 or made.cores < 1 or made.every < 1:
        parser.error("--timeout, --cores and --every are positive")
    if not all(all(entry.partition("=")) for entry in made.abcrown_config):
        parser.error("--abcrown-config expects BENCHMARK=FILE")
    return made


def present(candidates: Sequence[Tool], without: Sequence[str]) -> list[Tool]:
    """The programs that take part; a line on stderr for each other one."""
    found = []
    for tool in candidates:
        why = "left out on request" if tool.name in without else tool.missing()
        if why:
            print(f"{tool.name} takes no part: {why}", file=sys.stderr)
        else:
            found.append(tool)
    return found


def candidates(options: argparse.Namespace) -> list[Tool]:
    """All programs, as the options say where they are."""
    named = dict(entry.partition("=")[::2] for entry in options.abcrown_config)
    configurations = {benchmark: Path(file).absolute() for benchmark, file in named.items()}
    return [
        Ours(),
        *([Ours("nn-verifier, programs alone", programs=True)] if options.programs else []),
        AlphaBetaCrown(options.abcrown, options.abcrown_python, configurations),
        Nnenum(options.nnenum, options.nnenum_python),
        Marabou(options.marabou_python),
    ]


def chosen(instances: Sequence[Instance], every: int) -> list[Instance]:
    """Each instance once, every K-th of each benchmark."""
    seen: dict[str, dict[tuple[str, str, str], Instance]] = {}
    for instance in instances:
        seen.setdefault(instance.benchmark, {}).setdefault(instance.key, instance)
    return [instance for group in seen.values() for instance in list(group.values())[::every]]


def hold_to(cores: int) -> None:
    """Let this process, and all that it starts, use only so many cores. Raises ``ValueError``."""
    try:
        mine = sorted(os.sched_getaffinity(0))
    except AttributeError:
        print("compare: this system cannot hold processes to cores; only thread counts are equal", file=sys.stderr)
        return
    if len(mine) < cores:
        raise ValueError(f"--cores {cores}: this process may use {len(mine)}")
    os.sched_setaffinity(0, mine[:cores])


def measure(tools: Sequence[Tool], instances: Sequence[Instance], results: table.Table,
            options: argparse.Namespace) -> None:
    """Give each instance to every program that has no row for it yet."""
    done = {(row.instance, row.tool) for row in results.rows}
    for k, instance in enumerate(instances):
        first = k % len(tools)
        waiting = [tool for tool in (*tools[first:], *tools[:first]) if (instance.key, tool.name) not in done]
        if not waiting:
            continue
        with tempfile.TemporaryDirectory(prefix="compare-") as made:
            shared = Path(made) / "files"
            shared.mkdir()
            files = plain_files(instance, shared)
            for i, tool in enumerate(waiting):
                folder = Path(made) / str(i)
                folder.mkdir()
                row = ask(tool, instance, files, folder, options)
                results.append(row)
                print(f"{k + 1}/{len(instances)} {' '.join(row.instance)}: {row.tool} {row.result} {row.seconds} s"
                      + (f" ({row.witness})" if row.result == "sat" else ""), file=sys.stderr, flush=True)


def ask(tool: Tool, instance: Instance, files: tuple[Path, Path] | None, folder: Path,
        options: argparse.Namespace) -> table.Row:
    """One program on one instance."""
    limit, seconds, witness = min(options.timeout, instance.timeout), 0.0, ""
    if files is None:
        answer = Answer("refused", reason="a query over several networks is not compared")
    else:
        job = Job(instance.benchmark, *files, limit, options.cores, options.device, folder)
        refusal = tool.refusal(job)
        if refusal:
            answer = Answer("refused", reason=refusal)
        else:
            finished = processes.run(tool.command(job), folder, tool.environment(job), limit)
            answer = Answer("timeout") if finished.late else tool.answer(job, finished)
            seconds = min(finished.seconds, limit)
        if answer.word == "sat":
            witness = table.replay(*files, dict(answer.values))
    return table.Row(*instance.key, tool.name, answer.word, f"{seconds:.3f}", instance.expected, witness, f"{limit:g}",
                     str(options.cores), options.device, answer.reason)


def plain_files(instance: Instance, folder: Path) -> tuple[Path, Path] | None:
    """Model and property as plain files, so that nobody's time holds decompression; None for several networks."""
    if len(instance.networks) != 1:
        return None
    made = []
    for source in (instance.networks[0][1], instance.query):
        target = folder / source.name.removesuffix(".gz")
        with source.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(source) if zipped else source.open("rb") as content, target.open("wb") as copy:
            shutil.copyfileobj(content, copy)
        made.append(target)
    return made[0], made[1]


def fits(results: table.Table, instances: Sequence[Instance], options: argparse.Namespace) -> None:
    """Raise ``ValueError`` where a table was made under other conditions."""
    limits = {instance.key: f"{min(options.timeout, instance.timeout):g}" for instance in instances}
    for row in results.rows:
        same = limits.get(row.instance, row.limit), str(options.cores), options.device
        if (row.limit, row.cores, row.device) != same:
            raise ValueError(f"{results.path} has rows made with --cores {row.cores} --device {row.device} and a limit "
                             f"of {row.limit} s: continue it with the same options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; the exit code."""
    options = parse(arguments)
    try:
        instances = chosen(read_instances(options.sources), options.every)
        hold_to(options.cores)
        results = table.Table(options.out, resume=options.resume)
        fits(results, instances, options)
    except (InputError, OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    tools = present(candidates(options), options.without)
    if tools:
        measure(tools, instances, results, options)
    figures = table.summarise(results.rows)
    print(table.as_text(figures))
    for line in table.disagreements(results.rows):
        print(f"DISAGREEMENT {line}")
    for line in table.remarks(results.rows):
        print(line)
    return int(any(figure["wrong"] for figure in figures if figure["tool"] == Ours().name))


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


if __name__ == "__main__":
    sys.exit(main())
