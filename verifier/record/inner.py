"""Bounds of inner neurons by splits (``verifier/branch/inner.py``) as entries, and proved again from these.

    kind "inner": task, target: the node, row [E]: flat elements of it; node, count, element: positions (``roots.py``);
                  leaves (``leaves.py``) of 2 E trees: the rows of all elements, then those of their negatives

A row's bound is the least of its leaves', where these cover the whole box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bounds.backward import State
from bounds.layouts import Selection
from bounds.plan import Plan
from bounds.propagate import Tighten
from verifier.branch.bounding import Bounding
from verifier.branch.positions import Positions
from verifier.record import leaves
from verifier.record.entries import Write
from verifier.record.paths import uncovered
from verifier.record.roots import arrays_of, positions_of

KIND = "inner"
BATCH = 256
"""Leaves that are decided at once."""

Keep = Callable[[int, Tensor, Positions, Mapping[str, Tensor]], None]
"""``(node, elements, positions, leaves of all their rows)``."""


def keeping(write: Write | None, task: int) -> Keep | None:
    """What bounds by splits tell of a task, as entries."""
    if write is None:
        return None

    def keep(target: int, elements: Tensor, positions: Positions, entry: Mapping[str, Tensor]) -> None:
        about = {**arrays_of(task, elements, positions), "target": torch.tensor([target]), "row": elements.int()}
        write(KIND, {**about, **entry})

    return keep


def proved(entries: Sequence[Mapping[str, Tensor]]) -> Tighten:
    """The ``Tighten`` that gives the bounds of entries again, over one box, by deciding passes alone; of rows that have
    none, or whose leaves leave a hole, nothing is said (-inf). Raises ``ValueError`` for numbers that prove nothing."""

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        result = torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        count = units.count()
        first = units.index[:count]
        for entry in entries:
            if int(entry["target"]) != node or not count:
                continue
            wanted = entry["row"].long()
            rows = torch.searchsorted(first, wanted).clamp(max=count - 1)
            if not torch.equal(first[rows], wanted) or torch.unique(rows).shape[0] < rows.shape[0]:
                raise ValueError(f"rows of node {node} that want no bounds")
            places = torch.cat([rows, rows + count])
            result[places] = torch.maximum(result[places], _least(plan, state, (node, units.take(rows)), entry))
        return result

    return tighten


def _least(plan: Plan, state: State, asked: tuple[int, Selection], entry: Mapping[str, Tensor]) -> Tensor:
    node, units = asked
    rows = units.dense().to(plan.dtype).unsqueeze(1)
    positions = positions_of(plan, state, entry)
    bounding = Bounding(plan, plan, positions, rows, rows.new_zeros(rows.shape[:2]), node, None)
    batch, found = leaves.of_arrays(entry, (rows.shape[0], 1), positions.count)
    parts = torch.arange(batch.size).split(BATCH)
    bound = torch.cat(
        [rows.new_zeros(0), *(bounding.decided(batch.take(p), found.take(p)) for p in parts if p.numel())]
    )
    least = rows.new_full((rows.shape[0],), torch.inf).scatter_reduce(0, batch.clause, bound, "amin")
    return torch.where(uncovered(leaves.paths_of(entry), rows.shape[0]) == 0, least, -torch.inf)
