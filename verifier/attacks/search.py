"""The search for counterexamples of a query: a cheap look everywhere, then descent where it is worth it.

One round:

1. *Probe*: for every box the centre, random points and random corners; all its clauses are evaluated at them.
2. *Corners*: for the clauses with the least margins, from the centre into the corner that the gradient's sign shows,
   and once more from there.
3. *Descent* in stages (successive halving): all restarts of a stage move in one batch; after it, the clauses whose
   margin stayed large are dropped and the others share the batch. Restarts begin at the best known point, near it, at
   random points, at random corners and at output-diversified points.

As soon as a point makes a clause true in torch's arithmetic it is handed out; only a replay with onnxruntime makes it
a counterexample. Asking for more says that the replay refused it, and a larger margin is demanded from then on. All
randomness comes from one seeded generator, so the same query and plan give the same points on the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bounds.box import Box
from bounds.graph import Graph
from bounds.ops.affine import Affine
from verifier.attacks import descent
from verifier.attacks.clauses import ClauseArrays
from verifier.attacks.descent import Descent, Places, Style
from verifier.attacks.plan import AttackPlan
from verifier.attacks.pool import Pool
from verifier.attacks.straight_through import surrogate
from verifier.query import Cases, Query

# Points handed out at once: the replay of one is cheap, that of hundreds of large inputs is not.
_HANDED_OUT = 8
# What reading and writing one element costs, in multiply-adds.
_MOVE = 8
# Elements that the values of all nodes, or all literals, may take at once (about 0.25 GB in float32).
_ELEMENTS = 6e7


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Points ``x`` ``[K, n]`` that make a clause true, and their margins ``[K]`` (all <= minus the demand)."""

    x: Tensor
    margin: Tensor


# Hands out what was found, is sent the margin that is demanded from then on, and returns a value with that demand.
T = TypeVar("T")
Steps = Generator[Found, float, tuple[T, float]]


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What all parts of one search share. ``batch``: points that move at once; ``rows``: points of one evaluation
    without gradients; ``number`` ``[K]``: rank of each clause's box among the boxes in use."""

    graph: Graph
    cases: Cases
    clauses: ClauseArrays
    number: np.ndarray
    start: np.ndarray
    plan: AttackPlan
    random: torch.Generator
    deadline: float | None
    dtype: torch.dtype
    work: float
    batch: int
    rows: int

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.random.device

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def places(self, box: Tensor) -> Places:
        """The centres of the boxes ``box`` ``[P]``."""
        chosen = box.cpu().numpy()
        ends = [
            torch.from_numpy(a[chosen]).to(device=self.device, dtype=self.dtype)
            for a in (self.cases.inner_lower, self.cases.inner_upper)
        ]
        return Places(ends[0], ends[0], ends[1]).centre()

    def uniform(self, places: Places) -> Places:
        """A random point of each box."""
        u = torch.rand(places.x.shape, generator=self.random, device=self.device, dtype=self.dtype)
        return places.at(places.lower + u * places.width)

    def corner(self, places: Places) -> Places:
        """A random corner of each box."""
        up = torch.rand(places.x.shape, generator=self.random, device=self.device) < 0.5
        return places.at(torch.where(up, places.upper, places.lower))


def candidates(
    query: Query,
    plan: AttackPlan,
    *,
    deadline: float | None = None,
    device: torch.device | str = "cpu",
    indices: np.ndarray | None = None,
) -> Iterator[Tensor]:
    """Points that make a clause of the query true according to torch, ``[K, n]`` (K >= 1) in the model's dtype.

    Every point lies exactly in its clause's box as ``inner_lower`` and ``inner_upper`` describe it. ``indices`` are
    the numbers of the clauses to look at (None: all). The search stops at the ``deadline`` (``time.monotonic()``), to
    within one evaluation of a batch, or when the plan's effort is spent; that it found nothing proves nothing.
    """
    setting = prepare(query, plan, deadline=deadline, device=device, indices=indices)
    if setting is None:
        return
    yield from handed_out(setting, _rounds(setting))


def handed_out(setting: Setting, search: Generator[Found, float, object]) -> Iterator[Tensor]:
    """The points that a search finds, in the model's dtype; each time one is asked for, the last was refused."""
    # Half precision is searched in float32; rounding a point to it does not lead out of a box whose ends it holds.
    stored = torch.from_numpy(setting.cases.inner_lower[:1]).dtype
    demand = 0.0
    try:
        found = next(search)
        while True:
            yield found.x.to(stored)
            # Refused: the replay's margin differs from ours by more than this one.
            slack = 8 * torch.finfo(setting.dtype).eps
            demand = max(2 * demand, 2 * float(-found.margin.min()), slack)
            found = search.send(demand)
    except StopIteration:
        return


