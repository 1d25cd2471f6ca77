"""Bounds of inner neurons by splits (``verifier/branch/inner.py``) as entries, and proved again from these.

    kind "inner": task, target: the node, row [E]: flat elements of it; node, count, element: positions (``roots.py``);
                  leaves (``leaves.py``) of 2 E trees: the rows of all elements, then those of their negatives

A row's bound is the least of its leaves', which must cover the whole box; of a row without leaves nothing is said.
There are no weights: they leave the sign of a bound, which is all that refutations need, but not the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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
from verifier.record.paths import Paths, uncovered
from verifier.record.roots import arrays_of, positions_of

KIND = "inner"
BATCH = 256
"""Leaves that are decided at once."""

LEAVES = ("clause", "depth", "position", "side", "beta", "slope")
"""The arrays of leaves that an entry has."""

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
    none nothing is said (-inf). Raises ``ValueError`` for numbers that prove nothing, and for leaves with a hole."""

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        known = torch.full((2, torch.Size(units.shape).numel()), -torch.inf, dtype=plan.dtype, device=plan.device)
        for entry in entries:
            if int(entry["target"]) != node:
                continue
            wanted = entry["row"].long()
            if not wanted.shape[0] or int(wanted.min()) < 0 or int(wanted.max()) >= known.shape[1]:
                raise ValueError(f"rows of elements that node {node} does not have")
            one = torch.ones(wanted.shape, dtype=plan.dtype, device=plan.device)
            rows = Selection(torch.cat([wanted, wanted]), torch.cat([one, -one]), units.shape)
            least = _least(plan, state, (node, rows), entry).reshape(2, -1)
            known[:, wanted] = torch.maximum(known[:, wanted], least)
        return known[:, units.half().index].flatten()

    return tighten


def _least(plan: Plan, state: State, asked: tuple[int, Selection], entry: Mapping[str, Tensor]) -> Tensor:
    """``[R]``: of the rows asked for, -inf of those without leaves."""
    node, units = asked
    rows = units.dense().to(plan.dtype).unsqueeze(1)
    positions = positions_of(plan, state, entry)
    if positions.points:
        raise ValueError("inner bounds by splits are of networks where only ReLUs are relaxed")
    bounding = Bounding(plan, plan, positions, rows, rows.new_zeros(rows.shape[:2]), node, None)
    _check_cover(Paths.of_arrays(entry), node)
    least = rows.new_full((rows.shape[0],), torch.inf)
    for part in _parts(entry, positions.count):
        batch, found = leaves.of_arrays(part, (rows.shape[0], 1), positions.count)
        least = least.scatter_reduce(0, batch.clause, bounding.decided(batch, found), "amin")
    return torch.where(least < torch.inf, least, -torch.inf)


def _parts(entry: Mapping[str, Tensor], positions: int) -> Iterator[dict[str, Tensor]]:
    """The leaves of an entry as entries of at most ``BATCH``. Raises ``ValueError`` for arrays of wrong lengths."""
    given, depth = {name: entry[name] for name in LEAVES}, entry["depth"].long()
    sizes = {"clause": torch.ones_like(depth), "depth": torch.ones_like(depth), "slope": positions - depth}
    lengths = {name: sizes.get(name, depth) for name in LEAVES}
    if any(v.shape != (int(lengths[n].sum()),) or bool((lengths[n] < 0).any()) for n, v in given.items()):
        raise ValueError("leaves and their splits, multipliers or slopes do not fit")
    split = {n: v.split([int(part.sum()) for part in lengths[n].split(BATCH)]) for n, v in given.items()}
    for parts in zip(*split.values(), strict=True):
        if parts[0].shape[0]:
            yield dict(zip(split, parts, strict=True))


def _check_cover(paths: Paths, node: int) -> None:
    """Raise ``ValueError`` where a row has leaves, but these do not cover the box."""
    present, tree = torch.unique(paths.clause, return_inverse=True)
    holes = uncovered(Paths(tree, paths.leaf, paths.position, paths.side, paths.point), present.shape[0])
    if bool(holes.any()):
        raise ValueError(f"the leaves of row {int(present[holes > 0][0])} of node {node} leave a part of the box open")
