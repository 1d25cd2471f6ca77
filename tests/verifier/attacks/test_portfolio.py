"""Names of attacks, and what is run where none is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

import verifier
from verifier.attacks.classifier import Classifier
from verifier.attacks.portfolio import ATTACKS, Target, ensemble, named
from verifier.errors import InputError


def unreadable(path: Path) -> Path:
    """The classifier ``x -> W round(x)`` whose rounding is written with an operator that is not read (Det of a matrix
    of one element): three inputs, two classes."""
    nodes = [
        helper.make_node("Reshape", ["x", "single"], ["matrices"]),
        helper.make_node("Det", ["matrices"], ["values"]),
        helper.make_node("Reshape", ["values", "back"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W"], ["y"]),
    ]
    constants = {
        "single": np.array([-1, 3, 1, 1], dtype=np.int64),
        "back": np.array([-1, 3], dtype=np.int64),
        "W": np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, 1.0]], dtype=np.float32),
    }
    graph = helper.make_graph(
        nodes, "unreadable", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_names_are_those_of_the_table_and_unknown_ones_are_listed() -> None:
    for norm in ("inf", "2", "1", "0"):
        target = Target.of(norm, (1, 1, 8, 8))
        assert [method.name for method in named("pgd, apgd-t,square", target)] == ["pgd", "apgd-t", "square"]
        assert len(named(",".join(ATTACKS), target)) == len(ATTACKS)
    with pytest.raises(InputError, match="the known ones are fgsm"):
        named("pgd,magic", Target("inf"))
    with pytest.raises(InputError, match="the known ones are inf, 2, 1 and 0"):
        Target.of("3", (4,))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 3, 8, 6), (3, 8, 6)), ((1, 1, 8, 8), (1, 8, 8)), ((1, 8, 8, 3), None), ((1, 64), None), ((5,), None)],
)
def test_images_are_told_from_flat_inputs(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    assert Target.of("inf", shape).shape == expected


@pytest.mark.parametrize("norm", ["inf", "2", "1", "0"])
def test_every_ensemble_runs_to_its_end(norm: str, checkout: Path) -> None:
    digits = load_digits()
    x, y = (digits.images[1400:1404] / 16).astype(np.float32), digits.target[1400:1404]
    model = checkout / "benchmarks" / "digits" / "digits.onnx"
    found = verifier.robust_accuracy(model, x, y, epsilon="1/100" if norm != "0" else 1, norm=norm, data_range=(0, 1))
    assert found.finished
    assert [row.attack for row in found.rows] == [m.name for m in ensemble(True, Target.of(norm, (1, 1, 8, 8)))]
    broken = [sum(row.found for row in found.rows[:k]) for k in range(len(found.rows))]
    assert [row.tried for row in found.rows] == [found.rows[0].tried - count for count in broken]


@pytest.mark.parametrize("norm", ["inf", "2", "1", "0"])
def test_a_model_that_cannot_be_read_is_attacked_by_queries(norm: str, tmp_path: Path) -> None:
    model = Classifier.of(unreadable(tmp_path / "u.onnx"))
    assert model.graph is None
    assert "Det" in model.why
    x = np.array([[1.0, 0.25, 0.0], [0.5, 0.0, 0.75]], dtype=np.float32)
    reach = {"inf": 0.5, "2": 1.0, "1": 1.5, "0": 3}[norm]
    found = verifier.robust_accuracy(model, x, epsilon=reach, norm=norm, data_range=(0, 1))
    assert found.finished
    assert found.robust_accuracy == 0
    assert set(found.labels.tolist()) == {0, 1}


def test_gradients_of_a_model_that_has_none_are_refused(tmp_path: Path) -> None:
    x = np.array([[1.0, 0.25, 0.0]], dtype=np.float32)
    with pytest.raises(InputError, match="needs gradients.*square"):
        verifier.robust_accuracy(
            unreadable(tmp_path / "u.onnx"), x, epsilon=0.1, attacks=named("pgd", Target("inf"))
        )
