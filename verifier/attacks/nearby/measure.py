"""Distances, and the least change that a linear model asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from verifier.attacks.rounding import upper_distance
from verifier.errors import InputError

Norm = Literal["inf", "2", "1", "0"]

_FAR = 1e30
"""Stands for the room of an element without an end: products and sums with it stay finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Distance:
    """How far points are from the examples ``centre`` ``[N, d]``: for ``Trial``."""

    centre: Tensor
    norm: Norm

    def __call__(self, x: Tensor, who: Tensor) -> Tensor:
        """``[P]`` float64, at least the exact distance of the points ``[P, d]``; in the norm 0 how many elements
        differ."""
        if self.norm == "0":
            return (x != self.centre[who]).sum(1).double()
        return upper_distance(x, self.centre[who], self.norm)


def check_norm(norm: str, known: tuple[str, ...], attack: str) -> None:
    """Raise ``InputError`` for a norm that an attack does not minimise."""
    if norm not in get_args(Norm) or norm not in known:
        raise InputError(f"norm {norm!r}: {attack} minimises the norms {', '.join(known)}")


def dual(slope: Tensor, norm: Norm) -> Tensor:
    """The dual norms over the last dimension: how fast a linear function falls a unit of the norm (inf, 2, 1)."""
    return slope.norm(p={"inf": 1.0, "2": 2.0, "1": math.inf}[norm], dim=-1)


def onto_plane(
    x: Tensor, value: Tensor, slope: Tensor, low: Tensor, high: Tensor, norm: Norm
) -> Tensor:
    """The least changes ``[P, d]`` (float64) with ``value + slope . change = 0`` and ``low <= x + change <= high``;
    where none is, each element at the end where the plane is nearest. ``value`` ``[P]``, the others ``[P, d]``.

    In the norms inf and 2 all elements move at rates 1 and ``|slope|`` until they meet an end; in the norm 1 the
    steepest go first, in the norm 0 those that can bring most (Croce and Hein, ICML 2020, section 3.1 and appendix).
    """
    x, value, slope, low, high = (a.double() for a in (x, value, slope, low, high))
    way = -value.sign()[:, None] * slope.sign()
    room = torch.where(way > 0, high - x, x - low).clamp(min=0, max=_FAR)
    steep, need = slope.abs(), value.abs()[:, None]
    if norm in ("0", "1"):
        size = _greedy(steep, room, need, steep if norm == "1" else steep * room)
    else:
        size = _together(steep, room, need, torch.ones_like(steep) if norm == "inf" else steep)
    return way * size


def _greedy(steep: Tensor, room: Tensor, need: Tensor, first: Tensor) -> Tensor:
    """Elements go one after the other, the largest of ``first`` before the others."""
    order = first.argsort(1, descending=True)
    worth = (steep * room).gather(1, order)
    left = (need - (worth.cumsum(1) - worth)).clamp(min=0)
    taken = torch.minimum(left / steep.gather(1, order).clamp(min=1e-300), room.gather(1, order))
    return torch.zeros_like(room).scatter(1, order, torch.where(worth > 0, taken, 0.0))


def _together(steep: Tensor, room: Tensor, need: Tensor, rate: Tensor) -> Tensor:
    """All elements go at their rates at once, each until its room is used up."""
    until = torch.where(rate > 0, room / rate.clamp(min=1e-300), math.inf)
    order = until.argsort(1)
    time, full = until.gather(1, order), (steep * room).gather(1, order)
    speed = (steep * rate).gather(1, order)
    before = full.cumsum(1) - full  # by elements that stopped earlier
    moving = speed.flip(1).cumsum(1).flip(1)  # of this one and those behind
    wanted = (need - before) / moving.clamp(min=1e-300)
    fits = (wanted <= time) & (moving > 0)
    index = fits.double().argmax(1, keepdim=True)
    share = torch.where(fits.any(1, keepdim=True), wanted.gather(1, index).clamp(min=0), math.inf)
    return torch.where(steep > 0, torch.minimum(share * rate, room), 0.0)
