"""The graph of a query: one flat input, the networks, and one scalar output per form.

Outputs that no literal reads are left out, and with them whatever only they need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from bounds.graph import Builder, Graph
from bounds.ops.arithmetic import Add
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat, pick
from bounds.ops.shaping import reshape
from verifier.errors import UnsupportedError
from verifier.network.normalise import merge_neurons, rewrite
from verifier.query import Form, Model

if TYPE_CHECKING:
    from verifier.query import Variable


def assemble(models: Sequence[Model], graphs: Sequence[Graph], forms: Sequence[Form], size: int) -> Graph:
    """The graph ``[size] -> [len(forms)]``. ``graphs[k]`` computes ``models[k]``, whose variables say where its
    inputs and outputs lie in the flat vectors; of ``forms`` those that are a single output come first."""
    build = Builder()
    x = build.input((size,), "inputs")
    tensors: list[tuple[Variable, int]] = []
    for model, graph in zip(models, graphs, strict=True):
        inputs = [_part(build, x, v, graph.nodes[i].shape) for v, i in zip(model.inputs, graph.inputs, strict=True)]
        tensors += zip(model.outputs, build.embed(graph, inputs), strict=True)
    outputs, place = _outputs(build, tensors, sorted({i for f in forms for i, _ in f.outputs}))
    single = [len(f.outputs) == 1 and not f.inputs and f.outputs[0][1] == 1 for f in forms]
    count = single.index(False) if False in single else len(single)
    parts = []
    if count or not forms:
        node = x if outputs is None else outputs
        parts.append(pick(build, node, 0, [place[f.outputs[0][0]] for f in forms[:count]]))
    if count < len(forms):
        parts.append(_affine(build, forms[count:], outputs, place, x))
    result = parts[0]
    if len(parts) > 1:
        result = build.add(Concat(0, (count, len(forms) - count)), *parts, name="forms")
    if build.value(result) is not None:  # all forms are constants: bounds are those of functions of the input
        zeros = build.constant(torch.zeros((size, len(forms)), dtype=torch.float64))
        result = build.add(Gemm(), x, zeros, result)
    return rewrite(build.finish([result]), (merge_neurons,))


def _part(build: Builder, x: int, variable: Variable, shape: tuple[int, ...]) -> int:
    """A declared input: its slice of the flat vector in its shape."""
    start, stop = variable.start, variable.start + variable.size
    return reshape(build, pick(build, x, 0, list(range(start, stop))), shape)


def _outputs(
    build: Builder, tensors: Sequence[tuple[Variable, int]], read: Sequence[int]
) -> tuple[int | None, Mapping[int, int]]:
    """One flat node with the outputs in ``read`` (None: there are none), and the place of each in it."""
    parts, sizes = [], []
    place: dict[int, int] = {}
    for variable, node in tensors:
        mine = [i for i in read if variable.start <= i < variable.start + variable.size]
        if not mine:
            continue
        place |= {i: len(place) + k for k, i in enumerate(mine)}
        flat = reshape(build, node, (variable.size,))
        parts.append(pick(build, flat, 0, [i - variable.start for i in mine]))
        sizes.append(len(mine))
    if len(parts) < 2:
        return (parts[0] if parts else None), place
    return build.add(Concat(0, tuple(sizes)), *parts), place


def _affine(build: Builder, forms: Sequence[Form], outputs: int | None, place: Mapping[int, int], x: int) -> int:
    """Forms with coefficients: a product with the outputs, plus one with the inputs where they occur."""
    terms = []
    if outputs is not None and any(f.outputs for f in forms):
        read = sorted({i for f in forms for i, _ in f.outputs})
        node = pick(build, outputs, 0, [place[i] for i in read])
        terms.append(_product(build, node, read, [f.outputs for f in forms]))
    if any(f.inputs for f in forms):
        read = sorted({i for f in forms for i, _ in f.inputs})
        node = pick(build, x, 0, read)
        terms.append(_product(build, node, read, [f.inputs for f in forms]))
    return terms[0] if len(terms) == 1 else build.add(Add(), *terms)


def _product(build: Builder, node: int, read: Sequence[int], rows: Sequence[Sequence[tuple[int, Fraction]]]) -> int:
    column = {i: k for k, i in enumerate(read)}
    weight = np.zeros((len(read), len(rows)))
    error = np.zeros_like(weight)
    for k, row in enumerate(rows):
        for i, coefficient in row:
            weight[column[i], k], error[column[i], k] = _rounded(coefficient)
    matrix = build.constant(torch.from_numpy(weight), torch.from_numpy(error) if error.any() else None)
    return build.add(Gemm(), node, matrix)


def _rounded(coefficient: Fraction) -> tuple[float, float]:
    """The nearest double, and an upper bound of its distance."""
    try:
        near = float(coefficient)
    except OverflowError:
        raise UnsupportedError("a coefficient of the property lies beyond the range of float64") from None
    distance = abs(coefficient - Fraction(near))
    return near, float(np.nextafter(float(distance), np.inf)) if distance else 0.0
