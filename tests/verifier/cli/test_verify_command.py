"""``verifier verify`` against a fake engine: what is printed where, exit codes, deadlines, crashes, Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from verifier import limits
from verifier.cli import INTERRUPTED, main, options, parser, verify
from verifier.errors import InputError
from verifier.report.result import schema

Ask = Callable[..., int]


def parsed(*arguments: str) -> argparse.Namespace:
    return parser.build().parse_args(["verify", *arguments])


def test_sat_prints_the_word_and_the_witness(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("sat") == 0
    out, err = capsys.readouterr()
    assert out == "sat\n((X_0 0.5)\n(Y_0 -1.25))\n"
    assert err.count("\n") == 1 and "replayed with onnxruntime 1" in err


def test_unsat_prints_the_word_alone(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("unsat") == 0
    out, err = capsys.readouterr()
    assert out == "unsat\n"
    assert err.count("\n") == 1 and "least margin 0.5" in err and "1 of 2 inputs widened" in err


def test_unknown_says_why_and_how_far_it_came(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("unknown") == 0
    out, err = capsys.readouterr()
    assert out == "unknown\n"
    assert "nothing left to split" in err and "best bound -0.5" in err and "25% open" in err


@pytest.mark.parametrize(("kind", "code"), [("sat", 10), ("unsat", 20), ("unknown", 0)])
def test_exit_code_on_request(ask: Ask, kind: str, code: int) -> None:
    assert ask(kind, "--exit-code") == code


@pytest.mark.parametrize(("kind", "code"), [("input", 2), ("unsupported", 3), ("internal", 4)])
def test_errors_leave_stdout_empty(ask: Ask, kind: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(kind) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{kind} trouble" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--record", "model.onnx"), "--record model.onnx: is read as well"),
        (("--json", "{property}"), "--json .*: is read as well"),
        (("--record", "one", "--checkpoint", "./one"), "--checkpoint one: is named by --record as well"),
        (("--assignments", "{property}"), "is a file; name a folder"),
        (("--json", "nowhere/x.json"), "nowhere does not exist"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_the_work(
    ask: Ask, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask("sat", *(option.format(property=tmp_path / "sat.vnnlib") for option in given))


def test_traceback_only_with_verbose(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("internal", "-v")
    assert "TRACE" in capsys.readouterr().err


def test_quiet_says_nothing_on_stderr(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("unsat", "-q")
    assert capsys.readouterr() == ("unsat\n", "")


def test_an_explanation_stands_around_the_work(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("slow", "--explain", "--timeout", "0.8") == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "timeout\n"
    assert lines[:2] == ["explain: features: boxes 1", "explain: choice = True: because"]
    assert lines[2].startswith("explain: stages: splitting from 0.")
    assert lines[2].endswith("timeout in the stage splitting") and "verifier: timeout" in lines[3] and len(lines) == 4


def test_an_explanation_is_for_those_who_ask(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("unsat")
    assert "explain" not in capsys.readouterr().err
    with pytest.raises(InputError, match="--quiet"):
        ask("unsat", "--explain", "--quiet")


def test_a_worker_that_does_not_stop_is_killed_at_the_deadline(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    started = limits.now()
    assert ask("slow", "--timeout", "0.8") == 0
    out, err = capsys.readouterr()
    assert out == "timeout\n"
    assert "splitting" in err and "best bound -0.25" in err and "50% open" in err
    assert limits.now() - started < 60


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("; first\n(vnnlib-version <2.0>)\n", "timed-out"),
        ("(vnnlib-version <1.0>)", "timeout"),
        ("(declare-const X_0 Real)", "timeout"),
    ],
)
def test_the_property_version_spells_the_timeout(
    ask: Ask, text: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("slow", "--timeout", "0.3", text=text)
    assert capsys.readouterr().out == f"{word}\n"


@pytest.mark.parametrize(("kind", "reason"), [("crash", "SIGSEGV"), ("killed", "want of memory")])
def test_a_crash_is_unknown_with_the_reason(
    ask: Ask, kind: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(kind) == 0
    out, err = capsys.readouterr()
    assert out == "unknown\n" and reason in err


def test_a_worker_that_ends_by_itself_is_our_fault(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("cut") == 4
    out, err = capsys.readouterr()
    assert out == "" and "internal error: worker ended with exit code 3" in err


def test_the_memory_limit_ends_the_query(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("hungry", "--memory", "0.2", "--timeout", "60") == 0
    out, err = capsys.readouterr()
    assert out == "unknown\n" and "memory limit of 0.2 GB" in err


def test_ctrl_c_prints_what_is_known(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    timer = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT))
    assert ask("slow", before=timer.start) == INTERRUPTED
    out, err = capsys.readouterr()
    assert out == "unknown\n" and "interrupted" in err and "best bound -0.25" in err


@pytest.mark.parametrize("there", [True, False])
def test_an_undecided_run_says_whether_there_is_a_checkpoint(
    ask: Ask, there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "state.npz"
    if there:
        path.touch()
    said = f"; the checkpoint {path} is {'' if there else 'not '}there"
    timer = threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT))
    ask("slow", "--checkpoint", str(path), before=timer.start)
    err = capsys.readouterr().err
    assert "interrupted" in err and said in err
    ask("slow", "--checkpoint", str(path), "--timeout", "0.8")
    assert said in capsys.readouterr().err
    ask("unsat", "--checkpoint", str(path))
    assert "checkpoint" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["sat", "unsat", "unknown", "slow"])
def test_json_fits_its_schema(ask: Ask, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    ask(kind, "--json", str(tmp_path / "result.json"), "--timeout", "0.8")
    written = json.loads((tmp_path / "result.json").read_text())
    jsonschema.validate(written, schema(), cls=jsonschema.Draft202012Validator)
    assert written["result"] == ("timeout" if kind == "slow" else kind)
    assert written["query"]["networks"] == {"": "model.onnx"} and written["options"]["seed"] == 0
    assert capsys.readouterr().out.startswith(written["result"])


def test_json_on_stdout_replaces_the_word(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    ask("unsat", "--json", "-")
    assert json.loads(capsys.readouterr().out)["lower_bound"] == "0.5"


def test_tasks() -> None:
    files = verify.build_task(parsed("m.onnx", "p.vnnlib"))
    assert files["networks"] == {"": "m.onnx"} and files["property"] == "p.vnnlib" and files["kind"] == "property"
    standard = verify.build_task(parsed("q.vnnlib", "--network", "f=a.onnx", "--network", "g=b.onnx"))
    assert standard["networks"] == {"f": "a.onnx", "g": "b.onnx"} and standard["property"] == "q.vnnlib"
    region = verify.build_task(parsed("m.onnx", "--input", "x.npy", "--epsilon", "8/255", "--data-range", "0", "1"))
    assert region["kind"] == "robustness" and region["epsilon"] == "8/255" and region["data_range"] == ["0", "1"]
    box = verify.build_task(parsed("m.onnx", "--box", "b.npz", "--label", "3", "--max-bytes", "2K"))
    assert box["kind"] == "box" and box["label"] == 3 and box["max_bytes"] == 2048


@pytest.mark.parametrize(
    "arguments",
    [
        ("m.onnx",),
        ("m.onnx", "p.vnnlib", "third"),
        ("m.onnx", "p.vnnlib", "--network", "f=a.onnx"),
        ("q.vnnlib", "--network", "f"),
        ("q.vnnlib", "--network", "f=a.onnx", "--network", "f=b.onnx"),
        ("m.onnx", "--input", "x.npy"),
        ("m.onnx", "--epsilon", "0.1"),
        ("m.onnx", "p.vnnlib", "--input", "x.npy", "--epsilon", "1"),
        ("m.onnx", "--input", "x.npy", "--box", "b.npz", "--epsilon", "1"),
        ("m.onnx", "--box", "b.npz", "--epsilon", "1"),
        ("m.onnx", "--input", "x.npy", "--epsilon", "1", "--mean", "0.5"),
    ],
)
def test_options_that_do_not_fit_together(arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError):
        verify.build_task(parsed(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["verify", "m", "p", "--timeout", "0"],
        ["verify", "m", "p", "--timeout", "nan"],
        ["verify", "m", "p", "--time", "5"],
        ["verify", "m", "--input", "x", "--epsilon", "1/0"],
        ["verify", "m", "p", "--device", "gpu"],
        ["bench", "x", "--out", "y", "--jobs", "0"],
        ["nonsense"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        parser.build().parse_args(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "a command is missing: verify, attack, bench"),
        (["verify", "p.vnnlib", "m.onnx"], "the model comes first: verifier verify m.onnx p.vnnlib"),
        (["verify", "a b/p.vnnlib.gz", "m.onnx.gz"], "verifier verify m.onnx.gz a b/p.vnnlib.gz"),
    ],
)
def test_what_is_meant_is_said(arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and hint in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("number", ["-1/2", "-1e-3", "-.5", "-0.5"])
def test_negative_numbers_are_no_options(number: str) -> None:
    given = options.shield_negative_numbers(["verify", "-q", "m", "--input", "x", "--epsilon", "1", "--mean", number])
    assert parser.build().parse_args([*given, "--std", "1"]).mean == [number]


@pytest.mark.parametrize("number", ["1/0", "1/0.0", "1e99999999", "1_0", "nan", "inf", "1/2/3", "", "x"])
def test_numbers_that_are_none(number: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a decimal or a fraction"):
        options.exact(number)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    assert main(["verify", "m", "p", "--json", str(tmp_path / "missing" / "r.json")]) == 2


@pytest.mark.parametrize("by", ["request of the system", "end of the channel"])
def test_a_busy_worker_dies_with_its_parent(by: str, tmp_path: Path) -> None:
    """The parent is killed outright while the worker is inside a query."""
    told = "sys.argv[1:]" if by == "request of the system" else "[]"
    busy = (
        f"import sys, time; from verifier.worker import serve; serve({told}, lambda: None, lambda *_: time.sleep(600))"
    )
    code = (
        "import os, sys\nfrom verifier.cli.session import Session\n"
        f"s = Session(command=[sys.executable, '-P', '-c', {busy!r}, str(os.getpid())])\n"
        "assert s.events.get(timeout=60).message == {'type': 'ready'}\n"
        "s.worker.send({'type': 'verify'})\n"
        "print(s.worker.process.pid, flush=True)\nsys.stdin.read()"
    )
    environment = dict(os.environ)
    root = str(Path(limits.__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=tmp_path
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(300):
        if not alive(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"
