"""A graph as a torch module of plain layers, for tools that trace modules.

The model's own leading dimension (1 in every network here) becomes the batch dimension. Layers are written with the
functions that a hand-written module would use, so that a tool recognises them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from bounds.graph import Graph, Node
from bounds.ops.arithmetic import Add, Div, Mul, Neg, Sub
from bounds.ops.bilinear import MatrixProduct
from bounds.ops.conv import Conv
from bounds.ops.gemm import Gemm, MatMul
from bounds.ops.indexing import Concat
from bounds.ops.reduction import ReduceMean
from bounds.ops.relu import Relu
from bounds.ops.shaping import Reshape, Transpose
from bounds.ops.softmax import Softmax
from bounds.ops.sshape import Sigmoid, Tanh


class Module(nn.Module):
    """``graph.evaluate`` for inputs ``[N, ...]`` where the model's leading dimension of 1 is replaced by N."""

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        super().__init__()
        if any(n.shape[:1] != (1,) for n in graph.nodes if graph.variable[n.id]):
            raise ValueError("a node without a leading dimension of 1")
        self.graph = graph
        factors = {n.inputs[1]: n for n in graph.nodes if isinstance(n.op, Gemm)}
        for index, constant in graph.constants.items():
            value = constant.value
            if not value.is_floating_point():
                self.register_buffer(f"c{index}", value)
                continue
            value = value.to(dtype).T.contiguous() if index in factors else value.to(dtype)  # as a layer holds it
            self.register_parameter(f"c{index}", nn.Parameter(value, requires_grad=False))

    def _constant(self, index: int) -> Tensor:
        return getattr(self, f"c{index}")

    def forward(self, x: Tensor) -> Tensor:
        values = {self.graph.inputs[0]: x}
        for node in self.graph.nodes:
            if node.id in self.graph.constants:
                values[node.id] = self._constant(node.id)
            elif node.id not in values:
                values[node.id] = self._layer(node, [values[i] for i in node.inputs])
        return values[self.graph.outputs[0]]

    def _layer(self, node: Node, operands: list[Tensor]) -> Tensor:
        op, (x, *rest) = node.op, operands
        if isinstance(op, Gemm):
            return functional.linear(x, *rest)
        if isinstance(op, Conv):
            half = len(op.strides)
            if op.pads[:half] != op.pads[half:]:
                raise ValueError("a convolution with different padding at its ends")
            convolve = functional.conv1d if half == 1 else functional.conv2d
            bias = rest[1] if len(rest) > 1 else None
            return convolve(x, rest[0], bias, op.strides, op.pads[:half], op.dilations, op.groups)
        if isinstance(op, Reshape):
            return x.reshape(-1, *node.shape[1:])
        if isinstance(op, Concat):
            return torch.cat([o.expand(self._batch(operands), *o.shape[1:]) for o in operands], op.axis)
        return _simple(node, operands)

    @staticmethod
    def _batch(operands: list[Tensor]) -> int:
        return max(o.shape[0] for o in operands)


def _simple(node: Node, operands: list[Tensor]) -> Tensor:
    op = node.op
    if isinstance(op, Transpose):
        return operands[0].permute(op.perm)
    if isinstance(op, Softmax):
        return torch.softmax(operands[0], op.axis)
    if isinstance(op, ReduceMean):
        return operands[0].mean(op.axes, op.keepdims)
    if isinstance(op, MatMul | MatrixProduct):
        return torch.matmul(operands[0], operands[1])
    if isinstance(op, Relu | Sigmoid | Tanh | Add | Sub | Mul | Div | Neg):
        return op.forward(*operands)
    raise ValueError(f"{type(op).__name__} is not translated")
