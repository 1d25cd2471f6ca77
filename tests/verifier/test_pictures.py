"""Pictures show what the arrays hold, in every layout; sheets put them where they belong."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verifier.errors import InputError
from verifier.report.pictures import difference, picture, sheet, triple


def ramp() -> np.ndarray:
    return np.linspace(0, 1, 3 * 4 * 5, dtype=np.float32).reshape(4, 5, 3)


def test_all_layouts_give_the_same_pixels() -> None:
    last = ramp()
    first = last.transpose(2, 0, 1)
    wanted = np.rint(last.astype(np.float64) * 255).astype(np.uint8)
    for image in (last, first, first[None]):
        assert np.array_equal(picture(image).pixels, wanted)
    grey = last[:4, :4, 0]
    for image in (grey, grey[None], grey[None, None], grey[:, :, None], grey.reshape(-1), grey.reshape(1, -1)):
        assert np.array_equal(picture(image).pixels, np.repeat(wanted[:4, :4, :1], 3, axis=2))


def test_values_are_normalised_with_the_data_range() -> None:
    image = np.array([[-1.0, 0.0], [1.0, 3.0]])
    assert picture(image, ends=(-1, 1)).pixels[:, :, 0].tolist() == [[0, 128], [255, 255]]
    assert picture(image * 255, ends=(0, 255)).pixels[:, :, 0].tolist() == [[0, 0], [255, 255]]
    assert picture(np.array([[np.nan, np.inf], [-np.inf, 0.5]])).pixels[:, :, 0].tolist() == [[0, 255], [0, 128]]


def test_differences_are_scaled_and_say_by_how_much() -> None:
    before = np.full((2, 2), 0.5)
    after = before + np.array([[0.03, -0.03], [0.0, 0.015]])
    shown = difference(before, after)
    assert shown.label == "difference x 32"
    red, blue, none = shown.pixels[0, 0].tolist(), shown.pixels[0, 1].tolist(), shown.pixels[1, 0].tolist()
    assert red[0] == 255 and red[1] == red[2] < 20
    assert blue[2] == 255 and blue[0] == blue[1] < 20
    assert none == [255, 255, 255]
    assert difference(before * 255, after * 255, (0, 255)).label == "difference x 32"
    same = difference(before, before)
    assert same.label == "no difference" and bool((same.pixels == 255).all())
    colours = difference(ramp(), ramp() * 0.5)
    assert colours.label == "difference x 2" and colours.pixels[0, 0].tolist() == [128, 125, 123]
    assert colours.pixels[3, 4].tolist() == [4, 2, 0]


def test_a_sheet_enlarges_without_smoothing(tmp_path: Path) -> None:
    pil = pytest.importorskip("PIL.Image")
    before = np.array([[0.0, 1.0], [0.25, 0.75]])
    row = triple(before, 1 - before, "4 -> 9, apgd, ||d||=0.03")
    path = sheet([row, [None, row[1]]], tmp_path / "sheet.png", ["one", "two"], size=20)
    with pil.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    large = row[1].pixels.repeat(10, 0).repeat(10, 1)
    found = [
        (r, c)
        for r in range(pixels.shape[0] - 19)
        for c in range(pixels.shape[1] - 19)
        if np.array_equal(pixels[r : r + 20, c : c + 20], large)
    ]
    # Twice, in the second column of both rows.
    assert len(found) == 2 and found[0][1] == found[1][1] and found[0][0] < found[1][0]
    assert found[0][1] > len("4 -> 9, apgd, ||d||=0.03") * 4  # labels do not run into each other
    again = sheet([row, [None, row[1]]], tmp_path / "again.png", ["one", "two"], size=20)
    assert again.read_bytes() == path.read_bytes()


def test_wrong_pictures_are_refused(tmp_path: Path) -> None:
    for shape in ((5,), (2, 2, 2), (4, 4, 4, 4), (0,), (3, 0, 2)):
        with pytest.raises(InputError, match="is no picture"):
            picture(np.zeros(shape))
    with pytest.raises(InputError, match="low < high"):
        picture(np.zeros((2, 2)), ends=(1, 1))
    with pytest.raises(InputError, match="needs a picture"):
        sheet([[None]], tmp_path / "a.png")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="cannot be written"):
        sheet([[picture(np.zeros((2, 2)))]], tmp_path / "missing" / "a.png")


def test_without_pillow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"nn-verifier\[images\]"):
        sheet([[picture(np.zeros((2, 2)))]], tmp_path / "a.png")
