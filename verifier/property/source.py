"""The text of a property file: gzip recognised by its first bytes, size limited, and positions for messages."""

from __future__ import annotations

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from verifier.errors import InputError
from verifier.paths import existing_file

MAX_BYTES = 2**31
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A text and the name that messages give it."""

    text: str
    name: str

    def at(self, offset: int) -> str:
        """``name:line:column`` of a character, lines and columns counted from 1."""
        line = self.text.count("\n", 0, offset) + 1
        column = offset - self.text.rfind("\n", 0, offset)
        return f"{self.name}:{line}:{column}"

    def error(self, offset: int, message: str) -> InputError:
        """The error to raise for what stands at ``offset``."""
        return InputError(f"{self.at(offset)}: {message}")


def read_source(path: str | Path, max_bytes: int = MAX_BYTES) -> Source:
    """Read a property file, plain or gzip (``prop.vnnlib`` also finds ``prop.vnnlib.gz``).

    ``max_bytes`` limits the text after decompression. Raises ``InputError`` for a missing, empty, oversized, broken
    or non-text file.
    """
    found = existing_file(path, ".vnnlib")
    try:
        with found.open("rb") as stream:
            zipped = stream.read(2) == _GZIP
            stream.seek(0)
            data = _inflate(stream, max_bytes) if zipped else stream.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{found}: cannot be read: {error}") from error
    if len(data) > max_bytes:
        raise InputError(
            f"{found}: more than {max_bytes} bytes (after decompression); "
            "if the file can be trusted, raise the limit with --max-bytes (max_bytes= in Python)"
        )
    return decode(data, str(found))


def decode(data: bytes, name: str) -> Source:
    """The source for a file's content; raises ``InputError`` where it is empty or not text."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not a text file (byte {error.start} is not UTF-8)") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{name}:{line}: not a text file (it contains a zero byte)")
    if not text.strip():
        raise InputError(f"{name}: the file is empty")
    return Source(text, name)


def _inflate(stream: io.BufferedReader, max_bytes: int) -> bytes:
    with gzip.GzipFile(fileobj=stream) as unzipped:
        return unzipped.read(max_bytes + 1)
