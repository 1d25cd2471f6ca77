"""Certified accuracy against radius as a picture: a falling staircase for each log.

What is drawn is a list of lines and texts; two writers turn it into SVG (without any library) and PNG (with the
``images`` extra). The legend stands below the axes, where it never hides a curve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from xml.sax.saxutils import escape

from verifier.errors import InputError
from verifier.smoothing.curve import Line

WIDTH, HEIGHT = 640, 420
"""Of the picture without a legend, in units of which a PNG has ``scale`` pixels each."""

LEFT, RIGHT, TOP, BOTTOM = 72, 620, 44, 360
"""The edges of the axes."""

COLOURS = ("#1f5fa8", "#d1442f", "#2e8b57", "#8e5ea2", "#d99a00", "#3aa6b9", "#8c564b", "#555555")
"""Of the curves, in order; the ninth has the first one again."""

_TEXT, _GRID, _EDGE = "#222222", "#e6e6e6", "#888888"
_SIZE, _ROW, _SAMPLE, _GAP = 12, 18, 22, 20
"""Of the legend and the marks: height of letters and of rows; length of a line's sample; room between two names."""

_LETTER = 0.5
"""Mean width of a letter, of its height."""

_LONGEST = 70
_FINER = 2
"""Pixels that one of a PNG is the mean of, in each direction."""


@dataclass(frozen=True, slots=True)
class Polyline:
    """A line through ``points``; ``curve``: it shows values, where others are axes and legend."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    curve: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """``text`` whose start, middle or end stands ``at`` a place on its baseline; ``turned``: it runs upward."""

    at: tuple[float, float]
    text: str
    anchor: Literal["start", "middle", "end"] = "start"
    size: float = _SIZE
    turned: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn, in order, and how high it is (``WIDTH`` wide); y runs downward."""

    height: int
    parts: tuple[Polyline | Text, ...]


def svg(logs: Mapping[str, Sequence[Line]], title: str = "", *, norm: str = "") -> str:
    """The text of an SVG file with one curve for each log, in order; a curve falls at the radius of each input that is
    certified to be right. ``norm``: of the radii, which the axis names. A log without a name is not in the legend."""
    drawn = picture(logs, title, norm)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{drawn.height}" '
        f'viewBox="0 0 {WIDTH} {drawn.height}" font-family="Helvetica, Arial, sans-serif" fill="{_TEXT}">'
    )
    paper = f'<rect width="{WIDTH}" height="{drawn.height}" fill="white"/>'
    parts = [_polyline(part) if isinstance(part, Polyline) else _text(part) for part in drawn.parts]
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, paper, *parts, "</svg>"]) + "\n"


def png(
    logs: Mapping[str, Sequence[Line]], path: str | Path | IO[bytes], title: str = "", *, norm: str = "", scale: int = 2
) -> None:
    """Write the picture of ``svg`` as PNG to a file, ``scale * WIDTH`` pixels wide. Raises ``InputError`` where pillow
    is not installed or the file cannot be written."""
    named = path if isinstance(path, str | Path) else "a PNG"
    try:
        from PIL import Image, ImageDraw, ImageFont

        ImageFont.load_default(_SIZE)
    except ImportError as error:
        raise InputError(
            f"{named}: PNG needs the extra: pip install nn-verifier[images]; SVG is written without"
        ) from error
    drawn, fine = picture(logs, title, norm), scale * _FINER
    canvas = Image.new("RGB", (WIDTH * fine, drawn.height * fine), "white")
    draw = ImageDraw.Draw(canvas)
    for part in drawn.parts:
        if isinstance(part, Polyline):
            points = [(x * fine, y * fine) for x, y in part.points]
            draw.line(points, fill=part.colour, width=max(1, round(part.width * fine)), joint="curve")
        else:
            _write(canvas, part, ImageFont.load_default(part.size * fine), fine)
    try:
        canvas.reduce(_FINER).save(path, format="PNG", optimize=True)
    except OSError as error:
        raise InputError(f"{named}: cannot be written: {error}") from error


def picture(logs: Mapping[str, Sequence[Line]], title: str = "", norm: str = "") -> Picture:
    """What both writers draw."""
    most = max((r for lines in logs.values() for r in _radii(lines) if r < math.inf), default=0.0) or 1.0
    end = 1.03 * most
    parts: list[Polyline | Text] = [*_axes(end, norm)]
    for k, lines in enumerate(logs.values()):
        corners = ((_across(min(radius, end), end), _up(share)) for radius, share in stairs(lines, end))
        parts.append(Polyline(tuple(corners), _colour(k), 1.8, curve=True))
    if title:
        size = min(15.0, (RIGHT - LEFT) / (_LETTER * len(title)))
        parts.append(Text((LEFT, TOP - 16), _plain(title), size=size))
    legend, rows = _legend(list(logs))
    return Picture(HEIGHT + rows * _ROW, (*parts, *legend))


