"""Networks with jumps end to end, and properties that only compare the outputs of a last activation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bounds import Box
from bounds.graph import Builder
from bounds.ops.argmax import Greatest, Leading
from bounds.ops.gemm import Gemm
from bounds.ops.jumps import Floor, Step
from bounds.ops.shaping import Reshape
from bounds.ops.softmax import Softmax
from verifier.attacks.straight_through import has_jumps, surrogate
from verifier.network.normalise import without_increasing_end
from verifier.pipeline import attack, verify
from verifier.query import Query, read
from verifier.verdict import Verified

Nodes = list[tuple[str, list[str], str]]


def ask(folder: Path, nodes: Nodes, weights: dict[str, np.ndarray], box: tuple[float, float], lines: str) -> Query:
    """A query about a chain of nodes from ``x`` ``[1, n]`` to ``y`` ``[1, 2]``; every input lies in the box."""
    size = weights["w0"].shape[0]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    declared = [
        f"(declare-const X_{k} Real)(assert (>= X_{k} {box[0]}))(assert (<= X_{k} {box[1]}))" for k in range(size)
    ]
    text = "\n".join([*declared, "(declare-const Y_0 Real)", "(declare-const Y_1 Real)", lines])
    (folder / "p.vnnlib").write_text(text)
    return read(folder / "m.onnx", folder / "p.vnnlib")


def binarised(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w0": rng.normal(size=(3, 12)),
        "b0": rng.normal(size=12) * 0.3,
        "w1": np.sign(rng.normal(size=(12, 12))),
        "b1": rng.normal(size=12) * 0.3,
        "w2": rng.normal(size=(12, 2)),
    }


LAYERS: Nodes = [
    ("MatMul", ["x", "w0"], "a"),
    ("Add", ["a", "b0"], "b"),
    ("Sign", ["b"], "c"),
    ("MatMul", ["c", "w1"], "d"),
    ("Add", ["d", "b1"], "e"),
    ("Sign", ["e"], "f"),
    ("MatMul", ["f", "w2"], "y"),
]


@pytest.mark.parametrize("seed", range(3))
def test_binarised_networks(tmp_path: Path, seed: int) -> None:
    """The search passes through the jumps; a threshold that no value can reach is refuted."""
    weights = binarised(seed)
    rng = np.random.default_rng([seed, 1])
    x = rng.uniform(-1, 1, (20000, 3))
    outputs = np.sign(np.sign(x @ weights["w0"] + weights["b0"]) @ weights["w1"] + weights["b1"]) @ weights["w2"]
    rare = float(np.sort(np.unique(outputs[:, 0]))[1])
    found = verify(ask(tmp_path, LAYERS, weights, (-1, 1), f"(assert (<= Y_0 {rare + 1e-3}))"), timeout=20)
    assert found.word == "sat"
    beyond = float(-np.abs(weights["w2"][:, 0]).sum()) - 1e-3
    assert verify(ask(tmp_path, LAYERS, weights, (-1, 1), f"(assert (<= Y_0 {beyond}))"), timeout=20).word == "unsat"


def test_a_jump_at_an_end_of_the_box_counts(tmp_path: Path) -> None:
    """Sign(0) = 0: a box that begins at the jump holds two values, and bounds that forget one are wrong."""
    weights = {"w0": np.array([[1.0, 1.0]])}
    nodes: Nodes = [("Sign", ["x"], "a"), ("MatMul", ["a", "w0"], "y")]
    for low, threshold, expected in ((0, 0.5, "sat"), (0.1, 0.5, "unsat"), (0, -0.5, "unsat"), (-0.1, -0.5, "sat")):
        query = ask(tmp_path, nodes, weights, (low, 1), f"(assert (<= Y_0 {threshold}))")
        assert verify(query, timeout=5).word == expected


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Sigmoid", "Tanh"])
def test_order_of_outputs_needs_no_last_activation(tmp_path: Path, kind: str) -> None:
    """Even where the activation is saturated: without it these comparisons are easy."""
    weights = {"w0": np.array([[90.0, 60.0], [20.0, 10.0]])}
    nodes: Nodes = [("MatMul", ["x", "w0"], "a"), (kind, ["a"], "y")]
    query = ask(tmp_path, nodes, weights, (0.5, 1), "(assert (or (and (<= Y_0 Y_1))))")
    assert not any(type(n.op).__name__ == kind for n in query.graph.nodes)
    assert any("order" in note for note in query.notes)
    verdict = verify(query, timeout=10)
    assert isinstance(verdict, Verified)
    assert verdict.real_only  # float32 returns 1 and 1 where the activation is saturated
    kept = ask(tmp_path, nodes, weights, (0.5, 1), "(assert (<= Y_0 -2.5))")
    assert any(type(n.op).__name__ == kind for n in kept.graph.nodes)
    assert not any("order" in note for note in kept.notes)


def test_order_is_kept_only_within_one_softmax() -> None:
    for shape, left in (((2, 2), False), ((1, 4), True)):
        build = Builder()
        end = build.add(Reshape((4,)), build.add(Softmax(-1), build.input(shape, "x")))
        graph = build.finish([end])
        assert (without_increasing_end(graph).outputs == graph.inputs) == left


def test_chained_steps_are_one(tmp_path: Path) -> None:
    """``sign(sign(x) + c)`` for shifts that move none, one or two of the values over 0."""
    for shift, expected in (
        (0.1, (-1.0, 1.0, 1.0)),
        (-0.5, (-1.0, -1.0, 1.0)),
        (1.0, (0.0, 1.0, 1.0)),
        (2.0, (1.0,) * 3),
    ):
        weights = {"w0": np.array([[1.0, 1.0]]), "c": np.full((1, 2), shift)}
        nodes: Nodes = [
            ("MatMul", ["x", "w0"], "a"),
            ("Sign", ["a"], "b"),
            ("Add", ["b", "c"], "d"),
            ("Sign", ["d"], "y"),
        ]
        graph = ask(tmp_path, nodes, weights, (-1, 1), "(assert (<= Y_0 0.5))").graph
        assert [n.op for n in graph.nodes if isinstance(n.op, Step)] == [Step(*expected)]
        values = graph.evaluate(torch.tensor([[-0.5], [0.0], [0.5]]))[0][:, 0]
        assert tuple(values.tolist()) == expected
    weights = {"w0": np.array([[1.0, 1.0]]), "c": np.array([[0.1, 0.2]])}
    graph = ask(tmp_path, nodes, weights, (-1, 1), "(assert (<= Y_0 0.5))").graph
    assert sum(isinstance(n.op, Step) for n in graph.nodes) == 2


def test_gradients_pass_through_jumps_and_values_stay() -> None:
    build = Builder()
    x = build.input((3,), "x")
    stepped = build.add(Step(-1.0, 0.0, 1.0), x)
    summed = build.add(Gemm(), stepped, build.constant(torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.25]])))
    graph = build.finish([build.add(Floor(), summed)])
    assert has_jumps(graph)
    through = surrogate(graph)
    points = torch.tensor([[0.3, -0.2, 0.0], [-1.0, 0.4, 2.0]], requires_grad=True)
    values = through.evaluate(points)[0]
    assert torch.equal(values.detach(), graph.evaluate(points.detach())[0])
    values[:, 0].sum().backward()
    assert points.grad is not None
    assert bool((points.grad > 0).all())  # all weights of the first output are positive
    for op in (Greatest(False), Leading(3, False)):
        place = Builder()
        z = place.input((3,), "x")
        through = surrogate(place.finish([place.add(op, z)]))
        points = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
        (value,) = through.evaluate(points)
        assert torch.equal(value.detach(), op.forward(points.detach()))
        value.sum().backward()
        assert points.grad is not None
        assert float(points.grad[0, -1]) > 0  # the last of two differences or elements favours the last place
    plain = Builder()
    y = plain.input((2,), "x")
    smooth = plain.finish([plain.add(Gemm(), y, plain.constant(torch.eye(2)))])
    assert surrogate(smooth) is smooth


def test_gradients_follow_the_signs_that_a_box_can_change() -> None:
    """Of two steps one is out of reach: without the box its slope would lead, with it the other's does."""
    build = Builder()
    x = build.input((3,), "x")
    moved = build.add(Gemm(), x, build.constant(torch.eye(3)), build.constant(torch.tensor([0.02, 0.3, 5.0])))
    stepped = build.add(Step(-1.0, 0.0, 1.0), moved)
    graph = build.finish([build.add(Gemm(), stepped, build.constant(torch.tensor([[1.0], [100.0], [1.0]])))])
    around = Box.around(torch.zeros(3, dtype=torch.float64), 0.05)
    slopes = []
    for through in (surrogate(graph), surrogate(graph, around)):
        point = torch.zeros(1, 3, requires_grad=True)
        through.evaluate(point)[0].sum().backward()
        assert point.grad is not None
        slopes.append(point.grad[0])
    assert slopes[0][1] > slopes[0][0]
    assert slopes[1][1] < 1e-3 * slopes[1][0]


