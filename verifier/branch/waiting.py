"""The tasks that bounds alone leave open, worked off one by one: all that stands around the search over one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bounds.ops.base import Interval
from verifier.branch.problem import OpenTask, Tally


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """``tasks`` from ``at`` on are still to be decided; ``stuck`` subproblems of those before stay open; ``tally``
    counts what came before the task at hand; ``interrupted``: whether the one interruption of its search is over."""

    tasks: tuple[OpenTask, ...]
    tally: Tally = field(default_factory=Tally)
    at: int = 0
    stuck: int = 0
    interrupted: bool = False

    @property
    def task(self) -> OpenTask:
        """The one at hand."""
        return self.tasks[self.at]

    def next(self, stuck: int, tally: Tally) -> Waiting:
        """After the task at hand left ``stuck`` subproblems open, with what has been counted since the beginning."""
        return Waiting(self.tasks, tally, self.at + 1, self.stuck + stuck)

    def tensors(self, bounds: Mapping[int, Interval]) -> dict[str, Tensor]:
        """By name, with proven bounds of the task at hand by node."""
        found = {
            "tasks": torch.tensor([t.task for t in self.tasks]),
            "alive": torch.stack([t.alive for t in self.tasks]),
            "before": self.tally.tensor(),
            "place": torch.tensor([self.at, self.stuck, int(self.interrupted)]),
        }
        for node, (low, high) in bounds.items():
            found[f"lower.{node}"], found[f"upper.{node}"] = low, high
        return found

    @staticmethod
    def restored(saved: Mapping[str, Tensor], device: torch.device) -> Waiting:
        """From ``tensors``."""
        alive = saved["alive"].to(device)
        at, stuck, interrupted = saved["place"].tolist()
        tasks = tuple(OpenTask(task, alive[k]) for k, task in enumerate(saved["tasks"].tolist()))
        return Waiting(tasks, Tally.restored(saved["before"]), at, stuck, bool(interrupted))


def bounds_of(saved: Mapping[str, Tensor], device: torch.device) -> dict[int, Interval]:
    """The bounds by node in ``Waiting.tensors``."""
    nodes = [int(name.removeprefix("lower.")) for name in saved if name.startswith("lower.")]
    return {node: (saved[f"lower.{node}"].to(device), saved[f"upper.{node}"].to(device)) for node in nodes}
