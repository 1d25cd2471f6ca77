"""What goes into a SHA-256 of arrays: names, types and shapes beside the numbers, so that no two of them look alike."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from verifier.query import Cases


def add(digest: Any, name: str, values: np.ndarray) -> None:
    """Update a ``hashlib`` object with one array."""
    digest.update(f"{name} {values.dtype.str} {values.shape};".encode())
    digest.update(np.ascontiguousarray(values).tobytes())


def add_cases(digest: Any, cases: Cases) -> None:
    """... and with all arrays of a query's cases."""
    for field in fields(cases):
        add(digest, field.name, np.asarray(getattr(cases, field.name)))
