"""Inputs on which an operator has no value: a runtime goes on with NaN, and nothing is proven about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier.pipeline import verify
from verifier.query import read
from verifier.verdict import Verified


def verdict_of(folder: Path, kind: str, box: tuple[float, float], literal: str) -> object:
    """On ``y = [kind(x) > -1]``, which is 0 where ``kind(x)`` is NaN."""
    graph = helper.make_graph(
        [
            helper.make_node(kind, ["x"], ["root"]),
            helper.make_node("Greater", ["root", "least"], ["above"]),
            helper.make_node("Cast", ["above"], ["y"], to=TensorProto.FLOAT),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(np.array([-30], dtype=np.float32), "least")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    (folder / "p.vnnlib").write_text(
        f"(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 {box[0]}))(assert (<= X_0 {box[1]})){literal}"
    )
    return verify(read(folder / "m.onnx", folder / "p.vnnlib"), timeout=3)


@pytest.mark.parametrize("kind", ["Sqrt", "Log"])
def test_nothing_is_proven_where_there_is_no_value(tmp_path: Path, kind: str) -> None:
    """At x < 0 onnxruntime compares NaN and returns 0, though no real value of the function lies below -30."""
    assert not isinstance(verdict_of(tmp_path, kind, (-1.0, 1.0), "(assert (<= Y_0 0.5))"), Verified)


@pytest.mark.parametrize("kind", ["Sqrt", "Log"])
def test_inside_the_domain_it_is_proven(tmp_path: Path, kind: str) -> None:
    assert isinstance(verdict_of(tmp_path, kind, (0.5, 1.0), "(assert (<= Y_0 0.5))"), Verified)
