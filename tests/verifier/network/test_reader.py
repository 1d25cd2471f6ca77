"""What the reader makes of a model's declarations: inputs, shapes, names, constants; and what it refuses."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds.graph import Input
from bounds.ops.relu import Relu
from verifier.errors import InputError, UnsupportedError, UnsupportedModelError
from verifier.network import read_network, summarise

Shape = Sequence[int | str | None]


def make(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Shape],
    outputs: Sequence[str],
    initialisers: dict[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    kind = options.pop("kind", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, None) for n in outputs],
        [numpy_helper.from_array(v, n) for n, v in (initialisers or {}).items()],
    )
    opset = options.pop("opset", 13)
    imports = [helper.make_opsetid("", opset), *options.pop("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **options)


def two_layers(batch: int | str | None = "batch") -> onnx.ModelProto:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b1"], ["p"]),
        helper.make_node("Relu", ["p"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], transB=1),
    ]
    weights = {
        "w1": rng.standard_normal((3, 4)),
        "b1": rng.standard_normal(4),
        "w2": rng.standard_normal((2, 4)),
        "b2": rng.standard_normal(2),
    }
    return make(nodes, {"x": [batch, 3]}, ["y"], {k: v.astype(np.float32) for k, v in weights.items()})


def replay(model: bytes, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def test_values_shapes_and_variables() -> None:
    network = read_network(two_layers().SerializeToString())
    assert [(v.name, v.dtype, v.shape, v.start, v.size) for v in network.inputs] == [("x", "float32", (1, 3), 0, 3)]
    assert [(v.name, v.dtype, v.shape, v.start, v.size) for v in network.outputs] == [("y", "float32", (1, 2), 0, 2)]
    assert network.opset == 13
    assert network.path is None
    x = np.random.default_rng(0).standard_normal((5, 1, 3)).astype(np.float32)
    ours = network.graph.evaluate(torch.from_numpy(x).double())[0]
    theirs = np.stack([replay(network.model, point)[0] for point in x])
    assert np.allclose(ours.numpy(), theirs, atol=1e-5)


def test_model_bytes_have_the_shapes_that_were_read() -> None:
    network = read_network(two_layers().SerializeToString(), dims={"batch": 2})
    session = onnxruntime.InferenceSession(network.model, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3]
    assert session.get_outputs()[0].shape == [2, 2]
    assert network.inputs[0].shape == (2, 3)


@pytest.mark.parametrize("batch", ["batch", None, 0, 1])
def test_unknown_and_zero_dimensions_become_one(batch: int | str | None) -> None:
    assert read_network(two_layers(batch).SerializeToString()).inputs[0].shape == (1, 3)


def test_dims_that_do_not_exist_or_make_no_sense() -> None:
    with pytest.raises(InputError, match="'rows' .*there are: batch"):
        read_network(two_layers().SerializeToString(), dims={"rows": 2})
    with pytest.raises(InputError, match="at least 1"):
        read_network(two_layers().SerializeToString(), dims={"batch": 0})


def test_a_model_without_batch_dimension() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    network = read_network(make(nodes, {"x": [3]}, ["y"], {"w": np.ones((3, 2), np.float32)}).SerializeToString())
    assert network.inputs[0].shape == (3,)
    assert network.outputs[0].shape == (2,)


def test_initialisers_listed_as_inputs_are_not_inputs() -> None:
    model = two_layers()
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
    network = read_network(model.SerializeToString())
    assert [v.name for v in network.inputs] == ["x"]
    assert np.allclose(replay(network.model, np.zeros((1, 3), np.float32))[0].shape, (1, 2))


def test_two_inputs_two_outputs_lie_one_behind_the_other() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["s"]), helper.make_node("Relu", ["a"], ["r"])]
    network = read_network(make(nodes, {"a": [2, 3], "b": [3]}, ["s", "r"]).SerializeToString())
    assert [(v.name, v.start, v.size) for v in network.inputs] == [("a", 0, 6), ("b", 6, 3)]
    assert [(v.name, v.start, v.size) for v in network.outputs] == [("s", 0, 6), ("r", 6, 6)]
    assert [network.graph.nodes[i].name for i in network.graph.outputs] == ["s", "r"]
    assert all(isinstance(network.graph.nodes[i].op, Input) for i in network.graph.inputs)


def test_an_output_that_is_an_input_and_an_identity() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    network = read_network(make(nodes, {"x": [1, 2]}, ["y", "z"]).SerializeToString())
    y, z = network.graph.evaluate(torch.tensor([[[-1.0, 2.0]]]))
    assert y.tolist() == [[[-1.0, 2.0]]]
    assert z.tolist() == [[[0.0, 2.0]]]


def test_double_networks() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = make(nodes, {"x": [1, 2]}, ["y"], {"w": np.full((2, 2), 1 / 3)}, kind=TensorProto.DOUBLE)
    network = read_network(model.SerializeToString())
    assert network.inputs[0].dtype == network.outputs[0].dtype == "float64"
    assert network.graph.evaluate(torch.ones(1, 1, 2, dtype=torch.float64))[0].tolist() == [[[2 / 3, 2 / 3]]]


def test_gzip_and_path(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(two_layers().SerializeToString()))
    assert read_network(path).path == path
    assert read_network(tmp_path / "net.onnx").path == path


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = two_layers()
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    weight[1, 3] = bad
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(weight, "w2"))
    with pytest.raises(InputError, match="'w2'.*NaN or infinity.*1 of 8"):
        read_network(model.SerializeToString())


def test_weights_of_huge_but_finite_sum_are_accepted() -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = np.full((2, 2), 1e308)
    model = make(nodes, {"x": [1, 2]}, ["y"], {"w": weight}, kind=TensorProto.DOUBLE)
    assert read_network(model.SerializeToString(), checked=False).inputs[0].size == 2


def test_all_unsupported_operators_are_reported_at_once() -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["a"], name="d1"),
        helper.make_node("Det", ["x"], ["b"], name="d2"),
        helper.make_node("Add", ["a", "b"], ["c"], name="fine"),
        helper.make_node("Special", ["c"], ["e"], name="s1", domain="com.example"),
        helper.make_node("Hardmax", ["e"], ["y"], name="h1"),
    ]
    model = make(nodes, {"x": [2, 2]}, ["y"], imports=[helper.make_opsetid("com.example", 1)])
    with pytest.raises(UnsupportedModelError) as caught:
        read_network(model.SerializeToString())
    first, second, third = caught.value.operators
    assert first == "Det (2 nodes, first 'd1')"
    assert second.startswith("Special (1 node, first 's1'")
    assert "com.example" in second
    assert third == "Hardmax (1 node, first 'h1')"
    assert all(o in str(caught.value) for o in caught.value.operators)
    assert caught.value.exit_code == 3


def test_subgraphs_are_unsupported() -> None:
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "b", [], [result])
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch, name="choice")]
    model = make(nodes, {"x": [1]}, ["y"], {"flag": np.array(True)})
    with pytest.raises(UnsupportedModelError, match=r"If \(1 node, first 'choice'\)"):
        read_network(model.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "shape"), [(TensorProto.INT64, [1, 2]), (TensorProto.FLOAT16, [1, 2]), (TensorProto.FLOAT, None)]
)
def test_inputs_of_other_kinds(kind: int, shape: Shape | None) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, ["y"], kind=kind, opset=14)  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="'x'"):
        read_network(model.SerializeToString())


def test_tensors_of_absurd_size_are_refused_before_they_exist() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(UnsupportedError, match="input 'x' has shape"):
        read_network(make([relu], {"x": [1 << 20, 1 << 20]}, ["y"]).SerializeToString())
    grown = [helper.make_node("Expand", ["x", "s"], ["y"], name="grow")]
    sizes = {"s": np.array([1 << 20, 1 << 20], np.int64)}
    with pytest.raises(UnsupportedError, match="'grow'.*has shape"):
        read_network(make(grown, {"x": [1, 1]}, ["y"], sizes).SerializeToString())


def test_no_input_at_all() -> None:
    model = make([helper.make_node("Relu", ["w"], ["y"])], {}, ["y"], {"w": np.ones(2, np.float32)})
    with pytest.raises(InputError, match="no input"):
        read_network(model.SerializeToString())


def test_shapes_that_do_not_fit_name_the_node() -> None:
    model = two_layers()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((5, 4), np.float32), "w1"))
    with pytest.raises(InputError, match=r"'first' \(MatMul\).*\[1, 3\].*\[5, 4\]"):
        read_network(model.SerializeToString())


def test_local_functions_are_written_out() -> None:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["c"],
        [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Relu", ["b"], ["c"])],
        [helper.make_opsetid("", 13)],
    )
    model = make(
        [helper.make_node("Twice", ["x"], ["y"], domain="local")],
        {"x": [1, 2]},
        ["y"],
        imports=[helper.make_opsetid("local", 1)],
        functions=[function],
    )
    network = read_network(model.SerializeToString())
    assert network.graph.evaluate(torch.tensor([[[-1.0, 2.0]]]))[0].tolist() == [[[0.0, 4.0]]]


def test_dead_nodes_are_dropped_and_names_are_tensor_names() -> None:
    model = two_layers()
    model.graph.node.append(helper.make_node("Relu", ["h"], ["dead"]))
    graph = read_network(model.SerializeToString()).graph
    names = [n.name for n in graph.nodes]
    assert "dead" not in names
    # MatMul and Add are merged under the name of the second.
    assert {"x", "p", "r", "y"} <= set(names)
    assert "h" not in names
    assert sum(isinstance(n.op, Relu) for n in graph.nodes) == 1


def test_summary_needs_no_reading(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(two_layers().SerializeToString())
    summary = summarise(path)
    assert summary["inputs"] == [{"name": "x", "type": "float", "shape": ["batch", 3]}]
    assert summary["operators"] == {"Add": 1, "Gemm": 1, "MatMul": 1, "Relu": 1}
    assert summary["parameters"] == 12 + 4 + 8 + 2
    assert summary["opset"] == 13
    assert summary["unsupported"] == []


def test_reading_does_not_import_the_compiler(tmp_path: Path) -> None:
    """torch's compiler and sympy cost more than a second; shapes and the load check must do without them."""
    path = tmp_path / "net.onnx"
    path.write_bytes(two_layers().SerializeToString())
    code = (
        "import sys; from verifier.network import read_network; read_network(sys.argv[1]); "
        "print(*[m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
