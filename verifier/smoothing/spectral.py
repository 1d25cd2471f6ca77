"""Certified upper bounds of the largest eigenvalue of ``A'A``, and so of the largest singular value of A.

Up to a few thousand columns: a number ``mu`` just above what an iteration says is the largest eigenvalue, and a
Cholesky factorisation of ``mu I - A'A``. If it runs to its end in floating point, the matrix has no eigenvalue below a
small multiple of its trace (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., theorem 10.3; Rump,
Verification of positive definiteness, BIT 2006), whatever the iteration found. Beyond, Gram iteration (Delattre et
al., ICML 2023): the eigenvalue of a symmetric G is at most ``|G^k|_inf^(1/k)`` for every power.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackError, eigsh
from torch import float64

from bounds.rounding import Rounding

MOST_FACTORED = 4096
"""Columns up to which a matrix is factored (134 MB)."""

MOST_PRODUCTS = 1 << 29
"""Multiplications of a sparse product (some seconds, and 16 bytes of memory each at worst)."""

_DENSE = 0.1
_SMALL = 256
_POWERS = 4
_EXACT = Rounding.of(float64)

Sums = TypeVar("Sums", float, np.ndarray)


@dataclass(frozen=True, slots=True, eq=False)
class Gram:
    """``values`` ``[n, n]``, off from the exact ``A'A`` by a symmetric matrix of norm ``error`` at most (2 and inf);
    ``total``: at least the sum of all absolute values of ``A'A``."""

    values: np.ndarray | csr_array
    error: float
    total: float


def gram(a: csr_array) -> Gram | None:
    """``A'A`` for A ``[m, n]`` of finite numbers; None where it takes too many products."""
    a = csr_array(a)
    m, n = a.shape
    dense = a.nnz > _DENSE * m * n
    products = float(m) * n * n / 128 if dense else float(np.square(np.diff(a.indptr).astype(np.float64)).sum())
    if products > MOST_PRODUCTS or (dense and n > MOST_FACTORED):
        return None
    size, most = abs(a), _longest_column(a)
    held = a.toarray() if dense else a
    values = held.T @ held
    # Its two halves may be rounded differently: their mean is symmetric.
    values = (values + values.T) / 2
    sums = size.sum(1)
    gamma = 2 * _EXACT.gamma(most + 16)
    underflow = float(n) * (most + 16) * 4 * _EXACT.tiny
    error = gamma * above(float((size.T @ sums).max(initial=0.0)), m + n) + underflow
    total = above(float(abs(values).sum()), n * n) + gamma * above(float(np.square(sums).sum()), m + n)
    return Gram(values if dense else csr_array(values), error, total + n * underflow)


def greatest_eigenvalue(found: Gram) -> float:
    """At least the largest eigenvalue of the exact ``A'A``."""
    if found.values.shape[0] <= MOST_FACTORED:
        return math.nextafter(_factored(found.values) + found.error, math.inf)
    assert not isinstance(found.values, np.ndarray)
    return math.nextafter(_iterated(found.values, _POWERS) + found.error, math.inf)


def _factored(values: np.ndarray | csr_array) -> float:
    """At least the largest eigenvalue of the symmetric matrix whose lower half is that of ``values``."""
    n, whole = values.shape[0], _dense(values)
    limit = _row_sum(whole)
    guess = min(_guess(values), limit)
    step = max(1e-13, n * 2.0**-51)
    while step < 1:
        mu = guess * (1 + step)
        shifted = -whole
        shifted[np.arange(n), np.arange(n)] += mu
        diagonal = np.abs(shifted.diagonal())
        trace, most = float(diagonal.sum()), float(diagonal.max())
        step *= 30
        try:
            cholesky(shifted.T, lower=False, overwrite_a=True, check_finite=False)
        except LinAlgError:
            continue
        gamma = _EXACT.gamma(n + 8)
        below = above(trace, n) * gamma / (1 - gamma) * (1 + 1e-12) + n * (n + 8) * 4 * _EXACT.tiny
        return float(min(limit, (mu + below + 2 * _EXACT.unit * most) * (1 + 4 * _EXACT.unit)))
    return limit


def _guess(values: np.ndarray | csr_array) -> float:
    """About the largest eigenvalue: nothing rests on it."""
    n = values.shape[0]
    if n <= _SMALL:
        return float(np.linalg.eigvalsh(_dense(values))[-1])
    start = np.random.default_rng(0).standard_normal(n)
    try:
        return float(eigsh(values, k=1, which="LA", v0=start, tol=1e-9, return_eigenvectors=False)[0])
    except ArpackError:
        return float(np.linalg.norm(values @ start) / np.linalg.norm(start))


def _iterated(values: csr_array, powers: int) -> float:
    """At least the largest eigenvalue of a symmetric matrix, by ``powers`` squarings where they are not too much work:
    that of H is at most ``|H|_inf``, and at most the root of that of the computed H^2 and what it is off by."""
    size = _row_sum(values)
    counts = np.diff(values.indptr)
    if powers == 0 or float(counts[values.indices].sum()) > MOST_PRODUCTS:
        return size
    square = values @ values
    square = csr_array((square + square.T) / 2)
    most = int(counts.max(initial=0)) + 16
    error = 2 * _EXACT.gamma(most) * size * size + len(counts) * most * 4 * _EXACT.tiny
    return min(size, math.nextafter(math.sqrt((_iterated(square, powers - 1) + error) * (1 + 1e-15)), math.inf))


def _dense(values: np.ndarray | csr_array) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.toarray()


def _longest_column(a: csr_array) -> int:
    return int(np.bincount(a.indices, minlength=1).max(initial=0))


def _row_sum(values: np.ndarray | csr_array) -> float:
    """At least the norm inf."""
    size = abs(values)
    return above(float(size.sum(1).max(initial=0.0)), values.shape[0])


def above(value: Sums, terms: int) -> Sums:
    """At least the exact sums of ``terms`` numbers >= 0 that were summed to ``value`` (of their squares too)."""
    return value * (1 + 2 * _EXACT.gamma(terms + 16)) + (terms + 16) * 4 * _EXACT.tiny
