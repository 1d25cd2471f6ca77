"""A query as the tensors that branch and bound works on.

A *task* is one box with up to ``MOST_CLAUSES`` of its clauses; every subproblem belongs to a task. A *column* is a
distinct (form, sign) pair: it is bounded once per box, and all literals on it compare their thresholds with the same
number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bounds.backward import State
from bounds.box import Box
from bounds.plan import Plan
from bounds.rounding import cast_outward
from verifier.attacks.clauses import ClauseArrays, ragged
from verifier.attacks.starts import Starts
from verifier.query import Query

MOST_CLAUSES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """T tasks over M boxes, K clauses with at most L literals, S columns.

    ``lower, upper`` ``[M, n]`` float64 (outward), ``inner_lower, inner_upper`` in the model's dtype, ``varying``
    ``[M, n]``. ``box`` ``[T]``, ``clauses`` ``[T, C]`` (-1: none). ``column`` ``[K, L]`` (-1: none) and ``threshold``
    ``[K, L]`` float64 (+inf where there is no literal, so that nothing refutes it). ``form, sign`` ``[S]``.
    """

    query: Query
    lower: Tensor
    upper: Tensor
    inner_lower: Tensor
    inner_upper: Tensor
    varying: Tensor
    box: Tensor
    clauses: Tensor
    column: Tensor
    threshold: Tensor
    form: Tensor
    sign: Tensor
    arrays: ClauseArrays

    @staticmethod
    def of(query: Query, device: torch.device | str = "cpu") -> Problem:
        """Lay out a query's cases."""
        cases = query.cases
        counts = np.diff(cases.clauses_of)
        chunks = -(-counts // MOST_CLAUSES)
        box = np.repeat(np.arange(len(counts)), chunks)
        number = np.arange(len(box)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        first = np.asarray(cases.clauses_of, dtype=np.int64)[box] + number * MOST_CLAUSES
        most = int(min(MOST_CLAUSES, counts.max(initial=1)))
        clauses = first[:, None] + np.arange(most)
        clauses[clauses >= np.asarray(cases.clauses_of)[box + 1][:, None]] = -1
        keys, inverse = np.unique(cases.form.astype(np.int64) * 2 + (cases.sign < 0), return_inverse=True)
        literals = np.diff(cases.literals_of)
        column = np.full((len(literals), max(1, int(literals.max(initial=1)))), -1, dtype=np.int64)
        threshold = np.full(column.shape, np.inf)
        index, _ = ragged(np.asarray(cases.literals_of[:-1], dtype=np.int64), literals.astype(np.int64))
        rows = np.repeat(np.arange(len(literals)), literals)
        places = index - np.asarray(cases.literals_of)[rows]
        column[rows, places], threshold[rows, places] = inverse[index], cases.threshold[index]

        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return Problem(
            query,
            put(cases.lower),
            put(cases.upper),
            put(cases.inner_lower),
            put(cases.inner_upper),
            put(cases.varying),
            put(box),
            put(clauses),
            put(column),
            put(threshold),
            put(keys // 2),
            put(np.where(keys % 2, -1.0, 1.0)),
            ClauseArrays.of(cases, device=device),
        )

    @property
    def tasks(self) -> int:
        """T."""
        return int(self.box.shape[0])

    def rows(self, columns: Tensor, plan: Plan) -> Tensor:
        """Coefficient rows ``[len(columns), F]`` over the graph's output for some columns."""
        forms = plan.graph.nodes[plan.output].shape[0]
        rows = torch.zeros((columns.shape[0], forms), dtype=plan.dtype, device=plan.device)
        rows[torch.arange(columns.shape[0], device=plan.device), self.form[columns]] = self.sign[columns].to(plan.dtype)
        return rows

    def ends(self, columns: Tensor, interval: tuple[Tensor, Tensor]) -> Tensor:
        """``[N, S]``: the lower bound of each column (form and sign) that the output's interval ``[N, F]`` gives.

        Where jumps lie in every box, however small, this converges and the lower end of a line need not.
        """
        low, high = (end[:, self.form[columns]] for end in interval)
        return torch.where(self.sign[columns] > 0, low, -high)


@dataclass(frozen=True, slots=True, eq=False)
class Literals:
    """The literals of N subproblems: ``place`` ``[N, C, L]`` indexes a batch's columns (0 where there is none),
    ``threshold`` ``[N, C, L]`` (+inf where there is none), ``clause`` ``[N, C]`` (-1: none)."""

    columns: Tensor
    place: Tensor
    threshold: Tensor
    clause: Tensor

    @staticmethod
    def of(problem: Problem, task: Tensor) -> Literals:
        """The literals of subproblems of the given tasks ``[N]``, and the columns that they need."""
        clause = problem.clauses[task]
        column = torch.where((clause >= 0)[..., None], problem.column[clause.clamp(min=0)], -1)
        threshold = torch.where(column >= 0, problem.threshold[clause.clamp(min=0)], torch.inf)
        columns = torch.unique(column)
        columns = columns[columns >= 0]
        if not columns.shape[0]:
            columns = columns.new_zeros(1)
        place = torch.searchsorted(columns, column.clamp(min=0)).clamp(max=columns.shape[0] - 1)
        return Literals(columns, torch.where(column >= 0, place, 0), threshold, clause)

    def take(self, index: Tensor) -> Literals:
        """Those of some of the subproblems, on the same columns."""
        return Literals(self.columns, self.place[index], self.threshold[index], self.clause[index])

    def slack(self, bounds: Tensor) -> Tensor:
        """``[N, C, L]``: lower bound minus threshold, for bounds ``[N, S]`` of the batch's columns; > 0 refutes."""
        n, c, l = self.place.shape
        return bounds.gather(1, self.place.reshape(n, c * l)).reshape(n, c, l).double() - self.threshold

    def margins(self, slack: Tensor, alive: Tensor) -> Tensor:
        """``[N, C]``: best slack of each clause; +inf for clauses that are absent or refuted before."""
        return torch.where(alive, slack.amax(2), torch.inf)


@dataclass(frozen=True, slots=True, eq=False)
class OpenTask:
    """A task that bounds alone did not decide: the mask ``[C]`` of its open clauses, the least margin of these, and the
    proven state of its box where it is known."""

    task: int
    alive: Tensor
    bound: float
    state: State | None = None


class Pending(Protocol):
    """Open subproblems of any kind: ``bound`` and ``share`` ``[K]``."""

    @property
    def bound(self) -> Tensor: ...
    @property
    def share(self) -> Tensor: ...
    @property
    def size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """What a search has counted so far: refuted subproblems, the least margin of a refutation (inf: none yet), and the
    least value seen at a point (inf: none yet; see ``Step``)."""

    refuted: int = 0
    least_margin: float = math.inf
    upper_bound: float = math.inf

    def after(self, refuted: int, least_margin: float, tried: Starts | None) -> Tally:
        """With what one more round found."""
        value = math.inf if tried is None else float(tried.value.amin())
        least, upper = min(self.least_margin, least_margin), min(self.upper_bound, value)
        return Tally(self.refuted + refuted, least, upper)

    def tensor(self) -> Tensor:
        """``[3]`` float64."""
        return torch.tensor([self.refuted, self.least_margin, self.upper_bound], dtype=torch.float64)

    @staticmethod
    def restored(values: Tensor) -> Tally:
        """From ``tensor``."""
        refuted, least, upper = values.tolist()
        return Tally(int(refuted), least, upper)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """After a round: the least bound, count and share of what is open, how many subproblems were refuted so far, the
    least margin of a refutation, points ``[P, n]`` worth replaying (model dtype), and how many boxes are stuck.

    A clause is as far from true at a point as the largest of its literals' ``sign * form - threshold`` says (true where
    that is at most 0). ``upper_bound`` is the least such value over all points that the search has evaluated (the
    minimising corners and centres of subproblems it left open, each for its worst clause), +inf where there is none,
    so that ``lower_bound <= least value over what is open``, and, where something is open,
    ``least value over the whole input set <= upper_bound``: both as computed, without error terms.
    """

    lower_bound: float
    open_subproblems: int
    open_share: float
    refuted: int
    least_margin: float
    points: Tensor | None
    stuck: int
    upper_bound: float = math.inf
    starts: Starts | None = None

    @staticmethod
    def of(movable: Pending, stuck: Pending, tally: Tally, tried: Starts | None) -> Step:
        """After a round that leaves ``movable`` and ``stuck`` subproblems open."""
        waiting = [p for p in (movable, stuck) if p.size]
        return Step(
            min((float(p.bound.amin()) for p in waiting), default=math.inf),
            sum(p.size for p in waiting),
            sum(float(p.share.sum()) for p in waiting),
            tally.refuted,
            tally.least_margin,
            None if tried is None else tried.fulfilling(),
            stuck.size,
            tally.upper_bound,
            tried,
        )


class Misfit(ValueError):
    """What was saved of a search does not fit what is found here."""


def check_saved(saved: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raises ``Misfit`` where ``saved`` lacks an array of ``like`` (a state of the same search), has one of another
    kind of numbers or count of dimensions, or where those that belong together (``open.bound``, ``open.share``) differ
    in length."""
    lengths: dict[str, int] = {}
    for name, known in like.items():
        found = saved.get(name)
        if found is None or (found.ndim, found.is_floating_point()) != (known.ndim, known.is_floating_point()):
            raise Misfit(f"{name} is missing or of another kind")
        group, point, _ = name.partition(".")
        if lengths.setdefault(group, len(found)) != len(found) if point else found.shape != known.shape:
            raise Misfit(f"{name} is of another length")


class SearchState(Protocol):
    """Where a search stands: ``finished`` where nothing is left that could be bounded again; what is ``stuck`` is open
    then too. ``tensors``: the same by name, for a search over the same task to ``restore``."""

    @property
    def finished(self) -> bool: ...
    @property
    def stuck(self) -> Pending: ...
    def tensors(self) -> dict[str, Tensor]: ...


S = TypeVar("S", bound=SearchState)


class Search(Protocol[S]):
    """Branch and bound of any kind, a round at a time."""

    def start(self) -> S: ...
    def restore(self, saved: Mapping[str, Tensor]) -> S: ...
    def step(self, state: S) -> tuple[S, Step]: ...


def outward(lower: Tensor, upper: Tensor, plan: Plan) -> Box:
    """Boxes in the plan's dtype that contain the given ones (float64)."""
    return Box(*cast_outward(lower, upper, plan.dtype))
