"""Tiny random networks, each built twice at once: as exact layers for ``regions`` and as an ONNX model.

Weights are multiples of 1/8, so that float32 holds them exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from corpus.regions import Kinked, Largest, Layer, Linear, Residual
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

ZERO, ONE = Fraction(0), Fraction(1)


@dataclass(slots=True)
class Sketch:
    """A network under construction, twice: as exact layers and as ONNX nodes."""

    chance: random.Random
    inputs: int
    width: int
    leading: tuple[int | str, ...] = (1,)
    layers: list[Layer] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    last: str = "x"

    def node(self, op: str, *operands: str, **attributes: object) -> None:
        """Append an ONNX node that reads ``last`` and further operands."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *operands], [name], name=name, **attributes))
        self.last = name

    def constant(self, value: object, dtype: type = np.float32) -> str:
        """Keep a constant and return its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.array(value, dtype=dtype)
        return name

    def weights(self, rows: int, columns: int) -> list[list[Fraction]]:
        """Random multiples of 1/8 in [-2, 2]."""
        return [[Fraction(self.chance.randint(-16, 16), 8) for _ in range(columns)] for _ in range(rows)]

    def linear(self, rows: int, *, matmul: bool = False) -> None:
        """A fully connected layer, as Gemm or as MatMul and Add."""
        weight, bias = self.weights(rows, self.width), self.weights(1, rows)[0]
        self.layers.append(Linear(tuple(map(tuple, weight)), tuple(bias)))
        self.width = rows
        if matmul:
            self.node("MatMul", self.constant(np.array(weight, dtype=float).T))
            self.node("Add", self.constant([float(b) for b in bias]))
        else:
            self.node("Gemm", self.constant(np.array(weight, dtype=float)), self.constant(
                [float(b) for b in bias]), transB=1)

    def kinked(self, op: str) -> None:
        """A piecewise-linear activation."""
        if op == "Relu":
            self.layers.append(Kinked((ZERO,), ((ZERO, ZERO), (ONE, ZERO))))
            self.node("Relu")
        elif op == "LeakyRelu":
            self.layers.append(Kinked((ZERO,), ((Fraction(1, 4), ZERO), (ONE, ZERO))))
            self.node("LeakyRelu", alpha=0.25)
        elif op == "Abs":
            self.layers.append(Kinked((ZERO,), ((-ONE, ZERO), (ONE, ZERO))))
            self.node("Abs")
        else:
            self.layers.append(Kinked((-ONE, ONE), ((ZERO, -ONE), (ONE, ZERO), (ZERO, ONE))))
            self.node("Clip", self.constant(-1.0), self.constant(1.0))

    def convolution(self, channels: int) -> None:
        """Conv with kernel 2 and one zero on either side, over the inputs as one line: ``width + 1`` positions."""
        kernel, bias = self.weights(channels, 2), self.weights(1, channels)[0]
        width, positions = self.width, self.width + 1
        rows = []
        for c in range(channels):
            for p in range(positions):
                row = [ZERO] * width
                for k in range(2):
                    if 0 <= p - 1 + k < width:
                        row[p - 1 + k] = kernel[c][k]
                rows.append(tuple(row))
        self.layers.append(Linear(tuple(rows), tuple(bias[c] for c in range(channels) for _ in range(positions))))
        self.node("Reshape", self.constant([1, 1, width], np.int64))
        self.node("Conv", self.constant(np.array(kernel, dtype=float)[:, None, :]), self.constant(
            [float(b) for b in bias]), kernel_shape=[2], pads=[1, 1])
        self.width = channels * positions

    def pooling(self, channels: int, *, average: bool) -> None:
        """Pooling of neighbours, two by two with stride 1, within each channel; then flat again."""
        positions = self.width // channels
        groups = tuple(
            (c * positions + p, c * positions + p + 1) for c in range(channels) for p in range(positions - 1)
        )
        if average:
            half = Fraction(1, 2)
            rows = tuple(tuple(half if i in g else ZERO for i in range(self.width)) for g in groups)
            self.layers.append(Linear(rows, (ZERO,) * len(groups)))
        else:
            self.layers.append(Largest(groups))
        self.node("AveragePool" if average else "MaxPool", kernel_shape=[2], strides=[1])
        self.node("Flatten", axis=1)
        self.width = len(groups)

    def residual(self, op: str) -> None:
        """``v + W act(V v + b) + c``."""
        entry, outer = self.last, self.layers
        self.layers = []
        width = self.width
        self.linear(3)
        self.kinked(op)
        self.linear(width)
        inner, self.layers = tuple(self.layers), outer
        self.layers.append(Residual(inner))
        self.node("Add", entry)

    def model(self) -> ModelProto:
        """The ONNX model: input ``x``, output ``y``."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes, "corpus",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*self.leading, self.inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*self.leading, self.width])],
            [numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="")
        model.ir_version = 8
        checker.check_model(model, full_check=True)
        return model


def dense(op: str, inputs: int, hidden: Sequence[int], outputs: int) -> Callable[[random.Random], Sketch]:
    """Fully connected layers with one activation between them."""
    def build(chance: random.Random) -> Sketch:
        sketch = Sketch(chance, inputs, inputs)
        for width in hidden:
            sketch.linear(width)
            sketch.kinked(op)
        sketch.linear(outputs)
        return sketch
    return build


def unbatched(chance: random.Random) -> Sketch:
    """MatMul and Add on a vector: a model without a batch dimension."""
    sketch = Sketch(chance, 2, 2, leading=())
    for width in (4, 3):
        sketch.linear(width, matmul=True)
        sketch.kinked("Relu")
    sketch.linear(2, matmul=True)
    return sketch


def symbolic(chance: random.Random) -> Sketch:
    """A leading dimension with a name instead of a number."""
    sketch = Sketch(chance, 2, 2, leading=("batch",))
    sketch.linear(4)
    sketch.kinked("Relu")
    sketch.linear(3, matmul=True)
    return sketch


def convolved(average: bool) -> Callable[[random.Random], Sketch]:
    """Conv, Relu, pooling, Gemm."""
    def build(chance: random.Random) -> Sketch:
        sketch = Sketch(chance, 2, 2)
        sketch.convolution(2)
        sketch.kinked("Relu")
        sketch.pooling(2, average=average)
        sketch.linear(3)
        return sketch
    return build


def skipping(chance: random.Random) -> Sketch:
    """Two residual blocks with an activation between them."""
    sketch = Sketch(chance, 2, 2)
    sketch.residual("Relu")
    sketch.kinked("LeakyRelu")
    sketch.residual("Relu")
    return sketch
