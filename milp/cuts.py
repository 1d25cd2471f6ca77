"""Cuts that make the relaxation of a neuron after an affine node as tight as it can be over the node's operands.

A ReLU's rows are ideal over its pre-activation alone: what is lost is that a is the affine function w . x + b of many
columns, each between ends ``L <= x <= U``. Over those the convex hull of the two phases takes one more inequality for
every subset I of them,

    y <= sum over I of (w_i x_i - low_i (1 - z))  +  z (b + sum over the others of high_i),

``low_i, high_i`` being the least and the largest of w_i x_i (Anderson, Huchette, Ma, Tjandraatmadja and Vielma, Strong
mixed-integer programming formulations for trained neural networks, Mathematical Programming 183, 2020, Proposition 5).
For a point the one that it violates most has i in I where ``w_i x_i - low_i (1 - z) < high_i z``.

Which columns are those of a neuron is read off the rows, so a cut follows from the rows of any model: a phase z that
occurs in two rows ``s y - p a + d z <= t``, of which one speaks at z = 0 (d < 0) and one at z = 1 (d > 0), and an
equality row that defines the column a. A ReLU, a leaky ReLU and a minimum with a constant look like that; a stable
neuron has no phase, and a pre-activation without such a row, or with a single operand, no cut. With ``s y <= p0 a +
t0`` at z = 0 and ``s y <= p1 a + t1`` at z = 1 the inequality has ``p1 - p0`` times the row's coefficients for w and
bounds ``s y - p0 a - t0``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bounds.rounding import Rounding, difference_above
from milp.engine import Limits
from milp.extend import with_entries
from milp.model import Model, Status
from milp.simplex import Simplex

ROUNDS = 8
"""Linear programs with cuts added in between, at most."""

GAIN = 0.02
"""A round that gains less than this share of all gained so far is the last."""

PATIENCE = 8.0
"""A linear program with cuts may take so many times as long as the first one without."""

LEAST = 0.1
"""Seconds that count for the first linear program at least."""

VIOLATED = 1e-6
"""How far outside of a cut a point must be, measured along the cut's normal."""


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """H phases whose cuts are known: columns ``phase, result, operand`` ``[H]`` and, oriented by ``sign`` ``[H]`` (1 or
    -1), the line ``sign * result <= slope * operand + level`` at phase 0, to within ``error``, all ``[H]``.

    ``start`` ``[H + 1]``, ``index`` ``[E]``: columns of the operand's defining row, with ``weight`` ``[E]`` and the
    ``low, high`` ``[E]`` ends of weight times column, as computed; ``charge`` ``[H]`` is more than everything that
    rounding does to a sum of them. At phase 1 ``sign * result - slope * operand - level <= base + sum weight * column``
    with ``base`` ``[H]``, which holds ``charge`` already.
    """

    phase: Tensor
    result: Tensor
    operand: Tensor
    sign: Tensor
    slope: Tensor
    level: Tensor
    error: Tensor
    base: Tensor
    charge: Tensor
    start: Tensor
    index: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(model: Model) -> Neurons:
        """Of any model, in the order of their phases. Ends of its columns that are not finite have no cuts."""
        return _related(model, *_switches(model))

    def places(self, phase: Tensor) -> Tensor:
        """Which neurons have these phases ``[K]``. Raises ``ValueError`` for a column that is none of them."""
        which = torch.searchsorted(self.phase, phase)
        if bool((which >= self.phase.shape[0]).any()) or not torch.equal(self.phase[which], phase):
            raise ValueError("a cut of a column that is no phase of a neuron after an affine row")
        return which

    def owner(self) -> Tensor:
        """``[E]``: the neuron that an entry belongs to."""
        return torch.repeat_interleave(torch.arange(self.phase.shape[0]), self.start.diff())


class Cuts(NamedTuple):
    """K cuts: the neuron's ``phase`` column ``[K]``, and for one cut after the other which columns of the operand's row
    are in the subset, ``member`` ``[entries of these rows]`` bool."""

    phase: Tensor
    member: Tensor

    @staticmethod
    def none() -> Cuts:
        """No cut."""
        return Cuts(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))

    def and_more(self, more: Cuts) -> Cuts:
        """These and more."""
        return Cuts(*(torch.cat(pair) for pair in zip(self, more, strict=True)))


class Strengthened(NamedTuple):
    """A model with cuts among its rows, the last ones, and which cuts these are."""

    model: Model
    cuts: Cuts


