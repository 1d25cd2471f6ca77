"""``verifier verify``: one query, one answer.

The first line on stdout is the word; after ``sat`` the counterexample follows in the property's own version.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifier import limits
from verifier.cli import INTERRUPTED, options
from verifier.cli.display import Display, choose_mode, describe
from verifier.cli.session import Session
from verifier.errors import InputError
from verifier.instances import declares_version_two, parse_networks
from verifier.protocol import Message
from verifier.supervise import Answer, Failure, Job

USAGE = (
    "%(prog)s MODEL.onnx PROPERTY.vnnlib [OPTIONS]\n"
    "       %(prog)s QUERY.vnnlib --network NAME=MODEL.onnx [OPTIONS]\n"
    "       %(prog)s MODEL.onnx (--input FILE --epsilon R | --box FILE.npz) [OPTIONS]"
)
_EXIT_CODES = (("sat", 10), ("unsat", 20))


def add_parser(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "verify",
        allow_abbrev=False,
        usage=USAGE,
        help="decide one property of one model",
        description="Decide a property. A property file describes the counterexamples: sat means that there is one "
        "(it is printed, and onnxruntime has replayed it), unsat that the property holds.",
    )
    add_query(parser)
    add_answer(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="write the state of the search to FILE every "
                        "10 seconds and at the time limit, and go on from it where it is there; removed when decided")
    parser.add_argument("--explain", action="store_true", help="say on stderr what was chosen for this query and why, "
                        "and at the end when each stage began")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what is needed to prove unsat again, leaf "
                        "by leaf; the file is removed where the answer is another (beside --checkpoint: once decided)")
    options.add_region_options(parser)
    options.add_run_options(parser)
    parser.set_defaults(attack=False)


def add_query(parser: argparse.ArgumentParser) -> None:
    """The files that say what is asked."""
    parser.add_argument("files", nargs="+", type=str, metavar="FILE",
                        help="MODEL.onnx PROPERTY.vnnlib; or QUERY.vnnlib with --network; or MODEL.onnx with a region")
    parser.add_argument("--network", action="append", default=[], metavar="NAME=FILE",
                        help="the model of a network that the query declares; once for each")


def add_answer(parser: argparse.ArgumentParser) -> None:
    """How long may be worked, and where the answer goes."""
    parser.add_argument("--timeout", type=options.positive, metavar="S",
                        help="seconds, counted from the start of the process (default: none)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON; - for stdout, in place "
                        "of the plain answer")
    parser.add_argument("--serialise-assignments", "--assignments", type=Path, metavar="FOLDER", dest="assignments",
                        help="write a counterexample as one NAME.pb (TensorProto) a variable")
    parser.add_argument("--exit-code", action="store_true", help="exit with 10 for sat and 20 for unsat")


def run(arguments: argparse.Namespace, session: Session | None = None) -> int:
    """Ask the worker of ``session``, print the answer; the exit code."""
    task = build_task(arguments)
    written = {"--json": arguments.json, "--record": arguments.record, "--checkpoint": arguments.checkpoint}
    options.output_files(written, _read(task))
    options.output_folder(arguments.assignments, "--serialise-assignments")
    if arguments.explain and arguments.quiet:
        raise InputError("--explain and --quiet contradict each other: give one of them")
    session = session or Session(echo=arguments.verbose)
    job = session.job(arguments.timeout, arguments.memory)
    request = job.request(
        task,
        seed=arguments.seed,
        device=arguments.device,
        evidence=arguments.json is not None,
        verbose=arguments.verbose,
        explain=arguments.explain,
        record=_absolute(arguments.record),
        checkpoint=_absolute(arguments.checkpoint),
        cores=limits.free_cores(),
        attack=arguments.attack,
    )
    with Display(choose_mode(arguments.quiet)) as display:
        outcome, interrupted = session.wait(job, request, _Watcher(display))
    if isinstance(outcome, Failure):
        return _fail(outcome, arguments.verbose)
    if arguments.explain:
        print(f"explain: {_stages(job, outcome)}", file=sys.stderr)
    _explain(outcome, session, arguments)
    _answer(outcome, task, arguments, limits.now() - session.start)
    if interrupted:
        return INTERRUPTED
    return dict(_EXIT_CODES).get(outcome.word, 0) if arguments.exit_code else 0


def build_task(arguments: argparse.Namespace) -> Message:
    """What the worker is to read. Raises ``InputError`` where the options do not fit together."""
    files: list[str] = arguments.files
    region = arguments.input is not None or arguments.box is not None
    common = {"max_bytes": arguments.max_bytes, "assignments": _absolute(arguments.assignments)}
    if region:
        return common | _region_task(arguments)
    if arguments.epsilon is not None:
        raise InputError("--epsilon is the radius around a point: name the point with --input FILE")
    if arguments.network:
        if len(files) != 1:
            raise InputError("with --network one query file is expected: verifier verify QUERY.vnnlib --network N=FILE")
        return common | {"kind": "property", "property": files[0], "networks": named_networks(arguments.network)}
    if len(files) != 2:
        raise InputError("expected MODEL.onnx PROPERTY.vnnlib (or QUERY.vnnlib --network NAME=FILE, or MODEL.onnx and "
                         f"--input or --box), got {len(files)} file(s)")
    if _looks_like(files[0], ".vnnlib") and _looks_like(files[1], ".onnx"):
        raise InputError(f"the model comes first: verifier verify {files[1]} {files[0]}")
    try:
        networks = dict(parse_networks(files[0]))
    except ValueError as error:
        raise InputError(f"model: {error}") from error
    return common | {"kind": "property", "property": files[1], "networks": networks}


def _looks_like(path: str, ending: str) -> bool:
    return path.removesuffix(".gz").endswith(ending)


def _region_task(arguments: argparse.Namespace) -> Message:
    if len(arguments.files) != 1 or arguments.network:
        raise InputError("a region (--input, --box) goes with one model and no property file")
    if (arguments.input is None) == (arguments.box is None):
        raise InputError("--input and --box both name the region: give one of them")
    options.check_normalisation(arguments)
    task = {"networks": {"": arguments.files[0]}, "label": arguments.label, "mean": arguments.mean,
            "std": arguments.std, "data_range": arguments.data_range}
    if arguments.box is not None:
        if arguments.epsilon is not None or arguments.data_range is not None:
            raise InputError("--epsilon and --data-range go with --input; a box has its bounds already")
        return task | {"kind": "box", "box": str(arguments.box)}
    if arguments.epsilon is None:
        raise InputError("--input needs --epsilon, the radius of the ball around the point")
    return task | {"kind": "robustness", "input": str(arguments.input), "epsilon": arguments.epsilon,
                   "norm": arguments.norm}


def named_networks(named: list[str]) -> dict[str, str]:
    """Paths by the names of networks, from ``NAME=FILE`` each. Raises ``InputError``."""
    networks: dict[str, str] = {}
    for entry in named:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise InputError(f"--network {entry}: expected NAME=FILE")
        if name in networks:
            raise InputError(f"--network {name}: named twice")
        networks[name] = path
    return networks


def _read(task: Message) -> list[str | None]:
    """The files that a task is read from."""
    return [*task["networks"].values(), *(task.get(key) for key in ("property", "input", "box"))]


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


@dataclass(slots=True)
class _Watcher:
    """Shows how far a job is; an explanation once, as soon as it is there."""

    display: Display
    explained: bool = False

    def __call__(self, job: Job) -> None:
        if job.explanation and not self.explained:
            self.explained = True
            for line in job.explanation:
                self.display.say(f"explain: {line}")
        self.display.show(describe(job.progress, limits.now() - job.started))


def _stages(job: Job, answer: Answer) -> str:
    """When each stage was first heard of, and where the answer came from."""
    began = ", ".join(f"{stage} from {seconds:.2f} s" for stage, seconds in job.stages.items())
    return f"stages: {began or 'none begun'}; {answer.word} in the stage {answer.record['stage']}"


def _fail(failure: Failure, verbose: bool) -> int:
    """Say whose fault it is, in one line; the exit code."""
    label = "internal error" if failure.kind == "internal" else "error"
    hint = "" if failure.kind != "internal" or verbose else " (this is our fault: please report it; -v shows more)"
    if verbose and failure.traceback:
        print(failure.traceback, file=sys.stderr)
    print(f"verifier: {label}: {failure.message}{hint}", file=sys.stderr)
    return failure.exit_code


def _explain(answer: Answer, session: Session, arguments: argparse.Namespace) -> None:
    """The one line of explanation on stderr."""
    if arguments.quiet:
        return
    record = answer.record
    parts = [f"{answer.word} after {limits.now() - session.start:.1f} s, stage {record['stage']}"]
    if record.get("reason"):
        parts.append(record["reason"])
    bound = record.get("lower_bound")
    if bound is not None:
        label = "least margin" if answer.word == "unsat" else "best bound"
        parts.append(f"{label} {float(bound):.4g}")
    if answer.word in ("unknown", "timeout") and record.get("open_share", 1) < 1:
        parts.append(f"{100 * record['open_share']:.3g}% open")
    if "counterexample" in record:
        found = record["counterexample"]
        parts.append(f"replayed with {found['replayed_with']}; in exact arithmetic: {found['real']}")
    if arguments.checkpoint is not None and answer.word in ("unknown", "timeout"):
        there = "is there to go on from" if arguments.checkpoint.is_file() else "is not there: nothing to go on from"
        parts.append(f"the checkpoint {arguments.checkpoint} {there}")
    print(f"verifier: {'; '.join(parts + record.get('notes', []))}", file=sys.stderr)
    if arguments.verbose and session.worker.last_words():
        print(session.worker.last_words(), file=sys.stderr)


def _answer(answer: Answer, task: Message, arguments: argparse.Namespace, seconds: float) -> None:
    asked = {"timeout": arguments.timeout, "seed": arguments.seed, "device": arguments.device}
    query = {key: task[key] for key in task if key not in ("max_bytes", "assignments") and task[key] is not None}
    record = answer.record | {"seconds": round(seconds, 3), "query": query, "options": asked}
    text = json.dumps(record, indent=1, allow_nan=False)
    if arguments.json is not None and str(arguments.json) == "-":
        print(text)
        return
    if arguments.json is not None:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(spell(answer.word, task))
    if answer.witness and arguments.assignments is None:
        print(answer.witness.rstrip("\n"))
    sys.stdout.flush()


def spell(word: str, task: Message) -> str:
    """The word as the property's version of VNN-LIB spells it: 2.0 says ``timed-out``."""
    if word == "timeout" and task["kind"] == "property":
        return "timed-out" if declares_version_two(Path(task["property"])) else word
    return word
