"""The comparison with other verifiers, on stand-ins for them: who takes part, who is right, and that nothing outlives
its time."""

from __future__ import annotations

import csv
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

CHECKOUT = Path(__file__).resolve().parents[1]
BOX = """(declare-const X_0 Real)
(declare-const Y_0 Real)
(assert (>= X_0 0.0))
(assert (<= X_0 1.0))
"""
NNENUM = """
import sys
if __name__ == "__main__":
    model, prop, limit, results, cores = sys.argv[1:]
    assert cores == "1" and not prop.endswith(".gz")
    if "a.vnnlib" in prop:
        print("Input: [0.5]")
    open(results, "w").write("violated" if "a.vnnlib" in prop else "holds")
"""
ABCROWN = """
import sys
if "--help" in sys.argv:
    sys.exit()
option = {a: b for a, b in zip(sys.argv[1::2], sys.argv[2::2])}
assert option["--config"].endswith("special.yaml")
answer = "unsat" if "a.vnnlib" in option["--vnnlib_path"] else "sat\\n((X_0 0.75))"
open(option["--results_file"], "w").write(answer)
"""
MARABOU = """
import subprocess, sys, time
if "b.vnnlib" in sys.argv[2]:
    # A child in a session of its own, which no signal to the group reaches.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
    open({pid!r}, "w").write(str(child.pid))
    time.sleep(100)
print("Network: n\\n\\nsat\\nInput assignment:\\n\\tx0 = 0.499990")
sys.exit(1)
"""


@pytest.fixture(scope="module")
def compare(program: Callable[[str], ModuleType]) -> ModuleType:
    """``benchmarks/compare.py`` with its parts."""
    return program("compare")


@pytest.fixture(scope="module")
def table(compare: ModuleType) -> Any:
    """What is kept of a comparison."""
    return compare.table


@pytest.fixture
def benchmark_folder(tmp_path: Path) -> Path:
    """``Y = 2 X`` over [0, 1]: property a (Y >= 1) is violated, b (Y >= 3) holds; only b has a label."""
    folder = tmp_path / "bench"
    folder.mkdir()
    weight = numpy_helper.from_array(np.array([[2]], dtype=np.float32), "W")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "XY"]
    graph = helper.make_graph([helper.make_node("MatMul", ["X", "W"], ["Y"])], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "n.onnx")
    (folder / "a.vnnlib").write_text(BOX + "(assert (>= Y_0 1.0))")
    (folder / "b.vnnlib").write_text(BOX + "(assert (>= Y_0 3.0))")
    (folder / "instances.csv").write_text("n.onnx,a.vnnlib,100\nn.onnx,b.vnnlib,100,unsat\n")
    return folder


@pytest.fixture
def others(tmp_path: Path) -> list[str]:
    """Options that name stand-ins for the three other programs."""
    for path, text in [
        ("nn/src/nnenum/__init__.py", ""),
        ("nn/src/nnenum/nnenum.py", NNENUM),
        ("abc/complete_verifier/abcrown.py", ABCROWN),
        ("mara/maraboupy/__init__.py", ""),
        ("mara/maraboupy/MarabouMain.py", ""),
        ("mara/maraboupy/__main__.py", MARABOU.format(pid=str(tmp_path / "pid"))),
        ("special.yaml", ""),
        ("python", f"#!/bin/sh\nPYTHONPATH={tmp_path}/mara exec {sys.executable} \"$@\"\n"),
    ]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "python").chmod(stat.S_IRWXU)
    return ["--nnenum", str(tmp_path / "nn"), "--abcrown", str(tmp_path / "abc"), "--abcrown-config",
            f"bench={tmp_path / 'special.yaml'}", "--marabou-python", str(tmp_path / "python")]


def call(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    kept = {key: value for key, value in os.environ.items() if not key.endswith(("_DIR", "_PYTHON"))}
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "benchmarks" / "compare.py"), *map(str, arguments)],
        env=kept | variables, capture_output=True, text=True, timeout=120, check=False,
    )


def rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The table by property and program."""
    with path.open(newline="") as file:
        return {(row["vnnlib"], row["tool"]): row for row in csv.DictReader(file)}


def alive(pid: int) -> bool:
    """Whether a process runs (one that is dead and not reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within a generous time."""
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_stand_ins_are_judged_and_killed(benchmark_folder: Path, others: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    arguments = (benchmark_folder, "--out", out, "--timeout", "4", "--without", "nn-verifier", *others)
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert {key: (row["result"], row["witness"]) for key, row in found.items()} == {
        ("a.vnnlib", "nnenum"): ("sat", "exact"),
        ("a.vnnlib", "alpha-beta-CROWN"): ("unsat", ""),
        ("a.vnnlib", "Marabou"): ("sat", "near"),
        ("b.vnnlib", "nnenum"): ("unsat", ""),
        ("b.vnnlib", "alpha-beta-CROWN"): ("sat", "refuted"),
        ("b.vnnlib", "Marabou"): ("timeout", ""),
    }
    pid = int((tmp_path / "pid").read_text())
    assert until(lambda: not alive(pid)), "a child in a session of its own outlived the limit"
    lines = {line.split()[1]: line.split() for line in done.stdout.splitlines() if line.startswith("bench")}
    assert lines["nnenum"][2:9] == ["2", "2", "1", "1", "0", "0", "0"]
    assert lines["alpha-beta-CROWN"][2:9] == ["2", "0", "0", "0", "2", "0", "0"]
    assert lines["alpha-beta-CROWN"][10] == "8.00", "PAR-2: twice the limit for wrong verdicts"
    assert lines["Marabou"][2:9] == ["2", "1", "1", "0", "0", "0", "1"]
    assert done.stdout.count("DISAGREEMENT") == 2
    order = [tool for _, tool in found]
    assert order[3:] == [*order[1:3], order[0]], "the order rotates"

    whole = out.read_text()
    out.write_text(whole[:-30])
    again = call(*arguments, "--resume")
    assert again.returncode == 0 and rows(out).keys() == found.keys()
    assert out.read_text().startswith(whole[: whole.rstrip("\n").rfind("\n")]), "rows are kept"
    assert sum(": " in line and " s" in line for line in again.stderr.splitlines() if line[0].isdigit()) == 1
    for seconds in ("2", "6"):
        other = call(benchmark_folder, "--out", out, "--timeout", seconds, "--resume", *others)
        assert other.returncode == 2 and "same options" in other.stderr
    assert call(benchmark_folder, "--out", out).returncode == 2, "a table is not overwritten"


def test_those_that_are_missing_take_no_part_and_ours_does(benchmark_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out.csv"
    done = call(benchmark_folder, "--every", "2", "--out", out, "--marabou-python", tmp_path / "no-python",
                NNENUM_DIR=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    said = {line.partition(" takes no part: ")[0]: line for line in done.stderr.splitlines() if "takes no part" in line}
    assert "--abcrown FOLDER or ABCROWN_DIR" in said["alpha-beta-CROWN"]
    assert "does not exist" in said["nnenum"] and "pip install maraboupy" in said["Marabou"]
    (row,) = rows(out).values()
    assert (row["tool"], row["result"], row["witness"]) == ("nn-verifier", "sat", "exact")


def test_nobody_is_there(benchmark_folder: Path, tmp_path: Path) -> None:
    nobody = ("--without", "nn-verifier", "--marabou-python", "no-python")
    done = call(benchmark_folder, "--out", tmp_path / "out.csv", *nobody)
    assert (done.returncode, done.stdout.strip()) == (0, "") and done.stderr.count("takes no part") == 4


@pytest.mark.parametrize(
    ("verdicts", "known", "judged"),
    [
        ([("sat", "exact", "")], "sat", ["solved"]),
        ([("sat", "exact", "unsat"), ("unsat", "", "unsat")], "sat", ["solved", "wrong"]),
        ([("sat", "near", "unsat"), ("unsat", "", "unsat")], "unsat", ["wrong", "solved"]),
        ([("sat", "refuted", ""), ("unsat", "", "")], "", ["unconfirmed", "solved"]),
        ([("sat", "refuted", "sat")], "sat", ["solved"]),
        ([("sat", "none", "unknown"), ("timeout", "", "unknown")], "", ["solved", "timeout"]),
        ([("unsat", "", "sat"), ("error", "", "sat")], "sat", ["wrong", "error"]),
    ],
)
def test_a_replay_outdoes_a_label(
    table: Any, verdicts: list[tuple[str, str, str]], known: str, judged: list[str]
) -> None:
    made = [
        table.Row("b", "n", "p", f"tool{i}", result, "1", expected, witness, "10", "1", "cpu", "")
        for i, (result, witness, expected) in enumerate(verdicts)
    ]
    assert table.truth(made) == known
    assert [table.judge(row, known) for row in made] == judged


def test_seconds_on_what_all_have_solved(table: Any) -> None:
    def row(instance: str, tool: str, result: str, seconds: str) -> object:
        return table.Row("b", "n", instance, tool, result, seconds, "", "", "10", "1", "cpu", "")

    made = [row("p", "one", "unsat", "1.5"), row("p", "two", "unsat", "2"), row("q", "one", "unsat", "4"),
            row("q", "two", "timeout", "10"), row("r", "one", "unsat", "1"), row("r", "two", "refused", "0")]
    one, two = table.summarise(made)
    assert (one["asked"], one["solved"], one["all solved"], one["s on those"]) == (3, 3, 1, 1.5)
    assert (two["asked"], two["solved"], two["all solved"], two["s on those"]) == (2, 1, 1, 2.0)
    assert one["PAR-2"] == pytest.approx(6.5 / 3) and two["PAR-2"] == pytest.approx((2 + 20) / 2)
    assert table.disagreements(made) == []
    assert table.remarks(made) == ["two, b: 1 refused: no reason given"]


def test_an_error_of_a_program_is_no_verdict(compare: ModuleType, tmp_path: Path) -> None:
    script = "import sys; print('unsat?'); sys.exit('out of luck')"
    finished = compare.processes.run([sys.executable, "-c", script], tmp_path, dict(os.environ), 60)
    assert finished.code == 1 and not finished.late
    job = compare.Job("b", tmp_path / "n", tmp_path / "p", 5, 1, "cpu", tmp_path)
    for tool in (compare.Ours(), compare.Nnenum(tmp_path, "python"), compare.Marabou("python")):
        answer = tool.answer(job, finished)
        assert answer.word == "error" and "out of luck" in answer.reason


def test_configurations_go_by_benchmark_and_network(compare: ModuleType, tmp_path: Path) -> None:
    for name in ("mnistfc_small", "mnistfc"):
        path = tmp_path / "complete_verifier" / "exp_configs" / "vnncomp22" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tool = compare.AlphaBetaCrown(tmp_path, "python")

    def job(benchmark: str, network: str) -> object:
        return compare.Job(benchmark, tmp_path / network, tmp_path / "p", 5, 1, "cpu", tmp_path)

    assert tool.configuration(job("mnist_fc", "mnist-net_256x2.onnx")).name == "mnistfc_small.yaml"
    assert tool.configuration(job("mnist_fc", "mnist-net_256x4.onnx")).name == "mnistfc.yaml"
    assert "--abcrown-config other=FILE" in tool.refusal(job("other", "n.onnx"))
