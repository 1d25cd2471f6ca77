"""Leaves of a program as entries: the splits of integer columns that lead to each, and its multipliers.

    kind "program":   task, clause (in the query); depth [K]: how many splits; column, value [E], up [E]: bits, leaf
                      by leaf from the root; ray [K]: bits; dual [K, R] float64
    kind "tightened": task, node; element [N], upper [N]: bits, count [N]: the leaves of each better end of its interval
                      (``milp.tighten.End``), which are as above

From the last "tightened" of a task on, its programs rest on the better intervals, and leaves of earlier ones prove the
clauses that they cover and no others.

    kind "cuts":      task, clause; phase [K]: of which neurons; member: bits, which columns of the affine row of each
                      are in its subset (``milp.cuts``). Before the leaves, which are of the program with these rows

A cut is made again from its subset, and follows from the program's other rows whatever the subset is. Any multipliers
prove something (``milp.recheck``), so a leaf is decided with them as they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from milp.cuts import Cuts, Neurons, with_cuts
from milp.model import Model
from milp.recheck import Leaf, Split
from milp.tighten import End, Layer
from verifier.record.entries import Write
from verifier.record.packing import bits, unpacked, whole

KIND, TIGHTENED, CUTS = "program", "tightened", "cuts"
LEAVES = 64
"""In one entry."""


class Keeping:
    """Takes leaves one by one and writes some at a time. State: those that wait."""

    def __init__(self, write: Write, task: int, clause: int) -> None:
        self._write, self._about, self._leaves = write, {"task": task, "clause": clause}, list[Leaf]()

    def cut(self, cuts: Cuts) -> None:
        """The rows that are added to the program: before any leaf, and once."""
        self._write(CUTS, self._named() | {"phase": cuts.phase.int(), "member": bits(cuts.member)})

    def add(self, leaf: Leaf) -> None:
        """One more."""
        self._leaves.append(leaf)
        if len(self._leaves) >= LEAVES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._leaves:
            self._write(KIND, self._named() | arrays_of(self._leaves))
            self._leaves = []

    def _named(self) -> dict[str, Tensor]:
        return {name: torch.tensor([value]) for name, value in self._about.items()}


def arrays_of(leaves: list[Leaf]) -> dict[str, Tensor]:
    """The arrays of some leaves of one program."""
    splits = [split for leaf in leaves for split in leaf.splits]
    return {
        "depth": torch.tensor([len(leaf.splits) for leaf in leaves], dtype=torch.int32),
        "column": torch.tensor([split.column for split in splits], dtype=torch.int32),
        "value": torch.tensor([split.value for split in splits], dtype=torch.int64),
        "up": bits(torch.tensor([split.up for split in splits], dtype=torch.bool)),
        "ray": bits(torch.tensor([leaf.ray for leaf in leaves])),
        "dual": torch.stack([leaf.dual for leaf in leaves]),
    }


def of_ends(task: int, node: int, ends: Sequence[End]) -> dict[str, Tensor]:
    """The entry of better ends of a node."""
    return {
        "task": torch.tensor([task]),
        "node": torch.tensor([node]),
        "element": torch.tensor([end.element for end in ends], dtype=torch.int32),
        "upper": bits(torch.tensor([end.upper for end in ends])),
        "count": torch.tensor([len(end.leaves) for end in ends], dtype=torch.int32),
        **arrays_of([leaf for end in ends for leaf in end.leaves]),
    }


def ends_of(arrays: Mapping[str, Tensor], layer: Layer) -> list[End]:
    """The ends of an entry, for the program of what its node depends on. Raises ``ValueError`` as ``of_arrays``."""
    leaves = of_arrays(arrays, layer.model.lower.shape[0], layer.model.row_lower.shape[0])
    element, number = arrays["element"], arrays["element"].numel()
    places = whole(element, number, layer.bounds.intervals[layer.node][0].numel()).tolist()
    upper, count = unpacked(arrays["upper"], number).tolist(), whole(arrays["count"], number, len(leaves) + 1).tolist()
    if sum(count) != len(leaves):
        raise ValueError(f"{len(leaves)} leaves for ends that have {sum(count)}")
    found, first = list[End](), 0
    for place, side, size in zip(places, upper, count, strict=True):
        found.append(End(place, side, tuple(leaves[first : first + size])))
        first += size
    return found


def cut_by(model: Model, arrays: Mapping[str, Tensor]) -> Model:
    """The program with the rows of an entry of cuts. Raises ``ValueError`` for arrays that do not fit it."""
    neurons = Neurons.of(model)
    phase = whole(arrays["phase"], arrays["phase"].numel(), model.lower.shape[0])
    count = int(neurons.start.diff()[neurons.places(phase)].sum())
    return with_cuts(model, Cuts(phase, unpacked(arrays["member"], count)), neurons)


def of_arrays(arrays: Mapping[str, Tensor], columns: int, rows: int) -> list[Leaf]:
    """The leaves of an entry for a program of so many columns and rows. Raises ``ValueError`` (a ``RecordError``) for
    arrays that do not fit it."""
    dual = arrays["dual"]
    if dual.dtype != torch.float64 or dual.ndim != 2 or dual.shape[1] != rows:
        raise ValueError(f"multipliers of {tuple(dual.shape)} for a program of {rows} rows")
    depth = whole(arrays["depth"], dual.shape[0], columns + 1).tolist()
    total = sum(depth)
    column = whole(arrays["column"], total, columns)
    value, up, ray = arrays["value"], unpacked(arrays["up"], total), unpacked(arrays["ray"], dual.shape[0])
    if value.dtype != torch.int64 or value.shape != (total,):
        raise ValueError("split values that are no whole numbers, one a split")
    splits = [Split(*split) for split in zip(column.tolist(), value.tolist(), up.tolist(), strict=True)]
    found, first = list[Leaf](), 0
    for k, count in enumerate(depth):
        found.append(Leaf(tuple(splits[first : first + count]), dual[k], bool(ray[k])))
        first += count
    return found
