"""The competition's three scripts, with a program in place of ``verifier`` that answers as it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture
def call(checkout: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run a script; ``program`` is the body of the shell script that stands for ``verifier``."""

    def run(script: str, *arguments: str, program: str = "exit 0") -> int:
        folder = tmp_path / "venv" / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "verifier").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{program}\n')
        (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for path in folder.iterdir():
            path.chmod(0o755)
        environment = dict(os.environ) | {"VERIFIER_VENV": str(tmp_path / "venv"), "PYTHONPATH": str(checkout)}
        command = ["bash", str(checkout / "benchmarks" / "vnncomp" / script), *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, timeout=120, capture_output=True).returncode

    return run


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("printf 'sat\\n((X_0 1)\\n(Y_0 2))\\n'", "sat\n((X_0 1)\n(Y_0 2))\n"),
        ("echo unsat", "unsat\n"),
        ("echo timeout", "timeout\n"),
        ("exit 2", "error\n"),
        ("exit 3", "unknown\n"),
        ("exit 4", "error\n"),
        ("kill -9 $$", "error\n"),
    ],
)
def test_an_instance_leaves_a_results_file(program: str, result: str, call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code = call("run_instance.sh", "v1", "acasxu", "a b.onnx", "p.vnnlib", "results.txt", "30", program=program)
    assert code == 0
    assert (tmp_path / "results.txt").read_text() == result
    assert (tmp_path / "asked").read_text() == "verify a b.onnx p.vnnlib --timeout 30\n"


def test_preparation_looks_at_the_files(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "p.vnnlib.gz").touch()
    assert call("prepare_instance.sh", "v1", "acasxu", "net.onnx", "p.vnnlib") == 1
    (tmp_path / "net.onnx").touch()
    assert call("prepare_instance.sh", "v1", "acasxu", "net.onnx", "p.vnnlib") == 0
    assert call("prepare_instance.sh", "v1", "acasxu", "net.onnx", "q.vnnlib") == 1


@pytest.mark.parametrize("script", ["install_tool.sh", "prepare_instance.sh", "run_instance.sh"])
def test_another_version_of_the_interface_is_refused(script: str, call) -> None:  # type: ignore[no-untyped-def]
    assert call(script, "v2", "a", "b", "c", "d", "e") == 2
