"""A record while it is written: what it is about, entries as they come, and an end where there is a proof.

The file stays only where the verdict is ``unsat``: whatever else a run comes to, its record is removed, and one that a
crash leaves behind has no end. A disk that is full ends the record, not the run.

With a checkpoint the two belong together: what was written is on the disk before the checkpoint says how long it was,
and the run that goes on from it cuts off what came later and goes on writing there. The file stays for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

from verifier import digests
from verifier.errors import InputError
from verifier.query import Query
from verifier.record.frames import MAGIC, Frame, RecordError, read_frames, write_frame
from verifier.strategy import Strategy, features
from verifier.verdict import TimedOut, Verdict, Verified

FORMAT = "nn-verifier/record/1"
_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a record had come: its ``size`` in bytes, the SHA-256 of these, and how many ``entries`` they hold."""

    size: int
    entries: int
    digest: bytes

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a checkpoint."""
        digest = torch.frombuffer(bytearray(self.digest), dtype=torch.uint8)
        return {"record.place": torch.tensor([self.size, self.entries]), "record.digest": digest}

    @staticmethod
    def restored(saved: Mapping[str, Tensor]) -> Mark | None:
        """From a checkpoint; None where it was written without a record."""
        if "record.place" not in saved:
            return None
        size, entries = saved["record.place"].tolist()
        return Mark(size, entries, bytes(saved["record.digest"].tolist()))


class _Hashed:
    """A stream that is written to, with the SHA-256 of all that was."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.stream.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


class Recorder:
    """An open record. ``failure``: why it could not be written on (empty: it could). ``awaited``: a checkpoint goes on
    with it."""

    def __init__(self, path: str | Path, about: Mapping[str, Any], mark: Mark | None = None) -> None:
        """A new file; with a ``mark`` the one that is there, from the mark on.

        Raises ``InputError`` where the file cannot be written or is there and no record (it would be lost),
        ``RecordError`` where the mark is not of this file."""
        self.path = Path(path)
        self.failure = ""
        self.entries = 0 if mark is None else mark.entries
        self.awaited = mark is not None
        if mark is not None:
            _check(self.path, about, mark)
        try:
            _spare(self.path)
            stream: IO[bytes] = open(self.path, "wb" if mark is None else "r+b")  # noqa: SIM115 - closed at the end
            self.stream = _Hashed(stream) if mark is None else _continued(stream, mark)
        except OSError as error:
            raise InputError(f"record {self.path}: {error.strerror}") from error
        if mark is None:
            self._append(MAGIC)
            self._frame(Frame("about", _NOTHING, {"about": about}))

    def write(self, kind: str, arrays: Mapping[str, Tensor]) -> None:
        """Append one entry."""
        self.entries += 1
        self._frame(Frame(kind, arrays))

    def marked(self) -> dict[str, Tensor]:
        """The mark of what has been written, which is on the disk now; nothing where there will be no record."""
        try:
            self.stream.stream.flush()
            os.fsync(self.stream.stream.fileno())
        except OSError as error:
            self.fail(str(error))
        if self.failure:
            return {}
        self.awaited = True
        return Mark(self.stream.size, self.entries, self.stream.digest.digest()).tensors()

    def fail(self, reason: str) -> None:
        """Write nothing more: there will be no record."""
        self.failure = self.failure or reason

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def close(self, verdict: Verdict) -> Verdict:
        """The verdict with the record's path where it is ``unsat``; else the record is removed, but for one that a
        checkpoint waits with for more time."""
        if not isinstance(verdict, Verified):
            self._leave() if isinstance(verdict, TimedOut) else self.discard()
            return verdict
        if self.finish():
            return replace(verdict, record=str(self.path))
        return replace(verdict, notes=(*verdict.notes, f"no record was written: {self.failure}"))

    def finish(self) -> bool:
        """Write the end; False where the record could not be written (then it is removed)."""
        self._frame(Frame("end", _NOTHING, {"counts": {"entries": self.entries}}))
        try:
            self.stream.stream.close()
        except OSError as error:
            self.fail(str(error))
        if self.failure:
            self.discard()
        return not self.failure

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.stream.stream.close()
        self.path.unlink(missing_ok=True)

    def _leave(self) -> None:
        """Close the file, where it is open; it stays for the checkpoint that goes on with it, if one does."""
        if self.stream.stream.closed:
            return
        if self.failure or not self.awaited:
            self.discard()
            return
        with contextlib.suppress(OSError):
            self.stream.stream.close()

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


def _spare(path: Path) -> None:
    """Raises ``InputError`` where something is there that is no record: it would be written over, then removed."""
    if not path.exists():
        return
    if path.is_file():
        with open(path, "rb") as stream:
            if MAGIC.startswith(stream.read(len(MAGIC))):
                return
    raise InputError(f"record {path}: something else is there, not a record: name another file")


def _check(path: Path, about: Mapping[str, Any], mark: Mark) -> None:
    """Raises ``RecordError`` where a record cannot have been marked so by a run that was about the same."""
    if not path.is_file():
        raise RecordError(f"the record {path} is missing")
    if path.stat().st_size < mark.size:
        raise RecordError(f"the record {path} is shorter than it was when the checkpoint was written")
    first = next(read_frames(path), None)
    if first is None or first.more.get("about") != json.loads(json.dumps(about)):
        raise RecordError(f"the record {path} is about another run")
    with open(path, "rb") as stream:
        if _continued(stream, mark).digest.digest() != mark.digest:
            raise RecordError(f"the record {path} is not the one that the checkpoint was written with")


def _continued(stream: IO[bytes], mark: Mark) -> _Hashed:
    """A stream at a mark, with all that comes later cut off where it can be written."""
    found = _Hashed(stream)
    while found.size < mark.size and (data := stream.read(min(1 << 20, mark.size - found.size))):
        found.digest.update(data)
        found.size += len(data)
    if stream.writable():
        stream.seek(mark.size)
        stream.truncate()
    return found


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
            "programs": None if strategy.programs is None else asdict(strategy.programs),
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
    digests.add_cases(digest, query.cases)
    for form in query.specification.forms:
        digest.update(f"{form};".encode())
    return digest.hexdigest()
