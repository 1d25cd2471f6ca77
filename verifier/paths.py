"""Files that a user names: as they are, or with ``.gz`` appended where only that exists."""

from __future__ import annotations

from pathlib import Path

from verifier.errors import InputError


def plain_or_gzip(path: Path) -> Path:
    """The path itself, or the one with ``.gz`` appended where only that exists."""
    zipped = path.with_name(path.name + ".gz") if path.name else path
    return zipped if not path.exists() and zipped.is_file() else path


def existing_file(source: str | Path, ending: str) -> Path:
    """The file that a path means, plain or gzip; ``ending`` is that of its kind. Raises ``InputError``."""
    path = plain_or_gzip(Path(source))
    if not path.exists():
        raise InputError(f"{path}: no such file (nor {path.name}.gz beside it)")
    if not path.is_file():
        raise InputError(f"{path}: not a file; name the {ending} file itself")
    return path
