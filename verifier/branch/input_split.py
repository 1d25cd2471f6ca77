"""Branch and bound over the input, for networks with few varying inputs.

Every subproblem is a box. A batch of boxes is bounded in one go (with error terms, so that what is refuted is
refuted in exact arithmetic); refuted clauses are dropped; what is left is cut by its own linear bounds, bisected and
put back. Boxes that only rounding keeps open are bounded again in float64. The points that bounding yields (the
minimising corners, the centres) are tried as counterexamples all along.

The split dimension maximises ``width / largest width + score / largest score``, where the score of a dimension is the
largest ``|A_i| width_i / 2`` over the lines of open literals: measured against either part alone, the sum decides
all of ACAS Xu where the parts lose instances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bounds.plan import Plan
from verifier.attacks.starts import Starts
from verifier.branch.box_bounds import BoundedBoxes, BoxBounds, halves
from verifier.branch.frontier import Frontier, Subproblems
from verifier.branch.problem import Misfit, Problem, Step, Tally, check_saved
from verifier.record.boxes import KIND, Opened, arrays_of
from verifier.record.entries import Write
from verifier.strategy import SplitPlan

CLIP_MARGIN = 1e-5
"""Inputs are cut away only where a literal fails by at least this much, so that the margin of a proof is known."""


@dataclass(frozen=True, slots=True, eq=False)
class InputState:
    """Where a search stands: its open boxes, those that cannot be bisected (without what they inherit), its counts,
    and how many boxes there have been (the next number).

    The frontier is worked on in place, so a step uses up the state that it is given.
    """

    frontier: Frontier
    stuck: Subproblems
    tally: Tally
    seen: int

    @property
    def finished(self) -> bool:
        """Whether no box is left that could be bounded again."""
        return self.frontier.size == 0

    def tensors(self) -> dict[str, Tensor]:
        """By name. What boxes inherit is left out: it is large, and bounding a box from itself alone costs little."""
        return {
            **{f"open.{name}": values for name, values in self.frontier.bare().tensors().items()},
            **{f"stuck.{name}": values for name, values in self.stuck.tensors().items()},
            "tally": self.tally.tensor(),
            "seen": torch.tensor(self.seen),
        }


class InputSplit:
    """The search as a value: what it works on (problem, plans from coarse to fine) and how.

    After the time ``until`` bounding stops to tighten, so that the round under way ends soon. Every round in which no
    box got stuck goes to ``write``.
    """

    def __init__(
        self,
        problem: Problem,
        plans: tuple[Plan, ...],
        options: SplitPlan,
        until: float = math.inf,
        write: Write | None = None,
    ) -> None:
        self.bounds = BoxBounds(problem, plans, options, until)
        self.problem = problem
        self.plans = plans
        self.options = options
        self.free = self.bounds.free
        self.write = write

    def start(self) -> InputState:
        """Nothing is bounded yet."""
        boxes = self.bounds.start()
        return InputState(self._frontier(boxes), boxes.take(boxes.task[:0]), Tally(), boxes.size)

    def restore(self, saved: Mapping[str, Tensor]) -> InputState:
        """The state with these ``tensors``, which another search over the same query has named. Raises ``Misfit``."""
        device, start = self.problem.box.device, self.start().tensors()
        check_saved(saved, start)
        if any(saved[name].shape[1:] != known.shape[1:] for name, known in start.items()):
            raise Misfit("boxes of another size")

        def boxes(which: str) -> Subproblems:
            own = [f.name for f in fields(Subproblems) if f.name != "inherited"]
            return Subproblems(**{name: saved[f"{which}.{name}"].to(device) for name in own}, inherited={})

        frontier = self._frontier(boxes("open"))
        return InputState(frontier, boxes("stuck"), Tally.restored(saved["tally"]), int(saved["seen"]))

    def _frontier(self, first: Subproblems) -> Frontier:
        return Frontier(first, self.bounds.inherited, self.plans[0].dtype, self.options.memory)

    def step(self, state: InputState) -> tuple[InputState, Step]:
        """Bound the boxes with the least bounds; clip and bisect those that stay open. Uses up ``state``."""
        frontier = state.frontier
        batch = frontier.pop(self.options.batch)
        bounded = self.bounds.bound(batch)
        open_, margins = bounded.open, bounded.margins
        least = float(margins[margins > 0].amin()) if bool((margins > 0).any()) else math.inf
        if bool(open_.any()):  # they are clipped
            least = min(least, CLIP_MARGIN)
        tried = self._points(batch, bounded, open_)
        children, immovable = self._children(batch, bounded, open_, frontier.size)
        stuck = Subproblems.cat([state.stuck, immovable.bare()]) if immovable.size else state.stuck
        seen = state.seen + children.size
        frontier.push(replace(children, number=torch.arange(state.seen, seen, device=children.task.device)))
        tally = state.tally.after(int((~open_).sum()), least, tried)
        return InputState(frontier, stuck, tally, seen), Step.of(frontier, stuck, tally, tried)

    def run(self, state: InputState | None = None) -> Iterator[Step]:
        """Steps from a state (default: the start) until nothing can be bounded again; stop iterating to stop."""
        state = self.start() if state is None else state
        while not state.finished:
            state, step = self.step(state)
            yield step

    def _points(self, batch: Subproblems, bounded: BoundedBoxes, open_: Tensor) -> Starts | None:
        """Centres and minimising corners of open subproblems, and the values of their worst clauses in the network's
        dtype."""
        index = open_.nonzero().flatten()
        if not index.shape[0]:
            return None
        problem, free = self.problem, self.free
        worst = torch.where(batch.alive[index], bounded.margins[index], torch.inf).argmin(1)
        literal = bounded.slack[index, worst].argmax(1)
        rows = bounded.rows[index, bounded.literals.place[index, worst, literal]]
        lower, upper = batch.lower[index], batch.upper[index]
        corner = torch.where(rows > 0, lower, upper)
        tries = torch.cat([corner, (lower + upper) / 2])
        owner = torch.cat([index, index])
        box = problem.box[batch.task[owner]]
        points = ((problem.inner_lower[box].double() + problem.inner_upper[box].double()) / 2).to(problem.inner_lower)
        points[:, free] = tries.to(points.dtype)
        points = torch.minimum(torch.maximum(points, problem.inner_lower[box]), problem.inner_upper[box])
        forms = self.plans[0].graph.evaluate(points.to(self.plans[0].dtype))[0]
        clause = bounded.literals.clause[owner, torch.cat([worst, worst])]
        value = torch.where(clause >= 0, problem.arrays.margin(forms, clause.clamp(min=0)), torch.inf)
        return Starts(points, clause.clamp(min=0), value)

    def _children(
        self, batch: Subproblems, bounded: BoundedBoxes, open_: Tensor, waiting: int
    ) -> tuple[Subproblems, Subproblems]:
        """``(children, immovable)``: what is open, clipped and bisected; boxes that cannot shrink stay as they are."""
        index = open_.nonzero().flatten()
        parents = batch.take(index)
        margins = bounded.margins[index]
        parents = replace(
            parents,
            alive=parents.alive & (margins <= 0),
            bound=torch.maximum(parents.bound, margins.amin(1)),
            inherited={i: (bounded.watched[i][0][index], bounded.watched[i][1][index]) for i in self.bounds.inherited},
        )
        if parents.size:
            parents, scores, index = self._clip(parents, bounded, index)
        clipped, levels, halved = parents, 1, list[Subproblems]()
        while parents.size * 2**levels + waiting < self.options.fill and levels < min(4, self.free.shape[0]):
            levels += 1
        immovable: list[Subproblems] = []
        for _ in range(levels if parents.size else 0):
            parents, scores, still = self._bisect(parents, scores)
            halved.append(parents)
            if still.size:
                immovable.append(still)
            if not parents.size:
                break
        if self.write is not None and not immovable:
            self.write(KIND, arrays_of(batch, bounded.passes, Opened(open_, index, clipped, halved)))
        return parents, Subproblems.cat(immovable) if immovable else parents.take(parents.task[:0])

    def _clip(self, parents: Subproblems, bounded: BoundedBoxes, index: Tensor) -> tuple[Subproblems, Tensor, Tensor]:
        """Cut each parent's box by each open clause's lines and sums of them, take the hull over its clauses; also the
        split scores, and the ``index`` of those that are left."""
        sub, clause = parents.alive.nonzero(as_tuple=True)
        place = bounded.literals.place[index[sub], clause]
        rows = bounded.rows[index[sub].unsqueeze(1), place]
        slack = bounded.slack[index[sub], clause]
        influence = (rows.abs() * torch.isfinite(slack).unsqueeze(-1)).amax(1)
        low, high = bounded.cut((index[sub], clause), (parents.lower[sub], parents.upper[sub]), CLIP_MARGIN)
        empty = (low > high).any(1)
        alive = parents.alive.clone()
        alive[sub[empty], clause[empty]] = False
        low = torch.where(empty.unsqueeze(1), torch.inf, low)
        high = torch.where(empty.unsqueeze(1), -torch.inf, high)
        into = sub.unsqueeze(1).expand_as(low)
        hull_low = torch.full_like(parents.lower, torch.inf).scatter_reduce(0, into, low, "amin")
        hull_high = torch.full_like(parents.upper, -torch.inf).scatter_reduce(0, into, high, "amax")
        scores = torch.zeros_like(parents.lower).scatter_reduce(0, into, influence, "amax")
        keep = alive.any(1)
        clipped = replace(parents, lower=hull_low, upper=hull_high, alive=alive)
        return clipped.take(keep), scores[keep], index[keep]

    def _bisect(self, parents: Subproblems, scores: Tensor) -> tuple[Subproblems, Tensor, Subproblems]:
        """Two children each, sharing the middle; third: those whose chosen width cannot be halved any more."""
        if not self.free.shape[0]:  # nothing varies: a point cannot be split
            nothing = parents.task[:0]
            return parents.take(nothing), scores[nothing], parents
        width = parents.upper - parents.lower
        middle = (parents.lower + parents.upper) / 2
        movable = (middle > parents.lower) & (middle < parents.upper)
        movable &= self.problem.varying[self.problem.box[parents.task]][:, self.free]
        reach = scores * width
        tiny = torch.finfo(width.dtype).tiny
        choice = width / width.amax(1, keepdim=True).clamp(min=tiny) + reach / reach.amax(1, keepdim=True).clamp(
            min=tiny
        )
        choice = torch.where(movable, choice, -1.0)
        best, dimension = choice.max(1)
        able = best > -1
        still = parents.take(~able)
        parents, scores = parents.take(able), scores[able]
        at = dimension[able].unsqueeze(1)
        children = halves(parents, at, middle[able].gather(1, at))
        return children, torch.cat([scores, scores]), still
