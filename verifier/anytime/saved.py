"""Refinements that go on later: a state as named arrays, and the file that holds them (``verifier/checkpoint.py``)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bounds import Box
from verifier import __version__, digests
from verifier.anytime.bounding import Function
from verifier.anytime.boxes import OWN, Boxes, Side
from verifier.anytime.refiner import Refiner, State
from verifier.checkpoint import Saver
from verifier.errors import InputError

_COUNTS = ("boxes", "points", "programs", "exact")


def saver(path: Path, function: Function, seed: int) -> Saver:
    """What writes states of a refinement to ``path``, and reads those that were made of the same function."""
    identity: dict[str, Any] = {
        "query": fingerprint(function), "search": "refinement", "seed": seed, "verifier": __version__,
    }  # fmt: skip
    return Saver(path, identity)


def fingerprint(function: Function) -> str:
    """SHA-256 over a graph and the region."""
    digest, region = hashlib.sha256(), function.domain.region
    for node in function.graph.nodes:
        digest.update(repr(node).encode())
    for number, constant in function.graph.constants.items():
        digests.add(digest, str(number), constant.value.numpy())
        if constant.error is not None:
            digests.add(digest, f"error {number}", constant.error.numpy())
    ends = (region.lower, region.upper) if isinstance(region, Box) else (region.centre, region.radius)
    for values in (*ends, *function.domain.ends(), *function.domain.inner):
        digests.add(digest, type(region).__name__, values.numpy())
    digest.update(repr(None if isinstance(region, Box) else region.p).encode())
    return digest.hexdigest()


def tensors(refiner: Refiner, state: State) -> dict[str, Tensor]:
    """The arrays of a state by name, without what boxes inherit. Searches over phases begin anew, with what was proven
    and found so far."""
    found = {"counts": torch.tensor([getattr(state, name) for name in _COUNTS])}
    found["gap"] = torch.tensor(refiner.gap, dtype=torch.float64)
    for number, side in enumerate(state.sides):
        own = {name: getattr(side.open, name) for name in OWN}
        own["ends"] = torch.tensor([side.sign, side.closed, side.value, side.floor], dtype=torch.float64)
        if side.point is not None:
            own["point"] = side.point
        found |= {f"{number}.{name}": values for name, values in own.items()}
    return found


def restored(refiner: Refiner, saved: Mapping[str, Tensor]) -> State:
    """The state with these ``tensors``. Raises ``InputError`` where they are those of another refinement, and of one
    for a larger gap: what that closed stays closed."""
    start = refiner.begun()
    sides = []
    try:
        if refiner.gap < (gap := float(saved["gap"])):
            raise InputError(f"the checkpoint was made for a gap of {gap:g}: name another file for a smaller one")
        for number, side in enumerate(start.sides):
            sign, closed, value, floor = saved[f"{number}.ends"].tolist()
            boxes = Boxes.made({name: saved[f"{number}.{name}"] for name in OWN}, {})
            if sign != side.sign or boxes.lower.shape[1:] != side.open.lower.shape[1:]:
                raise KeyError(number)
            point = saved.get(f"{number}.point")
            sides.append(Side(sign, boxes, closed, value, point, floor))
        counts = dict(zip(_COUNTS, saved["counts"].tolist(), strict=True))
    except (KeyError, ValueError) as error:
        raise InputError("the checkpoint holds another refinement: name another file, or remove it") from error
    return replace(start, sides=tuple(sides), **counts)
