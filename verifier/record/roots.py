"""The root of an activation split as entries: how its bounds came about, its clauses, and the positions to be split.

kind "bounds": task, number (0 CROWN, 1 ascent), node, and what ``bounds.kept.arrays`` says of the node
kind "root":   task, clause [C] (in the query), node, count [P], element [U]: positions, pre-activation by
               pre-activation, elements rising; steps: of ascent for intervals from half-spaces (0: none); where
               splits are at points also line [S, 3] (node, side, count) and free [P]: elements of relaxed nodes
               whose lines have parameters, in the order of these
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bounds.backward import State
from bounds.dual import freedoms
from bounds.kept import Kept, arrays
from bounds.ops.relu import Relu
from bounds.plan import Plan
from verifier.branch.point_splits import PointRoot, Side
from verifier.branch.positions import Place, Positions, splits_at_points
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


def arrays_of(task: int, clauses: Tensor, positions: Positions, points: PointRoot | None = None) -> dict[str, Tensor]:
    """The entry of a root; ``points``: where it is split at points."""
    elements = [clauses.new_zeros(0), *(p.elements for p in positions.places)]
    sides = () if points is None else points.sides
    lines = {} if points is None else {
        "line": torch.tensor([[s.node, s.side, s.elements.shape[0]] for s in sides], dtype=torch.int32).reshape(-1, 3),
        "free": torch.cat([clauses.new_zeros(0), *(s.elements for s in sides)]).int(),
    }  # fmt: skip
    return {
        "task": torch.tensor([task]),
        "clause": clauses.int(),
        "node": torch.tensor([p.before for p in positions.places], dtype=torch.int32),
        "count": torch.tensor([p.elements.shape[0] for p in positions.places], dtype=torch.int32),
        "element": torch.cat(elements).int(),
        **lines,
    }


def positions_of(plan: Plan, state: State, given: Mapping[str, Tensor]) -> Positions:
    """The positions of a root's entry over a state (of the graph, or of what comes before a node). Any elements before
    ReLUs may be split (where something else is relaxed: any that relaxed nodes read), so they need not be those that
    are unstable here. Raises ``ValueError`` for others."""
    at_points = splits_at_points(plan)
    nodes, counts, element = given["node"].tolist(), given["count"].tolist(), given["element"].long()
    if len(nodes) != len(counts) or min(counts, default=1) < 1 or sum(counts) != element.shape[0]:
        raise ValueError("positions and their pre-activations do not fit")
    if sorted(set(nodes)) != nodes:
        raise ValueError("pre-activations do not rise")
    places, start = list[Place](), 0
    for node, part in zip(nodes, element.split(counts), strict=True):
        consumers = plan.consumers[node] if node in plan.watched else ()
        relus = tuple(c for c in consumers if c in state.relaxations and isinstance(plan.graph.nodes[c].op, Relu))
        known = node in plan.watched and node in state.bounds if at_points else bool(relus)
        size = math.prod(plan.graph.nodes[node].shape) if known else 0
        if int(part[0]) < 0 or int(part[-1]) >= size or not bool((part[1:] > part[:-1]).all()):
            raise ValueError(f"the positions at node {node} are no elements to be split, or do not rise")
        places.append(Place(node, () if at_points else relus, slice(start, start + len(part)), part.to(plan.device)))
        start += len(part)
    return Positions(state, tuple(places), start, at_points)


def points_of(
    plan: Plan, positions: Positions, rows: Tensor, rhs: Tensor, given: Mapping[str, Tensor]
) -> PointRoot | None:
    """What decides leaves that are split at points (None: at 0 alone). Any element of a line that has a parameter may
    be given one. Raises ``ValueError`` for others."""
    if not positions.points:
        return None
    lines, free = given["line"].long(), given["free"].long()
    counts = lines[:, 2] if lines.ndim == 2 and lines.shape[1] == 3 else torch.full((1,), -1)
    if bool((counts < 0).any()) or free.shape != (int(counts.sum()),):
        raise ValueError("lines and their parameters do not fit")
    may, sides, first = freedoms(plan, positions.root), list[Side](), 0
    for (node, side, _), part in zip(lines.tolist(), free.split(counts.tolist()), strict=True):
        if side not in (0, 1) or may.get(node, (None, None))[side] is None:
            raise ValueError(f"a line of node {node} has no parameters")
        inside = (part >= 0) & (part < math.prod(plan.graph.nodes[node].shape))
        if not bool(inside.all()) or torch.unique(part).shape[0] < part.shape[0]:
            raise ValueError(f"parameters of node {node} are not there, or come twice")
        if any((s.node, s.side) == (node, side) for s in sides):
            raise ValueError(f"a line of node {node} comes twice")
        sides.append(Side.of(plan, positions, node, side, first, part.to(plan.device)))
        first += part.shape[0]
    return PointRoot.proving(plan, positions, rows, rhs, tuple(sides))
