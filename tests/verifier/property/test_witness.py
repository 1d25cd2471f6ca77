"""Witnesses read back as exactly the numbers that were replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from verifier.errors import InputError
from verifier.property import Source, parse, specify
from verifier.property.witness import format_witness, write_assignments
from verifier.query import Specification
from verifier.verdict import Counterexample

V1 = """(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)
(assert (and (<= X_0 1) (>= X_0 0) (<= X_1 1) (>= X_1 0) (<= Y_0 0)))"""
V2 = """(vnnlib-version <2.0>)
(declare-network f (declare-input A float32 [1,2]) (declare-output P float32 []))
(declare-network g (declare-input B real [1]) (declare-output Q real [2]))
(assert (and (<= A[0,0] 1.0) (>= A[0,0] 0.0) (== A[0,1] 1.0) (== B[0] 1.0) (<= P Q[1])))"""


def specification(text: str) -> Specification:
    return specify(parse(Source(text, "p")))


def counterexample(inputs: list[list[float]], outputs: list[list[float]]) -> Counterexample:
    return Counterexample(
        tuple(np.array(v, dtype=np.float32) for v in inputs),
        tuple(np.array(v, dtype=np.float32) for v in outputs),
        0,
        0.0,
        "onnxruntime",
    )


def test_version_1() -> None:
    text = format_witness(specification(V1), counterexample([[0.1, -1]], [[1e-20]]))
    assert text == "((X_0 0.10000000149011612)\n(X_1 -1.0)\n(Y_0 0.000000000000000000009999999682655225))"


def test_version_2_goes_network_by_network() -> None:
    found = counterexample([[0.5, 1], [1]], [[2], [3, 4]])
    expected = "A float32 [1,2]\n0.5\n1.0\nP float32 []\n2.0\nB real [1]\n1.0\nQ real [2]\n3.0\n4.0"
    assert format_witness(specification(V2), found) == expected


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_float32_numbers_read_back_exactly(values: list[float]) -> None:
    text = format_witness(specification(V1), counterexample([values], [[0]]))
    printed = [line.strip("()").split()[1] for line in text.splitlines()][:2]
    assert [float(p) for p in printed] == values and not any("e" in p for p in printed)
    assert [np.float32(p) for p in printed] == [np.float32(v) for v in values]


def test_assignments_as_tensor_files(tmp_path: Path) -> None:
    found = counterexample([[0.5, 1], [1]], [[2], [3, 4]])
    written = write_assignments(specification(V2), found, tmp_path)
    assert [p.name for p in written] == ["A.pb", "P.pb", "B.pb", "Q.pb"]
    tensors = [numpy_helper.to_array(onnx.load_tensor(str(p))) for p in written]
    assert [t.shape for t in tensors] == [(1, 2), (), (1,), (2,)] and tensors[3].tolist() == [3, 4]
    with pytest.raises(InputError, match="no such folder"):
        write_assignments(specification(V2), found, tmp_path / "none")
