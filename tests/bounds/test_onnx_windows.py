"""Sliding windows and resampling as read from ONNX, against onnxruntime on random attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.graph import Builder, Graph
from bounds.ops import readers
from bounds.ops.base import OnnxNode, UnsupportedOperatorError

Arrays = dict[str, np.ndarray]


def read(op_type: str, attributes: dict[str, Any], x: np.ndarray, constants: Arrays, opset: int) -> Graph:
    """The graph of one node; an empty name stands for an operand that is left out."""
    build = Builder()
    ids: list[int | None] = [build.input(x.shape, "x")]
    for name, value in constants.items():
        ids.append(None if name.startswith("none") else build.constant(torch.from_numpy(value)))
    node = OnnxNode(op_type, "node", attributes, tuple(ids), 1, opset)
    return build.finish(readers()[op_type].from_onnx(node, build)[:1])


def replay(op_type: str, attributes: dict[str, Any], x: np.ndarray, constants: Arrays, opset: int) -> np.ndarray | None:
    """What onnxruntime computes; None where it refuses the node."""
    names = ["x", *("" if name.startswith("none") else name for name in constants)]
    node = helper.make_node(op_type, names, ["y"], name="node", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in constants.items() if not n.startswith("none")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        result: np.ndarray = session.run(None, {"x": x})[0]
    except Exception:  # noqa: BLE001 - onnxruntime raises classes of its own for nodes that it refuses
        return None
    return result


def compare(op_type: str, attributes: dict[str, Any], x: np.ndarray, constants: Arrays, opset: int) -> bool:
    """Assert agreement; False where one of the two refuses the node."""
    expected = replay(op_type, attributes, x, constants, opset)
    try:
        graph = read(op_type, attributes, x, constants, opset)
    except (UnsupportedOperatorError, ValueError) as error:
        # onnxruntime lets a window be larger than what it slides over, and lie in the padding altogether.
        known = "padding altogether" in str(error) or "does not fit an axis" in str(error)
        if expected is not None and not known:
            raise
        return False
    if expected is None:
        return False
    value = graph.evaluate(torch.from_numpy(np.stack([x, x])).double())[0]
    assert value.shape[1:] == expected.shape, (attributes, x.shape, tuple(value.shape), expected.shape)
    np.testing.assert_allclose(value[1].numpy(), expected, rtol=1e-5, atol=1e-5, err_msg=str((attributes, x.shape)))
    return True


def some(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    return [int(v) for v in rng.integers(low, high + 1, count)]


def geometry(rng: np.random.Generator, rank: int, kernel: list[int], most_pad: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": some(rng, 1, 3, rank)}
    auto = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        attributes["pads"] = [min(p, k - 1) for p, k in zip(some(rng, 0, most_pad, 2 * rank), kernel * 2, strict=True)]
    else:
        attributes["auto_pad"] = auto
    return attributes


def data(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("rank", [1, 2])
def test_convolutions(rank: int) -> None:
    rng = np.random.default_rng(rank)
    agreed = 0
    for _ in range(20):
        groups = int(rng.integers(1, 3))
        kernel = some(rng, 1, 3, rank)
        attributes = geometry(rng, rank, kernel, 2) | {"group": groups}
        if "auto_pad" not in attributes:
            attributes["dilations"] = some(rng, 1, 2, rank)
        x = data(rng, 1, 2 * groups, *some(rng, 3, 7, rank))
        weights: Arrays = {"w": data(rng, 2 * groups, 2, *kernel)}
        if rng.random() < 0.5:
            weights["b"] = data(rng, 2 * groups)
        agreed += compare("Conv", attributes, x, weights, 13)
    assert agreed > 12


@pytest.mark.parametrize("rank", [1, 2])
def test_transposed_convolutions(rank: int) -> None:
    rng = np.random.default_rng(rank)
    agreed = 0
    for _ in range(30):
        groups = int(rng.integers(1, 3))
        kernel = some(rng, 1, 3, rank)
        attributes = geometry(rng, rank, kernel, 1) | {"group": groups}
        if "auto_pad" not in attributes:
            attributes["dilations"] = some(rng, 1, 2, rank)
            if rng.random() < 0.5:
                attributes["output_padding"] = [int(rng.integers(0, s)) for s in attributes["strides"]]
        x = data(rng, 1, 2 * groups, *some(rng, 2, 5, rank))
        if rng.random() < 0.3:
            attributes.pop("pads", None)
            attributes.pop("output_padding", None)
            attributes.pop("dilations", None)
            full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], attributes["strides"], kernel, strict=True)]
            attributes["output_shape"] = [int(n - rng.integers(0, 2)) for n in full]
        weights: Arrays = {"w": data(rng, 2 * groups, 3, *kernel)}
        if rng.random() < 0.5:
            weights["b"] = data(rng, 3 * groups)
        agreed += compare("ConvTranspose", attributes, x, weights, 11)
    assert agreed > 12


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("op_type", ["AveragePool", "MaxPool"])
def test_pooling(op_type: str, rank: int) -> None:
    rng = np.random.default_rng(rank)
    agreed = 0
    for _ in range(35):
        kernel = some(rng, 1, 3, rank)
        attributes = geometry(rng, rank, kernel, 2) | {"ceil_mode": int(rng.integers(0, 2))}
        if op_type == "AveragePool":
            attributes["count_include_pad"] = int(rng.integers(0, 2))
        if "auto_pad" in attributes:
            del attributes["ceil_mode"]
        elif rng.random() < 0.4:
            attributes["dilations"] = some(rng, 1, 2, rank)
        agreed += compare(op_type, attributes, data(rng, 1, 2, *some(rng, 3, 8, rank)), {}, 19)
    assert agreed > 15


RULES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("nearest", ROUNDINGS)
def test_resize(rule: str, nearest: str) -> None:
    rng = np.random.default_rng(5)
    attributes = {"mode": "nearest", "coordinate_transformation_mode": rule, "nearest_mode": nearest}
    agreed = 0
    for factor in (2.0, 0.5, 1.5):
        x = data(rng, 1, 2, 4, 6)
        scales = np.array([1, 1, factor, 2.0], dtype=np.float32)
        agreed += compare("Resize", attributes, x, {"none": np.zeros(0), "scales": scales}, 19)
        sizes = np.array([1, 2, 4 * factor, 9], dtype=np.int64)
        constants = {"none1": np.zeros(0), "none2": np.zeros(0), "sizes": sizes}
        agreed += compare("Resize", attributes, x, constants, 19)
    assert agreed >= 5


@pytest.mark.parametrize(("op_type", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_older_resampling(op_type: str, opset: int) -> None:
    rng = np.random.default_rng(0)
    for factors in ((2.0, 2.0), (3.0, 1.0), (1.5, 2.5)):
        scales = np.array([1, 1, *factors], dtype=np.float32)
        assert compare(op_type, {"mode": "nearest"}, data(rng, 1, 2, 4, 3), {"scales": scales}, opset)
    scales = np.array([1, 1, 0.5, 0.6], dtype=np.float32)
    if op_type == "Resize":
        assert compare(op_type, {"mode": "nearest"}, data(rng, 1, 2, 4, 5), {"scales": scales}, opset)
