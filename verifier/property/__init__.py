"""The property reader: VNN-LIB 1.0 and 2.x text to an exact ``Specification``, without any network."""

from __future__ import annotations

from pathlib import Path

from verifier.property.clauses import MAX_CLAUSES
from verifier.property.grouping import specify
from verifier.property.parser import parse
from verifier.property.source import MAX_BYTES, Source, decode, read_source
from verifier.query import Specification

__all__ = ["MAX_BYTES", "MAX_CLAUSES", "Source", "decode", "parse", "read_property", "read_source", "specify"]


def read_property(path: str | Path, *, max_bytes: int = MAX_BYTES, max_clauses: int = MAX_CLAUSES) -> Specification:
    """Read a property file, plain or gzip, VNN-LIB 1.0 or 2.x.

    ``max_bytes`` limits the decompressed text, ``max_clauses`` the clauses after multiplying out. Raises
    ``InputError`` (with line and column for syntax) and ``UnsupportedError``.
    """
    return specify(parse(read_source(path, max_bytes)), max_clauses)
