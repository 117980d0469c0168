"""Curves over each other as inline SVG, for a page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

from training.panels import Curve

COLOURS = (
    "#0c5c94",
    "#d9772b",
    "#2a9d6f",
    "#b3387a",
    "#7a4fd0",
    "#8a6d3b",
    "#4f9fc8",
    "#c0392b",
    "#5d6d7e",
    "#9aa51f",
)
_MOST_POINTS = 400
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 460, 240, 58, 24


def colour(number: int) -> str:
    """Return the colour of a run by its number, the same in all drawings of a page."""
    return COLOURS[number % len(COLOURS)]


def thinned(points: Curve) -> list[tuple[float, float]]:
    """Return at most some hundred points: means of neighbours where there are more."""
    each = math.ceil(len(points) / _MOST_POINTS) or 1
    groups = (points[start : start + each] for start in range(0, len(points), each))
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def svg(metric: str, lines: Mapping[str, Curve], colours: Mapping[str, str]) -> str:
    """Draw a metric of several runs over the steps; hovering over a curve names its run."""
    drawn = {name: thinned(points) for name, points in lines.items()}
    steps, values = zip(*(p for points in drawn.values() for p in points), strict=True)
    (left, right), (low, high) = _ends(steps), _ends(values)

    def place(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (step - left) / (right - left) * (_WIDTH - _LEFT - 8)
        return x, 8 + (high - value) / (high - low) * (_HEIGHT - _BOTTOM - 8)

    parts = [f'<figure><figcaption>{escape(metric)}</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}">']
    for value in _ticks(low, high):
        y = place(left, value)[1]
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 8}" class="line"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in _ticks(left, right):
        x = place(step, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{step:.4g}</text>')
    parts += [_line(name, [place(*p) for p in points], colours[name]) for name, points in drawn.items()]
    return "".join([*parts, "</svg></figure>"])


def _line(name: str, places: Sequence[tuple[float, float]], stroke: str) -> str:
    title = f"<title>{escape(name)}</title>"
    if len(places) == 1:  # a line through one point is invisible
        ((x, y),) = places
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{stroke}">{title}</circle>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline points="{points}" stroke="{stroke}">{title}</polyline>'


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # a flat curve, or one point, stands in the middle
    spread = (high - low) or abs(high) or 1.0
    return (low, high) if high > low else (low - spread / 2, high + spread / 2)


def _ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers between two."""
    return [float(v) for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high]
