"""The drawings of the quality page, as inline SVG: a map, histograms, bars, maps of tiles."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from preprocessing import pictures
from preprocessing.pictures import Picture

COLOURS = {
    "train": "#2a9d6f", "val": "#3a6fd8", "test": "#7a4fd0", "buffer": "#c7ccd4", "duplicate": "#b48ad6",
    "nodata": "#3c424b", "saturated": "#e0489a", "cloud": "#8fc4e8", "shadow": "#7d8897", "cirrus": "#bfe0f2",
    "snow": "#63cfd6", "unlisted": "#e5d9bf", "other": "#dba43c",
}  # fmt: skip
"""What became of tiles."""
Placing = Callable[[float, float], tuple[float, float]]
"""Longitude and latitude to x and y of a drawing."""
LEAST_PX = 7
"""A footprint smaller than this on the map becomes a dot."""


@dataclass(frozen=True)
class Footprint:
    """A scene on the map."""

    name: str
    corners: Sequence[Sequence[float]]
    """[corner, (longitude, latitude)], degrees."""
    clear_share: float


@dataclass(frozen=True)
class Histogram:
    """One small histogram."""

    title: str
    after: Sequence[int]
    before: Sequence[int] = ()
    ends: tuple[float, float] = (0.0, 1.0)
    """Values at the left and right end."""
    marks: tuple[float, ...] = ()
    """Values with a line: quantiles."""
    note: str = ""


def image(picture: Picture, style: str = "", title: str = "") -> str:
    """Embed a picture."""
    data = base64.b64encode(pictures.png(picture)).decode()
    return f'<img src="data:image/png;base64,{data}" style="{style}" title="{escape(title)}" alt="{escape(title)}">'


def footprint_map(footprints: Sequence[Footprint], width: int = 900, height: int = 420) -> str:
    """Draw scenes on a map with parallels and meridians; the bluer, the clearer."""
    points = np.concatenate([np.asarray(f.corners, np.float64) for f in footprints])
    middle, low, high = (points.min(0) + points.max(0)) / 2, points.min(0), points.max(0)
    # one degree of longitude is shorter than one of latitude
    squeeze = max(math.cos(math.radians(float(middle[1]))), 0.05)
    span = max(float(high[0] - low[0]) * squeeze / width, float(high[1] - low[1]) / height, 1e-6) * 1.25

    def place(lon: float, lat: float) -> tuple[float, float]:
        return width / 2 + (lon - middle[0]) * squeeze / span, height / 2 - (lat - middle[1]) / span

    parts = [
        f'<svg viewBox="0 0 {width} {height}" class="map"><rect width="{width}" height="{height}" class="sea"/>'
    ]
    reach = (width * span / squeeze / 2, height * span / 2)
    parts += _graticule((float(middle[0]), float(middle[1])), reach, place, (width, height))
    # the clearest last and so on top: of many dates of one place it is the one to see
    for footprint in sorted(footprints, key=lambda f: f.clear_share):
        parts.append(_outline(footprint, [place(*c) for c in footprint.corners]))
    return "".join([*parts, "</svg>"])


def _outline(footprint: Footprint, corners: Sequence[tuple[float, float]]) -> str:
    title = f"<title>{escape(footprint.name)}: {footprint.clear_share:.0%} clear</title>"
    fill = blue(footprint.clear_share)
    x, y = zip(*corners, strict=True)
    if max(max(x) - min(x), max(y) - min(y)) < LEAST_PX:
        at = f'cx="{sum(x) / len(x):.1f}" cy="{sum(y) / len(y):.1f}"'
        return f'<circle {at} r="{LEAST_PX / 2}" fill="{fill}" class="scene">{title}</circle>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return f'<polygon points="{points}" fill="{fill}" class="scene">{title}</polygon>'


def _graticule(
    middle: tuple[float, float], reach: tuple[float, float], place: Placing, size: tuple[int, int]
) -> list[str]:
    parts = []
    step = nice(max(reach) / 3)
    for axis, letters in enumerate(("WE", "SN")):
        first = math.ceil((middle[axis] - reach[axis]) / step)
        last = math.floor((middle[axis] + reach[axis]) / step)
        for number in range(first, last + 1):
            value = number * step
            label = f"{abs(value):.6g}° {letters[value > 0] if value else ''}"
            x, y = place(value, middle[1]) if axis == 0 else place(middle[0], value)
            line = f"M{x:.1f} 0V{size[1]}" if axis == 0 else f"M0 {y:.1f}H{size[0]}"
            at = f'x="{x + 4:.1f}" y="{size[1] - 6}"' if axis == 0 else f'x="6" y="{y - 4:.1f}"'
            parts.append(f'<path d="{line}" class="line"/><text {at} class="small">{label}</text>')
    return parts


def nice(rough: float) -> float:
    """Return 1, 2 or 5 times a power of ten near a value."""
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(f for f in (1, 2, 5, 10) if rough <= f * power)


def blue(share: float) -> str:
    """Return a colour from pale (0) to deep blue (1)."""
    low, high = (222, 226, 230), (12, 92, 148)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def histogram(one: Histogram, width: int = 260, height: int = 110) -> str:
    """Draw counts after (filled) over counts before (a line), each in its own height."""
    body = height - 18
    parts = [f"<figure><figcaption>{escape(one.title)}<span>{escape(one.note)}</span></figcaption>"]
    parts.append(f'<svg viewBox="0 0 {width} {height}">')
    for mark in one.marks:
        x = (mark - one.ends[0]) / (one.ends[1] - one.ends[0]) * width
        parts.append(f'<path d="M{x:.1f} 0V{body}" class="mark"/>')
    parts.append(f'<path d="{_area(one.after, width, body)}Z" class="after"/>')
    if any(one.before):
        parts.append(f'<path d="{_area(one.before, width, body)}" class="before"/>')
    for value, anchor, x in (
        (one.ends[0], "start", 0), (sum(one.ends) / 2, "middle", width / 2), (one.ends[1], "end", width)
    ):  # fmt: skip
        parts.append(f'<text x="{x}" y="{height - 4}" text-anchor="{anchor}" class="small">{value:g}</text>')
    return "".join([*parts, f'<path d="M0 {body}H{width}" class="axis"/></svg></figure>'])


def _area(counts: Sequence[int], width: float, height: float) -> str:
    # 1: a histogram that counted nothing must not divide by 0
    most = max([*counts, 1])
    step = width / max(len(counts), 1)
    tops = [(k * step, height - n / most * (height - 6)) for k, n in enumerate(counts)]
    return f"M0 {height}" + "".join(f"L{x:.1f} {y:.1f}H{x + step:.1f}" for x, y in tops) + f"V{height}"


def stacked(parts: Mapping[str, int], width: int = 220, height: int = 12) -> str:
    """Draw one bar of coloured parts."""
    total, x, drawn = max(sum(parts.values()), 1), 0.0, []
    for name, n in parts.items():
        wide = n / total * width
        title = f"<title>{escape(name)}: {n}</title>"
        drawn.append(
            f'<rect x="{x:.1f}" width="{wide:.1f}" height="{height}" fill="{colour(name)}">{title}</rect>'
        )
        x += wide
    return f'<svg viewBox="0 0 {width} {height}" class="bar" style="width:{width}px">{"".join(drawn)}</svg>'


def colour(name: str) -> str:
    """Return the colour of what became of a tile."""
    return COLOURS.get(name, COLOURS["other"])


def legend(names: Sequence[str]) -> str:
    """Name the colours."""
    items = (f'<span><i style="background:{colour(n)}"></i>{escape(n)}</span>' for n in names)
    return f'<p class="legend">{"".join(items)}</p>'


def tile_map(rows: Sequence[str], letters: Mapping[str, str], title: str, side_px: int = 132) -> str:
    """Draw what became of every tile of a scene, a square each; side_px: longest side."""
    if not rows or not rows[0]:
        return ""
    table = {letter: tuple(bytes.fromhex(colour(name)[1:])) for letter, name in letters.items()}
    picture = np.array([[table[letter] for letter in row] for row in rows], np.uint8).transpose(2, 0, 1)
    # large scenes have a hundred tiles a side, small ones a few: there each gets a border
    side = max(min(side_px // max(picture.shape[1:]), 20), 1)
    large = picture.repeat(side, 1).repeat(side, 2)
    if side >= LEAST_PX:
        large[:, ::side] = large[:, :, ::side] = 255
    return image(large, f"width:{large.shape[2]}px;max-width:100%;image-rendering:pixelated", title)
