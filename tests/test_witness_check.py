"""The independent check of counterexamples accepts true ones and refuses what is wrong with others."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

PROPERTY = """(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 0.1))
(assert (<= X_0 0.1))
(assert (and (>= X_1 -1.0) (<= X_1 1.0))) ; the box
(assert (or (and (<= Y_0 -3.0) (>= Y_1 0.0)) (and (>= Y_0 (+ Y_1 0.5)))))
"""
TENTH = float(np.float32(0.1))


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """``Y = (X_0 + X_1, X_0 - X_1)`` and a property that X_1 >= 0.25 violates, up to rounding."""
    weight = numpy_helper.from_array(np.array([[1, 1], [1, -1]], dtype=np.float32), "W")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "XY"]
    graph = helper.make_graph([helper.make_node("MatMul", ["X", "W"], ["Y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "prop.vnnlib").write_text(PROPERTY, encoding="utf-8")
    return tmp_path


def check(checker: ModuleType, folder: Path, values: Sequence[float]) -> tuple[int, int]:
    witness = folder / "witness"
    lines = [f"({name}_{i} {v!r})" for name in ("X", "Y") for i, v in enumerate(values)]
    witness.write_text("sat\n(" + "\n".join(lines) + ")\n", encoding="utf-8")
    return checker.check(folder / "model.onnx", folder / "prop.vnnlib", witness)


@pytest.mark.parametrize(
    ("values", "failed", "widened"),
    [
        ((TENTH, 0.75), 0, 1),
        ((float(np.nextafter(np.float32(0.1), np.float32(0))), 0.75), 0, 1),
        ((0.2, 0.75), 1, 0),
        ((TENTH, 1.0000001), 1, 1),
        ((TENTH, 0.0), 1, 1),
    ],
    ids=["true", "other neighbour", "outside a fixed input", "outside by one unit", "no violation"],
)
def test_what_is_accepted(
    checker: ModuleType, instance: Path, values: Sequence[float], failed: int, widened: int
) -> None:
    """0.1 is no float32: both neighbouring numbers count as in the box, and that is counted."""
    assert check(checker, instance, values) == (failed, widened)


def test_the_outputs_of_the_witness_do_not_count(checker: ModuleType, instance: Path) -> None:
    """The file claims Y; only what onnxruntime computes is looked at."""
    witness = instance / "witness"
    witness.write_text(f"sat\n((X_0 {TENTH})\n(X_1 0.0)\n(Y_0 9.0)\n(Y_1 0.0))\n", encoding="utf-8")
    failed, _ = checker.check(instance / "model.onnx", instance / "prop.vnnlib", witness)
    assert failed == 1


def test_a_missing_input_is_an_error(checker: ModuleType, instance: Path) -> None:
    with pytest.raises(AssertionError, match="1 values for 2 inputs"):
        check(checker, instance, (TENTH,))


@pytest.mark.parametrize(("value", "code"), [(0.75, 0), (0.0, 1)])
def test_all_of_a_table_from_the_command_line(checkout: Path, instance: Path, value: float, code: int) -> None:
    folder = instance / "benchmarks" / "bench"
    folder.mkdir(parents=True)
    for name in ("model.onnx", "prop.vnnlib"):
        with gzip.open(folder / f"{name}.gz", "wb") as file, (instance / name).open("rb") as source:
            shutil.copyfileobj(source, file)
    (instance / "witnesses" / "bench").mkdir(parents=True)
    text = f"sat\n((X_0 {TENTH})\n(X_1 {value}))\n"
    (instance / "witnesses" / "bench" / "model_prop.counterexample").write_text(text, encoding="utf-8")
    rows = [
        "benchmark,onnx,vnnlib,result",
        *(f"bench,model.onnx.gz,prop.vnnlib.gz,{word}" for word in ("sat", "unsat")),
    ]
    table = "\n".join(rows)
    (instance / "results.csv").write_text(table, encoding="utf-8")
    script = checkout / "benchmarks" / "check_witness.py"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *arguments]
        return subprocess.run(command, cwd=instance, capture_output=True, text=True, timeout=60)

    done = run("results.csv", "benchmarks", "witnesses")
    assert (done.returncode, done.stderr) == (code, "")
    assert f"1 counterexamples checked, {code} wrong, 1 with inputs" in done.stdout
    if not code:
        none = run("results.csv", "benchmarks", "nowhere")
        assert none.returncode == 1 and "model_prop.counterexample: there is no counterexample" in none.stdout
        for wrong in (("missing.csv", "benchmarks", "witnesses"), ("results.csv", "nowhere", "witnesses")):
            done = run(*wrong)
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No such file" in done.stderr
        assert run("--help").returncode == 0 and run("one").returncode == 2
