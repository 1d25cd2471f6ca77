"""Graphs evaluated in float32, every sum in an order of its own: forward, backward, shuffled, pairwise, fused or not.

Operators other than sums of products run as they are: one rounding for each element.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from bounds.graph import Graph, Node
from bounds.ops.base import Op
from bounds.ops.conv import Conv, ConvTranspose
from bounds.ops.gemm import Gemm
from bounds.ops.pooling import AveragePool
from bounds.ops.reduction import ReduceMean, ReduceSum

SINGLE = np.float32


def evaluate(graph: Graph, x: np.ndarray, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Every variable node's value (without N) at the flat float32 input ``x``."""
    values: dict[int, np.ndarray] = {}
    for node in graph.nodes:
        if node.id in graph.inputs:
            values[node.id] = x.astype(SINGLE).reshape(node.shape)
        elif node.id in graph.constants:
            value = graph.constants[node.id].value
            values[node.id] = (value.to(torch.float32) if value.is_floating_point() else value).numpy()
        else:
            values[node.id] = _node(node, [values[i] for i in node.inputs], rng).reshape(node.shape)
    return values


def _node(node: Node, operands: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    op = node.op
    if isinstance(op, Gemm | Conv | ConvTranspose):
        x, weight, *bias = operands
        numbers = torch.arange(1, weight.size + 1, dtype=torch.float64).reshape(weight.shape)
        matrix = op.forward(_units(x), numbers).reshape(x.size, -1).numpy().astype(np.int64)
        weights = np.concatenate([np.zeros(1, SINGLE), weight.reshape(-1)])[matrix].reshape(x.size, *node.shape)
        shape = (-1,) if isinstance(op, Gemm) else (1, -1, *(1,) * (len(node.shape) - 2))
        start = np.broadcast_to(bias[0].reshape(shape), node.shape) if bias else np.zeros(node.shape, SINGLE)
        return _sums(x, weights.reshape(x.size, -1), start.reshape(-1), rng)
    if isinstance(op, ReduceSum | ReduceMean | AveragePool):
        return _mean(op, operands[0], rng)
    data = [
        torch.from_numpy(np.ascontiguousarray(o)) if k in op.parameters else torch.from_numpy(np.array(o))[None]
        for k, o in enumerate(operands)
    ]
    return op.forward(*data)[0].numpy()


def _units(x: np.ndarray) -> torch.Tensor:
    return torch.eye(x.size, dtype=torch.float64).reshape(x.size, *x.shape)


def _mean(op: Op, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    matrix = op.forward(_units(x)).reshape(x.size, -1).numpy() != 0
    total = _sums(x, matrix.astype(SINGLE), np.zeros(matrix.shape[1], SINGLE), rng)
    count = 1
    if isinstance(op, AveragePool):
        count = prod(op.kernel)
    elif isinstance(op, ReduceMean):
        count = prod(x.shape[a] for a in op.axes)
    return total / SINGLE(count) if rng.random() < 0.5 else total * (SINGLE(1) / SINGLE(count))


def _sums(x: np.ndarray, weights: np.ndarray, start: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``x weights + start`` with one order of summation for each element."""
    flat = x.reshape(-1)
    return np.array([_sum(flat, weights[:, j], start[j], rng) for j in range(weights.shape[1])], dtype=SINGLE)


def _sum(x: np.ndarray, weights: np.ndarray, start: np.floating, rng: np.random.Generator) -> np.floating:
    order = rng.permutation(np.flatnonzero(weights))
    kind = rng.integers(0, 3)
    if kind == 0:  # fused: the product is not rounded (float64 holds it exactly)
        total = SINGLE(start)
        for i in order:
            total = SINGLE(np.float64(x[i]) * np.float64(weights[i]) + np.float64(total))
        return total
    terms = [*(x[order] * weights[order]), SINGLE(start)]
    if kind == 1:
        total = SINGLE(0)
        for term in terms:
            total = SINGLE(total + term)
        return total
    while len(terms) > 1:
        rest = terms[2 * (len(terms) // 2) :]
        terms = [SINGLE(a + b) for a, b in zip(terms[::2], terms[1::2], strict=False)] + rest
    return terms[0]