def with_cuts(model: Model, cuts: Cuts, neurons: Neurons | None = None) -> Model:
    """The model with a row for each cut, which follows from its other rows, whatever the cuts were chosen for.

    ``sign y - slope a - sum over I of weight_i x_i - D z <= level - C``, to within the error e of the row that speaks
    at phase 0. C is at most the least of the sum over I (all ends of columns are the model's), so at z = 0, where
    ``sign y <= slope a + level + e``, the network's values satisfy it. At z = 1 ``D >= C + base + sum over the others
    of high_i``, with what ``Neurons`` says of ``base``: the defining row's error and the row's that speaks at phase 1
    are in it. Coefficients ``(p1 - p0) w_i`` may be rounded, C and D are sums of n products: ``charge`` is added to D
    and subtracted from C, and nothing else is rounded but ``level - C``, upward.

    ``neurons``: those of the model, where they are at hand. Raises ``ValueError`` for a phase that has no cut and for
    subsets that do not fit the rows.
    """
    known = Neurons.of(model) if neurons is None else neurons
    which = known.places(cuts.phase)
    entry, cut = _entries(known, which)
    if cuts.member.shape != entry.shape:
        raise ValueError(f"subsets of {cuts.member.numel()} columns in all for rows of {entry.numel()}")
    count, member = which.shape[0], cuts.member
    inside = torch.zeros(count, dtype=torch.float64).index_add_(0, cut[member], known.low[entry[member]])
    others = torch.zeros_like(inside).index_add_(0, cut[~member], known.high[entry[~member]])
    least = inside - known.charge[which]
    jump = least + known.base[which] + others + known.charge[which]
    own = torch.arange(count)
    terms = [
        (own, known.result[which], known.sign[which]),
        (own, known.operand[which], -known.slope[which]),
        (cut[member], known.index[entry[member]], -known.weight[entry[member]]),
        (own, known.phase[which], -jump),
    ]
    row, column, value = (torch.cat(part) for part in zip(*terms, strict=True))
    kept = value != 0
    row, column, value = row[kept], column[kept], value[kept]
    order = (row * model.lower.shape[0] + column).argsort()
    sizes = torch.bincount(row, minlength=count)
    upper = difference_above(known.level[which], least)
    return with_entries(
        model, (sizes, column[order], value[order]), (torch.full_like(upper, -math.inf), upper, known.error[which])
    )


def separated(neurons: Neurons, x: Tensor, violated: float = VIOLATED) -> Cuts:
    """The cut of each neuron that a point ``[C]`` violates most, where the point is farther from it than
    ``violated``."""
    z, owner = x[neurons.phase], neurons.owner()
    product = neurons.weight * x[neurons.index]
    inside = product - neurons.low * (1 - z[owner])
    outside = neurons.high * z[owner]
    member = inside < outside
    total = torch.zeros_like(z).index_add_(0, owner, torch.minimum(inside, outside))
    line = neurons.sign * x[neurons.result] - neurons.slope * x[neurons.operand] - neurons.level
    jump = neurons.base.index_add(0, owner, torch.where(member, neurons.low, neurons.high))
    squares = (1 + neurons.slope**2 + jump**2).index_add(0, owner, torch.where(member, neurons.weight**2, 0.0))
    distance = (line - total - neurons.base * z) / squares.sqrt()
    chosen = (distance > violated).nonzero().flatten()
    return Cuts(neurons.phase[chosen], member[_entries(neurons, chosen)[0]])


