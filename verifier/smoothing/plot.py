"""Certified accuracy against radius, in SVG without any library: a falling staircase for each log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from verifier.smoothing.curve import Line

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 620, 40, 370
COLOURS = ("#1f4e8c", "#c0392b", "#2e7d32", "#8e5ea2", "#b8860b", "#555555")


def svg(logs: Mapping[str, Sequence[Line]], title: str = "") -> str:
    """The text of an SVG file with one curve for each log, in order; a curve falls at the radius of each input that is
    certified to be right."""
    most = max((line.radius for lines in logs.values() for line in lines if line.correct), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<rect x="{LEFT}" y="{TOP}" width="{RIGHT - LEFT}" height="{BOTTOM - TOP}" fill="none" stroke="#888"/>',
        f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 12}" text-anchor="middle">radius</text>',
    ]
    for k in range(6):
        x, y = LEFT + (RIGHT - LEFT) * k / 5, BOTTOM - (BOTTOM - TOP) * k / 5
        parts.append(f'<text x="{x:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{most * k / 5:.3g}</text>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{20 * k} %</text>')
    for k, (name, lines) in enumerate(logs.items()):
        colour = COLOURS[k % len(COLOURS)]
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in _stairs(lines, most))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        place = f'x="{RIGHT - 8}" y="{TOP + 16 + 14 * k}" text-anchor="end" fill="{colour}"'
        parts.append(f"<text {place}>{escape(name)}</text>")
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', *parts, "</svg>"]) + "\n"


def _stairs(lines: Sequence[Line], most: float) -> list[tuple[float, float]]:
    """The corners of a curve."""
    radii = sorted(line.radius for line in lines if line.correct)
    count = max(1, len(lines))
    points = [(float(LEFT), _height(len(radii) / count))]
    for k, radius in enumerate(radii):
        x = LEFT + (RIGHT - LEFT) * radius / most
        points += [(x, points[-1][1]), (x, _height((len(radii) - k - 1) / count))]
    return points


def _height(share: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * share
