"""Readable names for the columns and rows of a model, safe in every file format and solver.

A column is called after the node and element that it stands for, ``relu_3.17``; a column of a block's own after the
element it helps to describe, ``relu_3.phase.17`` where it takes whole numbers and ``relu_3.part.17`` elsewhere; a row
after its result, ``relu_3.row.17``. Where several would have the same name ``.2, .3, ...`` follow. Only letters,
digits, underscores and full stops occur, the full stop never inside a node's name, so names are unique as soon as those
of nodes are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from bounds.graph import Graph
from milp.model import Model

CONSTANT = "constant"
OBJECTIVE = "objective"
_LONGEST = 48  # some readers take 100 characters for a whole name
# What a reader could take for a number (2 e1, inf.3, nan.0): the C library reads numbers from the front of a word.
_LIKE_A_NUMBER = re.compile(r"[0-9]|e[0-9]|e\Z|inf|nan", re.IGNORECASE)
_NO_NAMES: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Names:
    """Unique names of the columns and of the rows of a model, in their order."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]


def readable_names(model: Model, graph: Graph | None = None, named: Mapping[int, str] = _NO_NAMES) -> Names:
    """Names for all columns and rows; without the graph its nodes are called ``node_3``.

    ``named``: other names for some columns (by number); they are made safe and unique too. At most 80 characters each.
    """
    stems = _stems(model, graph)
    owner, element = _row_owners(model)
    rows = _numbered(
        f"{stems[i]}.row.{_key(e, k)}" for k, (i, e) in enumerate(zip(owner.tolist(), element.tolist(), strict=True))
    )
    columns = _columns(model, stems, owner, element)
    taken = {CONSTANT}
    for column, name in named.items():
        columns[column] = _unused(_safe(name, "column"), taken)
    return Names(tuple(columns), tuple(rows))


def _columns(model: Model, stems: Mapping[int, str], owner: Tensor, element: Tensor) -> list[str]:
    helped = _helped(model, owner, element).tolist()
    parts = zip(model.node.tolist(), model.element.tolist(), model.integer.tolist(), helped, strict=True)
    return _numbered(
        f"{stems[node]}.{max(place, -1 - place)}" if place >= 0 or node < 0
        else f"{stems[node]}.{'phase' if whole else 'part'}.{_key(helps, -1 - place)}"
        for node, place, whole, helps in parts
    )  # fmt: skip


def _key(element: int, number: int) -> str:
    """An element, or where there is none a number that no element looks like."""
    return str(element) if element >= 0 else f"n{number}"


def _numbered(names: Iterable[str]) -> list[str]:
    """The names, ``.2, .3, ...`` behind those that occurred before."""
    count: dict[str, int] = {}
    result = []
    for name in names:
        count[name] = count.get(name, 0) + 1
        result.append(name if count[name] == 1 else f"{name}.{count[name]}")
    return result


def _row_owners(model: Model) -> tuple[Tensor, Tensor]:
    """For each row the last node that occurs in it and the last of that node's elements (-1: none).

    A row with an added column belongs to no node.
    """
    count = model.row_lower.shape[0]
    row = torch.repeat_interleave(torch.arange(count), model.start.diff())
    node, element = model.node[model.index], model.element[model.index].clamp(min=-1)
    owner = node.new_full((count,), -1).scatter_reduce(0, row, node, "amax")
    owner = owner.scatter_reduce(0, row, torch.where(node < 0, -1, owner[row]), "amin")
    mine = torch.where(node == owner[row], element, -1)
    return owner, mine.new_full((count,), -1).scatter_reduce(0, row, mine, "amax")


def _helped(model: Model, owner: Tensor, element: Tensor) -> Tensor:
    """``[C]``: for a block's own columns the first element of its node that shares a row with it (-1: none)."""
    row = torch.repeat_interleave(torch.arange(owner.shape[0]), model.start.diff())
    counts = (model.element[model.index] < 0) & (model.node[model.index] == owner[row]) & (element[row] >= 0)
    none = torch.iinfo(torch.int64).max
    found = model.node.new_full((model.node.shape[0],), none)
    found = found.scatter_reduce(0, model.index[counts], element[row[counts]], "amin")
    return torch.where(found == none, -1, found)


def _stems(model: Model, graph: Graph | None) -> dict[int, str]:
    """A safe unique name for every node that occurs (-1: columns that belong to no node)."""
    taken: set[str] = set()
    stems = {}
    for node in sorted({-1, *model.node.unique().tolist()}):
        if node < 0:
            own, other = "", "extra"
        elif graph is None:
            own, other = "", f"node_{node}"
        else:
            own, other = graph.nodes[node].name, f"{type(graph.nodes[node].op).__name__.lower()}_{node}"
        stems[node] = _unused(_safe(own, other), taken)
    return stems


def _safe(name: str, other: str) -> str:
    """Letters, digits and underscores of a name (its end where it is long), ``other`` where nothing is left."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[-_LONGEST:].strip("_") or other
    return f"n_{plain}" if _LIKE_A_NUMBER.match(plain) else plain


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number where it is taken; taken afterwards."""
    chosen, number = name, 2
    while chosen in taken:
        chosen, number = f"{name}_{number}", number + 1
    taken.add(chosen)
    return chosen
