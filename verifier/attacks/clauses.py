"""The clauses of a query as tensors: how far a point is from making a clause true.

A literal's *value* at a point is ``sign * form(x) - threshold``: it is true where the value is <= 0. A clause's
*margin* is the largest value of its literals (-inf without literals), so the clause is true where the margin is <= 0.
A strict literal gets the next smaller float64 as its threshold, which makes ``<= 0`` exact for it too. Values are
float64 whatever the forms are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.query import Cases


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """P points, each with the clause it is to fulfil; T literals in all, one after the other.

    ``owner`` ``[T]``: the point that a literal belongs to, ``column`` ``[T]``: its form, ``sign, threshold`` ``[T]``.
    """

    count: int
    owner: Tensor
    column: Tensor
    sign: Tensor
    threshold: Tensor

    def values(self, forms: Tensor) -> Tensor:
        """``[T]`` float64: ``sign * form - threshold`` of each literal, for forms ``[P, F]``."""
        return self.sign * forms[self.owner, self.column].double() - self.threshold

    def margin(self, values: Tensor) -> Tensor:
        """``[P]``: the largest value per point; NaN counts as +inf, no literal as -inf."""
        lowest = values.new_full((self.count,), -math.inf)
        largest = lowest.scatter_reduce(0, self.owner, values, "amax")
        return largest.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)

    def slope(self, values: Tensor, margin: Tensor, summed: Tensor, demand: float, width: int) -> Tensor:
        """``[P, F]``: derivative by the forms of what descent makes small.

        That is the largest value, or, where ``summed`` ``[P]``, the sum of the values above ``-demand``.
        """
        largest = values == margin[self.owner]
        active = torch.where(summed[self.owner], values > -demand, largest)
        result = values.new_zeros(self.count * width)
        result.scatter_add_(0, self.owner * width + self.column, active * self.sign)
        return result.view(self.count, width)


@dataclass(frozen=True, slots=True, eq=False)
class ClauseArrays:
    """K clauses (all of a query's, or some) with their L literals.

    ``clause`` ``[K]``: number of the clause in the query, ``box`` ``[K]``: number of its box; ascending both.
    Clause k has the literals ``start[k]:start[k + 1]``; ``owner`` ``[L]`` is k again, for each literal.
    """

    clause: Tensor
    box: Tensor
    start: Tensor
    owner: Tensor
    form: Tensor
    sign: Tensor
    threshold: Tensor

    @staticmethod
    def of(cases: Cases, clauses: np.ndarray | None = None, device: torch.device | str = "cpu") -> ClauseArrays:
        """The clauses with the given numbers (None: all), in ascending order, on a device."""
        total = len(cases.literals_of) - 1
        chosen = np.arange(total) if clauses is None else np.unique(np.asarray(clauses, dtype=np.int64))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= total):
            raise ValueError(f"clause numbers must lie in 0..{total - 1}")
        starts = np.asarray(cases.literals_of, dtype=np.int64)
        literal, start = ragged(starts[chosen], starts[chosen + 1] - starts[chosen])
        strict = np.asarray(cases.strict, dtype=bool)[literal]
        threshold = np.asarray(cases.threshold, dtype=np.float64)[literal]
        threshold = np.where(strict, np.nextafter(threshold, -np.inf), threshold)
        box = np.searchsorted(np.asarray(cases.clauses_of), chosen, side="right") - 1
        owner = np.repeat(np.arange(len(chosen)), np.diff(start))

        def tensor(array: np.ndarray, dtype: type) -> Tensor:
            return torch.from_numpy(np.array(array, dtype=dtype)).to(device)

        return ClauseArrays(
            clause=tensor(chosen, np.int64),
            box=tensor(box, np.int64),
            start=tensor(start, np.int64),
            owner=tensor(owner, np.int64),
            form=tensor(np.asarray(cases.form)[literal], np.int64),
            sign=tensor(np.asarray(cases.sign)[literal], np.float64),
            threshold=tensor(threshold, np.float64),
        )

    @property
    def size(self) -> int:
        """K, the number of clauses."""
        return int(self.clause.shape[0])

    def targets(self, index: Tensor) -> Targets:
        """One point for each entry of ``index`` ``[P]`` (places in these arrays, repeats allowed)."""
        counts = self.start[index + 1] - self.start[index]
        owner = torch.repeat_interleave(torch.arange(len(index), device=index.device), counts)
        ends = counts.cumsum(0)
        literal = self.start[index][owner] + torch.arange(len(owner), device=index.device) - (ends - counts)[owner]
        return Targets(len(index), owner, self.form[literal], self.sign[literal], self.threshold[literal])

    def margin(self, forms: Tensor, index: Tensor) -> Tensor:
        """``[P]`` float64: margin of clause ``index[p]`` at the point with forms ``forms[p]`` (``[P, F]``)."""
        targets = self.targets(index)
        return targets.margin(targets.values(forms))

    def satisfied(self, forms: Tensor, index: Tensor) -> Tensor:
        """``[P]`` bool: the clause is true at the point, according to these forms (replay decides)."""
        return self.margin(forms, index) <= 0

    def table(self, forms: Tensor, first: int, last: int) -> Tensor:
        """``[R, last - first]`` float64: margins of a run of clauses at R points for each of their B boxes.

        ``forms`` is ``[R, B, F]``, the boxes being the distinct ones of ``box[first:last]`` in order.
        """
        _, place = torch.unique_consecutive(self.box[first:last], return_inverse=True)
        begin, end = int(self.start[first]), int(self.start[last])
        owner = self.owner[begin:end] - first
        values = forms[:, place[owner], self.form[begin:end]].double()
        values = self.sign[begin:end] * values - self.threshold[begin:end]
        result = values.new_full((forms.shape[0], last - first), -math.inf)
        result.scatter_reduce_(1, owner.expand_as(values), values, "amax")
        return result.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)


def ragged(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the runs ``start[k] .. start[k] + count[k] - 1`` one after the other, and their ``[K + 1]`` starts."""
    ends = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    shift = np.repeat(start - ends[:-1], count)
    return np.arange(ends[-1]) + shift, ends
