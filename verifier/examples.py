"""Examples with their classes, from an .npz file or a folder of images; what they are made to fit, and what looks odd.

A folder holds .png images either in folders named by their class (``3/a.png``) or beside a file ``labels.csv`` with a
line ``name,class`` for each.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from verifier.arrays import MAX_BYTES, read_npz, read_point
from verifier.errors import InputError

if TYPE_CHECKING:
    from verifier.attacks.classifier import Classifier

_DIGITS = 9
"""Of a class, at most."""

_LOOKED_AT = 100
"""Examples that the check of the scale looks at."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """``x`` ``[N, n]`` in a model's element type and order; ``labels`` ``[N]`` (None: none are given); ``names`` of the
    images (else numbers); ``notes`` on what was changed."""

    x: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_examples(
    path: str | Path, shape: tuple[int, ...], dtype: type[np.floating], max_bytes: int = MAX_BYTES
) -> Examples:
    """The arrays ``x`` and, where it is there, ``y`` of an .npz file, or a folder of images. Raises ``InputError``."""
    path = Path(path)
    if path.is_dir():
        return _folder(path, shape, dtype, max_bytes)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: expected an .npz file with the arrays x and y, or a folder of .png images")
    arrays = read_npz(path, max_bytes)
    if "x" not in arrays:
        raise InputError(f"{path}: holds the arrays {', '.join(arrays) or '(none)'}; the inputs are to be called x")
    return fit_examples(arrays["x"], arrays.get("y"), shape, dtype, str(path))


def fit_examples(
    x: np.ndarray, y: np.ndarray | None, shape: tuple[int, ...], dtype: type[np.floating], name: str = "x"
) -> Examples:
    """Arrays as examples of a model's input: ``x`` ``[N, *shape]``, a leading 1 of ``shape`` aside, or ``[N, n]``;
    ``y`` ``[N]`` whole numbers. Raises ``InputError``."""
    x = np.asarray(x)
    if x.dtype.kind not in "fiub" or x.dtype.itemsize > 8:
        raise InputError(f"{name}: arrays of numbers are needed, x is of type {x.dtype}")
    size = int(np.prod(shape))
    if x.ndim < 2 or not len(x):
        raise InputError(f"{name}: x of shape {list(x.shape)}: the first axis must count examples, of one at least")
    if not _fits(x.shape[1:], shape, size):
        raise InputError(
            f"{name}: an example of shape {list(x.shape[1:])} does not fit the model's input of shape {list(shape)}"
            + _advice(x.shape[1:], shape, size)
        )
    flat = x.reshape(len(x), size)
    with np.errstate(over="ignore"):  # said below
        stored = flat.astype(dtype)
    if not np.isfinite(stored).all():
        row, element = np.argwhere(~np.isfinite(stored))[0]
        raise InputError(f"{name}: element {element} of example {row} is NaN or infinite")
    changed = int((stored != flat).any(1).sum())
    notes = () if not changed else (f"{changed} of {len(x)} examples were rounded to {np.dtype(dtype).name}",)
    return Examples(stored, _labels(y, len(x), name), tuple(map(str, range(len(x)))), notes)


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise ``InputError`` for a label that is no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"example {wrong[0]}: label {labels[wrong[0]]}, and the model has the classes 0 to {classes - 1}"
        )


def check_range(examples: Examples, ends: tuple[Fraction, Fraction] | None) -> None:
    """Raise ``InputError`` where an element lies outside of the declared data range; the message says which one."""
    if ends is None:
        return
    from verifier.attacks.rounding import inner_ends

    first, last = inner_ends(ends, examples.x.dtype)
    outside = (examples.x < first) | (examples.x > last)
    if outside.any():
        row, element = np.argwhere(outside)[0]
        raise InputError(
            f"example {examples.names[row]}: element {element} is {examples.x[row, element]}, outside the data range "
            f"[{ends[0]}, {ends[1]}]; all values lie in [{examples.x.min()}, {examples.x.max()}]: scale the examples, "
            "or declare their range"
        )


def _fits(given: tuple[int, ...], shape: tuple[int, ...], size: int) -> bool:
    """Whether an example has the model's axes, axes of size 1 aside, or is flat."""
    return given == (size,) or [d for d in given if d != 1] == [d for d in shape if d != 1]


