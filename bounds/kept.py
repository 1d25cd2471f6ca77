"""What an ascent leaves for a program that shall prove its bounds again: rows, parameters, and nothing to search.

Bounds of inner neurons come from two kinds of walks: those of CROWN over the state's own lines, and deciding walks,
each row over lines of its own that an ascent found. For the first it is enough to know which rows there were. For the
second the parameters of these lines are kept, only where something can be chosen, and in few bits: slopes of lines
through the origin as ``k / 255``, all others in float16. Any parameters are sound, so a few bits cost a little
tightness and nothing else; and because an ascent decides with the parameters *as they are kept*, whoever decides
again with them gets the same bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bounds.backward import State
from bounds.dual import Dual, Multipliers, Objective, by_rows, evaluate, freedoms
from bounds.layouts import Selection, flat
from bounds.ops.base import Nonlinear, Parameters
from bounds.patch_ascent import Seen, decided
from bounds.patches import Geometry, Patches, frames
from bounds.plan import Plan
from bounds.propagate import Tighten, Walked, walked

LEVELS = 255
"""Slopes from 0 to 1 are kept as multiples of one part in so many."""

Side = tuple[int, int]
"""A relaxed node, and which of its lines: 0 the lower, 1 the upper."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """Unit rows that one walk decides: their places ``[K]`` (of mirrored ones, in the first half), and for each line
    of their own the parameters that are free there, row by row, ``[M]`` uint8 or float16."""

    rows: Tensor
    values: Mapping[Side, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """How the bounds of one node came about: CROWN walks, and chunks of rows with parameters."""

    walks: Walked
    chosen: tuple[Chosen, ...]


def coarse(values: Tensor) -> Tensor:
    """Slopes from 0 to 1 as uint8, to the nearest of ``LEVELS + 1``; what is outside moves to the nearer end."""
    return torch.nan_to_num(values, nan=0.0).clamp(0, 1).mul(LEVELS).round().to(torch.uint8)


def fine(codes: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """What ``coarse`` numbers stand for, correctly rounded; floating-point numbers stand for themselves."""
    return codes.to(dtype) / LEVELS if codes.dtype == torch.uint8 else codes.to(dtype)


def half(values: Tensor) -> Tensor:
    """Parameters of any range in float16, finite."""
    most = torch.finfo(torch.float16).max
    return torch.nan_to_num(values, nan=0.0).clamp(-most, most).to(torch.float16)


@dataclass(frozen=True, slots=True, eq=False)
class _Free:
    """One line of each row: parameters where nothing is chosen, and where something is, both ``[R, E]``; ``slope``:
    it is the slope of a line through the origin."""

    start: Tensor
    where: Tensor
    slope: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Unit rows of a node over the lines of a state, row r over box ``owner[r]``, which wait for parameters.

    Parameters stand at whole nodes ``[R, *shape]``, or at what the rows see of them (``patches``) ``[R, C h w]``.
    """

    plan: Plan
    state: State
    node: int
    units: Selection
    owner: Tensor
    patches: Patches | None
    free: Mapping[Side, _Free]

    @staticmethod
    def of(plan: Plan, state: State, node: int, units: Selection, owner: Tensor, geometry: Geometry | None) -> Rows:
        """``geometry``: of the plan, where ``patched`` says so."""
        patches = None if geometry is None else Patches.of(geometry, state, units, owner)

        def laid(at: int, values: Tensor) -> Tensor:
            if patches is not None:
                return patches.ground.at(at, values).index_select(0, patches.where)
            whole = flat(values.expand(values.shape[0], *plan.graph.nodes[at].shape))
            return whole.expand(owner.shape[0], -1) if whole.shape[0] == 1 else whole[owner]

        free, before = dict[Side, _Free](), _before(plan, node)
        for relaxed, pair in freedoms(plan, state).items():
            op = plan.graph.nodes[relaxed].op
            assert isinstance(op, Nonlinear)
            for side, range_ in enumerate(pair):
                if range_ is not None and relaxed in before:
                    where = range_.greatest > range_.least
                    one = torch.zeros_like(where, dtype=plan.dtype)
                    start = laid(relaxed, range_.start + one)
                    free[relaxed, side] = _Free(start, laid(relaxed, where), op.through_origin)
        return Rows(plan, state, node, units, owner, patches, free)

    def kept(self, found: Mapping[int, Parameters]) -> dict[Side, Tensor]:
        """Parameters in few bits, those that are free alone."""
        values: dict[Side, Tensor] = {}
        for (node, side), free in self.free.items():
            given = found.get(node, (None, None))[side]
            numbers = (free.start if given is None else flat(given))[free.where]
            values[node, side] = coarse(numbers) if free.slope else half(numbers)
        return values

    def bound(self, values: Mapping[Side, Tensor]) -> Tensor:
        """``[R]``: lower bounds by one walk of the plan with kept parameters, proven where it has a rounding model.

        Raises ``ValueError`` where these are not as many as the state leaves to be chosen.
        """
        found: dict[int, list[Tensor | None]] = {}
        for (node, side), free in self.free.items():
            full = free.start.clone()
            given = values.get((node, side))
            if given is None or given.shape[0] != int(free.where.sum()):
                raise ValueError(f"kept parameters of node {node} do not fit what is free there")
            full[free.where] = fine(given, self.plan.dtype)
            found.setdefault(node, [None, None])[side] = full
        if self.patches is not None:
            known = self.patches.ground.geometry.frames.keys() & self.plan.relaxed
            pairs = {n: _pair(found.get(n, [None, None])) for n in known}
            seen = Seen(torch.empty(0), self.patches, pairs)
            return decided(self.plan, self.state, (self.units, self.owner), seen)
        dual = Dual(
            self.plan,
            by_rows(self.plan, self.state, self.owner),
            self.node,
            Objective.single(self.units.dense()),
            {},
        )
        shaped = {
            n: _pair([None if s is None else s.reshape(-1, *self.plan.graph.nodes[n].shape) for s in sides])
            for n, sides in found.items()
        }
        return evaluate(dual, Multipliers(shaped, {}, dual.objective.weights))[1]


