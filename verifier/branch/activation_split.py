"""Branch and bound over the signs of pre-activations, for networks with many varying inputs.

A subproblem says of some unstable ReLUs on which side of 0 their pre-activation lies (with other operators: between
which points what they read lies, ``point_splits.py``, ``point_scores.py``). Intermediate bounds are those
of the root (which hold everywhere), clamped at the splits; the half-spaces themselves enter the bound through
multipliers (beta-CROWN, Wang et al., NeurIPS 2021), which ascend together with the slopes, starting from the
parent's. Search runs in float32 without error terms; a subproblem counts as refuted after one walk in float64 with
all error terms and the multipliers found. ``bounding.py`` bounds them, ``scores.py`` chooses the next split. One with
nothing left to split is a linear program (``leaf.py``), whose multipliers are decided alike; where that does not refute
it, it is kept as stuck.

Every subproblem belongs to one clause. The root's intervals (``inner.py`` improves them where a search lasts) are
those of all, but for first-layer neurons where few inputs vary (``half_spaces.py``); there are no cuts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bounds.plan import Plan
from verifier.attacks.starts import Starts
from verifier.branch.bounding import Bounded, Bounding
from verifier.branch.objectives import Objectives
from verifier.branch.open_splits import OpenSplits, Packed
from verifier.branch.point_scores import aimed
from verifier.branch.point_splits import in_16_bits
from verifier.branch.positions import Positions
from verifier.branch.problem import Misfit, OpenTask, Problem, Step, Tally, check_saved
from verifier.branch.scores import chosen
from verifier.branch.splits import Splits, children, unsplit
from verifier.record import leaves, point_leaves, roots
from verifier.record.entries import Write
from verifier.strategy import AscentPlan


@dataclass(frozen=True, slots=True, eq=False)
class _Sifted:
    """A batch after bounding: refuted ones counted, open ones ready to be split, stuck ones with nothing to split."""

    refuted: int
    least_margin: float
    open: Splits
    stuck: Splits
    tried: Starts | None


@dataclass(frozen=True, slots=True, eq=False)
class SplitState:
    """Where a search stands: the subproblems to be bounded next (at the very start) or split next, those with nothing
    left to split, its counts."""

    open: OpenSplits
    stuck: Packed
    tally: Tally
    begun: bool

    @property
    def finished(self) -> bool:
        """Whether nothing is left that could be bounded again."""
        return self.open.size == 0

    def tensors(self) -> dict[str, Tensor]:
        """By name, in few bits."""
        return {
            **{f"open.{name}": values for name, values in self.open.warm.tensors().items()},
            **{f"late.{name}": values for name, values in self.open.cold.tensors().items()},
            **{f"stuck.{name}": values for name, values in self.stuck.tensors().items()},
            "tally": self.tally.tensor(),
            "begun": torch.tensor(self.begun),
        }


class ActivationSplit:
    """The search over one box: ``plans`` for search and for proof, and a task with its proven root state; ``write`` is
    given the root and every refuted leaf (``verifier/record/leaves.py``)."""

    def __init__(
        self,
        problem: Problem,
        plans: tuple[Plan, Plan],
        task: OpenTask,
        options: AscentPlan,
        write: Write | None = None,
    ) -> None:
        assert task.state is not None
        self.problem, self.options, self.task = problem, options, task.task
        self.rough, exact = plans
        self.positions = Positions.of(exact, task.state)
        asked = Objectives.of(problem, exact, task.task, task.alive)
        self.clauses, self.present = asked.clauses, asked.present
        steps = options.half_space_steps
        self.bounding = Bounding.of(plans, self.positions, asked.rows, asked.rhs, steps=steps)
        self.plain = self._plain()
        self.write = write

    def _plain(self) -> Tensor:
        """``[1, P]``: the parameters of the root's own lines."""
        if self.bounding.points is not None:
            return in_16_bits(self.bounding.points.plain).unsqueeze(0)
        return self.bounding.own_slopes()

    def start(self) -> SplitState:
        """The clauses at the root, not bounded yet."""
        if self.write is not None:
            points, steps = self.bounding.points, torch.tensor([self.options.half_space_steps])
            entry = roots.arrays_of(self.task, self.clauses, self.positions, points)
            self.write(roots.ROOT, {**entry, "steps": steps})
        return self._at_root()

    def restore(self, saved: Mapping[str, Tensor]) -> SplitState:
        """The state with these ``tensors``, which another search over the same task, with the same bounds of its box,
        has named. Raises ``Misfit`` where it has other positions."""
        begun, device = self._at_root(), self.rough.device
        root = begun.open
        check_saved(saved, begun.tensors())
        warm, cold, stuck = (
            Packed.restored(lambda name, which=which: saved[f"{which}.{name}"].to(device))  # type: ignore[misc]
            for which in ("open", "late", "stuck")
        )
        if warm.slopes.shape[1] != self.plain.shape[1] or warm.wide != root.warm.wide:
            raise Misfit(f"{warm.slopes.shape[1]} positions, not {self.plain.shape[1]}")
        open_ = replace(root, warm=warm, cold=cold)
        return SplitState(open_, stuck, Tally.restored(saved["tally"]), bool(saved["begun"]))

    def step(self, state: SplitState) -> tuple[SplitState, Step]:
        """Bound the root, or the children of the subproblems with the least bounds; the rest waits."""
        count = self.options.batch if state.begun else state.open.size
        batch, waiting = state.open.pop(count, self.plain)
        if state.begun:
            sifted = self._sift(children(batch), self.options.steps)
        else:
            sifted = self._sift(batch, self.options.root_steps)
        open_ = waiting.push(sifted.open) if sifted.open.size else waiting
        stuck = Packed.cat([state.stuck, Packed.of(sifted.stuck).bare()]) if sifted.stuck.size else state.stuck
        tally = state.tally.after(sifted.refuted, sifted.least_margin, sifted.tried)
        return SplitState(open_, stuck, tally, begun=True), Step.of(open_, stuck, tally, sifted.tried)

    def run(self, state: SplitState | None = None) -> Iterator[Step]:
        """Steps from a state (default: the start) until nothing can be split any more; stop iterating to stop."""
        state = self.start() if state is None else state
        while not state.finished:
            state, step = self.step(state)
            yield step

    def _at_root(self) -> SplitState:
        """Nothing is bounded yet."""
        root = OpenSplits.of(self._root(), self.options.memory)
        return SplitState(root, root.warm.bare(), Tally(), begun=False)

    def _root(self) -> Splits:
        """One subproblem per open clause, without splits, with the slopes of the root's own lines."""
        weights = self.present.double() / self.present.sum(1, keepdim=True).clamp(min=1)
        bound = torch.full_like(weights[:, 0], -torch.inf)
        share = 1 / max(1, bound.shape[0])
        return unsplit(weights, bound, share, self.plain, self.positions.count, self.positions.points)

    def _sift(self, batch: Splits, steps: int) -> _Sifted:
        """Bound a batch; what is left open remembers its multipliers and its next split."""
        batch = self.bounding.known(batch)
        found = self.bounding.ascended(batch, steps)
        proven = self._decide(batch, found)
        open_ = proven <= 0
        kept = self._remember(batch.take(open_), found.take(open_))
        last = kept.take(kept.next < 0)
        if last.size:  # linear by now: most are refuted by a longer ascent, and the rest are linear programs
            decided = self._decide(last, self.bounding.ascended(last, self.options.last_steps))
            left = (decided <= 0).nonzero().flatten()
            solved = last.take(left)
            decided[left] = torch.maximum(
                decided[left], self._decide(solved, self.bounding.by_linear_program(solved))
            )
            last, proven = last.take(decided <= 0), torch.cat([proven, decided])
        return _Sifted(
            batch.size - kept.size + int((kept.next < 0).sum()) - last.size,
            float(proven[proven > 0].amin()) if bool((proven > 0).any()) else float("inf"),
            kept.take(kept.next >= 0),
            last,
            self._points(found.corner[open_], kept.clause),
        )

    def _decide(self, batch: Splits, found: Bounded) -> Tensor:
        """``[K]`` float64: the proven bound where the search calls a subproblem refuted; elsewhere at most 0."""
        proven = found.bound.double().clamp(max=0)
        hopeful = (found.bound > 0).nonzero().flatten()
        decided = leaves.decided if self.bounding.points is None else point_leaves.decided
        for part in hopeful.split(self.options.batch) if hopeful.shape[0] else ():
            proven[part], entries = decided(self.bounding, batch.take(part), found.take(part))
            if self.write is not None:
                for entry in entries:
                    self.write(leaves.KIND, {"task": torch.tensor([self.task]), **entry})
        return torch.nan_to_num(proven, nan=-torch.inf)

    def _remember(self, batch: Splits, found: Bounded) -> Splits:
        """Open subproblems with their multipliers stored and the next split chosen (-1: nothing left to split)."""
        kept = replace(batch, weights=found.weights.double(), bound=torch.maximum(batch.bound, found.bound.double()))
        if self.bounding.points is not None:
            kept = replace(kept, slopes=in_16_bits(found.slopes), betas=in_16_bits(found.betas))
            return aimed(self.bounding.points, self.rough, kept, self.options.candidates)
        slopes, betas = found.slopes.clamp(0, 1).to(torch.float16), found.betas.clamp(0, 6e4).to(torch.float16)
        kept = replace(kept, slopes=slopes, betas=betas)
        return replace(kept, next=chosen(self.bounding, kept, self.plain, self.options.candidates))

    def _points(self, corner: Tensor, clause: Tensor) -> Starts | None:
        """Minimising corners, and the values of their clauses in the network's dtype."""
        if not corner.shape[0]:
            return None
        problem, box = self.problem, self.problem.box[self.task]
        points = corner.flatten(1).to(problem.inner_lower.dtype)
        points = torch.minimum(torch.maximum(points, problem.inner_lower[box]), problem.inner_upper[box])
        forms = self.rough.graph.evaluate(points.to(self.rough.dtype))[0]
        wanted = self.clauses[clause]
        return Starts(points, wanted, problem.arrays.margin(forms, wanted))