def prepare(
    query: Query, plan: AttackPlan, *, deadline: float | None, device: torch.device | str, indices: np.ndarray | None
) -> Setting | None:
    """What a search needs to begin; None where no clause has a point in its box."""
    cases = query.cases
    clauses = ClauseArrays.of(cases, _inhabited(cases, indices), device)
    if not clauses.size:
        return None
    dtype = torch.promote_types(torch.from_numpy(cases.inner_lower[:1]).dtype, torch.float32)
    box = clauses.box.cpu().numpy()
    number = np.concatenate([[0], np.cumsum(box[1:] != box[:-1])])
    work, elements = cost(query.graph)
    size = 1.0 if torch.device(device).type == "cpu" else 64.0
    return Setting(
        graph=surrogate(query.graph.to(dtype, device), hull(cases, clauses)),
        cases=cases,
        clauses=clauses,
        number=number,
        start=clauses.start.cpu().numpy(),
        plan=plan,
        random=torch.Generator(device).manual_seed(plan.seed),
        deadline=deadline,
        dtype=dtype,
        work=work,
        batch=int(np.clip(min(plan.step_work * size / work, size * _ELEMENTS / elements), 4, plan.batch)),
        rows=int(np.clip(size * _ELEMENTS / elements, 1, 4096 * size)),
    )


def hull(cases: Cases, clauses: ClauseArrays) -> Box:
    """The box around the boxes of the clauses."""
    used = clauses.box.unique().cpu().numpy()
    ends = cases.lower[used].min(0, keepdims=True), cases.upper[used].max(0, keepdims=True)
    return Box(*(torch.from_numpy(end).to(clauses.box.device) for end in ends))


def cost(graph: Graph) -> tuple[float, float]:
    """Multiply-adds, and elements of all node values, of one evaluation at one point (rough, at least 1)."""
    work, elements = 1.0, 1.0
    for node, variable in zip(graph.nodes, graph.variable, strict=True):
        if not variable:
            continue
        size = float(np.prod(node.shape))
        shapes = [graph.nodes[i].shape for i in node.inputs]
        terms = node.op.accumulation(*shapes) if isinstance(node.op, Affine) and shapes else 1
        work, elements = work + size * max(terms, _MOVE), elements + size
    return work, elements


def _inhabited(cases: Cases, indices: np.ndarray | None) -> np.ndarray:
    """The clauses among ``indices`` whose box is not empty."""
    empty = np.any(cases.inner_lower > cases.inner_upper, axis=1)
    chosen = np.arange(len(cases.literals_of) - 1) if indices is None else np.asarray(indices, dtype=np.int64)
    box = np.searchsorted(cases.clauses_of, chosen, side="right") - 1
    inhabited: np.ndarray = chosen[~empty[box]]
    return inhabited


def _rounds(setting: Setting) -> Generator[Found, float, None]:
    demand = 0.0
    for number in range(setting.plan.rounds):
        pool, demand = yield from _probe(setting, demand)
        if pool is None:
            return
        if number == 0:
            pool, demand = yield from _corners(setting, pool, demand)
        larger = replace(setting, batch=min(setting.batch * 2**number, 8 * setting.batch))
        for stage in range(setting.plan.stages):
            pool, demand = yield from _stage(larger, pool, stage, demand)
            if setting.late:
                return


def _hits(margin: Tensor, x: Tensor, demand: float) -> Found | None:
    """The best of the points that fulfil the demand, if any."""
    if not bool((margin <= -demand).any()):
        return None
    order = torch.sort(margin, stable=True).indices[:_HANDED_OUT]
    order = order[margin[order] <= -demand]
    return Found(x[order], margin[order])


def _probe(setting: Setting, demand: float) -> Steps[Pool | None]:
    """Evaluate every clause at points of its box; None when the deadline came before the first result."""
    boxes, keep = int(setting.number[-1]) + 1, 4 * setting.batch
    work = boxes * setting.work + 2 * _MOVE * setting.start[-1]
    count = int(np.clip(setting.plan.probe_work / work, 1, setting.plan.probes))
    pool: Pool | None = None
    first = 0
    while first < setting.clauses.size and not setting.late:
        last = _chunk(setting, first, count)
        points = _points(setting, torch.unique_consecutive(setting.clauses.box[first:last]), count)
        forms = _evaluate(setting, points.flatten(0, 1))
        if forms is None:
            break
        margin, which = setting.clauses.table(forms.view(*points.shape[:2], -1), first, last).min(0)
        place = torch.from_numpy(setting.number[first:last] - setting.number[first]).to(setting.device)
        top = torch.sort(margin, stable=True).indices[:keep]
        x, margin = points[which[top], place[top]], margin[top]
        found = _hits(margin, x, demand)
        if found is not None:
            demand = yield found
        new = Pool.of(top + first, margin, x, keep)
        pool = new if pool is None else pool.with_points(new.index, new.margin, new.x, keep)
        first = last
    return pool, demand


