"""Pictures of refinements: XML that can be read, and lines where the numbers are."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from verifier.anytime import plot
from verifier.anytime.enclosure import Enclosure

NAMES = {"svg": "http://www.w3.org/2000/svg"}


def state(lower: float, least: float, greatest: float, upper: float, seconds: float) -> Enclosure:
    return Enclosure(lower, least, greatest, upper, None, None, "open", 1, 1, 0, 1, seconds)


def lines(text: str) -> list[list[tuple[float, float]]]:
    """The points of every polyline."""
    found = ElementTree.fromstring(text.encode()).findall("svg:polyline", NAMES)
    return [[tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] for line in found]


def test_lines_are_where_the_numbers_are() -> None:
    history = [state(-4, 0, 1, 5, 0.01), state(-2, -1, 2, 3, 0.1), state(-1.01, -1, 2, 2.01, 1.0)]
    text = plot.svg(history, title="a < b & c")
    lower, upper, least, greatest, gap = lines(text)
    assert "a &lt; b &amp; c" in text
    for line, name in zip((lower, upper, least, greatest), ("lower", "upper", "least", "greatest"), strict=True):
        # A step at each state but the first; times on a logarithmic axis: 0.01 at the left edge, 1 at the right one.
        assert [x for x, _ in line] == [plot.LEFT] + [(plot.LEFT + plot.RIGHT) / 2] * 2 + [plot.RIGHT] * 2
        one, two, three = (getattr(s, name) for s in history)
        ys = [line[0][1], line[2][1], line[4][1]]
        assert [y < ys[0] for y in ys[1:]] == [value > one for value in (two, three)]  # y points down
        assert all(plot.UPPER[0] <= y <= plot.UPPER[1] for y in ys)
    assert (upper[0][1] - lower[0][1]) / (greatest[0][1] - least[0][1]) == pytest.approx(9.0, abs=0.01)
    assert gap[0][1] < gap[2][1] < gap[4][1]


def test_ends_that_are_not_finite_are_left_out() -> None:
    history = [state(-math.inf, 0, -math.inf, math.inf, 0.0), state(-1, 0, -math.inf, math.inf, 2.0)]
    lower, least, gap = lines(plot.svg(history))
    assert len(lower) == 1 and len(least) == 3 and len(gap) == 1
    assert ElementTree.fromstring(plot.svg([state(2, 2, 2, 2, 1.0)]).encode()) is not None
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.svg([])


def test_long_histories_are_thinned() -> None:
    history = [state(-1 - 1 / k, -1, 1, 1 + 1 / k, 0.01 * k) for k in range(1, 20_001)]
    found = lines(plot.svg(history))
    assert all(len(line) <= 2 * plot.MOST_STEPS + 2 for line in found)
    assert found[0][-1][0] == pytest.approx(lines(plot.svg(history[-1:]))[0][0][0], abs=plot.WIDTH)
