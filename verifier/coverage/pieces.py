"""Linear programs over one linear piece, or over a relaxation of the network: solved again from the last basis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bounds import Box
from bounds.constraints import Row
from milp.extend import with_columns, with_rows
from milp.highs import Limits
from milp.model import Model
from milp.simplex import Simplex
from verifier.coverage.requirements import Goal


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The linear program of one linear piece: the region's inputs on it, at the least distance from a given one."""

    model: Model
    simplex: Simplex
    source: int
    shape: tuple[int, ...]

    def most(
        self, goal: Goal, ends: Mapping[int, tuple[Tensor, Tensor]], limits: Limits
    ) -> tuple[float, np.ndarray | None]:
        """The greatest ``sign * value`` of the goal's neuron where layers keep to ``ends`` too, and an input there
        (-inf, None: the solver finds none)."""
        column, model = int(self.model.columns[goal.node][goal.element]), within(self.model, ends)
        cost = torch.zeros_like(self.model.cost)
        if column >= 0:
            cost[column] = -goal.sign
        found = self.simplex.solve(model.lower, model.upper, cost, limits=Limits(limits.seconds))
        return (-math.inf, None) if found.x is None else (-found.value + 0.0, self._input(found.x))

    def nearest(self, goal: Goal, limits: Limits) -> np.ndarray | None:
        """The nearest input at which the goal is reached."""
        column = int(self.model.columns[goal.node][goal.element])
        lower, upper = self.model.lower.clone(), self.model.upper.clone()
        if column >= 0:
            (lower if goal.sign > 0 else upper)[column] = goal.level
        found = self.simplex.solve(lower, upper, limits=Limits(limits.seconds))
        return None if found.x is None else self._input(found.x)

    def farthest(self, weights: Mapping[int, Tensor], limits: Limits) -> np.ndarray | None:
        """The input where the weighted sum of values is greatest; ``weights``: by layer, ``[size]``."""
        cost = torch.zeros_like(self.model.cost)
        for node, weight in weights.items():
            columns = self.model.columns.get(node)
            if columns is None:  # a layer of another branch, which this program does not reach
                continue
            cost.index_add_(0, columns[columns >= 0], -weight[columns >= 0])
        found = self.simplex.solve(cost=cost, limits=Limits(limits.seconds))
        return None if found.x is None else self._input(found.x)

    def _input(self, x: Tensor) -> np.ndarray:
        return x[self.model.columns[self.source]].reshape(self.shape).numpy()


def within(model: Model, cut: Mapping[int, tuple[Tensor, Tensor]]) -> Model:
    """The model with these intervals as ends of columns: a node that only moves elements has the columns of others."""
    lower, upper = model.lower.clone(), model.upper.clone()
    for node, (low, high) in cut.items():
        columns = model.columns.get(node)
        if columns is not None:
            there = columns >= 0
            lower.scatter_reduce_(0, columns[there], low.flatten()[there], "amax")
            upper.scatter_reduce_(0, columns[there], high.flatten()[there], "amin")
    return replace(model, lower=lower, upper=upper)


def nearest_first(model: Model, source: int, box: Box, point: np.ndarray) -> Model:
    """The model that minimises the largest change of an input."""
    columns, centre = model.columns[source], torch.from_numpy(point.astype(np.float64)).flatten()
    reach = torch.maximum(box.upper.flatten() - centre, centre - box.lower.flatten()).amax().clamp(min=0)
    model, added = with_columns(model, torch.zeros(1, dtype=torch.float64), reach.reshape(1) * (1 + 2**-40))
    change, moves = added.expand(columns.shape), (box.upper > box.lower).flatten()
    columns, change, centre = columns[moves], change[moves], centre[moves]
    if len(columns):
        rows = (
            Row(((columns, 1.0), (change, -1.0)), upper=centre),
            Row(((columns, 1.0), (change, 1.0)), lower=centre),
        )
        model = with_rows(model, rows)
    return replace(model, cost=model.cost.index_fill(0, added, 1.0))
