"""Queries that were made to get a wrong verdict out of the verifier, each with its known answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier import pipeline
from verifier.strategy import choose, features


def _model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    output: Sequence[int],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 13,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "adversarial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _query(folder: Path, model: onnx.ModelProto, assertions: str, inputs: int, outputs: int) -> Any:
    lines = [f"(declare-const X_{k} Real)" for k in range(inputs)]
    lines += [f"(declare-const Y_{k} Real)" for k in range(outputs)]
    (folder / "property.vnnlib").write_text("\n".join([*lines, assertions]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return verifier.read(folder / "model.onnx", folder / "property.vnnlib")


def _verdict(query: Any, split_inputs: bool, monkeypatch: pytest.MonkeyPatch, attack: bool = False) -> verifier.Verdict:
    """What the proving engines say, with or without an attack before them."""
    strategy = replace(choose(features(query)), split_inputs=split_inputs)
    if not attack:
        monkeypatch.setattr(pipeline, "_attack", lambda *_: None)
    return pipeline.verify(query, timeout=20, device="cpu", strategy=strategy)


UNIT = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1)))\n"


@pytest.mark.parametrize("split_inputs", [True, False])
@pytest.mark.parametrize("attack", [True, False])
@pytest.mark.parametrize(
    ("condition", "word"),
    [("(>= Y_0 1)", "sat"), ("(= Y_0 1.5)", "sat"), ("(<= (* 3 Y_0) 4.4)", "unsat"), ("(>= Y_0 2)", "unsat")],
)
def test_outputs_that_are_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, word: str, attack: bool, split_inputs: bool
) -> None:
    value = numpy_helper.from_array(np.array([1.5], dtype=np.float32))
    model = _model([helper.make_node("Constant", [], ["y"], value=value)], [2], [1])
    query = _query(tmp_path, model, f"{UNIT}(assert {condition})", 2, 1)
    assert _verdict(query, split_inputs, monkeypatch, attack).word == word
