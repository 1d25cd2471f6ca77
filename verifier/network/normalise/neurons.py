"""Equal and mirrored neurons of a fully connected layer become one.

Two ReLU neurons with the same weights and bias have the same value; where weights and bias are exactly opposite,

    relu(-z) = relu(z) - z,

so a pair needs one ReLU and one linear term. Networks that compute minima and maxima by layers of ReLU consist of such
pairs. For a layer ``relu(x W + b) V + c`` every group of neurons that are equal up to sign keeps one ReLU with the sum
of the group's rows of V, and one linear feature with minus the sum of the mirrored neurons' rows:

    x W + b  ->  [relu(x W_r + b_r), x W_l + b_l] [V_r; V_l] + c.

The weights of the first layer are taken over as they are. Sums of rows of V are exact where all summands are
multiples of 2^-30 of moderate size, and carry an error bound otherwise.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bounds.ops.base import Op
from bounds.ops.gemm import Gemm
from bounds.ops.indexing import Concat
from bounds.ops.relu import Relu
from bounds.rounding import Rounding
from verifier.network.normalise.draft import Draft

LEAST_GAIN = 0.1
"""The share of a layer's neurons that must go for the layer to be rebuilt."""

_GRID, _EXACT = 2.0**30, 2.0**53


def merge_neurons(draft: Draft, op: Op, inputs: tuple[int, ...], name: str) -> int | None:
    """A Gemm behind ``relu`` of a Gemm, where at least ``LEAST_GAIN`` of the neurons equal others up to sign.

    All constants must be exact; a rule after which the result is the same function, up to the error bounds of sums.
    """
    hidden, made = inputs[0], draft.made.get(inputs[0])
    if not isinstance(op, Gemm) or made is None or hidden in draft.shared or not isinstance(made[0], Relu):
        return None
    layer = draft.layer(made[1][0])
    if layer is None or not isinstance(layer[0], Gemm):
        return None
    source, *first = layer[1]
    values = [draft.build.value(i) for i in (*first, *inputs[1:])]
    if any(v is None for v in values) or any(draft.build.error(i) is not None for i in (*first, *inputs[1:])):
        return None
    weight, after = draft.build.value(first[0]), draft.build.value(inputs[1])
    assert weight is not None and after is not None
    bias = draft.build.value(first[1]) if len(first) > 1 else None
    group, mirrored, chosen = _groups(weight, weight.new_zeros(weight.shape[1]) if bias is None else bias)
    if len(chosen) > (1 - LEAST_GAIN) * len(group):
        return None
    relu_rows = _summed(after, group, len(chosen))
    linear_rows = _summed(-after * mirrored.unsqueeze(1), group, len(chosen))
    parts, rows = [], []
    for (value, error), rectified in ((relu_rows, True), (linear_rows, False)):
        used = (value != 0).any(1) | (error != 0).any(1)
        if not bool(used.any()):
            continue
        columns = chosen[used]
        constants = [draft.build.constant(weight[:, columns])]
        constants += [] if bias is None else [draft.build.constant(bias[columns])]
        node = draft.add(Gemm(), source, *constants)
        parts.append(draft.add(Relu(), node) if rectified else node)
        rows.append((value[used], error[used]))
    return _joined(draft, parts, rows, inputs[2:], name)


def _joined(
    draft: Draft, parts: list[int], rows: list[tuple[Tensor, Tensor]], shift: tuple[int, ...], name: str
) -> int | None:
    """``[parts] rows + shift``; None where nothing is left of the layer."""
    if not parts:
        return None
    value, error = torch.cat([v for v, _ in rows]), torch.cat([e for _, e in rows])
    matrix = draft.build.constant(value, error if bool((error != 0).any()) else None)
    joined = parts[0]
    if len(parts) > 1:
        shapes = [draft.build.shape(p) for p in parts]
        joined = draft.add(Concat(len(shapes[0]) - 1, tuple(s[-1] for s in shapes)), *parts)
    return draft.add(Gemm(), joined, matrix, *shift, name=name)


def _groups(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Columns that are equal up to sign: ``(group [m], mirrored [m] in {0, 1}, a column of each group)``."""
    columns = torch.cat([weight, bias.unsqueeze(0)]).T.contiguous() + 0.0  # no negative zeros
    numbers = columns.numpy()
    opposite = 0.0 - numbers
    seen: dict[bytes, int] = {}
    group: list[int] = []
    mirrored: list[float] = []
    chosen: list[int] = []
    for column, (same, other) in enumerate(zip(numbers, opposite, strict=True)):
        known = seen.get(same.tobytes())
        flipped = known is None
        if known is None:
            known = seen.get(np.add(other, 0.0).tobytes())
        if known is None:
            known, flipped = len(chosen), False
            seen[same.tobytes()] = known
            chosen.append(column)
        group.append(known)
        mirrored.append(float(flipped))
    return torch.tensor(group), torch.tensor(mirrored, dtype=weight.dtype), torch.tensor(chosen)


def _summed(rows: Tensor, group: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums of the rows of each group, with a bound of their rounding (0 where nothing is rounded)."""
    total = rows.new_zeros((count, rows.shape[1])).index_add_(0, group, rows)
    sizes = torch.zeros_like(total).index_add_(0, group, rows.abs())
    most = int(torch.bincount(group, minlength=count).max())
    scaled = rows * _GRID
    if bool((scaled == scaled.round()).all()) and float(sizes.max()) * _GRID < _EXACT:
        return total, torch.zeros_like(total)
    terms = torch.zeros_like(total).index_add_(0, group, (rows != 0).to(rows.dtype))
    error = Rounding.of(torch.float64).gamma(most) * sizes * (1 + 2**-20) + math.ulp(0.0)
    return total, torch.where(terms > 1, error, 0.0)
