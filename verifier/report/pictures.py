"""Pictures of inputs and of how attacks changed them, as PNG sheets; needs the ``images`` extra.

Pixels are enlarged without smoothing. Values of the data range become 0..255 (values outside count as its ends). A
difference of grey images is drawn red where it is positive, blue where it is negative, white where it is 0; one of
colours around grey. It is scaled by a factor that its label names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import InputError

_GAP = 8
_LINE = 14
"""Height of a line of text."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """``pixels`` ``[h, w, 3]`` uint8 and the lines of text below them."""

    pixels: np.ndarray
    label: str = ""


def picture(image: np.ndarray, label: str = "", ends: tuple[float, float] = (0.0, 1.0)) -> Picture:
    """An image ``[C, H, W]``, ``[H, W, C]``, ``[H, W]`` or flat ``[h * h]``, C being 1 or 3; leading 1s are dropped.
    ``ends``: the data range. Raises ``InputError`` for other shapes and ranges."""
    shown = (as_image(image) - ends[0]) / _span(ends)
    return Picture(_bytes(np.broadcast_to(shown, (*shown.shape[:2], 3))), label)


def difference(before: np.ndarray, after: np.ndarray, ends: tuple[float, float] = (0.0, 1.0)) -> Picture:
    """``after - before``, times the power of 2 that makes the largest change fill between a half and all of the scale;
    the label names it. Raises ``InputError`` as ``picture`` does."""
    change = (as_image(after) - as_image(before)) / _span(ends)
    most = float(np.abs(change).max(initial=0))
    factor = 2.0 ** np.floor(-np.log2(most)) if most > 0 else 1.0
    change = np.nan_to_num(change * factor)
    if change.shape[2] == 3:
        drawn = 0.5 + change / 2
    else:
        red, blue = 1 - np.clip(-change, 0, 1), 1 - np.clip(change, 0, 1)
        drawn = np.concatenate([red, np.minimum(red, blue), blue], axis=2)
    return Picture(_bytes(drawn), f"difference x {factor:g}" if most > 0 else "no difference")


def triple(
    before: np.ndarray, after: np.ndarray, label: str, ends: tuple[float, float] = (0.0, 1.0)
) -> tuple[Picture, Picture, Picture]:
    """An original, what an attack made of it, and the difference; ``label`` as in "4 -> 9, apgd, ||d||=0.03"."""
    return picture(before, "original", ends), picture(after, label, ends), difference(before, after, ends)


def sheet(
    rows: Sequence[Sequence[Picture | None]], path: str | Path, headings: Sequence[str] = (), size: int = 96
) -> Path:
    """Write the pictures, row by row (None: a gap), to a PNG file; ``headings`` stand above the columns.

    A picture is enlarged by a whole factor to about ``size`` pixels, and columns are as wide as the longest label.
    Returns the path. Raises ``InputError`` where pillow is not installed, the file cannot be written or there is no
    picture."""
    cells = [p for row in rows for p in row if p is not None]
    if not cells:
        raise InputError(f"{path}: a sheet needs a picture")
    modules = _pillow(path)
    height, width = (max(p.pixels.shape[k] * _factor(p, size) for p in cells) for k in (0, 1))
    lines = max(p.label.count("\n") + 1 if p.label else 0 for p in cells)
    font = modules.font.load_default(_LINE - 2)
    text = max(font.getlength(line) for p in cells for line in p.label.split("\n"))
    pitch = (max(width, math.ceil(text)) + _GAP, height + lines * _LINE + _GAP)
    top = _GAP + (_LINE * (1 + max(h.count("\n") for h in headings)) if headings else 0)
    columns = max(len(headings), *(len(row) for row in rows))
    canvas = modules.image.new("RGB", (_GAP + columns * pitch[0], top + len(rows) * pitch[1]), "white")
    draw = modules.draw.Draw(canvas)
    for k, text in enumerate(headings):
        _write(draw, font, (_GAP + k * pitch[0], 1), text)
    for (r, row), k in product(enumerate(rows), range(columns)):
        shown = row[k] if k < len(row) else None
        if shown is not None:
            x, y, factor = _GAP + k * pitch[0], top + r * pitch[1], _factor(shown, size)
            large = shown.pixels.repeat(factor, 0).repeat(factor, 1)
            canvas.paste(modules.image.fromarray(large), (x, y))
            draw.rectangle((x - 1, y - 1, x + large.shape[1], y + large.shape[0]), outline=(200, 200, 200))
            _write(draw, font, (x, y + height + 1), shown.label)
    try:
        canvas.save(path, format="PNG", optimize=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    return Path(path)


def as_image(image: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` float64 of an image in any of the layouts of ``picture``. Raises ``InputError``."""
    array = np.asarray(image, dtype=np.float64)
    while array.ndim > 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1 and array.size and round(array.size**0.5) ** 2 == array.size:
        side = round(array.size**0.5)
        array = array.reshape(side, side)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        raise InputError(
            f"an array of shape {list(np.shape(image))} is no picture: [C, H, W], [H, W, C], [H, W] or [h * h] with "
            "one or three channels is needed"
        )
    return array


def check_library(path: str | Path) -> None:
    """Raise ``InputError`` where pillow is not installed; ``path`` is what was to be written."""
    _pillow(path)


@dataclass(frozen=True, slots=True)
class _Pillow:
    image: Any
    draw: Any
    font: Any


def _pillow(path: str | Path) -> _Pillow:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise InputError(f"{path}: images need the extra: pip install nn-verifier[images]") from error
    return _Pillow(Image, ImageDraw, ImageFont)


def _write(draw: Any, font: Any, at: tuple[int, int], text: str) -> None:
    for k, line in enumerate(text.split("\n")):
        draw.text((at[0], at[1] + k * _LINE), line, fill="black", font=font)


def _factor(shown: Picture, size: int) -> int:
    return max(1, round(size / max(shown.pixels.shape[:2])))


def _span(ends: tuple[float, float]) -> float:
    if not ends[0] < ends[1]:
        raise InputError(f"a picture needs a data range with low < high, not [{ends[0]}, {ends[1]}]")
    return ends[1] - ends[0]


def _bytes(values: np.ndarray) -> np.ndarray:
    """0 to 1 as 0 to 255; NaN is black."""
    return np.rint(np.nan_to_num(values, nan=0.0).clip(0, 1) * 255).astype(np.uint8)
