"""The range of a model's outputs over a region: sound bounds without a property.

The region is taken exactly, decimals and fractions included, and enclosed in numbers of float64: every input that the
exact region holds is covered.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from bounds import Bounds, Box, Crown, DomainError, Graph, LpBall, compute_bounds, margins
from bounds.ops.argmax import Place
from bounds.ops.jumps import Jumping
from verifier.errors import InputError, UnsupportedError
from verifier.property.numbers import exact, rank
from verifier.regions import Number, check_norm, exact_range, fitting

if TYPE_CHECKING:
    from bounds.compute import Method
    from verifier.network import Network


def output_range(
    model: str | Path | bytes | Network,
    region: Box | LpBall,
    method: Method | None = None,
    *,
    label: int | None = None,
    semantics: Literal["real", "float32"] | None = "real",
) -> Bounds:
    """Bounds of a model's output over a region of N boxes or balls (``ball`` makes one from exact numbers).

    ``method`` defaults to ``Crown()``. With ``label`` the margins ``output[label] - output[c]`` for every other class c
    are bounded, ``[N, classes - 1]``. For ``semantics="float32"`` a ``Network`` must have been read with
    ``normalised=False``: its float32 results are those of the model as it is written down. Guarantees
    ``lower <= output <= upper`` for every input in the region, under the semantics that ``compute_bounds`` states.
    Raises ``InputError``, ``UnsupportedError``.
    """
    network = single(model, as_stored=semantics == "float32")
    rows = None if label is None else rows_of(network, label)
    return bounded(network.graph, region, method or Crown(), rows, semantics)


def rows_of(network: Network, label: int) -> Tensor:
    """The margins ``[classes - 1, *output shape]`` of a class. Raises ``InputError`` where it is none."""
    count = network.outputs[0].size
    if not 0 <= label < count or count < 2:
        raise InputError(f"label {label}: the model has the classes 0 to {count - 1}")
    return margins(network.graph, label)


def bounded(
    graph: Graph,
    region: Box | LpBall,
    method: Method,
    rows: Tensor | None = None,
    semantics: Literal["real", "float32"] | None = "real",
) -> Bounds:
    """``compute_bounds``, where what is wrong with the region or the graph is the user's: raises ``InputError``."""
    if not graph.variable[graph.outputs[0]]:
        raise InputError("the model's output does not depend on its input: there is nothing to bound")
    if isinstance(region, LpBall) and bool(region.empty().any()):
        raise InputError("the region is empty: no input satisfies it")
    if isinstance(region, Box) and bool(region.empty().any()):
        raise InputError(f"box {int(region.empty().nonzero()[0])} is empty (lower > upper): no input satisfies it")
    try:
        return compute_bounds(graph, region, method, rows=rows, semantics=semantics)
    except DomainError as error:
        raise InputError(str(error)) from error


def jumps(graph: Graph) -> tuple[str, ...]:
    """The nodes at which a network jumps: it has no Lipschitz constant then, and no bounded derivatives."""
    return tuple(f"node {n.id} ({type(n.op).__name__})" for n in graph.nodes if isinstance(n.op, Jumping | Place))


def single(model: str | Path | bytes | Network, as_stored: bool = False) -> Network:
    """A model with one input and one output, read ``as_stored`` or with affine nodes merged. Raises
    ``UnsupportedError`` for others."""
    from verifier.network import read_network

    paths = str | Path | bytes
    network = read_network(model, normalised=not as_stored) if isinstance(model, paths) else model
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise UnsupportedError(
            f"a range needs a model with one input and one output; this one has {len(network.inputs)} and "
            f"{len(network.outputs)}"
        )
    return network


def ball(
    network: Network,
    x: np.ndarray,
    epsilon: Number,
    norm: str = "inf",
    data_range: tuple[Number, Number] | None = None,
) -> Box | LpBall:
    """The ball of radius ``epsilon`` around each of N points, cut to ``data_range``, enclosed in float64 numbers.

    ``x`` holds a whole number of inputs, one after the other. For ``norm`` "inf" this is a ``Box``, for "2" and "1" an
    ``LpBall``. Raises ``InputError``.
    """
    check_norm(norm)
    radius = exact(epsilon, "epsilon")
    if radius < 0:
        raise InputError(f"epsilon: {epsilon} is negative")
    points = several(x, network)
    limits = None if data_range is None else exact_range(data_range)
    _inside(points, limits)
    shape = (len(points), *network.inputs[0].shape)
    if norm == "inf":
        lower, upper = _around(points, radius, limits)
        return Box(torch.from_numpy(lower.reshape(shape)), torch.from_numpy(upper.reshape(shape)))
    within = None
    if limits is not None:
        low, high = (rounded(limits[0], -1), rounded(limits[1], 1))
        whole = torch.ones((1, *network.inputs[0].shape), dtype=torch.float64)
        within = Box(whole * low, whole * high)
    centre = torch.from_numpy(points.reshape(shape))
    return LpBall(centre, torch.full((len(points),), rounded(radius, 1), dtype=torch.float64), float(norm), within)


def box(network: Network, lower: np.ndarray, upper: np.ndarray) -> Box:
    """The boxes ``lower <= x <= upper``, each a whole number of inputs one after the other. Raises ``InputError``."""
    low, high = several(lower, network, "lower"), several(upper, network, "upper")
    if low.shape != high.shape:
        raise InputError(f"lower holds {len(low)} inputs and upper {len(high)}")
    shape = (len(low), *network.inputs[0].shape)
    return Box(torch.from_numpy(low.reshape(shape)), torch.from_numpy(high.reshape(shape)))


def several(x: np.ndarray, network: Network, what: str = "the point") -> np.ndarray:
    """``[N, elements]`` float64, exact, for an array of one or more inputs. Raises ``InputError``."""
    array, size = np.asarray(x), network.inputs[0].size
    if array.ndim > 1 and len(array) * size == array.size > 0:
        return np.stack([fitting(part, network, what) for part in array.reshape(-1, size)])
    return fitting(array, network, what)[None]


def _inside(points: np.ndarray, limits: tuple[Fraction, ...] | None) -> None:
    if limits is None:
        return
    for value in np.unique(points).tolist():
        if not limits[0] <= Fraction(value) <= limits[1]:
            raise InputError(f"the point has an element {value} that is outside the data range {_interval(limits)}")


def _interval(limits: tuple[Fraction, ...]) -> str:
    return f"[{limits[0]}, {limits[1]}]"


def _around(points: np.ndarray, radius: Fraction, limits: tuple[Fraction, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the exact intervals, rounded outward."""
    values, inverse = np.unique(points, return_inverse=True)
    ends = [(Fraction(v) - radius, Fraction(v) + radius) for v in values.tolist()]
    if limits is not None:
        ends = [(max(a, limits[0]), min(b, limits[1])) for a, b in ends]
    numbers, ranks = rank([end for pair in ends for end in pair])
    below, above = numbers.rounded().enclose(np.float64)
    places = ranks.reshape(-1, 2)[inverse.reshape(points.shape)]
    return below[places[..., 0]], above[places[..., 1]]


def rounded(value: Fraction, side: int) -> float:
    """The nearest double on one side of an exact number."""
    near = float(value)
    if (Fraction(near) - value) * side >= 0:
        return near
    return math.nextafter(near, side * math.inf)