def _pair(sides: Sequence[Tensor | None]) -> Parameters:
    return sides[0], sides[1]


def _before(plan: Plan, target: int) -> set[int]:
    """The nodes that a node depends on, itself included."""
    found = {target}
    for node in reversed(plan.graph.nodes[: target + 1]):
        if node.id in found:
            found.update(node.inputs)
    return found


def patched(plan: Plan, state: State, node: int) -> Geometry | None:
    """The patches over which the rows of a node ascend; None where they ascend over whole nodes."""
    return frames(plan, node) if state.ball is None else None


def crowned(until: float, keep: Callable[[int, Kept], None] | None) -> Tighten:
    """``crown`` until a time, which tells ``keep`` of each node which rows it walked."""

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        result, walks = walked(plan, state, node, units, owner, until)
        if keep is not None:
            keep(node, Kept(walks, ()))
        return result

    return tighten


def reproved(kept: Mapping[int, Kept]) -> Tighten:
    """The ``Tighten`` that gives the bounds that were kept, by node, without any search.

    In the same propagation (graph, boxes, inherited bounds and plan of proof) they are those of the search, to the last
    bit where the machine computes alike. Rows that nothing was kept of are left as they are (-inf). Raises
    ``ValueError`` where what was kept does not fit the rows.
    """

    def tighten(plan: Plan, state: State, node: int, units: Selection, owner: Tensor) -> Tensor:
        if node not in kept:
            return torch.full((owner.shape[0],), -torch.inf, dtype=plan.dtype, device=plan.device)
        mine, count = kept[node], units.count()
        for rows in (mine.walks.screened, mine.walks.walked, *(c.rows for c in mine.chosen)):
            if rows.shape[0] and not 0 <= int(rows.min()) <= int(rows.max()) < count:
                raise ValueError(f"kept rows of node {node} are not among the {count} that want bounds")
        result, _ = walked(plan, state, node, units, owner, mine.walks)
        geometry = patched(plan, state, node)
        for chunk in mine.chosen:
            part = torch.cat([chunk.rows, chunk.rows + count]) if units.mirrored else chunk.rows
            ready = Rows.of(plan, state, node, units.take(chunk.rows), owner[part], geometry)
            result[part] = torch.maximum(result[part], ready.bound(chunk.values))
        return result

    return tighten


def arrays(kept: Kept) -> dict[str, Tensor]:
    """A ``Kept`` as named tensors: ``screened, walked, rows``, ``chunks`` (how many of the rows go together), and
    ``values/NODE/SIDE``."""
    none = torch.zeros(0, dtype=torch.int64)
    sides = sorted({side for chunk in kept.chosen for side in chunk.values})
    values = {f"values/{n}/{s}": torch.cat([c.values[n, s] for c in kept.chosen]) for n, s in sides}
    sizes = torch.tensor([[c.rows.shape[0], *(c.values[s].shape[0] for s in sides)] for c in kept.chosen])
    return {
        "screened": kept.walks.screened.int(),
        "walked": kept.walks.walked.int(),
        "rows": torch.cat([none, *(c.rows.cpu() for c in kept.chosen)]).int(),
        "chunks": sizes.reshape(-1, 1 + len(sides)).long(),
        **values,
    }


def of_arrays(given: Mapping[str, Tensor]) -> Kept:
    """The inverse of ``arrays``; raises ``ValueError`` for arrays that are none of its."""
    sides = sorted((int(n), int(s)) for name in given if name.startswith("values/") for _, n, s in [name.split("/")])
    chunks = given["chunks"].long()
    if chunks.ndim != 2 or chunks.shape[1] != 1 + len(sides) or bool((chunks < 0).any() | (chunks[:, :1] < 1).any()):
        raise ValueError("kept chunks do not fit the kept parameters")
    for name in ("screened", "walked", "rows"):  # each row costs a walk
        if torch.unique(given[name]).shape != given[name].shape:
            raise ValueError(f"{name}: a row comes twice")
    columns = [given["rows"].long(), *(given[f"values/{n}/{s}"] for n, s in sides)]
    if [c.shape[0] for c in columns] != chunks.sum(0).tolist():
        raise ValueError("kept chunks do not fit the kept rows")
    parts = [c.split(sizes) for c, sizes in zip(columns, chunks.T.tolist(), strict=True)]
    chosen = tuple(Chosen(rows, dict(zip(sides, values, strict=True))) for rows, *values in zip(*parts, strict=True))
    return Kept(Walked(given["screened"].long(), given["walked"].long()), chosen)
