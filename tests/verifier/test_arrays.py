"""Points and images from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from verifier.arrays import arrange, read_box, read_point
from verifier.errors import InputError


def test_points(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", anything=x)
    np.savez_compressed(tmp_path / "named.npz", x=x, y=np.array(3))
    for name in ("x.npy", "one.npz", "named.npz"):
        read = read_point(tmp_path / name, (2, 3))
        assert read.dtype == np.float32 and (read == x).all()


def test_box(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", lower=np.zeros(2), upper=np.ones(2), note=np.array(1))
    lower, upper = read_box(tmp_path / "b.npz")
    assert lower.tolist() == [0, 0] and upper.tolist() == [1, 1]


def test_images_take_the_layout_of_the_model() -> None:
    image = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    assert (arrange(image, (1, 3, 2, 4), "i") == image.transpose(2, 0, 1)).all()
    assert (arrange(image, (2, 4, 3), "i") == image).all()
    assert (arrange(image, (1, 2, 4, 3), "i") == image).all()
    grey = image[:, :, 0]
    for shape in ((1, 1, 2, 4), (1, 2, 4, 1), (2, 4), (1, 2, 4)):
        assert (arrange(grey, shape, "i").reshape(2, 4) == grey).all()
    for shape in ((1, 3, 4, 2), (1, 1, 2, 4), (24,)):
        with pytest.raises(InputError, match="2 x 4 pixels and 3 channel"):
            arrange(image, shape, "i")


def test_png(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10
    pil.fromarray(pixels).save(tmp_path / "i.png")
    read = read_point(tmp_path / "i.png", (1, 3, 2, 4))
    assert read.dtype == np.float32 and np.allclose(read, pixels.transpose(2, 0, 1) / 255)
    pil.fromarray(np.full((2, 4), 30_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="16 bits"):
        read_point(tmp_path / "deep.png", (1, 3, 2, 4))
    (tmp_path / "cut.png").write_bytes((tmp_path / "i.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"cut\.png"):
        read_point(tmp_path / "cut.png", (1, 3, 2, 4))
