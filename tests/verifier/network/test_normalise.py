"""A normalised graph computes the same numbers within the error bounds that its constants carry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bounds import Box, Crown, compute_bounds
from bounds.graph import Builder, Graph
from bounds.ops.affine import Affine
from bounds.ops.arithmetic import Add, Div, Mul, Sub
from bounds.ops.base import Op
from bounds.ops.bilinear import Product
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.gemm import Gemm
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape
from bounds.ops.sshape import Sigmoid
from verifier.network import read_network
from verifier.network.normalise import drop_neutral, merge_bias, merge_reshapes, merge_scale, normalise, rewrite


def tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    # float32 numbers, as stored in a model.
    return torch.randn(*shape, generator=generator).double()


def kinds(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes if n.id not in graph.constants and n.id not in graph.inputs]


def assert_same(graph: Graph, other: Graph, points: int = 7) -> None:
    """Equal within rounding of float64 plus what inexact constants admit (a bound of 1e-12 relative)."""
    assert [n.shape for n in map(graph.nodes.__getitem__, graph.outputs)] == [
        n.shape for n in map(other.nodes.__getitem__, other.outputs)
    ]
    inputs = [tensor(points, *graph.nodes[i].shape, seed=5) for i in graph.inputs]
    for ours, theirs in zip(graph.evaluate(*inputs), other.evaluate(*inputs), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    names = {n.name for n in graph.nodes}
    for i in graph.outputs:
        assert graph.nodes[i].name in names


def gemm(build: Builder, x: int, bias: bool = False) -> int:
    k = build.shape(x)[-1]
    operands = [build.constant(tensor(k, 3))] + ([build.constant(tensor(3, seed=1))] if bias else [])
    return build.add(Gemm(), x, *operands)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 3), (1, 1), (3,)])
@pytest.mark.parametrize("op", [Add(), Sub()])
def test_addition_after_gemm_becomes_its_bias(bias: bool, shape: tuple[int, ...], op: Op) -> None:
    build = Builder()
    x = build.input((4,) if len(shape) == 1 else (2, 4))
    y = build.add(op, gemm(build, x, bias), build.constant(tensor(*shape, seed=2)), name="y")
    graph = build.finish([y])
    merged = rewrite(graph, [merge_bias])
    assert kinds(merged) == ["Gemm"]
    assert merged.nodes[merged.outputs[0]].name == "y"
    assert merged.constants[merged.nodes[merged.outputs[0]].inputs[2]].value.shape == (3,)
    assert_same(graph, merged)


def test_the_constant_may_stand_first_in_an_addition_only() -> None:
    for op, expected in ((Add(), ["Gemm"]), (Sub(), ["Gemm", "Sub"])):
        build = Builder()
        y = build.add(op, build.constant(tensor(1, 3)), gemm(build, build.input((2, 4))))
        graph = build.finish([y])
        assert kinds(normalise(graph)) == expected
        assert_same(graph, normalise(graph))


def test_a_first_bias_is_exact_and_a_sum_of_two_carries_its_error() -> None:
    for bias in (False, True):
        build = Builder()
        # 2^-60 beside numbers near 1: the sum is not a float64.
        y = build.add(Add(), gemm(build, build.input((2, 4)), bias), build.constant(torch.full((1, 3), 2.0**-60)))
        merged = normalise(build.finish([y]))
        constant = merged.constants[merged.nodes[merged.outputs[0]].inputs[2]]
        if not bias:
            assert constant.error is None
            continue
        assert constant.error is not None
        assert bool((constant.error >= 2.0**-60).all())
        assert bool((constant.error < 1e-14).all())


@pytest.mark.parametrize("shape", [(2, 3), (2, 1), (1, 2, 3)])
def test_a_constant_that_is_not_one_for_each_channel_stays(shape: tuple[int, ...]) -> None:
    build = Builder()
    x = build.input((1,) * (len(shape) - 2) + (2, 4))
    y = build.add(Add(), gemm(build, x), build.constant(tensor(*shape)))
    graph = build.finish([y])
    assert kinds(normalise(graph)) == ["Gemm", "Add"]
    assert_same(graph, normalise(graph))


def test_a_constant_that_enlarges_the_result_stays() -> None:
    build = Builder()
    x = build.input((1, 4))
    y = build.add(Gemm(), x, build.constant(tensor(4, 1)))
    graph = build.finish([build.add(Add(), y, build.constant(tensor(1, 3)))])
    assert kinds(normalise(graph)) == ["Gemm", "Add"]
    assert_same(graph, normalise(graph))


def test_a_layer_with_another_reader_or_that_is_an_output_stays() -> None:
    def second_reader(build: Builder, y: int, z: int) -> list[int]:
        return [z, build.add(Relu(), y)]

    def output(build: Builder, y: int, z: int) -> list[int]:
        return [z, y]

    for outputs in (second_reader, output):
        build = Builder()
        y = gemm(build, build.input((2, 4)))
        z = build.add(Add(), y, build.constant(tensor(1, 3)))
        graph = build.finish(outputs(build, y, z))
        assert "Add" in kinds(normalise(graph))
        assert_same(graph, normalise(graph))


def conv(build: Builder, x: int, groups: int) -> int:
    weight = build.constant(tensor(6, 4 // groups, 3, 3))
    return build.add(Conv(strides=(2, 1), dilations=(1, 1), pads=(1, 1, 0, 1), groups=groups), x, weight)


def transposed(build: Builder, x: int, groups: int) -> int:
    weight = build.constant(tensor(4, 6 // groups, 3, 3))
    op = ConvTranspose(strides=(2, 1), dilations=(1, 1), pads=(1, 1, 0, 1), groups=groups)
    return build.add(op, x, weight)


@pytest.mark.parametrize("layer", [conv, transposed])
@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalisation_after_a_convolution_disappears(
    layer: Callable[[Builder, int, int], int], groups: int
) -> None:
    build = Builder()
    y = layer(build, build.input((2, 4, 5, 6)), groups)
    y = build.add(Mul(), y, build.constant(tensor(1, 6, 1, 1, seed=3)))
    y = build.add(Add(), y, build.constant(tensor(1, 6, 1, 1, seed=4)), name="y")
    graph = build.finish([y])
    merged = normalise(graph)
    assert len(kinds(merged)) == 1
    assert merged.nodes[merged.outputs[0]].name == "y"
    weight = merged.constants[merged.nodes[merged.outputs[0]].inputs[1]]
    assert weight.error is not None
    assert bool((weight.error <= weight.value.abs() * 1e-14 + 1e-300).all())
    assert_same(graph, merged)


def test_scaling_of_gemm_with_a_bias() -> None:
    build = Builder()
    y = build.add(Mul(), build.constant(tensor(1, 3)), gemm(build, build.input((2, 4)), bias=True))
    graph = build.finish([y])
    assert kinds(rewrite(graph, [merge_scale])) == ["Gemm"]
    assert_same(graph, rewrite(graph, [merge_scale]))


def test_errors_of_the_constants_enclose_the_exact_products() -> None:
    from fractions import Fraction

    build = Builder()
    weight, factor = torch.tensor([[1 / 3, 0.1], [7.3, 1e-9]]).double() / 3, torch.tensor([[1 / 7, 3.3]]).double() / 3
    y = build.add(Mul(), build.add(Gemm(), build.input((1, 2)), build.constant(weight)), build.constant(factor))
    merged = normalise(build.finish([y]))
    constant = merged.constants[merged.nodes[merged.outputs[0]].inputs[1]]
    assert constant.error is not None
    for i in range(2):
        for j in range(2):
            exact = Fraction(weight[i, j].item()) * Fraction(factor[0, j].item())
            assert abs(exact - Fraction(constant.value[i, j].item())) <= Fraction(constant.error[i, j].item())


def test_two_weight_matrices_are_not_multiplied() -> None:
    build = Builder()
    y = gemm(build, gemm(build, build.input((1, 4))))
    assert kinds(normalise(build.finish([y]))) == ["Gemm", "Gemm"]


def test_chained_and_idle_reshapes() -> None:
    build = Builder()
    x = build.input((2, 6))
    y = build.add(Reshape((3, 2, 2)), build.add(Reshape((4, 3)), x), name="y")
    z = build.add(Reshape((2, 6)), build.add(Relu(), y))
    graph = build.finish([y, build.add(Reshape((2, 6)), z, name="z")])
    merged = rewrite(graph, [merge_reshapes])
    assert kinds(merged) == ["Reshape", "Relu", "Reshape"]
    assert_same(graph, merged)


def test_a_reshape_back_is_no_operation() -> None:
    build = Builder()
    x = build.input((2, 6))
    y = build.add(Relu(), build.add(Reshape((2, 6)), build.add(Reshape((12,)), x)))
    graph = build.finish([y])
    assert kinds(normalise(graph)) == ["Relu"]
    assert_same(graph, normalise(graph))


def test_every_remaining_node_is_affine_or_was_there_before() -> None:
    build = Builder()
    y = build.add(Relu(), build.add(Add(), gemm(build, build.input((2, 4))), build.constant(tensor(1, 3))))
    merged = normalise(build.finish([build.add(Mul(), y, build.constant(tensor(1, 3)))]))
    assert kinds(merged) == ["Gemm", "Relu", "Mul"]
    assert isinstance(merged.nodes[-1].op, Affine)


@pytest.mark.parametrize(("op", "neutral"), [(Add(), 0.0), (Sub(), 0.0), (Mul(), 1.0), (Div(), 1.0)])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1)])
def test_neutral_constants_are_dropped(op: Op, neutral: float, shape: tuple[int, ...]) -> None:
    build = Builder()
    y = build.add(Relu(), build.add(op, build.input((2, 3)), build.constant(torch.full(shape, neutral))))
    graph = build.finish([y])
    assert kinds(rewrite(graph, [drop_neutral])) == ["Relu"]
    assert_same(graph, rewrite(graph, [drop_neutral]))


def test_constants_that_only_look_neutral_stay() -> None:
    cases = [
        (Sub(), True, torch.zeros(2, 3), None),
        (Add(), False, torch.zeros(4, 2, 3)[:, :1], None),
        (Add(), False, torch.tensor([[[0.0, 0.0, 1e-30]]]), None),
        (Mul(), False, torch.ones(1, 1, 1), torch.full((1, 1, 1), 1e-9, dtype=torch.float64)),
        (Mul(), False, torch.zeros(1, 1, 1), None),
    ]
    for op, first, value, error in cases:
        build = Builder()
        x = build.input((1, 2, 3))
        constant = build.constant(value.reshape((1,) * (3 - value.dim()) + tuple(value.shape)), error)
        graph = build.finish([build.add(op, *((constant, x) if first else (x, constant)))])
        assert kinds(rewrite(graph, [drop_neutral])) == [type(op).__name__]
        assert_same(graph, rewrite(graph, [drop_neutral]))


def gated(factor: Tensor | None, first: bool, layers: int = 1) -> Graph:
    """Layers of ``x sigmoid(a x)`` of a Gemm's result x, the sigmoid (and a) as the second or the first factor."""
    build = Builder()
    x = build.input((2, 4))
    for _ in range(layers):
        x = inner = gemm(build, x, bias=True)
        if factor is not None:
            constant = build.constant(factor)
            inner = build.add(Mul(), *((constant, x) if first else (x, constant)))
        gate = build.add(Sigmoid(), inner)
        x = build.add(Product(), *((gate, x) if first else (x, gate)), name="y")
    return build.finish([x])


