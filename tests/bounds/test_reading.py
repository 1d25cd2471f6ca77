"""How operators read themselves: which operations a node becomes, what is refused, and what constants carry."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from bounds.graph import Builder, Graph
from bounds.ops import readers
from bounds.ops.base import OnnxNode, UnsupportedOperatorError


def read(
    op_type: str, operands: Sequence[Any], attributes: dict[str, Any] | None = None, opset: int = 13, outputs: int = 1
) -> Graph:
    """One node: a tuple among the operands is the shape of an input, a tensor a constant, None left out."""
    build = Builder()
    ids = [
        None if o is None else build.constant(o) if isinstance(o, Tensor) else build.input(o, f"x{k}")
        for k, o in enumerate(operands)
    ]
    node = OnnxNode(op_type, "the node", attributes or {}, tuple(ids), outputs, opset)
    return build.finish(readers()[op_type].from_onnx(node, build))


def operations(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes if type(n.op).__name__ not in ("Input", "Const")]


def double(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


INDEX = torch.int64


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes", "expected"),
    [
        ("MatMul", [(2, 3), torch.ones(3, 4)], {}, ["Gemm"]),
        ("MatMul", [(3,), torch.ones(3)], {}, ["Gemm", "Reshape"]),
        ("MatMul", [torch.ones(4, 2), (2, 3)], {}, ["MatMul"]),
        ("Gemm", [(2, 3), torch.ones(4, 3), torch.ones(2, 1)], {"transB": 1}, ["Gemm", "Add"]),
        ("Gemm", [(2, 3), torch.ones(3, 4), torch.ones(())], {"alpha": 0.5}, ["Gemm"]),
        ("Add", [(2, 3), (3,)], {}, ["Reshape", "Add"]),
        ("Identity", [(2,)], {}, []),
        ("Cast", [(2,)], {"to": 11}, []),
        ("Max", [(2,), torch.zeros(1)], {}, ["Relu"]),
        ("Max", [(2,), torch.ones(())], {}, ["Clip"]),
        ("Max", [(2,), double(1.0, 2.0)], {}, ["Sub", "Relu", "Add"]),
        ("Min", [(2,), double(1.0, 2.0)], {}, ["Neg", "Sub", "Relu", "Add", "Neg"]),
        ("Max", [(2,), (2,), (1,)], {}, ["Max", "Expand", "Max"]),
        ("Clip", [(2,), torch.zeros(()), None], {}, ["Relu"]),
        ("Clip", [(2,)], {}, []),
        ("LeakyRelu", [(2,)], {"alpha": 0.0}, ["Relu"]),
        ("Flatten", [(2, 3, 4)], {"axis": -1}, ["Reshape"]),
        ("Gather", [(4, 2), torch.tensor(-1)], {}, ["Slice", "Reshape"]),
        ("Gather", [(4, 2), torch.tensor([0, 2])], {}, ["Slice"]),
        ("Gather", [(4, 2), torch.tensor([0, 0, 3])], {}, ["Gather"]),
        ("Slice", [(4,), *(torch.tensor([v]) for v in (-1, -(2**62), 0, -1))], {}, ["Slice"]),
        ("Split", [(4,)], {"axis": 0}, ["Slice", "Slice"]),
        ("Div", [(2,), double(3.0, 4.0)], {}, ["Div"]),
        ("Div", [(2,), double(0.1, 4.0)], {}, ["Mul"]),
        ("MaxPool", [(1, 1, 4, 4)], {"kernel_shape": [2, 2], "strides": [2, 2]}, ["Slice", "Slice", "Max"] * 2),
        ("AveragePool", [(1, 1, 4)], {"kernel_shape": [2], "pads": [1, 0]}, ["Pad", "AveragePool", "Mul", "Div"]),
        ("GlobalAveragePool", [(1, 2, 4, 4)], {}, ["ReduceMean"]),
        ("BatchNormalization", [(1, 2, 3), *(torch.ones(2) for _ in range(4))], {}, ["Mul", "Add"]),
        ("ReduceSum", [(2, 3), None], {"noop_with_empty_axes": 1}, []),
        ("Pad", [(3,), torch.tensor([2, 1])], {"mode": "reflect"}, ["Gather"]),
        ("Upsample", [(1, 1, 2, 2), double(1.0, 1.0, 2.0, 1.0)], {}, ["Gather"]),
        ("Sign", [(2,)], {}, ["Step"]),
        ("Ceil", [(2,)], {}, ["Neg", "Floor", "Neg"]),
        ("Cast", [(2,)], {"to": 9}, ["Step"]),
        ("Cast", [(2,)], {"to": 7}, ["Relu", "Floor", "Neg", "Relu", "Floor", "Sub"]),
        ("Greater", [(2,), torch.tensor(3)], {}, ["Sub", "Step"]),
        ("Equal", [(2,), (2,)], {}, ["Sub", "Step"]),
        ("Not", [(2,)], {}, ["Sub"]),
        ("And", [(2,), (2,)], {}, ["Min"]),
        ("Xor", [(2,), (2,)], {}, ["Sub", "Abs"]),
        ("Where", [torch.tensor([True, False]), (2,), (2,)], {}, ["Select"]),
        ("Where", [(2,), (2,), double(1.0, 2.0)], {}, ["Sub", "Product", "Add"]),
        ("Where", [(2,), double(0.0, 1.0), double(1.0, 2.0)], {}, ["Mul", "Add"]),
        ("ThresholdedRelu", [(2,)], {"alpha": 1.0}, ["Sub", "Step", "Mul", "Relu", "Add"]),
        ("ThresholdedRelu", [(2,)], {"alpha": 0.0}, ["Sub", "Relu"]),
        ("ScatterND", [(3,), torch.tensor([[1], [2]]), (2,)], {}, ["Concat", "Gather"]),
        ("ScatterElements", [(3,), torch.tensor([2]), double(5.0)], {}, ["Concat", "Gather"]),
        ("GatherND", [(2, 3), torch.tensor([[1, 0], [0, 2], [1, 1]])], {}, ["Reshape", "Gather"]),
        ("Tile", [(2, 3), torch.tensor([2, 1])], {}, ["Reshape", "Expand", "Reshape"]),
        ("OneHot", [(2,), torch.tensor(3), double(0.0, 1.0)], {},
         ["Reshape", "Expand", "Sub", "Step", "Sub", "Step", "Add", "Mul", "Add"]),
    ],
)  # fmt: skip
def test_what_a_node_becomes(op_type: str, operands: list[Any], attributes: Any, expected: list[str]) -> None:
    outputs = 2 if op_type == "Split" else 1
    assert sorted(operations(read(op_type, operands, attributes, outputs=outputs))) == sorted(expected)


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes", "why"),
    [
        ("Conv", [(1, 2, 3, 3, 3), torch.ones(1, 2, 1, 1, 1)], {}, "one or two spatial axes"),
        ("Conv", [(1, 2, 3, 3), (1, 2, 1, 1)], {}, "operand 1 depends on the network's input"),
        ("Resize", [(1, 1, 2, 2), None, double(1.0, 1.0, 2.0, 2.0)], {"mode": "linear"}, "only nearest"),
        ("BatchNormalization", [(1, 2), *(torch.ones(2) for _ in range(4))], {"training_mode": 1}, "training mode"),
        ("Cast", [(2,)], {"to": 10}, "cast of a computed value"),
        ("Gather", [(2,), (1,)], {}, "operand 1 depends on the network's input"),
        ("ScatterND", [(3,), (1, 1), (1,)], {}, "operand 1 depends on the network's input"),
        ("ScatterND", [(3,), torch.tensor([[1], [1]]), (2,)], {}, "name an element twice"),
        ("ScatterND", [(3,), torch.tensor([[1]]), (1,)], {"reduction": "mul"}, "reduction 'mul'"),
        ("Mod", [(2,), (2,)], {"fmod": 1}, "a modulus that is not"),
        ("Reshape", [(2,), (2,)], {}, "only a constant is supported"),
    ],
)
def test_refused_forms_say_why(op_type: str, operands: list[Any], attributes: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=rf"{op_type} node 'the node'.*{why}"):
        read(op_type, operands, attributes)


@pytest.mark.parametrize(
    ("op_type", "operands", "attributes", "why"),
    [
        ("Div", [(2,), double(1.0, 0.0)], {}, "exactly zero"),
        ("Gather", [(2,), torch.tensor([2])], {}, "outside axis 0"),
        ("Reshape", [(2, 3), torch.tensor([4, 2])], {}, "cannot reshape"),
        ("Transpose", [(2, 3)], {"perm": [0, 0]}, "not a permutation"),
        ("Squeeze", [(2, 3), torch.tensor([0])], {}, "not all of size 1"),
        ("Conv", [(1, 2, 3, 3), torch.ones(1, 3, 1, 1)], {}, "want 3 channels"),
        ("BatchNormalization", [(1, 1), *(torch.full((1,), v) for v in (1.0, 0.0, 0.0, -1.0))], {}, "not positive"),
        ("Relu", [None], {}, "operand 0 is missing"),
        ("GatherElements", [(2,), torch.tensor([2])], {}, "outside an axis of size 2"),
        ("ScatterND", [(3,), torch.tensor([[1]]), (2,)], {}, "should be the same"),
        ("Range", [double(0.0), double(1.0), double(0.0)], {}, "a step of zero"),
    ],
)
def test_invalid_nodes_say_why(op_type: str, operands: list[Any], attributes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=rf"{op_type} node 'the node'.*{why}"):
        read(op_type, operands, attributes)


def only(graph: Graph, kind: str) -> tuple[list[Fraction], list[Fraction]]:
    """Value and error of the constant operand of the one operation of a kind."""
    node = next(n for n in graph.nodes if type(n.op).__name__ == kind)
    constant = next(graph.constants[i] for i in node.inputs if i in graph.constants)
    error = torch.zeros_like(constant.value) if constant.error is None else constant.error
    return [Fraction(v) for v in constant.value.flatten().tolist()], [Fraction(e) for e in error.flatten().tolist()]


def test_computed_constants_cover_the_exact_ones() -> None:
    reciprocals, errors = only(read("Div", [(2,), double(0.1, 3e-9)]), "Mul")
    for value, error, divisor in zip(reciprocals, errors, (0.1, 3e-9), strict=True):
        assert 0 < error < abs(value) / 2**40
        assert abs(value - 1 / Fraction(divisor)) <= error
    scaled, errors = only(read("Gemm", [(1, 2), double([0.1], [0.7])], {"alpha": 1 / 3}), "Gemm")
    for value, error, weight in zip(scaled, errors, (0.1, 0.7), strict=True):
        assert abs(value - Fraction(weight) * Fraction(1 / 3)) <= error < Fraction(1, 2**40)


def test_batch_normalisation_is_within_its_errors() -> None:
    scale, shift, mean, variance = double(1.7, 0.0), double(0.3, 2.0), double(-5.1, 1.0), double(2e-3, 9.0)
    graph = read("BatchNormalization", [(1, 2), scale, shift, mean, variance], {"epsilon": 1e-5})
    slopes, slope_errors = only(graph, "Mul")
    offsets, offset_errors = only(graph, "Add")
    for k in range(2):
        total = Fraction(variance[k].item()) + Fraction(1e-5)
        # slope = scale / sqrt(total), checked without a root: (|slope| -+ error)^2 total around scale^2.
        least, most = abs(slopes[k]) - slope_errors[k], abs(slopes[k]) + slope_errors[k]
        exact = Fraction(scale[k].item()) ** 2
        assert max(least, 0) ** 2 * total <= exact <= most**2 * total
        for slope in (slopes[k] - slope_errors[k], slopes[k] + slope_errors[k]):
            true = Fraction(shift[k].item()) - Fraction(mean[k].item()) * slope
            assert abs(true - offsets[k]) <= offset_errors[k]
    assert slope_errors[1] == 0


def test_a_negative_step_reverses() -> None:
    graph = read("Slice", [(5,), *(torch.tensor([v]) for v in (-2, -(2**62), 0, -2))])
    assert graph.evaluate(torch.arange(5.0).unsqueeze(0))[0].tolist() == [[3.0, 1.0]]


def test_attributes_of_old_opsets() -> None:
    x = torch.arange(6.0).reshape(1, 2, 3) - 2
    cases: list[tuple[str, dict[str, Any], int, Tensor]] = [
        ("Clip", {"min": -1.0, "max": 2.0}, 6, x.clamp(-1, 2)),
        ("Slice", {"starts": [1], "ends": [9], "axes": [1]}, 9, x[:, :, 1:]),
        ("Pad", {"pads": [0, 1, 0, 0], "value": 7.0}, 2, torch.nn.functional.pad(x, [1, 0], value=7.0)),
        ("Squeeze", {"axes": []}, 11, x),
        ("Unsqueeze", {"axes": [0]}, 11, x.unsqueeze(1)),
        ("ReduceSum", {"axes": [-1], "keepdims": 0}, 11, x.sum(-1)),
        ("ReduceMean", {}, 13, x.mean((1, 2), keepdim=True)),
        ("Upsample", {"scales": [1.0, 2.0], "mode": "nearest"}, 7, x.repeat_interleave(2, 2)),
    ]
    for op_type, attributes, opset, expected in cases:
        result = read(op_type, [(2, 3)], attributes, opset).evaluate(x)[0]
        assert torch.equal(result, expected), op_type


def test_a_boolean_mask_of_dropout_keeps_all() -> None:
    build = Builder()
    x = build.input((2, 3))
    node = OnnxNode("Dropout", "", {}, (x,), 2, 12)
    same, mask = readers()["Dropout"].from_onnx(node, build)
    assert same == x
    value = build.value(mask)
    assert value is not None and bool(value.all()) and value.shape == (2, 3)


def test_logic_of_computed_values() -> None:
    """Values on both sides of a jump and at it, against torch."""
    x = double([-2.5, -1.0, -0.0, 0.3, 1.0, 7.9])
    y = double([-2.5, 1.0, 0.0, 0.2, 3.0, 7.0])
    build = Builder()
    left, right = build.input((6,)), build.input((6,))
    known = readers()

    def add(op_type: str, *inputs: int, **attributes: Any) -> int:
        return known[op_type].from_onnx(OnnxNode(op_type, "", attributes, inputs, 1, 13), build)[0]

    more, same = add("Greater", left, right), add("Equal", left, right)
    either = add("Or", more, same)
    cases = [
        (more, x > y),
        (same, x == y),
        (either, x >= y),
        (add("Not", either), x < y),
        (add("Xor", more, add("Cast", left, to=9)), (x > y) ^ x.bool()),
        (add("Where", more, left, right), torch.maximum(x, y)),
        (add("Cast", left, to=7), x.trunc()),
        (add("Mod", left, build.constant(double(0.75)), fmod=1), torch.fmod(x, double(0.75))),
        (add("Shrink", left, lambd=1.0, bias=0.5), torch.where(x > 1, x - 0.5, torch.where(x < -1, x + 0.5, 0.0))),
        (add("ThresholdedRelu", left, alpha=-1.5), torch.where(x > -1.5, x, 0.0)),
    ]
    values = build.finish([index for index, _ in cases]).evaluate(x, y)
    for found, (_, expected) in zip(values, cases, strict=True):
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-12)


def test_scattered_and_gathered_places() -> None:
    x, new = torch.arange(12.0).double().reshape(1, 3, 4), double([[-1.0, -2.0], [-3.0, -4.0]])
    places = torch.tensor([[0, 1], [2, -1]])
    replaced = x[0].clone()
    replaced[0, 1], replaced[2, 3] = -1.0, -2.0
    assert torch.equal(read("ScatterND", [(3, 4), places, double(-1.0, -2.0)]).evaluate(x)[0][0], replaced)
    columns = x[0].scatter(1, torch.tensor([[0, 3], [1, 2]]), new[0])
    scatter = read("ScatterElements", [(3, 4), torch.tensor([[0, -1], [1, 2]]), new[0]], {"axis": 1})
    assert torch.equal(scatter.evaluate(x)[0][0], columns)
    added = read("ScatterND", [(3, 4), places, double(-1.0, -2.0)], {"reduction": "add"}).evaluate(x)[0][0]
    assert torch.equal(added - x[0], torch.where(replaced < 0, replaced, 0.0))
    assert read("GatherND", [(3, 4), places]).evaluate(x)[0].tolist() == [[1.0, 11.0]]
    assert read("GatherND", [(3, 4), torch.tensor([[1], [0], [-1]])], {"batch_dims": 1}).evaluate(x)[0].tolist() == [
        [1.0, 4.0, 11.0]
    ]


def test_shape_arithmetic_is_folded() -> None:
    build = Builder()
    x = build.input((2, 3, 4))
    known = readers()

    def add(op_type: str, *inputs: int, **attributes: Any) -> int:
        return known[op_type].from_onnx(OnnxNode(op_type, "", attributes, inputs, 1, 13), build)[0]

    sizes = add("Shape", x)
    first = add("Gather", sizes, build.constant(torch.tensor(0)))
    head = add("Unsqueeze", first, build.constant(torch.tensor([0])))
    target = add("Concat", head, build.constant(torch.tensor([-1])), axis=0)
    graph = build.finish([add("Reshape", x, target)])
    assert graph.nodes[graph.outputs[0]].shape == (2, 12)
    assert operations(graph) == ["Reshape"]