def strengthened(
    model: Model,
    *,
    rounds: int = ROUNDS,
    gain: float = GAIN,
    enough: float = math.inf,
    seconds: float | None = None,
) -> Strengthened:
    """The model with the cuts that its relaxation's optimum violates, and those of the optima after them.

    At most ``rounds`` times all neurons' cuts are added, until a round gains less than the share ``gain``
    of all that was gained, the relaxation's minimum exceeds ``enough``, or ``seconds`` have passed; a linear program
    may take ``PATIENCE`` times as long as the first one. Cuts that do not weigh on the last relaxation are left out.
    """
    neurons, cuts = Neurons.of(model), Cuts.none()
    start, until = time.monotonic(), math.inf if seconds is None else time.monotonic() + seconds
    if not neurons.phase.shape[0] or rounds < 1:
        return Strengthened(model, cuts)
    relaxed, whole = Simplex(model), model
    found = relaxed.solve(limits=Limits(seconds))
    patience = PATIENCE * max(time.monotonic() - start, LEAST)
    gained = 0.0
    for _ in range(rounds):
        if found.x is None or found.value > enough:
            break
        more = separated(neurons, found.x)
        if not more.phase.shape[0] or time.monotonic() >= until:
            break
        whole = with_cuts(whole, more, neurons)
        relaxed.extend(whole)
        better = relaxed.solve(limits=Limits(min(patience, until - time.monotonic())))
        if better.status is not Status.OPTIMAL:
            break
        cuts, step, found = cuts.and_more(more), better.value - found.value, better
        gained += step
        if step <= gain * gained:
            break
    if found.dual is None or not cuts.phase.shape[0]:
        return Strengthened(model, Cuts.none())
    first = model.row_lower.shape[0]
    cuts = _chosen(neurons, cuts, found.dual[first : first + cuts.phase.shape[0]] != 0)
    return Strengthened(with_cuts(model, cuts, neurons), cuts)


def _chosen(neurons: Neurons, cuts: Cuts, kept: Tensor) -> Cuts:
    """Those cuts that are ``kept`` ``[K]``."""
    _, cut = _entries(neurons, torch.searchsorted(neurons.phase, cuts.phase))
    return Cuts(cuts.phase[kept], cuts.member[kept[cut]])


