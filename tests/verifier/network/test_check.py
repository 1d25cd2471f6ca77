"""The load check finds a graph that is not the model, and says which node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.graph import Constant
from verifier.errors import InternalError, UnsupportedError
from verifier.network.check import check_network
from verifier.network.reader import Network, read_network


def network(outputs: tuple[str, ...] = ("y",)) -> Network:
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Conv", ["x", "k", "c"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    weights = {"k": (2, 1, 3, 3), "c": (2,), "w": (32, 3), "b": (3,)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return read_network(model.SerializeToString())


def changed(read: Network, name: str, index: tuple[int, ...], by: float) -> Network:
    constants = dict(read.graph.constants)
    node = next(n for n in read.graph.nodes if n.name == name)
    value = constants[node.id].value.clone()
    value[index] += by
    constants[node.id] = Constant(value)
    return replace(read, graph=read.graph.with_constants(constants))


def test_a_faithful_graph_passes() -> None:
    check_network(network())


@pytest.mark.parametrize(
    ("constant", "index", "node"),
    [("k", (1, 0, 2, 2), "h"), ("c", (0,), "h"), ("w", (31, 1), "y"), ("w", (0, 0), "y"), ("b", (2,), "y")],
)
def test_one_wrong_weight_is_found_at_its_node(constant: str, index: tuple[int, ...], node: str) -> None:
    with pytest.raises(InternalError, match=f"node '{node}' .*disagrees"):
        check_network(changed(network(), constant, index, 0.05))


def test_an_operator_in_another_ones_place_is_found() -> None:
    read = network()
    nodes = list(read.graph.nodes)
    first = next(n for n in nodes if n.name == "r")
    nodes[first.id] = replace(first, inputs=(first.inputs[0],), op=nodes[first.id].op, name="h")
    with pytest.raises(InternalError, match="node 'h'"):
        check_network(replace(read, graph=replace(read.graph, nodes=tuple(nodes))))


def test_a_wrong_shape_is_found() -> None:
    read = network()
    other = read_network(read.model, checked=False)
    nodes = [replace(n, name="f") if n.name == "r" else n for n in other.graph.nodes]
    with pytest.raises(InternalError, match=r"node 'f' .*shape \[1, 1, 2, 4, 4\]|node 'f' .*shape"):
        check_network(replace(other, graph=replace(other.graph, nodes=tuple(nodes))))


def test_swapped_outputs_are_found() -> None:
    read = network(("y", "f"))
    graph = replace(read.graph, outputs=read.graph.outputs[::-1])
    with pytest.raises(InternalError):
        check_network(replace(read, graph=graph))


def test_nan_in_our_graph_is_found() -> None:
    with pytest.raises(InternalError, match="nan"):
        check_network(changed(network(), "b", (0,), float("nan")))


def test_a_model_that_onnxruntime_does_not_load_is_unsupported() -> None:
    read = network()
    model = onnx.ModelProto.FromString(read.model)
    model.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(UnsupportedError, match="onnxruntime cannot load"):
        check_network(replace(read, model=model.SerializeToString()))


def test_the_check_leaves_torch_settings_alone() -> None:
    before = torch.get_default_dtype(), torch.get_num_threads()
    check_network(network())
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before
