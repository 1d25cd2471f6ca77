"""Replay decides: membership in the box, onnxruntime's outputs, literals in exact fractions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier.query import Query, read
from verifier.replay import Replayer

DECLARED = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)"
BOX = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 0.1)))"


def query_for(folder: Path, assertions: str, dtype: type[np.floating] = np.float32, box: str = BOX) -> Query:
    """y = x, for x [1, 2] and y [1, 2]; so the outputs are known exactly."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = numpy_helper.from_array(np.eye(2, dtype=dtype), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, 2])],
        [helper.make_tensor_value_info("y", kind, [1, 2])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    (folder / "p.vnnlib").write_text(DECLARED + box + assertions)
    return read(folder / "m.onnx", folder / "p.vnnlib")


def test_the_first_point_that_violates_is_returned_as_replayed(tmp_path: Path) -> None:
    query = query_for(tmp_path, "(assert (or (and (>= Y_0 0.75) (<= Y_1 Y_0)) (>= Y_0 0.5)))")
    points = np.array([[0.25, 0], [2, 0], [0.5, 0.0625], [1, 0]], dtype=np.float32)
    found = Replayer(query).replay(points)
    assert found is not None and found.clause == 1 and found.margin == 0 and found.real == "open"
    assert found.inputs[0].tolist() == [0.5, 0.0625] and found.outputs[0].tolist() == [0.5, 0.0625]
    assert found.inputs[0].dtype == np.float32 and found.replayed_with.startswith("onnxruntime 1.")
    roomiest = Replayer(query, lambda q, x, clause: "violated").replay(np.array([1, 0], dtype=np.float32))
    assert roomiest is not None and roomiest.clause == 1 and roomiest.margin == 0.5 and roomiest.real == "violated"


@pytest.mark.parametrize(
    ("point", "inside"),
    [([0, 0], True), ([1, np.float32(0.1)], False), ([1, np.nextafter(np.float32(0.1), np.float32(0))], True),
     ([np.nextafter(np.float32(1), np.float32(2)), 0], False), ([-1e-45, 0], False), ([np.nan, 0], False)],
)  # fmt: skip
def test_membership_is_exact(tmp_path: Path, point: list[float], inside: bool) -> None:
    # float32(0.1) lies above the decimal 0.1.
    query = query_for(tmp_path, "(assert (>= Y_0 -10))")
    assert (Replayer(query).replay(np.array(point, dtype=np.float32)) is not None) == inside


@pytest.mark.parametrize(("relation", "found"), [("(<= Y_0 0.5)", True), ("(< Y_0 0.5)", False), ("(> Y_0 0.5)", False),
    ("(>= Y_0 0.50000000000000000001)", False), ("(>= Y_0 0.49999999999999999999)", True), ("(= Y_0 0.5)", True),
    ("(!= Y_0 0.5)", False), ("(<= (* 3 Y_0) (+ 1 X_0))", True), ("(< (* 3 Y_0) (+ 1 X_0))", False),
    ("(< X_0 0.5)", False), ("(< X_0 0.50000000000000000001)", True)])  # fmt: skip
def test_literals_are_exact(tmp_path: Path, relation: str, found: bool) -> None:
    query = query_for(tmp_path, f"(assert {relation})")
    assert (Replayer(query).replay(np.array([0.5, 0], dtype=np.float32)) is not None) == found


def test_a_point_in_a_box_needs_a_clause_of_that_box(tmp_path: Path) -> None:
    branch = "(and (>= X_0 {}) (<= X_0 {}) (>= X_1 0) (<= X_1 1) (>= Y_0 {}))"
    text = f"(assert (or {branch.format(0, 0.25, 0.5)} {branch.format(0.5, 1, 0.75)}))"
    query = query_for(tmp_path, text, box="")
    replayer = Replayer(query)
    assert replayer.replay(np.array([[0.25, 0], [0.5, 0], [0.4, 0]], dtype=np.float32)) is None
    found = replayer.replay(np.array([0.75, 0], dtype=np.float32))
    assert found is not None and found.clause == 1


def test_a_widened_coordinate_is_searched_at_its_neighbours(tmp_path: Path) -> None:
    query = query_for(tmp_path, "(assert (>= Y_1 0))", box="(assert (and (= X_0 0.1) (= X_1 0)))")
    above = np.float32(0.1)
    below = np.nextafter(above, np.float32(0))
    replayer = Replayer(query)
    assert replayer.replay(np.array([above, 0])) is not None and replayer.replay(np.array([below, 0])) is not None
    assert replayer.replay(np.array([np.nextafter(below, np.float32(0)), 0])) is None


def test_float64_models_are_replayed_in_float64(tmp_path: Path) -> None:
    query = query_for(tmp_path, "(assert (>= Y_0 0.3))", np.float64)
    found = Replayer(query).replay(np.array([0.3 + 1e-12, 0]))
    assert found is not None and found.inputs[0].dtype == np.float64 and 0 < found.margin < 2e-12


def test_nothing_is_found_where_there_is_no_case(tmp_path: Path) -> None:
    query = query_for(tmp_path, "(assert (>= X_0 2))")
    assert Replayer(query).replay(np.zeros((3, 2), dtype=np.float32)) is None


def test_outputs_that_are_not_finite_are_no_violation(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.full((2, 2), 3e38, dtype=np.float32), "W")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    (tmp_path / "p.vnnlib").write_text(DECLARED + BOX.replace("0.1", "10") + "(assert (>= Y_0 0))")
    replayer = Replayer(read(tmp_path / "m.onnx", tmp_path / "p.vnnlib"))
    assert replayer.replay(np.array([1, 10], dtype=np.float32)) is None
    assert replayer.replay(np.array([1, 0], dtype=np.float32)) is not None
