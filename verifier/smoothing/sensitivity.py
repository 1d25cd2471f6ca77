"""How much an affine map stretches: ``|W x|_q <= Delta_{p,q} |x|_p``, upper bounds that no rounding can undercut.

The matrix W is got column by column from enclosures of the graph's values at multiples of the unit vectors (``bounds``,
float64, error terms included, so that computed constants are covered too). It is kept as a sparse matrix ``centre`` and
sums of what its elements can be off by. Six of the nine norms are those of W up to rounding:

    (1, q)    the longest column in the norm q        (p, inf)  the longest row in the dual norm of p
    (2, 2)    the largest singular value

The other three, (inf, 1), (inf, 2) and (2, 1), are hard to compute (the first two are maxima over sign vectors); here
they are bounds: ``x'W'W x <= sum |W'W|_ij`` for signs x, the same for the transpose, sums of absolute values, and the
inequalities between norms, ``|x|_1 <= sqrt(n) |x|_2 <= n |x|_inf``. They are attained where W has no negative element.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from bounds import Box, Graph, Interval, Prepared, compute_bounds, prepare
from bounds.rounding import Rounding
from verifier.attacks.search import cost
from verifier.errors import UnsupportedError
from verifier.smoothing import spectral
from verifier.smoothing.noise import Norm
from verifier.smoothing.spectral import above

Norms = tuple[Norm, Norm]
"""Of what goes in, and of what comes out."""

MOST_WORK = 1e12
"""Multiply-adds of the evaluation at all unit vectors."""

MOST_ENTRIES = 1 << 26
"""Elements other than 0 of a matrix that is held (1 GB); of others only sums are."""

_ELEMENTS = 1 << 20
"""Of the values of all nodes, of the unit vectors that are evaluated at once."""

_UNIT_VECTOR = 2.0**32
"""What unit vectors are multiplied with: what is added in the map is small beside it, and its rounding too."""

_EXACT = Rounding.of(torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Sums over the elements of W ``[m, n]``, each at least the exact one (float64): ``columns``, ``column_squares``
    ``[n]`` of absolute values and squares, ``rows``, ``row_squares`` ``[m]``; ``greatest``, the largest absolute value.

    ``centre`` is near W (None: too large to hold): ``|W - centre| <= R`` elementwise for a matrix R whose column sums
    are at most ``column_errors`` and whose row sums are at most ``row_errors``.
    """

    columns: np.ndarray
    column_squares: np.ndarray
    rows: np.ndarray
    row_squares: np.ndarray
    greatest: float
    centre: csr_array | None
    column_errors: np.ndarray
    row_errors: np.ndarray


def sensitivities(graph: Graph) -> Mapping[Norms, float]:
    """``Delta_{p,q}`` by ``(p, q)`` of the linear part W of a graph that is affine in its one input:

        |f(x) - f(y)|_q = |W (x - y)|_q <= Delta_{p,q} |x - y|_p        for all x and y, in real arithmetic

    over the stored weights and the true values of computed constants; ``inf`` where a number overflows. The
    module says which are the least such numbers (up to rounding). Raises ``UnsupportedError`` where the input has so
    many elements that evaluating at each unit vector takes too long.
    """
    w = matrix(graph)
    m, n = len(w.rows), len(w.columns)
    found: dict[Norms, float] = {
        ("1", "1"): float(w.columns.max()),
        ("1", "2"): _root(float(w.column_squares.max())),
        ("1", "inf"): w.greatest,
        ("2", "inf"): _root(float(w.row_squares.max())),
        ("inf", "inf"): float(w.rows.max()),
        ("inf", "1"): above(float(w.columns.sum()), n),
        ("inf", "2"): _root(above(float(np.square(w.rows).sum()), m)),
        ("2", "1"): _root(above(float(np.square(w.columns).sum()), n)),
    }
    frobenius = _root(above(float(w.column_squares.sum()), n))
    found["2", "2"] = min(frobenius, _root(found["1", "1"] * found["inf", "inf"]))
    if w.centre is not None and all(math.isfinite(value) for value in found.values()):
        _by_gram(w, found)
    return MappingProxyType(_related(found, m, n))


