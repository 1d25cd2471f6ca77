"""The root of an activation split as entries: how its bounds came about, its clauses, and the positions to be split.

    kind "bounds": task, number (0 CROWN, 1 ascent), node, and what ``bounds.kept.arrays`` says of the node
    kind "root":   task, clause [C] (in the query), node, count [P], element [U]: positions, pre-activation by
                   pre-activation, elements rising
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bounds.backward import State
from bounds.kept import Kept, arrays
from bounds.ops.relu import Relu
from bounds.plan import Plan
from verifier.branch.positions import Place, Positions
from verifier.record.entries import Write

BOUNDS, ROOT = "bounds", "root"


def keeping(write: Write | None, task: int) -> Callable[[int, int, Kept], None] | None:
    """What ``verifier.branch.root.refine`` tells of a task, as entries."""
    if write is None:
        return None

    def keep(number: int, node: int, kept: Kept) -> None:
        about = {"task": task, "number": number, "node": node}
        write(BOUNDS, {**{name: torch.tensor([value]) for name, value in about.items()}, **arrays(kept)})

    return keep


def arrays_of(task: int, clauses: Tensor, positions: Positions) -> dict[str, Tensor]:
    """The entry of a root."""
    elements = [clauses.new_zeros(0), *(p.elements for p in positions.places)]
    return {
        "task": torch.tensor([task]),
        "clause": clauses.int(),
        "node": torch.tensor([p.before for p in positions.places], dtype=torch.int32),
        "count": torch.tensor([p.elements.shape[0] for p in positions.places], dtype=torch.int32),
        "element": torch.cat(elements).int(),
    }


def positions_of(plan: Plan, state: State, given: Mapping[str, Tensor]) -> Positions:
    """The positions of a root's entry over a state (of the graph, or of what comes before a node). Any elements before
    ReLUs may be split, so they need not be those that are unstable here. Raises ``ValueError`` for others."""
    nodes, counts, element = given["node"].tolist(), given["count"].tolist(), given["element"].long()
    if len(nodes) != len(counts) or min(counts, default=1) < 1 or sum(counts) != element.shape[0]:
        raise ValueError("positions and their pre-activations do not fit")
    if sorted(set(nodes)) != nodes:
        raise ValueError("pre-activations do not rise")
    places, start = list[Place](), 0
    for node, part in zip(nodes, element.split(counts), strict=True):
        consumers = plan.consumers[node] if node in plan.watched else ()
        relus = tuple(c for c in consumers if c in state.relaxations and isinstance(plan.graph.nodes[c].op, Relu))
        size = int(torch.Size(plan.graph.nodes[node].shape).numel()) if relus else 0
        if int(part[0]) < 0 or int(part[-1]) >= size or not bool((part[1:] > part[:-1]).all()):
            raise ValueError(f"the positions at node {node} are no elements before a ReLU, or do not rise")
        places.append(Place(node, relus, slice(start, start + len(part)), part.to(plan.device)))
        start += len(part)
    return Positions(state, tuple(places), start)
