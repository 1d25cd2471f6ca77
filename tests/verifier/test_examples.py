"""Examples from files: what fits, what is refused, and when the scale looks wrong."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from verifier.attacks.classifier import Classifier
from verifier.errors import InputError
from verifier.examples import Examples, check_labels, fit_examples, read_examples, scale_warning

SHAPE = (1, 1, 4, 4)


def test_arrays_fit_with_and_without_axes_of_size_one(tmp_path: Path) -> None:
    x = np.arange(32).reshape(2, 16)
    for shape in ((2, 16), (2, 4, 4), (2, 1, 4, 4), (2, 1, 1, 4, 4)):
        np.savez(tmp_path / "d.npz", x=x.reshape(shape), y=np.array([3, 1]))
        found = read_examples(tmp_path / "d.npz", SHAPE, np.float32)
        assert found.x.tolist() == x.tolist()
        assert found.x.dtype == np.float32
        assert found.labels is not None
        assert found.labels.tolist() == [3, 1]
        assert found.notes == ()


def test_axes_in_another_order_are_refused_and_not_scrambled() -> None:
    with pytest.raises(InputError, match="another order"):
        fit_examples(np.zeros((2, 4, 4, 3)), None, (1, 3, 4, 4), np.float32)


def test_axes_that_are_merged_are_to_be_given_flat() -> None:
    with pytest.raises(InputError, match=r"flat, as \[N, 16\]"):
        fit_examples(np.zeros((2, 4, 4)), None, (1, 16), np.float32)


def test_a_model_of_several_examples_at_once_is_remarked() -> None:
    with pytest.raises(InputError, match="for 1 or for any number"):
        fit_examples(np.zeros((2, 4, 4)), None, (8, 1, 4, 4), np.float32)


def test_rounding_is_said() -> None:
    found = fit_examples(np.array([[0.1, 0.5], [0.5, 0.25]]), None, (1, 2), np.float32)
    assert found.notes == ("1 of 2 examples were rounded to float32",)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((1, 16))}, "are to be called x"),
        ({"x": np.zeros(16)}, "does not fit|first axis"),
        ({"x": np.zeros((0, 16))}, "first axis"),
        ({"x": np.zeros((1, 16), complex)}, "arrays of numbers"),
        ({"x": np.full((1, 16), np.inf)}, "NaN or infinite"),
        ({"x": np.full((1, 16), 1e39)}, "NaN or infinite"),
        ({"x": np.zeros((1, 16)), "y": np.array(["a"])}, "whole numbers"),
        ({"x": np.zeros((2, 16)), "y": np.zeros(3, int)}, "3 labels"),
    ],
)
def test_wrong_arrays_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path / "d.npz", SHAPE, np.float32)


def test_labels_are_classes() -> None:
    check_labels(np.array([0, 9]), 10)
    for wrong in (-1, 10):
        with pytest.raises(InputError, match=f"label {wrong}"):
            check_labels(np.array([0, wrong]), 10)


def test_folders_of_images(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    for place in ("10/b.png", "2/a.png", "2/b.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        image.fromarray(pixels + int(place[0])).save(tmp_path / place)
    found = read_examples(tmp_path, SHAPE, np.float32)
    assert found.names == ("2/a.png", "2/b.png", "10/b.png")
    assert found.labels is not None
    assert found.labels.tolist() == [2, 2, 10]
    assert np.array_equal(found.x[0], ((pixels + 2).astype(np.float32) / np.float32(255)).reshape(-1))
    (tmp_path / "labels.csv").write_text("name,class\n10/b.png,7\n", encoding="utf-8")
    found = read_examples(tmp_path, SHAPE, np.float32)
    assert found.labels is not None
    assert (found.names, found.labels.tolist()) == (("10/b.png",), [7])
    wrong = (
        ("a,b,c\nx,1,2\n", "expected name,class"),
        ("10/b.png,x\n", "expected name,class"),
        ("../x.png,1\n", "leads out"),
        ("no.png,1\n", "no such file"),
    )
    for text, message in wrong:
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_examples(tmp_path, SHAPE, np.float32)


def test_an_empty_folder_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.png"):
        read_examples(tmp_path, SHAPE, np.float32)
    with pytest.raises(InputError, match=r"\.npz file"):
        read_examples(tmp_path / "x.csv", SHAPE, np.float32)


def test_a_model_that_expects_another_scale_is_noticed(checkout: Path) -> None:
    model = Classifier.of(checkout / "benchmarks" / "digits" / "digits.onnx")
    data = load_digits()
    x, y = (data.images[1400:1450] / 16).astype(np.float32).reshape(50, 64), data.target[1400:1450]
    numbers = tuple(map(str, range(50)))
    unit = (Fraction(0), Fraction(1))
    assert scale_warning(model, Examples(x, y, numbers), unit) is None
    small = scale_warning(model, Examples(x / np.float32(255), y, numbers), unit)
    assert small is not None
    assert "times 255" in small
    assert "data range" in str(scale_warning(model, Examples(x, None, numbers), (Fraction(0), Fraction(255))))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.png,-1\n", "expected name,class"),
        ("a.png,3.5\na.png,1\n", "labels.csv:1"),
        ("a.png,99999999999999999999\n", "is no class"),
        ("a.png," + "9" * 5000, "is no class"),
        ("a\0b.png,1\n", "names no file"),
        ("x" * 5000 + ".png,1\n", "names no file"),
        ("loop.png,1\n", "names no file"),
        ("../a.png,1\n", "leads out"),
    ],
)
def test_odd_tables_of_labels_are_refused(table: str, message: str, tmp_path: Path) -> None:
    """Also where the odd line is the first: only one that names no file is a head."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        read_examples(tmp_path, (1, 1, 2, 2), np.float32)


def test_a_folder_of_too_many_digits_is_refused(tmp_path: Path) -> None:
    (tmp_path / ("9" * 20)).mkdir()
    with pytest.raises(InputError, match="is no class"):
        read_examples(tmp_path, (1, 1, 2, 2), np.float32)


def test_a_header_beyond_all_numbers_is_refused(tmp_path: Path) -> None:
    header = b"{'descr':'<f4','fortran_order':False,'shape':(99999999999999999999,1),}\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_examples(tmp_path / "x.npz", (1, 4), np.float32)