def test_a_network_that_only_adds(tmp_path: Path) -> None:
    """Its gradient is one number seen from every input: the attacks may not write into it."""
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    for limit, word in ((2, "sat"), (2.0001, "unsat")):
        lines = [f"(declare-const X_{k} Real)(assert (>= X_{k} 0))(assert (<= X_{k} 1))" for k in range(2)]
        lines += ["(declare-const Y_0 Real)", f"(assert (>= Y_0 {limit}))"]
        (tmp_path / "p.vnnlib").write_text("\n".join(lines))
        assert verify(read(tmp_path / "m.onnx", tmp_path / "p.vnnlib"), timeout=20).word == word


@pytest.mark.parametrize("kind", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_place_of_an_extreme_score(tmp_path: Path, kind: str, whole: bool) -> None:
    """A class is reached or not; the place itself is an output (an integer), or a number that is computed with."""
    rng = np.random.default_rng(3)
    weights = {"w0": rng.normal(size=(3, 8)), "b0": rng.normal(size=8) * 0.3, "w1": rng.normal(size=(8, 6))}
    weights = {name: w.astype(np.float32) for name, w in weights.items()}
    x = rng.uniform(-0.5, 0.5, (20000, 3)).astype(np.float32)
    scores = np.maximum(x @ weights["w0"] + weights["b0"], 0) @ weights["w1"]
    places = (scores if kind == "ArgMax" else -scores).argmax(1)
    reached = sorted(set(places.tolist()))
    assert 1 < len(reached) < 6
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node(kind, ["c"], ["y" if whole else "d"], axis=1),
        *([] if whole else [helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT)]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.INT64 if whole else TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    box = "".join(f"(declare-const X_{k} Real)(assert (>= X_{k} -0.5))(assert (<= X_{k} 0.5))" for k in range(3))
    for line, expected in (
        (f"(assert (<= Y_0 {reached[0]}))", "sat"),
        (f"(assert (>= Y_0 {reached[-1]}))", "sat"),
        (f"(assert (<= Y_0 {reached[0] - 0.5}))", "unsat"),
        (f"(assert (>= Y_0 {reached[-1] + 0.5}))", "unsat"),
    ):
        (tmp_path / "p.vnnlib").write_text(f"{box}(declare-const Y_0 Real){line}")
        assert verify(read(tmp_path / "m.onnx", tmp_path / "p.vnnlib"), timeout=20).word == expected, line


def test_a_root_that_has_no_value_between_the_boxes_stops_no_attack(tmp_path: Path) -> None:
    """Bounds over the box around all boxes are refused there; the search for a point needs none."""
    nodes = [("MatMul", ["x", "w0"], "a"), ("Sqrt", ["a"], "b"), ("Sign", ["b"], "y")]
    query = ask(tmp_path, nodes, {"w0": np.array([[1.0, 1.0]])}, (-1, 1), "(assert (>= Y_0 1.0))")
    assert attack(query).word == "sat"


def test_a_jump_of_one_number_without_axes_has_a_gradient() -> None:
    place = Builder()
    summed = place.add(Gemm(), place.input((3,), "x"), place.constant(torch.ones(3, 1)))
    graph = place.finish([place.add(Step(-1.0, 0.0, 1.0), place.add(Reshape(()), summed))])
    x = torch.ones((2, 3), requires_grad=True)
    (slope,) = torch.autograd.grad(surrogate(graph).evaluate(x)[0].sum(), x)
    assert bool((slope > 0).all())
