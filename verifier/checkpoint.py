"""Checkpoints: a file from which a search that was stopped goes on.

An .npz archive without pickle: arrays by name, and under ``header`` a JSON text with the format's version, what the
file was made for (query, seed, kind of search, version of the program) and a SHA-256 over all of it. The file replaces
the last one in a single step, so that a process that is killed while writing leaves the last one.

The hash guards against accidents, not against people: proven bounds and what is still open are taken from the file as
they stand, so that a checkpoint is trusted like the program itself, and is no evidence of anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from verifier import __version__, arrays, digests
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.query import Query
    from verifier.strategy import Strategy

FORMAT = "nn-verifier/checkpoint/1"
INTERVAL = 10.0
"""Seconds of search between two checkpoints ..."""
COST = 20
"""... and at least so many times what writing the last one took."""
MAX_BYTES = 1 << 34
_LOG = logging.getLogger(__name__)


Saved = Mapping[str, Tensor]
"""What a checkpoint holds: the state of a search, its names after ``search.``, and what stands around it."""


def of_search(saved: Saved) -> Saved:
    """The state of the search itself."""
    return {name.removeprefix("search."): values for name, values in saved.items() if name.startswith("search.")}


def identity(query: Query, strategy: Strategy) -> dict[str, Any]:
    """What a checkpoint must have been made for, to be of use for a query and a strategy.

    How large batches are and how long an ascent is may change between two runs: the state of a search does not depend
    on them.
    """
    return {
        "query": fingerprint(query),
        "search": "input split" if strategy.split_inputs else "activation split",
        "seed": strategy.attack.seed,
        "verifier": __version__,
    }


def fingerprint(query: Query) -> str:
    """SHA-256 over the models, the graph, and the arrays of the property."""
    digest = hashlib.sha256(query.model)
    for model in query.models:
        digest.update(model.name.encode() + b"\0" + hashlib.sha256(model.onnx).digest())
    for node in query.graph.nodes:
        digest.update(repr(node).encode())
    for number, constant in query.graph.constants.items():
        digests.add(digest, str(number), constant.value.numpy(force=True))
    digests.add_cases(digest, query.cases)
    return digest.hexdigest()


@dataclass(slots=True)
class Saver:
    """Writes checkpoints to ``path`` now and then. ``notes``: what is to be said of them at the end."""

    path: Path
    identity: Mapping[str, Any]
    due: float = 0.0
    notes: tuple[str, ...] = ()

    def load(self) -> Saved | None:
        """The arrays of the file, where there is one; the clock of the next one starts. Raises ``InputError`` where it
        cannot be read, or was made for something else: what it holds may be worth hours."""
        self.due = time.monotonic() + INTERVAL
        if not self.path.exists():
            return None
        header, found = read(self.path)
        for name, value in self.identity.items():
            if header["identity"].get(name) != value:
                made_for = f"another {name}" if name == "query" else f"{name} {header['identity'].get(name)}"
                raise InputError(f"{self.path}: a checkpoint made for {made_for}: name another file, or remove "
                                 "it to start anew")
        self.notes += (f"the search went on from {self.path}",)
        return {name: torch.from_numpy(np.array(values)) for name, values in found.items()}

    def refuse(self, reason: str) -> None:
        """What was loaded is of no use after all."""
        self.notes = (*self.notes[:-1], f"{reason}, so the search started anew")

    def save(self, state: Saved) -> None:
        """Write a checkpoint; where that fails, say so and go on without."""
        start = time.monotonic()
        try:
            write(self.path, self.identity, {name: values.numpy(force=True) for name, values in state.items()})
        except OSError as error:
            note = f"no checkpoint could be written to {self.path}: {error.strerror or error}"
            if note not in self.notes:
                self.notes += (note,)
            _LOG.warning("%s", note)
            self.due = float("inf")
            return
        now = time.monotonic()
        self.due = now + max(INTERVAL, COST * (now - start))

    def remove(self) -> None:
        """The search has come to its end: nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def write(path: Path, made_for: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
    """Write a file in one step; where that fails nothing is left behind. Raises ``OSError``."""
    header = {"format": FORMAT, "identity": dict(made_for), "sha256": digest_of(made_for, state)}
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    draft = path.with_name(path.name + ".part")
    try:
        with open(draft, "wb") as file:
            np.savez(file, header=text, **{f"state/{name}": values for name, values in state.items()})  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file. Raises ``InputError`` where it is none, is of another format, or is damaged."""
    if path.exists() and not path.is_file():
        raise InputError(f"checkpoint {path}: something else than a file is there: name another")
    try:
        found = arrays.read_npz(path, MAX_BYTES)
    except InputError as error:
        raise InputError(f"{error}: no checkpoint; name another file, or remove it to start anew") from error
    try:
        header = json.loads(bytes(found["header"]))
        version, made_for, digest = header["format"], dict(header["identity"]), header["sha256"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a checkpoint: name another file, which will be written") from error
    if version != FORMAT:
        raise InputError(f"{path}: a checkpoint of the format {version!r}, not {FORMAT!r}: remove it to start anew")
    state = {name.removeprefix("state/"): values for name, values in found.items() if name != "header"}
    if digest != digest_of(made_for, state):
        raise InputError(f"{path}: damaged (its content has another hash than it names): remove it to start anew")
    return {"format": version, "identity": made_for}, state


def digest_of(made_for: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over what a state was made for and all of its arrays."""
    digest = hashlib.sha256(json.dumps(dict(made_for), sort_keys=True).encode())
    for name in sorted(state):
        digests.add(digest, name, state[name])
    return digest.hexdigest()