def _advice(given: tuple[int, ...], shape: tuple[int, ...], size: int) -> str:
    """What to do about an example that does not fit."""
    if np.prod(given) == size:
        if sorted(d for d in given if d != 1) == sorted(d for d in shape if d != 1):
            return "; its axes are in another order: transpose them"
        return f"; give x flat, as [N, {size}], with its elements in the order that the model wants"
    if shape[0] > 1 and np.prod(given) == size // shape[0]:
        return f"; if the model takes {shape[0]} examples at once: export it for 1 or for any number"
    return ""


def _labels(y: np.ndarray | None, count: int, name: str) -> np.ndarray | None:
    if y is None:
        return None
    labels = np.asarray(y)
    if labels.size != count:
        raise InputError(f"{name}: {count} examples and {labels.size} labels (y of shape {list(labels.shape)})")
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iu":
        whole = labels.dtype.kind == "f" and bool(((labels == np.floor(labels)) & (np.abs(labels) < 2**31)).all())
        if not whole:
            raise InputError(f"{name}: labels are whole numbers, y is of type {labels.dtype}")
    return labels.astype(np.int64)


def _folder(path: Path, shape: tuple[int, ...], dtype: type[np.floating], max_bytes: int) -> Examples:
    listed = _listed(path)
    if not listed:
        raise InputError(f"{path}: no .png images in folders named by their class, and no labels.csv")
    arrays, total = [], 0
    for file, _ in listed:
        image = read_point(file, shape, max_bytes).reshape(-1)
        total += image.nbytes
        if total > max_bytes:
            raise InputError(f"{path}: the images take more than {max_bytes} bytes; raise the limit with --max-bytes")
        arrays.append(image.astype(dtype))
    labels = np.array([label for _, label in listed], dtype=np.int64)
    return Examples(np.stack(arrays), labels, tuple(str(f.relative_to(path)) for f, _ in listed))


def _listed(path: Path) -> list[tuple[Path, int]]:
    """The images of a folder with their classes, in order."""
    table = path / "labels.csv"
    if table.is_file():
        found = []
        try:
            with table.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets write a mark in front
                rows = [row for row in csv.reader(lines) if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{table}: not a table: {error}") from error
        for number, row in enumerate(rows):
            where = f"{table}:{number + 1}"
            file = _inside(path, row[0], where)
            if len(row) != 2 or not row[1].strip().isdecimal():
                if number == 0 and len(row) == 2 and not file.exists():
                    continue  # a head
                raise InputError(f"{where}: expected name,class")
            found.append((file, _class(row[1].strip(), where)))
        return found
    folders = [(_class(f.name, str(f)), f) for f in path.iterdir() if f.is_dir() and f.name.isdecimal()]
    return [(file, label) for label, folder in sorted(folders) for file in sorted(folder.glob("*.png"))]


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file of this name in a folder. Raises ``InputError``."""
    try:
        there = (folder / name).resolve()
        there.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, links in a circle, a zero character
        raise InputError(f"{where}: {name[:80]!r} names no file: {error}") from error
    if folder.resolve() not in there.parents:
        raise InputError(f"{where}: {name} leads out of the folder")
    return folder / name


def _class(text: str, where: str) -> int:
    if len(text) > _DIGITS:
        raise InputError(f"{where}: {text[:80]} is no class: it has {len(text)} digits")
    return int(text)


def scale_warning(
    classifier: Classifier, examples: Examples, data_range: tuple[Fraction, Fraction] | None
) -> str | None:
    """A warning where the model seems to expect another scale: of (at most 100) labelled examples it gets far more
    right after another scaling than as they are; or all values lie in a small part of the declared range."""
    x, labels = examples.x[:_LOOKED_AT], examples.labels
    if labels is not None:
        here = _accuracy(classifier, x, labels)
        for words, scaled in (("times 255", x * 255), ("divided by 255", x / 255), ("mapped by 2 x - 1", 2 * x - 1),
                              ("mapped by 2 x / 255 - 1", x / 127.5 - 1)):  # fmt: skip
            there = _accuracy(classifier, scaled.astype(x.dtype), labels) if here < 0.7 else 0.0
            if there >= here + 0.3:
                return (
                    f"the model is right on {100 * here:.0f} % of the examples as they are, and on {100 * there:.0f} % "
                    f"of them {words}: it seems to expect another scale"
                )
    largest = float(np.abs(x).max())
    if data_range is not None and 0 < largest < data_range[1] / 50:
        return f"no value is beyond {largest:g}, the data range goes to {float(data_range[1]):g}: is the scale right?"
    return None


def _accuracy(classifier: Classifier, x: np.ndarray, labels: np.ndarray) -> float:
    from verifier.attacks.classifier import lead

    return float((lead(classifier.scores(x), labels[: len(x)]) > 0).mean())
