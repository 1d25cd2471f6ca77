"""The light commands: version, name, supports, info, completion; the check of what is installed beside us."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import verifier
from verifier import installation
from verifier.cli import completion, info, main, parser
from verifier.errors import InputError


def test_version_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and main(["--name"]) == 0
    version, name = capsys.readouterr().out.splitlines()
    assert version == verifier.__version__ and re.fullmatch(r"\d+\.\d+\.\d+", version) and name == "nn-verifier"


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
def test_a_full_output_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "verifier", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (2, "verifier: error: No space left on device\n")


def test_our_own_packages_lie_beside_us() -> None:
    installation.check()


def test_a_foreign_package_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'json' would be imported from .*, which is not part of nn-verifier"):
        installation.check(("json",), tmp_path)
    with pytest.raises(InputError, match="'no_such_package' is missing"):
        installation.check(("no_such_package",), tmp_path)
    with pytest.raises(InputError, match="pip uninstall pytest"):
        installation.check(("_pytest",), tmp_path)


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("--vnnlib-versions", ["1.0", "2.0"]),
        ("--onnx-element-types", ["real"]),
        ("--hidden-node-theories", ["NH"]),
        ("--optimised-disjunctive-reasoning", ["true"]),
        ("--assignments", ["true"]),
    ],
)
@pytest.mark.parametrize("command", ["supports", "capabilities"])
def test_supports(command: str, question: str, answers: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, question]) == 0
    assert capsys.readouterr().out.split() == answers


def test_supported_operators_and_opsets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supports", "--onnx-operators"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stored = json.loads(resources.files("verifier").joinpath("operators.json").read_text(encoding="utf-8"))
    assert lines == [f"{name} real" for name in sorted(stored)] and "Relu real" in lines
    assert main(["supports", "--onnx-opset-versions"]) == 0
    first, last = map(int, capsys.readouterr().out.split())
    assert first == 7 and last >= 20


def test_info_is_text_or_json(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkout / "benchmarks" / "digits" / "digits.onnx"
    assert main(["info", str(model), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["operators"]["Relu"] >= 1 and data["parameters"] > 0 and data["unsupported"] == []
    assert main(["info", str(model)]) == 0
    text = capsys.readouterr().out
    assert f"opset: {data['opset']}" in text and "  Relu: " in text


def test_info_of_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.onnx").write_bytes(b"random bytes")
    for path in (tmp_path / "net.onnx", tmp_path / "missing.onnx"):
        assert main(["info", str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(path) in err


def test_info_lines() -> None:
    summary = {"opset": 13, "inputs": [{"name": "x", "shape": [1, None]}], "operators": {"Relu": 2}, "unsupported": []}
    assert info.lines(summary) == [
        "opset: 13",
        "inputs:",
        "  name x, shape [1, None]",
        "operators:",
        "  Relu: 2",
        "unsupported: none",
    ]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_scripts_are_valid_and_complete(shell: str, tmp_path: Path) -> None:
    script = completion.script(shell, parser.build())
    for command in completion.commands_of(parser.build()):
        assert command.name in script
        assert all(flag.lstrip("-") in script for option in command.options for flag in option.flags)
    if shutil.which(shell) is None:
        return
    (tmp_path / "script").write_text(script)
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("verifier comp", {"completion"}),
        ("verifier verify --t", {"--timeout"}),
        ("verifier verify --norm ''", {"inf", "1", "2"}),
        ("verifier completion z", {"zsh"}),
        ("verifier verify mod", {"model one.onnx"}),
    ],
)
def test_bash_completes(words: str, offered: set[str], tmp_path: Path) -> None:
    (tmp_path / "model one.onnx").touch()
    (tmp_path / "script").write_text(completion.script("bash", parser.build()))
    driver = (
        f"source ./script; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _verifier; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", driver], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert set(done.stdout.splitlines()) == offered


def test_public_names_are_those_of_their_modules() -> None:
    from verifier.errors import InputError as error
    from verifier.verdict import Verified

    assert verifier.InputError is error and verifier.Verified is Verified
    assert set(verifier.__all__) <= set(dir(verifier))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        verifier.nonsense  # noqa: B018
