"""What onnxruntime returns lies within bounds of semantics "float32": networks as stored, and each library function."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from bounds import Box, Crown, Interval, compute_bounds
from bounds.ops.registry import onnx_readers
from verifier.network import Network, read_network

FUNCTIONS = (
    "Sigmoid Tanh Exp Erf Log Sqrt Reciprocal Sin Cos Tan Softplus Elu Selu Gelu HardSigmoid HardSwish LeakyRelu Abs "
    "Softmax LogSoftmax"
).split()
POSITIVE = ("Log", "Sqrt", "Reciprocal")
NETWORKS = ("acasxu", "mnist_fc", "collins_rul_cnn", "dist_shift", "cifar10_resnet", "oval21", "tllverifybench", "vit")


def outputs(network: Network, points: np.ndarray, level: onnxruntime.GraphOptimizationLevel) -> np.ndarray:
    """``[N, outputs]`` of onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(network.model, options, providers=["CPUExecutionProvider"])
    feeds = ({network.inputs[0].name: x.reshape(network.inputs[0].shape)} for x in points)
    return np.stack([session.run(None, feed)[0].reshape(-1) for feed in feeds]).astype(np.float64)


LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_stays_inside(vnncomp_dir: Path, name: str) -> None:
    """At corners and random points of [0, 1]: bounds of each point alone (the forward error), and of all."""
    path = sorted((vnncomp_dir / name).rglob("*.onnx*"))[0]
    network = read_network(path, normalised=False, checked=False)
    rng = np.random.default_rng(0)
    shape = network.inputs[0].shape
    points = np.concatenate([rng.integers(0, 2, (2, *shape)), rng.random((2, *shape))]).astype(np.float32)
    x = torch.from_numpy(points)
    crown = Crown() if network.inputs[0].size < 100 else Interval()
    for method, box in ((Interval(), Box(x, x)), (crown, Box(x, x)), (Interval(), Box(x[:1] * 0, x[:1] * 0 + 1))):
        found = compute_bounds(network.graph, box, method, semantics="float32")
        lower, upper = found.lower.flatten(1).numpy(), found.upper.flatten(1).numpy()
        assert np.isfinite(lower).all()
        for level in LEVELS:
            y = outputs(network, points, level)
            assert (lower <= y).all() and (y <= upper).all()


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n in onnx_readers()])
def test_library_functions_are_as_good_as_assumed(name: str) -> None:
    """One function at many float32 points, each a box of its own: the assumption about libraries, put to the test."""
    width = 4
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"])], "one", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    network = read_network(onnx.ModelProto.SerializeToString(model), checked=False)
    rng = np.random.default_rng(0)
    sizes = 10.0 ** rng.uniform(-6, 2 if name not in ("Exp", "Sin", "Cos", "Tan") else 1, (500, 1, width))
    signs = 1 if name in POSITIVE else rng.choice([-1, 1], sizes.shape)
    points = (sizes * signs).astype(np.float32)
    x = torch.from_numpy(points)
    found = compute_bounds(network.graph, Box(x, x), Interval(), semantics="float32")
    y = outputs(network, points, LEVELS[0])
    assert (found.lower.flatten(1).numpy() <= y).all() and (y <= found.upper.flatten(1).numpy()).all()