def stairs(lines: Sequence[Line], end: float) -> list[tuple[float, float]]:
    """The corners of a curve as (radius, certified accuracy), from the radius 0 to where it is 0, at most ``end``."""
    radii, count = _radii(lines), max(1, len(lines))
    corners = [(0.0, len(radii) / count)]
    for k, radius in enumerate(radii):
        if radius < math.inf and (k + 1 == len(radii) or radii[k + 1] > radius):
            corners += [(radius, corners[-1][1]), (radius, (len(radii) - k - 1) / count)]
    return [*corners, (end, corners[-1][1])] if corners[-1][1] else corners


def _radii(lines: Sequence[Line]) -> list[float]:
    """Where a curve falls."""
    return sorted(line.radius for line in lines if line.correct and line.radius >= 0)


def _axes(end: float, norm: str) -> Iterator[Polyline | Text]:
    """The grid, the frame above it, the marks and the names of the axes."""
    step = _round_step(end / 8)
    marks = [(_across(k * step, end), f"{k * step:g}") for k in range(math.floor(end / step) + 1)]
    levels = [(_up(k / 5), f"{20 * k} %") for k in range(6)]
    for x, _ in marks:
        yield Polyline(((x, TOP), (x, BOTTOM)), _GRID)
    for y, _ in levels:
        yield Polyline(((LEFT, y), (RIGHT, y)), _GRID)
    corners = ((LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM), (LEFT, TOP))
    yield Polyline(corners, _EDGE)
    for x, name in marks:
        yield Polyline(((x, BOTTOM), (x, BOTTOM + 4)), _EDGE)
        yield Text((x, BOTTOM + 18), name, "middle")
    for y, name in levels:
        yield Polyline(((LEFT - 4, y), (LEFT, y)), _EDGE)
        yield Text((LEFT - 8, y + 0.35 * _SIZE), name, "end")
    yield Text(((LEFT + RIGHT) / 2, BOTTOM + 40), f"radius (norm {norm})" if norm else "radius", "middle", 13)
    yield Text((20, (TOP + BOTTOM) / 2), "certified accuracy", "middle", 13, turned=True)


def _legend(names: Sequence[str]) -> tuple[list[Polyline | Text], int]:
    """Samples and names, from the left in as many rows as they need; and the number of rows."""
    parts: list[Polyline | Text] = []
    x, row = float(LEFT), 0
    for k, name in enumerate(names):
        if not name:
            continue
        shown = _plain(name if len(name) <= _LONGEST else "..." + name[3 - _LONGEST :])
        width = _SAMPLE + 6 + _LETTER * _SIZE * len(shown)
        if x > LEFT and x + width > RIGHT:
            x, row = float(LEFT), row + 1
        y = HEIGHT + 4 + row * _ROW
        parts.append(Polyline(((x, y - 0.35 * _SIZE), (x + _SAMPLE, y - 0.35 * _SIZE)), _colour(k), 2.5))
        parts.append(Text((x + _SAMPLE + 6, y), shown))
        x += width + _GAP
    return parts, row + 1 if parts else 0


def _round_step(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= least * (1 - 1e-12))


def _across(radius: float, end: float) -> float:
    return LEFT + (RIGHT - LEFT) * radius / end


def _up(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share


def _colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _plain(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _polyline(part: Polyline) -> str:
    """A curve as polyline, other lines as path: those who read the values find them."""
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in part.points)
    shape = f'polyline points="{points}"' if part.curve else f'path d="M{points}"'
    return f'<{shape} fill="none" stroke="{part.colour}" stroke-width="{part.width:g}" stroke-linejoin="round"/>'


def _text(part: Text) -> str:
    x, y = part.at
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if part.turned else ""
    place = f'x="{x:.2f}" y="{y:.2f}" font-size="{part.size:g}" text-anchor="{part.anchor}"{turn}'
    return f"<text {place}>{escape(part.text)}</text>"


def _write(canvas: Any, part: Text, font: Any, fine: int) -> None:
    """A text in pixels; a turned one by way of a mask."""
    from PIL import Image, ImageDraw

    x, y = (value * fine for value in part.at)
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[part.anchor]
    if not part.turned:
        ImageDraw.Draw(canvas).text((x, y), part.text, fill=_TEXT, font=font, anchor=anchor)
        return
    left, top, right, bottom = (math.floor(v) for v in font.getbbox(part.text, anchor=anchor))
    mask = Image.new("L", (right - left + 1, bottom - top + 1))
    ImageDraw.Draw(mask).text((-left, -top), part.text, fill=255, font=font, anchor=anchor)
    canvas.paste(_TEXT, (round(x) + top, round(y) - mask.width - left), mask.transpose(Image.Transpose.ROTATE_90))
