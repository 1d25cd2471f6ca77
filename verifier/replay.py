"""A counterexample is one only if onnxruntime says so.

The point, in the model's own element type, must lie in a box of the property; onnxruntime (CPU) computes the raw
outputs; the literals of some clause of that box are evaluated on them in exact fractions. Floating point only
chooses which clauses are worth the exact evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import onnxruntime

from verifier.cases import dtype_of
from verifier.query import Form, Model, Query
from verifier.verdict import Counterexample

RealStatus = Literal["violated", "holds", "open"]
RealDecision = Callable[[Query, np.ndarray, int], RealStatus]
"""Whether the clause (by number) is true at the point ``[n]`` in exact real arithmetic."""

_CHUNK = 10_000_000


def _undecided(query: Query, point: np.ndarray, clause: int) -> RealStatus:
    return "open"


def open_session(model: bytes) -> Any:
    """An onnxruntime session on the CPU as a replay uses it: default optimisations, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Replayer:
    """Replays candidate points of one query; keeps one onnxruntime session for each different model.

    ``decide_real`` answers what a replay cannot: whether the violation holds in exact real arithmetic as well.
    """

    def __init__(self, query: Query, decide_real: RealDecision = _undecided) -> None:
        self._query = query
        self._decide_real = decide_real
        self._sessions: dict[bytes, Any] = {}
        counts = np.diff(query.specification.literals_of)
        self._clause_of = np.repeat(np.arange(len(counts)), counts)
        self._box_of = np.repeat(np.arange(len(query.cases.lower)), np.diff(query.specification.clauses_of))
        self._rhs = query.specification.constants
        near = np.abs(query.cases.threshold)
        self._allowance = 1e-9 * near
        self._outputs = _Sparse([f.outputs for f in query.specification.forms])
        self._inputs = _Sparse([f.inputs for f in query.specification.forms])

    def replay(self, points: np.ndarray) -> Counterexample | None:
        """The first of the points ``[K, n]`` (or ``[n]``) that is a counterexample, None where none is.

        A point outside of every box, or with an output that is not finite, is none.
        """
        for point in np.atleast_2d(points):
            stored = self._stored(point)
            boxes = self._boxes_with(stored)
            if not boxes.any():
                continue
            outputs = self.run(stored)
            found = self._violated(stored, np.concatenate(outputs).astype(np.float64), boxes)
            if found is not None:
                return self._counterexample(stored, outputs, *found)
        return None

    def run(self, point: np.ndarray) -> tuple[np.ndarray, ...]:
        """The models' raw outputs at a flat point ``[n]``, each flat, one after the other in the flat order."""
        found: list[tuple[int, np.ndarray]] = []
        for model in self._query.models:
            feed = {
                v.name: point[v.start : v.start + v.size].astype(dtype_of(v)).reshape(v.shape) for v in model.inputs
            }
            arrays = self._session(model).run([v.name for v in model.outputs], feed)
            found += [(v.start, np.asarray(a).reshape(-1)) for v, a in zip(model.outputs, arrays, strict=True)]
        return tuple(a for _, a in sorted(found, key=lambda pair: pair[0]))

    def _session(self, model: Model) -> Any:
        if model.onnx not in self._sessions:
            self._sessions[model.onnx] = open_session(model.onnx)
        return self._sessions[model.onnx]

    def _stored(self, point: np.ndarray) -> np.ndarray:
        """The point as the models take it: every coordinate rounded to its element type."""
        stored = np.asarray(point, dtype=self._query.cases.inner_lower.dtype).copy()
        for model in self._query.models:
            for v in model.inputs:
                part = slice(v.start, v.start + v.size)
                stored[part] = stored[part].astype(dtype_of(v))
        return stored

    def _boxes_with(self, point: np.ndarray) -> np.ndarray:
        """``[M]`` bool: the boxes that contain the point, their ends included."""
        cases = self._query.cases
        count, size = cases.inner_lower.shape
        inside = np.empty(count, dtype=bool)
        step = max(1, _CHUNK // max(1, size))
        for start in range(0, count, step):
            rows = slice(start, start + step)
            inside[rows] = ((cases.inner_lower[rows] <= point) & (point <= cases.inner_upper[rows])).all(axis=1)
        return inside

    def _violated(self, point: np.ndarray, outputs: np.ndarray, boxes: np.ndarray) -> tuple[int, Fraction] | None:
        """A clause of these boxes with every literal true, and its least slack; the roomiest is tried first."""
        specification, cases = self._query.specification, self._query.cases
        if not np.isfinite(outputs[self._outputs.index]).all():
            return None
        flat = point.astype(np.float64)
        value = self._outputs.product(outputs) + self._inputs.product(flat)
        doubt = 1e-9 * (self._outputs.size(outputs) + self._inputs.size(flat))
        slack = cases.threshold - cases.sign * value[cases.form]
        possible = boxes[self._box_of]
        possible[self._clause_of[~(slack >= -(doubt[cases.form] + self._allowance))]] = False
        least = np.full(len(possible), np.inf)
        np.minimum.at(least, self._clause_of, slack)
        candidates = np.flatnonzero(possible)
        for clause in candidates[np.argsort(-least[candidates], kind="stable")].tolist():
            literals = range(specification.literals_of[clause], specification.literals_of[clause + 1])
            margin = self._margin(literals, point, outputs)
            if margin is not None:
                return clause, margin
        return None

    def _margin(self, literals: Iterable[int], point: np.ndarray, outputs: np.ndarray) -> Fraction | None:
        """The least slack of these literals in exact arithmetic, None where one of them is false."""
        specification = self._query.specification
        least: Fraction | None = None
        for i in literals:
            value = _exact(specification.forms[specification.form[i]], point, outputs)
            slack = int(specification.sign[i]) * (self._rhs[int(specification.rhs[i])] - value)
            if slack < 0 or (slack == 0 and specification.strict[i]):
                return None
            least = slack if least is None else min(least, slack)
        return Fraction(0) if least is None else least

    def _counterexample(
        self, point: np.ndarray, outputs: tuple[np.ndarray, ...], clause: int, margin: Fraction
    ) -> Counterexample:
        specification, flat = self._query.specification, np.concatenate(outputs)
        version_2 = specification.version[0] == "2"
        dtypes = {v.start: dtype_of(v) for m in self._query.models for v in m.inputs}
        return Counterexample(
            inputs=tuple(
                point[v.start : v.start + v.size].astype(dtypes[v.start] if version_2 else point.dtype)
                for v in specification.inputs
            ),
            outputs=tuple(flat[v.start : v.start + v.size] for v in specification.outputs),
            clause=clause,
            margin=_float(margin),
            replayed_with=f"onnxruntime {onnxruntime.__version__} (CPU)",
            real=self._decide_real(self._query, point, clause),
        )


class _Sparse:
    """Rows of exact coefficients in floating point, for the choice of clauses only."""

    def __init__(self, rows: list[tuple[tuple[int, Fraction], ...]]) -> None:
        self.index = np.array([i for row in rows for i, _ in row], dtype=np.int64)
        self._row = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        self._value = np.array([_float(c) for row in rows for _, c in row], dtype=np.float64)
        self._count = len(rows)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """``[rows]``: about the rows times the vector."""
        return np.bincount(self._row, self._value * vector[self.index], minlength=self._count)

    def size(self, vector: np.ndarray) -> np.ndarray:
        """``[rows]``: the sum of the products' absolute values."""
        return np.bincount(self._row, np.abs(self._value * vector[self.index]), minlength=self._count)


def _exact(form: Form, point: np.ndarray, outputs: np.ndarray) -> Fraction:
    value = sum((c * Fraction(float(outputs[i])) for i, c in form.outputs), Fraction(0))
    return value + sum((c * Fraction(float(point[j])) for j, c in form.inputs), Fraction(0))


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
