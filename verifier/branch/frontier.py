"""The open subproblems: a struct of tensors, taken best bound first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.ops.base import Interval


@dataclass(frozen=True, slots=True, eq=False)
class Subproblems:
    """K boxes over the free inputs. ``lower, upper`` ``[K, f]`` float64; ``task`` ``[K]``; ``alive`` ``[K, C]`` the
    clauses not yet refuted on a parent; ``bound`` ``[K]`` the parent's least margin; ``share`` ``[K]`` of the input
    set; ``inherited`` bounds of watched nodes that hold on the parent (empty where they would cost too much memory).
    """

    lower: Tensor
    upper: Tensor
    task: Tensor
    alive: Tensor
    bound: Tensor
    share: Tensor
    inherited: Mapping[int, Interval]

    @property
    def size(self) -> int:
        """K."""
        return int(self.task.shape[0])

    def take(self, index: Tensor) -> Subproblems:
        """The subproblems at ``index`` (numbers or a mask)."""
        return Subproblems(
            self.lower[index],
            self.upper[index],
            self.task[index],
            self.alive[index],
            self.bound[index],
            self.share[index],
            {node: (low[index], high[index]) for node, (low, high) in self.inherited.items()},
        )

    @staticmethod
    def cat(parts: list[Subproblems]) -> Subproblems:
        """All of them, in order; the parts must inherit the same nodes."""
        parts = [p for p in parts if p.size] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        return Subproblems(
            torch.cat([p.lower for p in parts]),
            torch.cat([p.upper for p in parts]),
            torch.cat([p.task for p in parts]),
            torch.cat([p.alive for p in parts]),
            torch.cat([p.bound for p in parts]),
            torch.cat([p.share for p in parts]),
            {
                node: (
                    torch.cat([p.inherited[node][0] for p in parts]),
                    torch.cat([p.inherited[node][1] for p in parts]),
                )
                for node in parts[0].inherited
            },
        )

    def pop(self, count: int) -> tuple[Subproblems, Subproblems]:
        """``(the count with the least bounds, the rest)``."""
        chosen, rest = least(self.bound, count)
        return self.take(chosen), self.take(rest)


def least(bound: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Masks ``[K]`` of the ``count`` least bounds (all, where there are fewer) and of the others."""
    chosen = torch.ones_like(bound, dtype=torch.bool)
    if bound.shape[0] > count:
        chosen[:] = False
        chosen[torch.topk(bound, count, largest=False, sorted=False).indices] = True
    return chosen, ~chosen
