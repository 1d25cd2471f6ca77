"""A record while it is written: what it is about, entries as they come, and an end where there is a proof.

The file stays only where the verdict is ``unsat``: whatever else a run comes to, its record is removed, and one that a
crash leaves behind has no end. A disk that is full ends the record, not the run.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import numpy as np
from torch import Tensor

from verifier.errors import InputError
from verifier.query import Query
from verifier.record.frames import MAGIC, Frame, write_frame
from verifier.strategy import Strategy, features
from verifier.verdict import Verdict, Verified

FORMAT = "nn-verifier/record/1"
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Recorder:
    """An open record. ``failure``: why it could not be written on (empty: it could)."""

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        """Raises ``InputError`` where the file cannot be written."""
        self.path = Path(path)
        self.failure = ""
        self.entries = 0
        try:
            self.stream: IO[bytes] = open(self.path, "wb")  # noqa: SIM115 - closed by ``finish`` and ``discard``
        except OSError as error:
            raise InputError(f"record {self.path}: {error.strerror}") from error
        self._append(MAGIC)
        self._frame(Frame("about", _NOTHING, {"about": about}))

    def write(self, kind: str, arrays: Mapping[str, Tensor]) -> None:
        """Append one entry."""
        self.entries += 1
        self._frame(Frame(kind, arrays))

    def fail(self, reason: str) -> None:
        """Write nothing more: there will be no record."""
        self.failure = self.failure or reason

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.stream.closed:
            self.discard()

    def close(self, verdict: Verdict) -> Verdict:
        """The verdict with the record's path where it is ``unsat``; else the record is removed."""
        if not isinstance(verdict, Verified):
            self.discard()
            return verdict
        if self.finish():
            return replace(verdict, record=str(self.path))
        return replace(verdict, notes=(*verdict.notes, f"no record was written: {self.failure}"))

    def finish(self) -> bool:
        """Write the end; False where the record could not be written (then it is removed)."""
        self._frame(Frame("end", _NOTHING, {"counts": {"entries": self.entries}}))
        try:
            self.stream.close()
        except OSError as error:
            self.fail(str(error))
        if self.failure:
            self.discard()
        return not self.failure

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.stream.close()
        self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        try:
            self.stream.write(data)
        except OSError as error:
            self.fail(str(error))

    def _frame(self, frame: Frame) -> None:
        if self.failure:
            return
        try:
            write_frame(self.stream, frame)
        except OSError as error:
            self.fail(str(error))


def about(query: Query, strategy: Strategy) -> dict[str, Any]:
    """What a record is about: the question by its hashes, and how it was worked on."""
    from verifier import __version__

    return {
        "format": FORMAT,
        "verifier": __version__,
        "question": question(query),
        "features": asdict(features(query)),
        "strategy": {
            "split_inputs": strategy.split_inputs,
            "input_split": asdict(strategy.input_split),
            "activation_split": asdict(strategy.activation_split),
        },
    }


def question(query: Query) -> dict[str, Any]:
    """SHA-256 of the models' bytes in order, of the property's file where there is one, and of the cases with the forms
    that they are about. (The graph is made from all these, its constants to the last bit of one machine.)"""
    source = query.source
    known = source is not None and source.is_file()
    return {
        "models": [hashlib.sha256(model.onnx).hexdigest() for model in query.models],
        "property": hashlib.sha256(source.read_bytes()).hexdigest() if known and source is not None else None,
        "cases": _hash_of_cases(query),
    }


def _hash_of_cases(query: Query) -> str:
    digest = hashlib.sha256()
    for entry in fields(query.cases):
        array = np.ascontiguousarray(getattr(query.cases, entry.name))
        digest.update(f"{entry.name} {array.dtype.str} {array.shape};".encode())
        digest.update(array.tobytes())
    for form in query.specification.forms:
        digest.update(f"{form};".encode())
    return digest.hexdigest()
