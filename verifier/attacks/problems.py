"""From examples of a classifier, or the clauses of a query, to what attacks work on."""

from __future__ import annotations

from fractions import Fraction
from typing import cast, get_args

import numpy as np
import torch

from verifier.attacks.clauses import ClauseArrays
from verifier.attacks.goals import Clauses, Misclassified
from verifier.attacks.oracle import GraphOracle, Oracle
from verifier.attacks.rounding import box_around, inner_ends
from verifier.attacks.search import hull
from verifier.attacks.threats import BallNorm, Balls, Boxes, Threat
from verifier.attacks.trial import Problem, Trial
from verifier.errors import InputError
from verifier.query import Cases, Query

_AT_ONCE = 2**24
"""Elements of points that are looked at together."""


def classification(oracle: Oracle, x: np.ndarray, labels: np.ndarray, threat: Threat) -> Problem:
    """N examples ``x`` ``[N, n]`` of classes ``labels`` ``[N]``; some other class is to score at least as much in
    ``threat``. Raises ``InputError`` where the numbers do not fit."""
    if len(labels) != len(x) or len(threat.centre) != len(x):
        raise InputError(f"{len(x)} examples, {len(labels)} labels, {len(threat.centre)} sets: one each is needed")
    return Problem(oracle, Misclassified(torch.from_numpy(labels.astype(np.int64)).to(oracle.device)), threat)


def ball(
    x: np.ndarray,
    epsilon: Fraction,
    norm: str,
    data_range: tuple[Fraction, Fraction] | None = None,
    device: torch.device | str = "cpu",
) -> Threat:
    """The balls of radius ``epsilon`` around ``x`` ``[N, n]`` (float32 or float64: the model's element type) in the
    norm "inf", "2", "1" or "0", cut by a range. Raises ``InputError`` for an example outside of it."""
    centre = torch.from_numpy(x).to(device)
    if epsilon < 0:
        raise InputError(f"epsilon: {epsilon} is negative")
    if norm == "inf":
        lower, upper = box_around(x, epsilon, data_range)
        return Boxes(torch.from_numpy(lower).to(device), torch.from_numpy(upper).to(device), centre)
    if norm not in get_args(BallNorm):
        raise InputError(f"norm {norm!r}: the known ones are inf, 2, 1 and 0")
    if norm == "0" and epsilon.denominator != 1:
        raise InputError(f"epsilon: {epsilon} is not a whole number, and in the norm 0 it counts elements")
    if data_range is None:
        return Balls.of(centre, epsilon, cast(BallNorm, norm))
    low, high = (float(e) for e in inner_ends(data_range, x.dtype))
    return Balls.of(centre, epsilon, cast(BallNorm, norm), (low, high))


def whole_range(
    x: np.ndarray, data_range: tuple[Fraction, Fraction] | None = None, device: torch.device | str = "cpu"
) -> Boxes:
    """All points of a range (None: of any size) around the examples ``x`` ``[N, n]`` (float32 or float64: the model's
    element type), for minimum-distortion attacks. Raises ``InputError`` for an example outside of it."""
    low, high = (-np.inf, np.inf) if data_range is None else inner_ends(data_range, x.dtype)
    if bool(((x < low) | (x > high)).any()):
        raise InputError(f"an example lies outside the data range [{low}, {high}]")
    centre = torch.from_numpy(x).to(device)
    return Boxes.of(torch.full_like(centre, float(low)), torch.full_like(centre, float(high)), centre)


def of_clauses(query: Query, chosen: np.ndarray | None = None, device: torch.device | str = "cpu") -> Problem:
    """The clauses of a query (numbers ``chosen``; None: all whose box is not empty), each an example in its box."""
    cases = query.cases
    arrays = ClauseArrays.of(cases, chosen, device)
    around = hull(cases, arrays) if arrays.size else None
    return of_cases(cases, GraphOracle.of(query.graph, _searched(cases), device, around), chosen)


def nearest_clauses(query: Query, count: int, device: torch.device | str = "cpu") -> np.ndarray:
    """The numbers of the ``count`` clauses (or fewer) that are nearest to being true at the centres of their boxes;
    those of empty boxes are left out."""
    oracle = GraphOracle.of(query.graph, _searched(query.cases), device)
    total = len(query.cases.literals_of) - 1
    step = max(1, _AT_ONCE // max(1, query.cases.lower.shape[1]))
    margins, numbers = [np.empty(0)], [np.empty(0, dtype=np.int64)]
    for first in range(0, total, step):
        part = of_cases(query.cases, oracle, np.arange(first, min(first + step, total)))
        assert isinstance(part.goal, Clauses)
        every = torch.arange(part.size, device=oracle.device)
        margins.append(Trial(part).evaluate(part.threat.centre, every).double().cpu().numpy())
        numbers.append(part.goal.arrays.clause.cpu().numpy())
    order = np.concatenate(margins).argsort(kind="stable")[:count]
    found: np.ndarray = np.concatenate(numbers)[order]
    return np.sort(found)


def of_cases(cases: Cases, oracle: Oracle, chosen: np.ndarray | None = None) -> Problem:
    """Clauses by themselves, with an oracle of their forms; see ``of_clauses``."""
    empty = np.any(cases.inner_lower > cases.inner_upper, axis=1)
    every = np.arange(len(cases.literals_of) - 1) if chosen is None else np.asarray(chosen, dtype=np.int64)
    left = every[~empty[np.searchsorted(cases.clauses_of, every, side="right") - 1]]
    arrays = ClauseArrays.of(cases, left, oracle.device)
    dtype = _searched(cases)
    box = arrays.box.cpu().numpy()
    lower, upper = (torch.from_numpy(a[box]).to(oracle.device, dtype) for a in (cases.inner_lower, cases.inner_upper))
    return Problem(oracle, Clauses(arrays), Boxes.of(lower, upper))


def _searched(cases: Cases) -> torch.dtype:
    """The type of the search: the model's own, at least float32."""
    return torch.promote_types(torch.from_numpy(cases.inner_lower[:1]).dtype, torch.float32)
