"""The most promising clauses of a search, each with the best point found for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """C clauses by their places in a ``ClauseArrays``: ``index`` ``[C]``, the least ``margin`` ``[C]`` seen, and the
    point ``x`` ``[C, n]`` that has it. Ascending by margin, each clause once."""

    index: Tensor
    margin: Tensor
    x: Tensor

    @staticmethod
    def of(index: Tensor, margin: Tensor, x: Tensor, keep: int) -> Pool:
        """The best ``keep`` clauses of any such list (repeats allowed). Ties go to the smaller place."""
        order = torch.sort(margin, stable=True).indices
        order = order[torch.sort(index[order], stable=True).indices]
        places = index[order]
        first = torch.ones_like(places, dtype=torch.bool)
        first[1:] = places[1:] != places[:-1]
        order = order[first]
        order = order[torch.sort(margin[order], stable=True).indices][:keep]
        return Pool(index[order], margin[order], x[order])

    @property
    def size(self) -> int:
        """C, the number of clauses."""
        return int(self.index.shape[0])

    def with_points(self, index: Tensor, margin: Tensor, x: Tensor, keep: int) -> Pool:
        """This pool with further points taken in, the best ``keep`` clauses of all."""
        return Pool.of(torch.cat([self.index, index]), torch.cat([self.margin, margin]), torch.cat([self.x, x]), keep)