def matrix(graph: Graph) -> Matrix:
    """What is known of the linear part ``[m, n]`` of an affine graph (flat); raises as ``sensitivities``."""
    n, m = (math.prod(graph.nodes[ends[0]].shape) for ends in (graph.inputs, graph.outputs))
    columns, column_squares, column_errors = np.zeros(n), np.zeros(n), np.zeros(n)
    rows, row_squares, row_errors = np.zeros(m), np.zeros(m), np.zeros(m)
    greatest, held, parts = 0.0, 0, list[coo_array]()
    for first, centre, radius in _columns(graph, m, n):
        some, size = slice(first, first + len(centre)), np.abs(centre) + radius
        columns[some], column_squares[some], column_errors[some] = size.sum(1), np.square(size).sum(1), radius.sum(1)
        rows += size.sum(0)
        row_squares += np.square(size).sum(0)
        row_errors += radius.sum(0)
        greatest = max(greatest, float(size.max(initial=0.0)))
        place, at = np.nonzero(centre)
        held += len(at)
        if held <= MOST_ENTRIES:
            parts.append(coo_array((centre[place, at], (at, place + first)), shape=(m, n)))
    whole = None if held > MOST_ENTRIES else csr_array(_joined(parts, m, n))
    return Matrix(
        above(columns, m), above(column_squares, m), above(rows, n), above(row_squares, n), above(greatest, 1),
        whole, above(column_errors, m), above(row_errors, n),
    )  # fmt: skip


def _columns(graph: Graph, m: int, n: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Some columns ``[K, m]`` at a time: the first one's number, middles, and what the elements differ by at most."""
    work, elements = cost(graph)
    if n * work > MOST_WORK:
        raise UnsupportedError(
            f"the sensitivity of a first layer with {n} inputs and {m} outputs takes {n * work:.1e} multiplications, "
            f"more than {MOST_WORK:.0e}: add the noise to the input instead"
        )
    ready, shape = prepare(graph, torch.float64), graph.nodes[graph.inputs[0]].shape
    low0, high0 = _values(ready, torch.zeros((1, *shape), dtype=torch.float64))
    step = int(max(1, _ELEMENTS // elements))
    for first in range(0, n, step):
        units = torch.zeros((min(step, n - first), n), dtype=torch.float64)
        units.diagonal(first).fill_(_UNIT_VECTOR)
        low, high = _values(ready, units.reshape(-1, *shape))
        low, high = _EXACT.down(low - high0), _EXACT.up(high - low0)
        middle = (low + high) / 2
        radius = _EXACT.up(torch.maximum(high - middle, middle - low))
        nothing = middle.abs() <= radius
        radius = torch.where(nothing, _EXACT.up(radius + middle.abs()), radius) / _UNIT_VECTOR + _EXACT.tiny
        middle = torch.where(nothing, 0.0, middle) / _UNIT_VECTOR
        radius = torch.where(radius.isfinite() & middle.isfinite(), radius, torch.inf)
        yield first, middle.nan_to_num(0.0, 0.0, 0.0).numpy(), radius.numpy()


def _values(ready: Prepared, points: Tensor) -> tuple[Tensor, Tensor]:
    found = compute_bounds(ready, Box(points, points.clone()), Interval())
    return found.lower.flatten(1), found.upper.flatten(1)


def _by_gram(w: Matrix, found: dict[Norms, float]) -> None:
    """Replace what the products of the matrix's columns, or rows, say better: norms of ``centre``, and of what W
    differs from it by."""
    assert w.centre is not None
    grams = [spectral.gram(w.centre), spectral.gram(csr_array(w.centre.T))]
    sides: tuple[Norms, Norms] = (("inf", "2"), ("2", "1"))
    for norms, gram, errors in zip(sides, grams, (w.row_errors, w.column_errors), strict=True):
        if gram is not None:
            off = _root(above(float(np.square(errors).sum()), len(errors)))
            found[norms] = min(found[norms], _sum(_root(gram.total), off))
    known = [gram for gram in grams if gram is not None]
    if known:
        off = _root(float(w.column_errors.max()) * float(w.row_errors.max()))
        least = spectral.greatest_eigenvalue(min(known, key=lambda gram: gram.values.shape[0]))
        found["2", "2"] = min(found["2", "2"], _sum(_root(least), off))


def _related(found: dict[Norms, float], m: int, n: int) -> dict[Norms, float]:
    """Each at most what the others say with the inequalities between norms, in front of the map and behind it."""
    order: tuple[Norm, Norm, Norm] = ("1", "2", "inf")
    best = dict(found)
    for _ in range(2):
        for p, q in found:
            for p2, q2 in found:
                # |x|_p2 <= front |x|_p and |y|_q <= behind |y|_q2
                front = n ** max(0.0, (order.index(p) - order.index(p2)) / 2)
                behind = m ** max(0.0, (order.index(q2) - order.index(q)) / 2)
                if (p, q) != (p2, q2):
                    best[p, q] = min(best[p, q], best[p2, q2] * front * behind * (1 + 1e-14))
    return best


def _sum(one: float, other: float) -> float:
    return math.nextafter(one + other, math.inf)


def _root(square: float) -> float:
    """At least the root."""
    return math.nextafter(math.sqrt(square), math.inf)


def _joined(parts: list[coo_array], m: int, n: int) -> coo_array:
    rows, columns = (np.concatenate([p.coords[k] for p in parts]) for k in (0, 1))
    return coo_array((np.concatenate([p.data for p in parts]), (rows, columns)), shape=(m, n))
