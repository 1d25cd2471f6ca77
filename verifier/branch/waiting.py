"""The tasks that bounds alone leave open, worked off one by one: all that stands around the search over one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.ops.base import Interval
from verifier.branch.problem import Misfit, OpenTask, Pending, Tally


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """``tasks`` from ``at`` on are still to be decided; ``stuck`` subproblems of those before stay open, ``share`` of
    their tasks together and ``bound`` at the least; ``tally`` counts what came before the task at hand;
    ``interrupted``: whether the one interruption of its search is over."""

    tasks: tuple[OpenTask, ...]
    tally: Tally = field(default_factory=Tally)
    at: int = 0
    stuck: int = 0
    share: float = 0.0
    bound: float = math.inf
    interrupted: bool = False

    @property
    def task(self) -> OpenTask:
        """The one at hand."""
        return self.tasks[self.at]

    def outside(self, total: int) -> tuple[float, float]:
        """Of what is open outside the task at hand: the least bound, and the share of ``total`` tasks."""
        later = self.tasks[self.at + 1 :]
        return min([self.bound, *(task.bound for task in later)]), (self.share + len(later)) / total

    def next(self, stuck: Pending, tally: Tally) -> Waiting:
        """After the task at hand left some subproblems open, with what has been counted since the beginning."""
        share, bound = self.share + float(stuck.share.sum()), min([self.bound, *stuck.bound.tolist()])
        return Waiting(self.tasks, tally, self.at + 1, self.stuck + stuck.size, share, bound)

    def tensors(self, bounds: Mapping[int, Interval]) -> dict[str, Tensor]:
        """By name, with proven bounds of the task at hand by node."""
        found = {
            "tasks": torch.tensor([t.task for t in self.tasks]),
            "alive": torch.stack([t.alive for t in self.tasks]),
            "bound": torch.tensor([t.bound for t in self.tasks], dtype=torch.float64),
            "before": self.tally.tensor(),
            "place": torch.tensor([self.at, self.stuck, int(self.interrupted)]),
            "left": torch.tensor([self.share, self.bound], dtype=torch.float64),
        }
        for node, (low, high) in bounds.items():
            found[f"lower.{node}"], found[f"upper.{node}"] = low, high
        return found

    @staticmethod
    def restored(saved: Mapping[str, Tensor], device: torch.device) -> Waiting:
        """From ``tensors``. Raises ``Misfit`` where these are others."""
        try:
            alive = saved["alive"].to(device, torch.bool)
            at, stuck, interrupted = map(int, saved["place"].tolist())
            tasks = zip(map(int, saved["tasks"].tolist()), alive, saved["bound"].tolist(), strict=True)
            share, bound = saved["left"].tolist()
            before = Tally.restored(saved["before"])
            return Waiting(tuple(OpenTask(*t) for t in tasks), before, at, stuck, share, bound, bool(interrupted))
        except (KeyError, TypeError, ValueError) as error:
            raise Misfit(f"the tasks that wait: {error}") from error


def bounds_of(saved: Mapping[str, Tensor], device: torch.device) -> dict[int, Interval]:
    """The bounds by node in ``Waiting.tensors``."""
    names = ((name, name.replace("lower.", "upper.")) for name in saved if name.startswith("lower."))
    return {int(a.partition(".")[2]): (saved[a].to(device), saved[b].to(device)) for a, b in names if b in saved}