FACTORS = [None, torch.full((1, 1), 1.702), torch.full((1, 1), -0.5), tensor(1, 3)]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("factor", FACTORS, ids=["1", "1.702", "-0.5", "several"])
def test_a_product_with_its_own_sigmoid_is_one_function(factor: Tensor | None, first: bool) -> None:
    graph = gated(factor, first)
    merged = normalise(graph)
    assert kinds(merged) == ["Gemm", "Swish"] if factor is None else ["Gemm", "Mul", "Swish", "Div"]
    assert_same(graph, merged)
    for node in merged.nodes:  # nothing is computed from constants
        assert node.id not in merged.constants or merged.constants[node.id].error is None


@pytest.mark.parametrize("factor", FACTORS, ids=["1", "1.702", "-0.5", "several"])
def test_one_function_is_bounded_tighter_than_the_product(factor: Tensor | None) -> None:
    """On boxes of all sizes the bounds hold sampled values; over three layers they are narrower than the product's."""
    for layers in (1, 3):
        graph = gated(factor, first=False, layers=layers)
        merged = normalise(graph)
        for radius in (0.01, 0.1, 0.5):
            middle = tensor(6, 2, 4, seed=9)
            box = Box(middle - radius, middle + radius)
            plain, tight = compute_bounds(graph, box, Crown()), compute_bounds(merged, box, Crown())
            share = torch.rand(500, 6, 2, 4, generator=torch.Generator().manual_seed(1)).double()
            values = graph.evaluate((box.lower + share * 2 * radius).flatten(0, 1))[0].reshape(500, 6, 2, 3)
            assert bool((tight.lower <= values.amin(0)).all() and (tight.upper >= values.amax(0)).all())
            before, after = plain.upper - plain.lower, tight.upper - tight.lower
            assert after.sum() < before.sum() * (0.65 if (layers, radius) == (3, 0.5) else 1.0)
            assert layers > 1 or bool((after <= before * (1 + 1e-9)).all())


