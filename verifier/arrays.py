"""Points and boxes from files: .npy and .npz without pickle, .png with the ``images`` extra. Files are hostile."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from verifier.errors import InputError

MAX_BYTES = 2**30
_UNREADABLE = (
    ValueError, OSError, EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, tokenize.TokenError,
    zipfile.BadZipFile, zlib.error, NotImplementedError,
)  # fmt: skip


def read_point(path: str | Path, shape: tuple[int, ...], max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array of a .npy file, the only one (or the one named ``x``) of an .npz file, or a .png image.

    An image becomes float32 in [0, 1], laid out for a model input of this ``shape`` (channels first or last, or
    none), never resized. Raises ``InputError``.
    """
    path = Path(path)
    match path.suffix.lower():
        case ".npy":
            return _read_npy(path, max_bytes)
        case ".npz":
            arrays = read_npz(path, max_bytes)
            if len(arrays) != 1 and "x" not in arrays:
                raise InputError(f"{path}: holds the arrays {', '.join(arrays) or '(none)'}; name one of them x")
            return arrays["x"] if "x" in arrays else next(iter(arrays.values()))
        case ".png":
            return _read_png(path, shape)
        case _:
            raise InputError(f"{path}: expected a .npy, .npz or .png file")


def read_data(path: str | Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array ``x`` (or the only one) of an .npz file: one input after the other. Raises ``InputError``."""
    arrays = read_npz(Path(path), max_bytes)
    if len(arrays) != 1 and "x" not in arrays:
        raise InputError(f"{path}: holds the arrays {', '.join(arrays) or '(none)'}; name the inputs x")
    found = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    if found.ndim < 2 or not found.size:
        raise InputError(f"{path}: x of shape {list(found.shape)}: the first axis must count inputs, of one at least")
    return found


def read_box(path: str | Path, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, np.ndarray]:
    """The arrays ``lower`` and ``upper`` of an .npz file. Raises ``InputError``."""
    arrays = read_npz(Path(path), max_bytes)
    if not {"lower", "upper"} <= set(arrays):
        raise InputError(f"{path}: expected the arrays lower and upper, found {', '.join(arrays) or 'none'}")
    return arrays["lower"], arrays["upper"]


def _read_npy(path: Path, max_bytes: int) -> np.ndarray:
    _regular(path)
    if path.stat().st_size > max_bytes:
        raise InputError(f"{path}: more than {max_bytes} bytes; raise the limit with --max-bytes")
    try:
        # A mapping fails where the header promises more than the file holds, before anything is allocated.
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a .npy file of numbers: {error}") from error


def read_npz(path: Path, max_bytes: int) -> Mapping[str, np.ndarray]:
    """All arrays of an .npz file. Raises ``InputError``."""
    _regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > max_bytes:
            raise InputError(f"{path}: {size} bytes decompressed, more than {max_bytes}; raise it with --max-bytes")
        with np.load(path, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except _UNREADABLE as error:
        raise InputError(f"{path}: not an .npz file of numbers: {error}") from error


def _read_png(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    _regular(path)
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(f"{path}: images need the extra: pip install nn-verifier[images]") from error
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.mode.startswith(("I", "F")):  # a conversion would cut values off at 255
                raise InputError(f"{path}: an image of 16 bits a channel; 8 are needed")
            plain = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
            pixels = np.asarray(plain, dtype=np.uint8)
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a PNG image that can be read: {error}") from error
    return arrange(pixels, shape, str(path)).astype(np.float32) / np.float32(255)


def arrange(pixels: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """An image ``[h, w]`` or ``[h, w, c]`` in the layout of a model input, a leading 1 aside. Raises ``InputError``."""
    image = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = image.shape
    wanted = shape[1:] if len(shape) in (2, 4) and shape[0] == 1 and shape != (height, width) else shape
    if wanted == (channels, height, width):
        return image.transpose(2, 0, 1)
    if wanted == (height, width, channels) or (channels == 1 and wanted == (height, width)):
        return image
    raise InputError(
        f"{name}: an image of {height} x {width} pixels and {channels} channel(s) does not fit the model's input of "
        f"shape {list(shape)}; images are never resized"
    )


def _regular(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
