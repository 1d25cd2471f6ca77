"""Onnxruntime sessions as oracles: batches of any kind, what they refuse, properties and models that are not read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import verifier
from verifier.attacks import problems
from verifier.attacks.blackbox.estimate import spsa
from verifier.attacks.blackbox.square import Square
from verifier.attacks.forms import of_specification
from verifier.attacks.session import SessionOracle
from verifier.attacks.trial import Attack, attack
from verifier.errors import InputError, UnsupportedError
from verifier.network import read_network
from verifier.property import read_property
from verifier.replay import Replayer

DIGITS = Path(__file__).resolve().parents[3] / "benchmarks" / "digits"
UNIT = (Fraction(0), Fraction(1))


def small_model(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], given: list[object], asked: list[object],
    kind: int = TensorProto.FLOAT,
) -> bytes:  # fmt: skip
    graph = helper.make_graph(
        nodes, "small", [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("y", kind, asked)], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model.SerializeToString()


def doubled(given: list[object], kind: int = TensorProto.FLOAT) -> bytes:
    return small_model([helper.make_node("Add", ["x", "x"], ["y"])], [], given, given, kind)


@pytest.mark.parametrize(
    ("given", "lead", "rows", "size"),
    [
        (["batch", 3], None, 1024, 3),
        ([1, 3], 0, 1, 3),
        ([4, 3], 4, 4, 3),
        ([3], 0, 1, 3),
        (["batch", "k", 3], None, 1024, 3),
    ],
)
def test_sessions_take_batches_of_any_kind(given: list[object], lead: int | None, rows: int, size: int) -> None:
    oracle = SessionOracle.of(doubled(given))
    assert (oracle.lead, oracle.rows, oracle.size) == (lead, rows, size)
    for count in (1, 2, 4, 5):
        points = torch.arange(count * size, dtype=torch.float32).reshape(count, size)
        assert torch.equal(oracle.outputs(points), 2 * points)
    with pytest.raises(InputError, match="takes 3 numbers"):
        oracle.outputs(torch.zeros(1, 5))


def test_all_points_of_a_fixed_batch_may_be_one_input() -> None:
    points = torch.arange(24, dtype=torch.float32).reshape(2, 12)
    assert torch.equal(SessionOracle.of(doubled([4, 3])).outputs(points), 2 * points)


def test_models_that_mix_the_points_of_a_batch_are_run_point_by_point() -> None:
    mixed = small_model([helper.make_node("Softmax", ["x"], ["y"], axis=0)], [], ["batch", 3], ["batch", 3])
    oracle = SessionOracle.of(mixed)
    assert oracle.lead == 0 and torch.equal(oracle.outputs(torch.randn(4, 3)), torch.ones(4, 3))


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.DOUBLE, torch.float64), (TensorProto.FLOAT16, torch.float32)])
def test_other_floating_types_are_taken(kind: int, dtype: torch.dtype) -> None:
    points = torch.tensor([[0.5, 1 / 3]], dtype=dtype)
    found = SessionOracle.of(doubled(["batch", 2], kind)).outputs(points)
    assert found.dtype == dtype and torch.allclose(found, 2 * points, atol=1e-3)


def test_sessions_say_what_they_cannot_take() -> None:
    with pytest.raises(UnsupportedError, match=r"'x' is a tensor\(int64\)"):
        SessionOracle.of(doubled(["batch", 2], TensorProto.INT64))
    with pytest.raises(InputError, match="cannot load"):
        SessionOracle.of(b"nonsense")
    pair = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("a", "b", "c", "d")]
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Sub", ["a", "b"], ["d"])]
    graph = helper.make_graph(nodes, "two", pair[:2], pair[2:])
    two = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(InputError, match="2 inputs .'a', 'b'"):
        SessionOracle.of(two.SerializeToString())
    nodes = [helper.make_node("Neg", ["a"], ["c"]), helper.make_node("Abs", ["a"], ["d"])]
    graph = helper.make_graph(nodes, "outputs", pair[:1], pair[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    with pytest.raises(InputError, match="2 outputs .'c', 'd'"):
        SessionOracle.of(model)
    with pytest.raises(InputError, match="none is called 'z'"):
        SessionOracle.of(model, "z")
    assert SessionOracle.of(model, "d").outputs(torch.tensor([[-1.0, 2.0]])).tolist() == [[1.0, 2.0]]


def test_rows_are_limited_by_the_size_of_the_values() -> None:
    wide = numpy_helper.from_array(np.zeros((1, 400_000), np.float32), "w")
    nodes = [helper.make_node("Mul", ["x", "w"], ["wide"]), helper.make_node("ReduceSum", ["wide"], ["y"], keepdims=1)]
    reduce = [helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([1])))]
    nodes[1].input.append("axes")
    oracle = SessionOracle.of(small_model(reduce + nodes, [wide], ["batch", 1], ["batch", 1]))
    assert oracle.lead is None and oracle.rows == 149


def test_a_model_that_cannot_be_read_is_attacked_through_onnxruntime() -> None:
    """LpNormalization has no bounds here."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((6, 3)).astype(np.float32)
    model = small_model(
        [helper.make_node("LpNormalization", ["x"], ["u"], axis=1, p=2), helper.make_node("MatMul", ["u", "w"], ["y"])],
        [numpy_helper.from_array(weight, "w")], ["batch", 6], ["batch", 3],
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="LpNormalization"):
        read_network(model)
    oracle = SessionOracle.of(model)
    x = random.random((8, 6), dtype=np.float32)
    labels = oracle.outputs(torch.from_numpy(x)).argmax(1).numpy()
    problem = problems.classification(oracle, x, labels, problems.ball(x, Fraction(1, 2), "inf", UNIT))
    found = attack(problem, Square(), budget=500)
    assert float(found.found.double().mean()) >= 0.7
    answers = oracle.outputs(found.points).argmax(1).numpy()
    assert ((answers != labels) == found.found.numpy()).all()


@pytest.mark.parametrize("method", [Square(), Square(shape=(1, 8, 8)), spsa(16)], ids=lambda m: m.name)
def test_clauses_of_a_property_are_attacked_through_onnxruntime(method: Attack) -> None:
    problem = of_specification(
        SessionOracle.of((DIGITS / "digits.onnx").read_bytes()), read_property(DIGITS / "fragile.vnnlib")
    )
    found = attack(problem, method, budget=600)
    assert bool(found.found.any())
    query = verifier.read(DIGITS / "digits.onnx", DIGITS / "fragile.vnnlib")
    replayed = Replayer(query).replay(found.points[found.found].numpy())
    assert replayed is not None
    graph = problems.of_clauses(query)
    who = torch.arange(problem.size)
    ours = problem.goal.margin(problem.oracle.outputs(found.points), who)
    assert torch.allclose(ours, graph.goal.margin(graph.oracle.outputs(found.points), who), atol=1e-4)
