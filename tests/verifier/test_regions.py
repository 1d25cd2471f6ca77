"""Regions without a property file: balls, boxes, labels, and a normalisation in front of the model."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from verifier.errors import InputError, UnsupportedError
from verifier.query import Query
from verifier.regions import from_box, normalised, robustness
from verifier.replay import Replayer

WEIGHT = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
POINT = np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three classes, linear in an image of three channels."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(WEIGHT, "W")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def exact_box(query: Query) -> list[tuple[Fraction, Fraction]]:
    s = query.specification
    return [(s.constants[int(a)], s.constants[int(b)]) for a, b in zip(s.lower[0], s.upper[0], strict=True)]


def test_the_ball_is_exact(model: Path) -> None:
    query = robustness(model, POINT, "8/255", data_range=(0, "1"))
    radius = Fraction(8, 255)
    assert exact_box(query) == [
        (max(Fraction(float(v)) - radius, Fraction(0)), min(Fraction(float(v)) + radius, Fraction(1)))
        for v in POINT.flatten()
    ]
    label = int(np.argmax(POINT.flatten() @ WEIGHT))
    assert query.notes == (f"label {label}: the model's own class",)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_clause_for_each_other_class(model: Path, label: int) -> None:
    query = robustness(model, POINT, 0.5, label=label)
    s = query.specification
    assert s.literals_of.tolist() == [0, 1, 2] and s.clauses_of.tolist() == [0, 2] and not query.notes
    points = np.random.default_rng(1).uniform(-0.5, 1.5, size=(200, 12)).astype(np.float32)
    cases, replayer = query.cases, Replayer(query)
    points = np.clip(points, cases.inner_lower, cases.inner_upper)
    outputs = points.astype(np.float64) @ WEIGHT
    forms = query.graph.evaluate(torch.from_numpy(points.astype(np.float64)))[0].numpy()
    true = (cases.sign * forms[:, cases.form] <= cases.threshold).any(axis=1)
    others = np.delete(outputs, label, axis=1).max(axis=1)
    assert (true == (others >= outputs[:, label])).all() and 0 < true.sum() < 200
    assert (replayer.replay(points[~true]) is None) and replayer.replay(points[true][:1]) is not None


def test_boxes(model: Path) -> None:
    query = from_box(model, POINT - 1, POINT + 1, label=2)
    assert exact_box(query)[0] == (-1, 1) and query.models[0].inputs[0].shape == (1, 3, 2, 2)
    empty = from_box(model, POINT, POINT - np.eye(12, dtype=np.float32)[3].reshape(POINT.shape))
    assert empty.cases.lower.shape == (0, 12) and "lower > upper" in empty.notes[0]
    assert empty.specification.refuted == 2


def test_a_normalisation_is_part_of_the_replayed_model(model: Path) -> None:
    mean, std = ["0.485", "0.456", "0.406"], ["0.229", "0.224", "0.225"]
    query = robustness(normalised(model, mean, std), POINT, "1/255", label=0)
    channels = [np.array([np.float32(v) for v in values]).reshape(1, 3, 1, 1) for values in (mean, std)]
    expected = ((POINT - channels[0]) / channels[1]).reshape(1, 12) @ WEIGHT
    raw = Replayer(query).run(POINT.flatten())[0]
    # A sum of twelve float32 products is off by their sizes, not by what is left when they cancel.
    room = 1e-6 * float((np.abs((POINT - channels[0]) / channels[1]).reshape(1, 12) @ np.abs(WEIGHT)).max())
    np.testing.assert_allclose(raw, expected[0], rtol=0, atol=room)
    forms = query.graph.evaluate(torch.from_numpy(POINT.reshape(1, 12).astype(np.float64)))[0]
    np.testing.assert_allclose(forms.numpy()[0], [raw[0] - raw[1], raw[0] - raw[2]], rtol=0, atol=2 * room)
    assert exact_box(query)[1][1] - exact_box(query)[1][0] == Fraction(2, 255)
    same = normalised(normalised(model, 0, 1), 0.5, "0.5")
    half = Replayer(robustness(same, POINT, 0, label=0)).run(POINT.flatten())[0]
    np.testing.assert_allclose(half, ((POINT - 0.5) / 0.5).reshape(12) @ WEIGHT, rtol=1e-5)


def test_wrong_arguments_are_explained(model: Path) -> None:
    inf = POINT.copy()
    inf[0, 0, 0, 0] = np.inf
    for arguments, what in (
        ({"x": POINT[0, 0]}, "has 4 elements .* has 12"),
        ({"x": inf}, "element 0 is NaN or infinite"),
        ({"x": np.array(["a"])}, "array of numbers"),
        ({"epsilon": -1}, "negative"),
        ({"epsilon": "1/0"}, "epsilon: '1/0' is not a finite number"),
        ({"label": 3}, "classes 0 to 2"),
        ({"data_range": (0, 0.5)}, "outside the data range"),
    ):
        with pytest.raises(InputError, match=what):
            robustness(model, **({"x": POINT, "epsilon": 0.1} | arguments))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="norm '2'"):
        robustness(model, POINT, 0.1, norm="2")
    with pytest.raises(InputError, match="must not be zero"):
        normalised(model, 0, 0)
    with pytest.raises(InputError, match="2 values fit no axis|mean: 5 values"):
        normalised(model, [0] * 5, 1)