def _entries(neurons: Neurons, which: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of some neurons ``[K]``, one after the other, and the place in ``which`` of each."""
    sizes = neurons.start.diff()[which]
    cut = torch.repeat_interleave(torch.arange(which.shape[0]), sizes)
    place = torch.arange(cut.shape[0]) - (sizes.cumsum(0) - sizes)[cut]
    return neurons.start[which][cut] + place, cut


class _Side(NamedTuple):
    """What one of two rows says of each neuron ``[H]`` at its phase: ``sign * result <= slope * operand + level``."""

    slope: Tensor
    level: Tensor
    error: Tensor


class _Switch(NamedTuple):
    """Columns ``[H]`` that two rows relate."""

    phase: Tensor
    result: Tensor
    operand: Tensor
    sign: Tensor

    def take(self, index: Tensor) -> _Switch:
        return _Switch(*(part[index] for part in self))


def _switches(model: Model) -> tuple[_Switch, _Side, _Side]:
    """The phases that occur in two short rows, what these say at 0 and what at 1."""
    row = torch.repeat_interleave(torch.arange(model.row_lower.shape[0]), model.start.diff())
    binary = model.integer & (model.lower >= 0) & (model.upper <= 1)
    phase = (binary & (torch.bincount(model.index, minlength=binary.shape[0]) == 2)).nonzero().flatten()
    numbers = torch.full_like(model.node, -1).index_copy_(0, phase, torch.arange(phase.shape[0]))
    held = numbers[model.index]
    mine = (held >= 0).nonzero().flatten()
    rows = row[mine[held[mine].argsort(stable=True)]].reshape(-1, 2)
    one_sided = model.row_lower[rows].isfinite() ^ model.row_upper[rows].isfinite()
    fits = (one_sided & (model.start.diff()[rows] <= 3)).all(1)
    phase, rows = phase[fits], rows[fits]
    column, value = _padded(model, rows)
    other = torch.where(column == phase[:, None, None], -1, column).flatten(1)
    result = other.amax(1)
    operand = torch.where(other < 0, result[:, None], other).amin(1)
    known = torch.stack([phase, result, operand], 1)[:, None, None]
    fits = ((column[..., None] == known).any(3) | (column < 0)).all(2).all(1) & (operand < result)
    upward = model.row_upper[rows].isfinite()
    side = torch.where(upward, 1.0, -1.0).double()
    level = torch.where(upward, model.row_upper[rows], -model.row_lower[rows])
    of_result, of_operand, of_phase = (
        side * (value * (column == c[:, None, None])).sum(2) for c in (result, operand, phase)
    )
    fits &= (of_result[:, 0] == of_result[:, 1]) & (of_result[:, 0].abs() == 1) & (of_phase.sign().sum(1) == 0)
    fits &= (of_phase != 0).all(1)
    zero = (of_phase[:, 0] > 0).long()[:, None]  # the row that loses its hold as the phase grows
    error = model.row_error[rows]
    sides = []
    for choice, at in ((zero, 0.0), (1 - zero, 1.0)):
        slope, constant, lost, jump = (
            part.gather(1, choice)[fits, 0] for part in (-of_operand, level, error, of_phase)
        )
        sides.append(_Side(slope, difference_above(constant, at * jump), lost))
    return _Switch(phase, result, operand, of_result[:, 0]).take(fits), sides[0], sides[1]


def _padded(model: Model, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and values ``[*rows, 3]`` of rows with three entries at most; -1 and 0 where there are fewer."""
    place = torch.arange(3)
    there = place < model.start.diff()[rows][..., None]
    entry = torch.where(there, model.start[rows][..., None] + place, 0)
    if not model.index.shape[0]:
        return torch.full_like(entry, -1), torch.zeros_like(entry, dtype=torch.float64)
    return torch.where(there, model.index[entry], -1), torch.where(there, model.value[entry], 0.0)


def _definitions(model: Model) -> Tensor:
    """``[C]``: the first equality row whose newest column this is, with coefficient 1 beside two others at least; -1:
    none."""
    count, sizes = model.row_lower.shape[0], model.start.diff()
    row = torch.repeat_interleave(torch.arange(count), sizes)
    newest = torch.full((count,), -1).scatter_reduce(0, row, model.index, "amax")
    one = (model.index == newest[row]) & (model.value == 1)
    fits = (model.row_lower == model.row_upper) & (sizes > 2)
    fits &= torch.zeros(count, dtype=torch.bool).index_fill_(0, row[one], True)
    rows = fits.nonzero().flatten()
    first = torch.full_like(model.node, count).scatter_reduce(0, newest[rows], rows, "amin")
    return torch.where(first < count, first, -1)


def _related(model: Model, switch: _Switch, zero: _Side, one: _Side) -> Neurons:
    """Neurons with the rows that define their operands."""
    definition = _definitions(model)[switch.operand]
    fits = ((definition >= 0) & (switch.operand < switch.phase)).nonzero().flatten()
    switch, definition = switch.take(fits), definition[fits]
    zero, one = (_Side(*(part[fits] for part in side)) for side in (zero, one))
    sizes = model.start.diff()[definition]
    owner = torch.repeat_interleave(torch.arange(fits.shape[0]), sizes)
    entry = model.start[definition][owner] + torch.arange(owner.shape[0]) - (sizes.cumsum(0) - sizes)[owner]
    support = model.index[entry] != switch.operand[owner]
    owner, entry, sizes = owner[support], entry[support], sizes - 1
    factor, index = one.slope - zero.slope, model.index[entry]
    weight = -factor[owner] * model.value[entry]
    ends = torch.stack([weight * model.lower[index], weight * model.upper[index]])
    low, high = ends.amin(0), ends.amax(0)
    constant, lost = factor * model.row_lower[definition], factor.abs() * model.row_error[definition]
    parts = [one.level, one.error, -zero.level, constant, lost]
    total = torch.zeros_like(factor).index_add_(0, owner, torch.maximum(low.abs(), high.abs()))
    size = 2 * total + torch.stack(parts).abs().sum(0)
    count = int(sizes.max()) + 8 if fits.shape[0] else 8
    rounding = Rounding.of(torch.float64)
    farthest = torch.maximum(model.lower.abs(), model.upper.abs())[index]
    under = torch.zeros_like(factor).index_add_(0, owner, 2 * rounding.tiny * farthest)  # of coefficients
    charge = rounding.affine(count, size) + under
    start = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    base = torch.stack(parts).sum(0) + charge
    found = Neurons(*switch, zero.slope, zero.level, zero.error, base, charge, start, index, weight, low, high)
    return found if bool((charge.isfinite() & base.isfinite()).all()) else _finite(found)


def _finite(found: Neurons) -> Neurons:
    """Those whose sums are finite."""
    kept = (found.charge.isfinite() & found.base.isfinite()).nonzero().flatten()
    entry, owner = _entries(found, kept)
    sizes = torch.bincount(owner, minlength=kept.shape[0])
    of_neuron = ("phase", "result", "operand", "sign", "slope", "level", "error", "base", "charge")
    of_entry = ("index", "weight", "low", "high")
    return replace(
        found,
        start=torch.cat([found.start[:1], sizes.cumsum(0)]),
        **{name: getattr(found, name)[kept] for name in of_neuron},
        **{name: getattr(found, name)[entry] for name in of_entry},
    )
