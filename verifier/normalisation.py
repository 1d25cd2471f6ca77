"""A normalisation as ONNX nodes in front of a model, so that whatever runs the model runs it too."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from verifier.errors import InputError
from verifier.network.files import load_model


def with_normalisation(source: str | Path | bytes, mean: Sequence[Fraction], std: Sequence[Fraction]) -> bytes:
    """The serialised model of ``x -> model((x - mean) / std)`` for a model with one input.

    One number, one a channel (the axis of that size, the second where several fit) or one an element. Raises
    ``InputError`` where their count fits nothing.
    """
    model, name = load_model(source)
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise InputError(f"{name}: a normalisation needs a model with one input, this one has {len(inputs)}")
    tensor = inputs[0].type.tensor_type
    shape = tuple(d.dim_value or 1 for d in tensor.shape.dim)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    free = _unused_name(graph)
    nodes = []
    current = inputs[0].name
    for word, numbers, operator in (("mean", mean, "Sub"), ("std", std, "Div")):
        array = _broadcast(numbers, shape, word).astype(dtype)
        if not np.isfinite(array).all() or (word == "std" and not array.all()):
            raise InputError(f"{word}: a value is zero or infinite as {dtype}")
        graph.initializer.append(numpy_helper.from_array(array, f"{free}_{word}"))
        nodes.append(helper.make_node(operator, [current, f"{free}_{word}"], [f"{free}_{operator}"]))
        current = f"{free}_{operator}"
    for node in graph.node:
        for k, operand in enumerate(node.input):
            if operand == inputs[0].name:
                node.input[k] = current
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
    return model.SerializeToString()


def _broadcast(numbers: Sequence[Fraction], shape: tuple[int, ...], word: str) -> np.ndarray:
    values = np.array([float(v) for v in numbers])
    if values.size == 1:
        return values.reshape(())
    if values.size == np.prod(shape):
        return values.reshape(shape)
    axes = [k for k, d in enumerate(shape) if d == values.size]
    if not axes:
        raise InputError(f"{word}: {values.size} values fit no axis of the input's shape {list(shape)}")
    axis = 1 if 1 in axes else axes[0]
    return values.reshape([-1 if k == axis else 1 for k in range(len(shape))])


def _unused_name(graph: onnx.GraphProto) -> str:
    used = {n for node in graph.node for n in (*node.input, *node.output)} | {t.name for t in graph.initializer}
    name = "normalisation"
    while any(u.startswith(name) for u in used):
        name += "_"
    return name