def test_products_with_other_sigmoids_stay() -> None:
    for kind in ("another operand", "zero", "inexact", "shared sigmoid"):
        build = Builder()
        x = gemm(build, build.input((2, 4)))
        error = torch.full((1, 1), 1e-9).double() if kind == "inexact" else None
        scaled = build.add(Mul(), x, build.constant(torch.full((1, 1), 0.0 if kind == "zero" else 2.0), error))
        gate = build.add(Sigmoid(), x if kind in ("another operand", "shared sigmoid") else scaled)
        result = build.add(Product(), scaled if kind == "another operand" else x, gate, name="y")
        graph = build.finish([result, gate] if kind == "shared sigmoid" else [result])
        merged = normalise(graph)
        assert ("Swish" in kinds(merged)) == (kind == "shared sigmoid")
        assert [merged.nodes[i].shape for i in merged.outputs] == [graph.nodes[i].shape for i in graph.outputs]
        assert merged.nodes[merged.outputs[0]].name == "y"


def test_an_exported_silu_is_read_as_one_function() -> None:
    """And the load check compares it with onnxruntime."""
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("x", "y"))
    weights = [numpy_helper.from_array(tensor(3, 3).float().numpy(), "w")]
    nodes = [("MatMul", ["x", "w"], "z"), ("Sigmoid", ["z"], "s"), ("Mul", ["z", "s"], "y")]
    steps = [helper.make_node(kind, operands, [name]) for kind, operands, name in nodes]
    graph = helper.make_graph(steps, "silu", [value], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert kinds(read_network(model.SerializeToString()).graph) == ["Gemm", "Swish"]