def _chunk(setting: Setting, first: int, count: int) -> int:
    """Where a run of clauses that begins at ``first`` ends, so that ``count`` points per box fit in memory."""
    literals = _ELEMENTS / (4 * count)
    boxes = max(1, int(_ELEMENTS / (4 * count * setting.cases.inner_lower.shape[1])))
    last = min(
        int(np.searchsorted(setting.start, setting.start[first] + literals, side="right")) - 1,
        int(np.searchsorted(setting.number, setting.number[first] + boxes, side="left")),
        setting.clauses.size,
    )
    return max(last, first + 1)


def _points(setting: Setting, box: Tensor, count: int) -> Tensor:
    """``[R, B, n]``: the centre, both extreme corners, then random points and random corners (R = count)."""
    places = setting.places(box)
    fixed = torch.stack([places.x, places.lower, places.upper])[:count]
    if count <= 3:
        return fixed
    u = torch.rand((count - 3, *places.x.shape), generator=setting.random, device=setting.device, dtype=setting.dtype)
    u[::2].round_()
    return torch.cat([fixed, places.at(places.lower + u * places.width).x])


def _evaluate(setting: Setting, x: Tensor) -> Tensor | None:
    """Forms ``[P, F]`` at points ``[P, n]``; None when the deadline came."""
    parts: list[Tensor] = []
    with torch.no_grad():
        for part in torch.split(x, setting.rows):
            if setting.late:
                return None
            parts.append(setting.graph.evaluate(part)[0])
    return torch.cat(parts)


def _corners(setting: Setting, pool: Pool, demand: float) -> Steps[Pool]:
    """From the centre of each of the pool's clauses into a corner, and from there into another."""
    keep = pool.size
    for index in torch.split(pool.index, setting.batch):
        places = setting.places(setting.clauses.box[index])
        style = Style.corners(places)
        state, demand = yield from run_descent(setting, index, places, (style, 2), demand)
        pool = pool.with_points(index, state.best, state.best_x, keep)
    return pool, demand


def _stage(setting: Setting, pool: Pool, stage: int, demand: float) -> Steps[Pool]:
    """Descent for the best clauses of the pool, the fewer the later the stage."""
    plan = setting.plan
    count = max(1, min(pool.size, setting.batch) // 3**stage)
    restarts = setting.batch // count
    turn = torch.arange(restarts * count, device=setting.device) // count
    index = pool.index[:count].repeat(restarts)
    places = _starts(setting, setting.places(setting.clauses.box[index]), pool.x[:count].repeat(restarts, 1), turn)
    u = torch.rand(len(index), generator=setting.random, device=setting.device, dtype=setting.dtype)
    rate = plan.longest * (plan.shortest / plan.longest) ** u
    style = Style(turn % 2 == 0, turn % 4 >= 2, rate, plan.decay, plan.patience, plan.momentum)
    state, demand = yield from run_descent(setting, index, places, (style, plan.steps), demand)
    return pool.with_points(index, state.best, state.best_x, pool.size), demand


def _starts(setting: Setting, centre: Places, known: Tensor, turn: Tensor) -> Places:
    """Where restarts begin: number 0 at the known point; of every five, one near it, two at random points, one of them
    output-diversified, one at a random corner, one half-way to one."""
    noise = setting.uniform(centre).x
    corner = setting.corner(centre).x
    kind = ((turn - 1) % 5).unsqueeze(1)
    x = torch.where(kind == 0, known + 0.2 * (noise - centre.x), noise)
    x = torch.where(kind == 3, corner, torch.where(kind == 4, known / 2 + corner / 2, x))
    x = centre.at(torch.where(turn.unsqueeze(1) == 0, known, x)).x
    diverse = torch.nonzero((kind.squeeze(1) == 2) & (turn > 0)).squeeze(1)
    if len(diverse) and not setting.late:
        moved = descent.diversify(setting.graph, centre.at(x).take(diverse), 2, setting.random)
        x = x.index_copy(0, diverse, moved.x)
    return centre.at(x)


def run_descent(
    setting: Setting, index: Tensor, places: Places, schedule: tuple[Style, int], demand: float
) -> Steps[Descent]:
    """Run one descent, handing out what it finds on the way."""
    style, steps = schedule
    targets = setting.clauses.targets(index)
    # Looking at a result makes a GPU wait, so there it is done less often.
    look = 1 if setting.device.type == "cpu" else 8
    state = descent.start(places, style)
    for number in range(steps):
        if setting.late:
            return state, demand
        state = descent.step(setting.graph, targets, style, state, demand)
        found = _hits(state.best, state.best_x, demand) if (number + 1) % look == 0 else None
        if found is not None:
            demand = yield found
    if not setting.late:
        state = descent.finish(setting.graph, targets, state)
    found = _hits(state.best, state.best_x, demand)
    if found is not None:
        demand = yield found
    return state, demand
