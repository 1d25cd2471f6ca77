"""An activation split proved again from its entries: bounds of the root, every leaf, and that leaves cover the root.

Of the entries only this is believed: which rows had which parameters, and what leaves were split by. All bounds are
computed here by deciding passes, the first look at all boxes included; what is not refuted by that must have a root
with all its open clauses, and for each of these a tree of refuted leaves.

A search that found better bounds of inner neurons begins anew, and so do its entries: a root that follows such bounds
takes the place of the one before it. The leaves before it are looked at, but count no more: they speak of other
positions, and no tree is made of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.backward import State
from bounds.kept import Kept, of_arrays
from bounds.plan import Plan
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.half_spaces import HalfSpaces
from verifier.branch.objectives import Objectives
from verifier.branch.problem import OpenTask, Problem
from verifier.branch.root import refined, refined_by_splits, screen
from verifier.branch.splits import Splits
from verifier.record import inner, leaves, point_leaves
from verifier.record.paths import Paths, uncovered
from verifier.record.roots import BOUNDS, ROOT, points_of, positions_of

MOST_STEPS = 1000
"""Of ascent that a record may ask for."""
BATCH = 128
"""Leaves that are decided at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """A task whose leaves can be decided: C ``clauses`` by their numbers in the query, of ``literals`` each."""

    bounding: Bounding
    clauses: Tensor

    @staticmethod
    def of(problem: Problem, exact: Plan, task: OpenTask, state: State, given: Mapping[str, Tensor]) -> Root:
        """From the entry of a root with a proven state. Raises ``ValueError`` where it is not about this problem."""
        numbers = problem.clauses[task.task]
        alive = torch.isin(numbers, given["clause"].long()) & (numbers >= 0)
        asked = Objectives.of(problem, exact, task.task, alive)
        if asked.clauses.tolist() != given["clause"].tolist():
            raise ValueError(f"the clauses of task {task.task} are others")
        if bool((task.alive & ~alive).any()):
            raise ValueError(f"clauses of task {task.task} are not refuted by its bounds, and were not searched")
        positions = positions_of(exact, state, given)
        points, steps = points_of(exact, positions, asked.rows, asked.rhs, given), given["steps"]
        if steps.numel() != 1 or not 0 <= int(steps) <= MOST_STEPS:
            raise ValueError(f"intervals from half-spaces by other than 0 to {MOST_STEPS} steps")
        spaces = HalfSpaces.of(exact, positions, int(steps))
        bounding = Bounding(exact, exact, positions, asked.rows, asked.rhs, exact.output, None, points, spaces)
        return Root(bounding, asked.clauses)

    def decided(self, entry: Mapping[str, Tensor]) -> tuple[Tensor, Paths]:
        """``[K]``: proven bounds of an entry of leaves (positive: refuted), and what these were split by.

        Raises ``ValueError`` for numbers that prove nothing."""
        shape, points = (self.clauses.shape[0], self.bounding.rhs.shape[1]), self.bounding.points
        if points is None:
            batch, found = leaves.of_arrays(entry, shape, self.bounding.positions.count)
            paths = Paths.of_arrays(entry)
        else:
            batch, found = point_leaves.of_arrays(entry, shape, points)
            paths = Paths.of_arrays(entry, at_points=True)
        bound = self._decided(self.bounding, batch, found)
        left, spaces = (~(bound > 0)).nonzero().flatten(), self.bounding.half_spaces
        if left.shape[0] and spaces is not None:  # multipliers of half-spaces are not kept: better ones may do
            finer = replace(self.bounding, half_spaces=replace(spaces, steps=4 * spaces.steps))
            bound[left] = self._decided(finer, batch.take(left), found.take(left))
        return bound, paths

    def _decided(self, bounding: Bounding, batch: Splits, found: Bounded) -> Tensor:
        every = torch.arange(batch.size)
        bounds = [bounding.decided(batch.take(part), found.take(part)) for part in every.split(BATCH)]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *bounds])


