"""A refinement as a picture: its ends over time, and its gap, in SVG without any library.

Time runs on a logarithmic axis. Above, the outer ends are the edges of a pale band, the inner ones those of a darker
band within: what lies between the edges is not known yet. Below, the gap on a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from verifier.anytime.enclosure import Enclosure

WIDTH, LEFT, RIGHT = 720, 90, 700
UPPER, LOWER, HEIGHT = (30, 260), (290, 400), 450
"""Of both panels, the y of their upper and lower edges; of the whole picture."""

OUTER, INNER, LINE = "#cfe0f3", "#7fa8d6", "#1f4e8c"
LEAST_SECONDS = 1e-3
MOST_STEPS = 500
"""States that are drawn; of more, some are left out, never the first and the last."""

Scale = Callable[[float], float]


def svg(history: Sequence[Enclosure], title: str = "") -> str:
    """The text of an SVG file that shows the states of one refinement, in order (at least one).

    Ends that are not finite are left out: the picture begins where there are some. Raises ``ValueError`` for no states.
    """
    if not history:
        raise ValueError("there is nothing to draw: a refinement has at least one state")
    states = list(_thinned(history))
    panels = [_ends_panel(states), _gap_panel(states)]
    parts = [f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>'] if title else []
    for panel in panels:
        parts += _frame(panel, states)
    parts += _bands(panels[0], states) + _gaps(panels[1], states)
    parts.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 12}" text-anchor="middle">seconds</text>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">'
    )
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel: the y of its edges, the y of a value, the values that are marked, and what it shows."""

    edges: tuple[int, int]
    place: Scale
    ticks: tuple[float, ...]
    name: str


def _thinned(history: Sequence[Enclosure]) -> Iterator[Enclosure]:
    step = max(1, math.ceil(len(history) / MOST_STEPS))
    yield from history[:-1:step]
    yield history[-1]


def _ends_panel(states: list[Enclosure]) -> _Panel:
    ends = [v for s in states for v in (s.lower, s.least, s.greatest, s.upper) if math.isfinite(v)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = (high - low) * 0.05 or max(abs(low), 1.0) * 0.05
    low, high = low - room, high + room
    step = _round_step((high - low) / 4)
    first = math.ceil(low / step)
    ticks = tuple(k * step for k in range(first, math.floor(high / step) + 1))
    return _Panel(UPPER, _scale((low, high), (UPPER[1], UPPER[0])), ticks, "minimum and maximum")


def _gap_panel(states: list[Enclosure]) -> _Panel:
    gaps = [s.gap for s in states if 0 < s.gap < math.inf]
    low = math.floor(math.log10(min(gaps, default=1.0)))
    high = max(math.ceil(math.log10(max(gaps, default=1.0))), low + 1)
    place = _scale((low, high), (LOWER[1], LOWER[0]))
    step = math.ceil((high - low) / 4)
    ticks = tuple(10.0**k for k in range(low, high + 1, step))
    return _Panel(LOWER, lambda gap: place(math.log10(gap)) if gap > 0 else float(LOWER[1]), ticks, "gap")


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= step * (1 - 1e-12))


def _scale(values: tuple[float, float], places: tuple[int, int]) -> Scale:
    (a, b), (p, q) = values, places
    return lambda value: p + (q - p) * ((value - a) / (b - a))


def _time(states: list[Enclosure]) -> tuple[Scale, list[float]]:
    """The x of a moment, and the moments that are marked."""
    low = math.floor(math.log10(max(states[0].seconds, LEAST_SECONDS)))
    high = max(math.ceil(math.log10(max(states[-1].seconds, LEAST_SECONDS))), low + 1)
    place = _scale((low, high), (LEFT, RIGHT))
    return lambda seconds: place(math.log10(max(seconds, 10.0**low))), [10.0**k for k in range(low, high + 1)]


def _frame(panel: _Panel, states: list[Enclosure]) -> list[str]:
    """A panel's axes, its marks and what they stand for."""
    top, bottom = panel.edges
    across, moments = _time(states)
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{RIGHT - LEFT}" height="{bottom - top}" fill="none" stroke="#888"/>',
        f'<text x="{RIGHT - 6}" y="{top + 14}" text-anchor="end">{panel.name}</text>',
    ]
    for value in panel.ticks:
        y = panel.place(value)
        parts.append(f'<line x1="{LEFT - 4}" x2="{LEFT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    for seconds in moments:
        x = across(seconds)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{seconds:g}</text>')
    return parts


def _bands(panel: _Panel, states: list[Enclosure]) -> list[str]:
    """Both bands as areas, and the line of each end."""
    sides = [[getattr(s, name) for s in states] for name in ("lower", "upper", "least", "greatest")]
    parts = []
    for (low, high), colour in (((sides[0], sides[1]), OUTER), ((sides[2], sides[3]), INNER)):
        one, two = (_steps(states, side, panel.place) for side in (low, high))
        if one and two:
            parts.append(f'<polygon points="{_listed(one + two[::-1])}" fill="{colour}"/>')
    return parts + [_line(_steps(states, side, panel.place)) for side in sides if any(map(math.isfinite, side))]


def _gaps(panel: _Panel, states: list[Enclosure]) -> list[str]:
    points = _steps(states, [s.gap for s in states], panel.place)
    return [_line(points)] if points else []


def _steps(states: list[Enclosure], values: list[float], place: Scale) -> list[tuple[float, float]]:
    """A line that keeps its value until the next state, to the right edge of the last one's moment."""
    across, _ = _time(states)
    points = list[tuple[float, float]]()
    for state, value in zip(states, values, strict=True):
        if math.isfinite(value):
            x, y = across(state.seconds), place(value)
            points += [(x, points[-1][1]), (x, y)] if points else [(x, y)]
    return points


def _listed(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in points)


def _line(points: list[tuple[float, float]]) -> str:
    return f'<polyline points="{_listed(points)}" fill="none" stroke="{LINE}" stroke-width="1.2"/>'
