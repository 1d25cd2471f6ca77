"""What attacks do with P rows of tensors, one or more for each example: drop some, and number those of an example."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=Any)


def kept(state: State, keep: Tensor) -> State:
    """A frozen value of tensors ``[P, ...]`` with the rows to keep (``[P]`` bool)."""
    if bool(keep.all()):
        return state
    columns = {f.name: getattr(state, f.name) for f in fields(state)}
    return replace(state, **{k: v[keep] for k, v in columns.items() if isinstance(v, Tensor)})


def turns(who: Tensor) -> Tensor:
    """``[P]``: how many rows of the same example come before each row."""
    order = who.argsort(stable=True)
    ordered = who[order]
    number = torch.empty_like(who)
    number[order] = torch.arange(len(who), device=who.device) - torch.searchsorted(ordered, ordered)
    return number
