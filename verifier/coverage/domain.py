"""The region that inputs come from, with proven bounds of every neuron over it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bounds import Bounds, Box, Crown, DomainError, Prepared, compute_bounds, prepare
from bounds.compute import Method
from verifier.coverage.running import Subject
from verifier.errors import InputError, UnsupportedError
from verifier.query import Query


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """One ``box`` ``[1, *shape]`` float64, and ``lower, upper`` ``[*shape]``: the least and the greatest numbers of the
    network's element type in it. Where a coordinate holds none, the box was widened to those beside it.

    ``bounds``: of every node that the output depends on, proven in exact arithmetic over the stored weights.
    """

    box: Box
    lower: np.ndarray
    upper: np.ndarray
    bounds: Bounds

    def ends(self, node: int) -> tuple[Tensor, Tensor]:
        """Proven ends ``[elements]`` of a node, float64; infinite where the output does not depend on it."""
        low, high = self.bounds.at(node)
        return low.flatten(), high.flatten()

    def inside(self, inputs: np.ndarray) -> np.ndarray:
        """``[N]`` bool."""
        axes = tuple(range(1, inputs.ndim))
        return np.asarray(((inputs >= self.lower) & (inputs <= self.upper)).all(axis=axes))

    def moved(self, point: np.ndarray) -> np.ndarray:
        """A point ``[*shape]`` in the element type, moved to the nearest in the region."""
        nearest = np.asarray(point, dtype=np.float64).astype(self.lower.dtype)
        return np.clip(nearest, self.lower, self.upper)


def domain(subject: Subject, region: Box, method: Method | None = None) -> Domain:
    """The region with bounds of all neurons by ``method`` (default: ``Crown()``).

    Raises ``InputError`` for a region that is empty, infinite, more than one box, or of another shape.
    """
    if not isinstance(region, Box):
        raise InputError(f"the region is a {type(region).__name__}: a bounds.Box of one box is needed")
    shape = (1, *subject.shape)
    if tuple(region.lower.shape) != shape:
        raise InputError(f"the region has the shape {list(region.lower.shape)}, one box {list(shape)} is needed")
    low, high = (end.detach().cpu().double().numpy()[0] for end in (region.lower, region.upper))
    if (low > high).any() or not (np.isfinite(low).all() and np.isfinite(high).all()):
        what = "is empty (lower > upper)" if (low > high).any() else "is not finite"
        raise InputError(f"the region {what}: its ends are finite numbers, lower <= upper everywhere")
    inner = _rounded(low, subject.dtype, 1), _rounded(high, subject.dtype, -1)
    low, high = np.minimum(low, inner[1].astype(np.float64)), np.maximum(high, inner[0].astype(np.float64))
    box = Box(torch.from_numpy(low[None]), torch.from_numpy(high[None]))
    inner = _rounded(low, subject.dtype, 1), _rounded(high, subject.dtype, -1)
    prepared, layers = _ready(subject), tuple(layer.node for layer in subject.layers)
    try:
        bounds = compute_bounds(prepared, box, method or Crown(), keep=layers)
    except DomainError as error:
        raise InputError(str(error)) from error
    return Domain(box, *inner, bounds)


def region_of(query: Query, subject: Subject) -> Box:
    """The one box of a query as a region. Raises ``InputError`` where it has another number of them, or where its
    inputs are not the network's."""
    if not isinstance(query, Query):
        raise InputError(f"a Query is needed, not {type(query).__name__}: verifier.read(model, property) makes one")
    lower, upper = query.cases.lower, query.cases.upper
    size = math.prod(subject.shape)
    if len(query.models) != 1 or lower.shape[1] != size:
        raise InputError(
            f"the query has {lower.shape[1]} inputs of {len(query.models)} networks, the network under test {size}"
        )
    if len(lower) != 1:
        raise InputError(f"the query has {len(lower)} boxes: say which region inputs are to come from")
    shape = (1, *subject.shape)
    return Box(torch.from_numpy(lower.reshape(shape)), torch.from_numpy(upper.reshape(shape)))


def _ready(subject: Subject) -> Prepared:
    if not subject.graph.variable[subject.graph.outputs[0]]:
        raise InputError("the network's output does not depend on its input: no neuron does anything")
    try:
        return prepare(subject.graph, torch.float64)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def _rounded(values: np.ndarray, dtype: np.dtype, side: int) -> np.ndarray:
    """The nearest numbers of the type on one side."""
    near = values.astype(dtype)
    wrong = (near.astype(np.float64) - values) * side < 0
    return np.where(wrong, np.nextafter(near, np.asarray(side * np.inf, dtype=dtype)), near)
