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
from verifier.property import read_property
from verifier.run import Run
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
        monkeypatch.setattr(Run, "attack", lambda *_: None)
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


def test_a_padding_value_computed_by_inexact_operations_is_refused(tmp_path: Path) -> None:
    constants = {"p": np.array([0, 1]), "a": np.float32(0.1), "b": np.float32(0.3)}
    nodes = [helper.make_node("Mul", ["a", "b"], ["v"]), helper.make_node("Pad", ["x", "p", "v"], ["y"])]
    with pytest.raises(verifier.UnsupportedError, match="inexact"):
        _query(tmp_path, _model(nodes, [2], [3], {k: np.asarray(v) for k, v in constants.items()}), UNIT, 2, 3)


def test_a_division_by_zero_while_reading_is_an_input_error(tmp_path: Path) -> None:
    nodes = [helper.make_node("Split", ["x"], ["y"], num_outputs=0)]
    with pytest.raises(verifier.InputError, match="Split"):
        _query(tmp_path, _model(nodes, [2], [2], opset=18), f"{UNIT}(assert (>= Y_0 0))", 2, 2)


def test_two_thousand_million_inputs_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "property.vnnlib"
    network = "(declare-network N (declare-input X float32 [2000000000]) (declare-output Y float32 [1]))"
    path.write_text(f"(vnnlib-version <2.0>)\n{network}\n(assert (>= X[0] 0))")
    with pytest.raises(verifier.UnsupportedError, match="2000000000 inputs"):
        read_property(path)


@pytest.mark.parametrize("start", [-5, -2, 0, 1, 7])
def test_backward_slices_from_before_the_first_element(tmp_path: Path, start: int) -> None:
    constants = {"s": np.array([start]), "e": np.array([-(2**31)]), "a": np.array([0]), "t": np.array([-2])}
    nodes = [helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])]
    # Reading compares with onnxruntime, shape and values.
    _query(tmp_path, _model(nodes, [2], [1], constants), f"{UNIT}(assert (>= Y_0 0))", 2, 1)


@pytest.mark.parametrize("split_inputs", [True, False])
@pytest.mark.parametrize(("condition", "word"), [("(>= Y_0 1)", "sat"), ("(>= Y_0 1.1)", "unsat")])
def test_scalars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, word: str, split_inputs: bool
) -> None:
    box = "(assert (>= X_0 -1))(assert (<= X_0 1))"
    query = _query(
        tmp_path, _model([helper.make_node("Relu", ["x"], ["y"])], [], []), f"{box}(assert {condition})", 1, 1
    )
    assert _verdict(query, split_inputs, monkeypatch, attack=True).word == word


@pytest.mark.parametrize("split_inputs", [True, False])
@pytest.mark.parametrize(
    ("condition", "word"),
    [
        ("(<= Y_0 -2.9)", "sat"),
        ("(<= Y_0 -3.1)", "unsat"),
        ("(>= Y_1 0.9)", "sat"),
        ("(>= Y_1 1.1)", "unsat"),
        ("(<= Y_2 6.9)", "unsat"),
        ("(>= (+ Y_0 Y_1 Y_2) 7.1)", "unsat"),
        ("(>= (+ Y_0 Y_2) 5.9)", "sat"),
    ],
)
def test_an_input_and_an_initialiser_as_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, word: str, split_inputs: bool
) -> None:
    def one(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    seven = numpy_helper.from_array(np.array([7.0], dtype=np.float32), "seven")
    node = helper.make_node("Sub", ["a", "b"], ["difference"])
    graph = helper.make_graph([node], "g", [one("a"), one("b")], [one("difference"), one("a"), one("seven")], [seven])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    box = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 2) (<= X_1 3)))"
    query = _query(tmp_path, model, f"{box}(assert {condition})", 2, 3)
    assert _verdict(query, split_inputs, monkeypatch, attack=True).word == word
