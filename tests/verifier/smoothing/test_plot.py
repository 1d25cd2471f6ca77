"""The picture of certified accuracy: the curve's values, and what both writers make of them."""

from __future__ import annotations

import io
import math
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from verifier.errors import InputError
from verifier.smoothing import plot
from verifier.smoothing.curve import Line, certified_accuracy

SPACE = "{http://www.w3.org/2000/svg}"
FIRST = [Line(k, 0, 0, radius, 0.0) for k, radius in enumerate((0.5, 0.25, 0.25, 0.1, 0.0))] + [
    Line(5, 0, -1, 0.0, 0.0), Line(6, 0, 1, 0.9, 0.0), Line(7, 1, 1, 0.37, 0.0),
]  # fmt: skip
SECOND = [Line(k, 0, 0, 0.04 * k, 0.0) for k in range(20)]


def curves(text: str) -> list[list[tuple[float, float]]]:
    """The corners of the curves of an SVG, in pixels."""
    found = ElementTree.fromstring(text).iter(f"{SPACE}polyline")
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in str(e.get("points")).split())] for e in found]


def scale(text: str) -> tuple[float, float]:
    """The pixel of the radius 0 and the pixels of a radius of 1, from the marks of the axis."""
    texts = {e.text: float(e.get("x") or 0) for e in ElementTree.fromstring(text).iter(f"{SPACE}text")}
    marks = {float(t): x for t, x in texts.items() if t and t.replace(".", "").isdigit()}
    assert len(marks) >= 4
    return marks[0.0], (marks[max(marks)] - marks[0.0]) / max(marks)


@pytest.mark.parametrize("logs", [{"": FIRST}, {"a": FIRST, "b & <c>": SECOND}], ids=["one", "two"])
def test_corners_are_the_values_of_the_curve(logs: Mapping[str, Sequence[Line]]) -> None:
    text = plot.svg(logs, 'a "title" & more', norm="2")
    zero, one = scale(text)
    for lines, corners in zip(logs.values(), curves(text), strict=True):
        radii = sorted({0.0, *(line.radius for line in lines if line.correct)})
        shares = certified_accuracy(lines, radii)
        after = certified_accuracy(lines, [math.nextafter(r, 9) for r in radii])
        expected = [(r, s) for r, before, then in zip(radii, shares, after, strict=True) for s in (before, then)]
        expected = expected if expected[0] != expected[1] else expected[1:]
        seen = [((x - zero) / one, (plot.BOTTOM - y) / (plot.BOTTOM - plot.TOP)) for x, y in corners]
        assert seen[0] == pytest.approx((0, shares[0]), abs=1e-4)
        assert len(set(seen)) == len(expected)
        for got, wanted in zip(dict.fromkeys(seen), expected, strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)


def test_names_and_titles_are_written() -> None:
    names = {"first": FIRST, "b & <c>\x1b\udcff": SECOND, "logs/" * 40 + "end.tsv": FIRST, "": FIRST}
    text = plot.svg(names, 'a "title" & more', norm="inf")
    text.encode()
    root = ElementTree.fromstring(text)
    words = [e.text or "" for e in root.iter(f"{SPACE}text")]
    assert {"radius (norm inf)", "certified accuracy", "first", "b & <c>??", 'a "title" & more', "100 %"} <= set(words)
    assert sum(word.startswith("...") and word.endswith("logs/end.tsv") for word in words) == 1
    assert "radius" in [e.text for e in ElementTree.fromstring(plot.svg({"": FIRST})).iter(f"{SPACE}text")]
    assert int(root.get("height") or 0) > plot.HEIGHT
    assert curves(text) == curves(plot.svg(dict(zip("abcd", names.values(), strict=True)), norm="inf"))


@pytest.mark.parametrize("most", [3e-7, 0.013, 0.5, 0.99, 1.0, 7.3, 123456.0])
def test_marks_are_round(most: float) -> None:
    lines = [Line(0, 0, 0, most, 0.0)]
    parts = plot.picture({"": lines}).parts
    marks = [float(p.text) for p in parts if isinstance(p, plot.Text) and p.at[1] == plot.BOTTOM + 18]
    assert 4 <= len(marks) <= 9
    step = marks[1]
    assert f"{step:e}"[0] in "125" and f"{step:e}"[1:9] == ".000000e"
    assert marks == pytest.approx([k * step for k in range(len(marks))], rel=1e-5)
    assert marks[-1] <= 1.03 * most


def test_odd_logs_are_drawn() -> None:
    """None at all, nothing right, and radii that are infinite (never fallen from) or no number (never held)."""
    assert curves(plot.svg({})) == []
    flat = [(float(plot.LEFT), float(plot.BOTTOM))]
    assert curves(plot.svg({"": []})) == curves(plot.svg({"": [Line(0, 0, 1, 1.0, 0.0)]})) == [flat]
    odd = [Line(0, 0, 0, math.inf, 0.0), Line(1, 0, 0, math.nan, 0.0)]
    half = (plot.TOP + plot.BOTTOM) / 2
    assert curves(plot.svg({"": odd})) == [[(plot.LEFT, half), (plot.RIGHT, half)]]


@pytest.mark.parametrize("size", [1, 2])
def test_a_png_has_the_size_and_the_colours(tmp_path: Path, size: int) -> None:
    image = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    logs = {f"log {k}": [Line(n, 0, 0, 0.1 * n * (k + 1), 0.0) for n in range(5)] for k in range(len(plot.COLOURS))}
    plot.png(logs, tmp_path / "a.png", "title", norm="2", scale=size)
    kept = io.BytesIO()
    plot.png(logs, kept, "title", norm="2", scale=size)
    assert kept.getvalue() == (tmp_path / "a.png").read_bytes()
    with image.open(kept) as seen:
        assert seen.format == "PNG"
        assert seen.size == (size * plot.WIDTH, size * plot.picture(logs).height)
        colours = {colour: count for count, colour in seen.convert("RGB").getcolors(10**6)}
        for wanted in plot.COLOURS:
            assert colours[tuple(bytes.fromhex(wanted[1:]))] > 100 * size
        ink = seen.convert("L").point(lambda v: 255 * (v < 128))
        above, beside = ink.crop((0, 0, seen.width, size * (plot.TOP - 2))), ink.crop((0, 0, size * 30, seen.height))
        assert above.getbbox() is not None  # the title
        _, top, _, bottom = beside.getbbox()  # the turned name, its middle at that of the axis
        assert (top + bottom) / 2 / size == pytest.approx((plot.TOP + plot.BOTTOM) / 2, abs=3)
        assert 80 < (bottom - top) / size < 140


def test_curves_of_a_png_are_where_those_of_the_svg_are() -> None:
    image = pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    kept = io.BytesIO()
    plot.png({"": FIRST}, kept, scale=4)
    with image.open(kept) as seen:
        (corners,) = curves(plot.svg({"": FIRST}))
        for (x, y), (x2, y2) in pairwise(corners):
            place = (round(2 * (x + x2)), round(2 * (y + y2)))
            assert seen.getpixel(place) == tuple(bytes.fromhex(plot.COLOURS[0][1:]))


def test_a_png_without_pillow_teaches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"a\.png: .*nn-verifier\[images\].*SVG"):
        plot.png({"": FIRST}, tmp_path / "a.png")
    assert plot.svg({"": FIRST})


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image", reason="the images extra is not installed")
    with pytest.raises(InputError, match=r"b\.png: cannot be written"):
        plot.png({"": FIRST}, tmp_path / "none" / "b.png")
