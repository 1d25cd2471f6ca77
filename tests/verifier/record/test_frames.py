"""The file: what is written is read, and what could not have been written is refused or ends the record."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
import torch

from verifier.record.frames import MAGIC, Frame, RecordError, read_frames, write_frame
from verifier.record.packing import bits, narrow, unpacked, whole

ARRAYS = {
    "a": torch.arange(6, dtype=torch.int16).reshape(2, 3),
    "b": torch.tensor([1.5, -0.0, torch.inf], dtype=torch.float64),
    "c": torch.zeros((0, 4), dtype=torch.uint8),
    "d": torch.tensor([[0.1]], dtype=torch.float16),
    "e": torch.tensor(7),
}


def written(path: Path, *frames: bytes) -> Path:
    path.write_bytes(MAGIC + b"".join(frames))
    return path


def frame(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text + data


def test_what_is_written_is_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    size = write_frame(stream, Frame("some", ARRAYS, {"counts": [1]})) + write_frame(stream, Frame("end", {}))
    assert size == len(stream.getvalue())
    one, two = read_frames(written(tmp_path / "r", stream.getvalue()))
    assert one.kind == "some" and one.more == {"counts": [1]} and two.kind == "end" and not two.arrays
    for name, values in ARRAYS.items():
        assert one.array(name).dtype == values.dtype and torch.equal(one.array(name), values)
    with pytest.raises(RecordError, match="without 'z'"):
        one.array("z")


def test_every_prefix_is_readable(tmp_path: Path) -> None:
    """A file that was cut off gives the frames that are whole."""
    stream = io.BytesIO()
    ends = [len(MAGIC) + sum(write_frame(stream, Frame("some", ARRAYS)) for _ in range(1))]
    ends.append(ends[0] + write_frame(stream, Frame("more", {"x": torch.arange(5)})))
    data = MAGIC + stream.getvalue()
    for size in range(len(MAGIC), len(data) + 1):
        (tmp_path / "r").write_bytes(data[:size])
        assert len(list(read_frames(tmp_path / "r"))) == sum(size >= end for end in ends)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 5000, "not JSON"),
        ([], "without a kind"),
        ({"kind": 3, "arrays": []}, "without a kind"),
        ({"kind": "x"}, "lists no arrays"),
        ({"kind": "x", "arrays": [["a", "object", [1]]]}, "unknown type"),
        ({"kind": "x", "arrays": [["a", ["int8"], [1]]]}, "unknown type"),
        ({"kind": "x", "arrays": [["a", "int8"]]}, "without name"),
        ({"kind": "x", "arrays": [["a", "int8", [-1]]]}, "impossible shape"),
        ({"kind": "x", "arrays": [["a", "int8", [1.0]]]}, "impossible shape"),
        ({"kind": "x", "arrays": [["a", "int8", [True]]]}, "impossible shape"),
        ({"kind": "x", "arrays": [["a", "int8", [0, 1 << 62]]]}, "impossible shape"),
        ({"kind": "x", "arrays": [["a", "int8", [1] * 9]]}, "impossible shape"),
        ({"kind": "x", "arrays": [["a", "int8", [0]], ["a", "int8", [0]]]}, "one name"),
    ],
)
def test_headers_that_nobody_wrote(tmp_path: Path, header: object, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        list(read_frames(written(tmp_path / "r", frame(header))))


def test_nothing_larger_than_the_file_is_allocated(tmp_path: Path) -> None:
    huge = frame({"kind": "x", "arrays": [["a", "float64", [1 << 36]]]}, b"1234")
    assert not list(read_frames(written(tmp_path / "r", huge)))
    with pytest.raises(RecordError, match="a header of"):
        list(read_frames(written(tmp_path / "r", struct.pack(">I", 1 << 31) + b"x")))


def test_other_files_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "r").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(RecordError, match="is not a record"):
        list(read_frames(tmp_path / "r"))


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (2, 0), (16,)])
def test_masks_and_numbers_come_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(unpacked(bits(mask), *shape), mask)
    for top in (255, 256, 1 << 15, 1 << 31):
        numbers = torch.full(shape, top)
        assert torch.equal(whole(narrow(numbers.flatten()), numbers.numel(), top + 1), numbers.flatten())


def test_masks_and_numbers_of_another_size_are_refused() -> None:
    with pytest.raises(RecordError):
        unpacked(bits(torch.ones(9, dtype=torch.bool)), 8)
    with pytest.raises(RecordError):
        whole(torch.tensor([0, 3]), 2, 3)
    with pytest.raises(RecordError):
        whole(torch.tensor([-1]), 1, 3)
    with pytest.raises(RecordError):
        whole(torch.tensor([0.0]), 1, 3)