class SplitWalk:
    """Feed it the entries in order; ``open_trees`` then says what is not covered. ``refuted``: how many clauses' boxes
    the first look refuted; ``known``: clauses (task and number) that were refuted in another way."""

    def __init__(self, problem: Problem, exact: Plan, known: frozenset[tuple[int, int]] = frozenset()) -> None:
        self.problem, self.exact = problem, exact
        self.tasks: dict[int, OpenTask] = {}
        self.kept: dict[int, dict[tuple[int, int], Kept]] = {}
        self.roots: dict[int, Root] = {}
        self.inner: dict[int, list[Mapping[str, Tensor]]] = {}
        self.paths: dict[int, list[Paths]] = {}
        self.refuted = 0
        for _, part in screen(problem, exact):
            self.refuted += part.refuted
            self.tasks.update({task.task: task for task in part.open})
        for number, task in list(self.tasks.items()):
            done = torch.tensor([(number, clause) in known for clause in problem.clauses[number].tolist()])
            self.tasks[number] = replace(task, alive=task.alive & ~done)
            if bool((task.alive & done).any()) and not bool(self.tasks[number].alive.any()):
                del self.tasks[number]

    def step(self, kind: str, entry: Mapping[str, Tensor]) -> tuple[int, Tensor]:
        """How many leaves an entry has, and the bounds of those that are not refuted again.

        Raises ``ValueError`` for an entry that is none, or does not fit what came before."""
        task = int(entry["task"]) if "task" in entry and entry["task"].numel() == 1 else -1
        if task not in self.tasks:
            raise ValueError(f"an entry of kind {kind!r} about a task that is not open")
        try:
            return self._step(kind, task, entry)
        except KeyError as error:
            raise ValueError(f"an entry of kind {kind!r} without {error}") from None

    def _step(self, kind: str, task: int, entry: Mapping[str, Tensor]) -> tuple[int, Tensor]:
        nothing = 0, torch.zeros(0, dtype=torch.float64)
        if kind == BOUNDS and task not in self.roots:
            self.kept.setdefault(task, {})[int(entry["number"]), int(entry["node"])] = of_arrays(entry)
            return nothing
        if kind == ROOT and (task not in self.roots or task in self.inner):
            self.roots[task] = Root.of(self.problem, self.exact, self.tasks[task], self._state(task), entry)
            self.paths[task] = []
            return nothing
        if kind == inner.KIND and task in self.roots and int(entry["target"]) in self.exact.watched:
            self.inner.setdefault(task, []).append(entry)
            return nothing
        if kind != leaves.KIND or task not in self.roots:
            raise ValueError(f"an entry of kind {kind!r} about task {task} at the wrong place")
        bound, paths = self.roots[task].decided(entry)
        self.paths[task].append(paths)
        return bound.shape[0], bound[~(bound > 0)]

    def _state(self, task: int) -> State:
        """What is proven of a task's box; where the search began anew with better bounds of inner neurons, these."""
        if task in self.roots:
            state = self.roots[task].bounding.positions.root
            found = inner.proved(self.inner.pop(task))
            return refined_by_splits(self.problem, self.exact, task, state, found)
        return refined(self.problem, self.exact, task, self.kept.pop(task, {}), self.tasks[task].state)

    def open_trees(self) -> list[str]:
        """What the leaves leave open: nothing, where they prove the query's property."""
        found = []
        for task in self.tasks:
            if task not in self.roots:
                found.append(f"task {task} was not split")
                continue
            clauses = self.roots[task].clauses
            parts = self.paths[task]
            holes = uncovered(Paths.cat(parts), clauses.shape[0]) if parts else torch.ones_like(clauses)
            found += [
                f"the leaves of clause {int(clauses[k])} in task {task} leave {int(holes[k])} parts of it open"
                for k in holes.nonzero().flatten()
            ]
        return found
