"""The simulated ground: which class and which materials every 10 m pixel holds.

Districts of about 2.5 km, one land cover each, laid so that every district's neighbours are of other classes and
all classes take an equal share; inside them fields, stands, blocks and streets, and a river through it all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from preprocessing.simulation.noise import Float, Points, fractal, generator, grid, noise, parcels
from preprocessing.simulation.spectra import material_number as number

LANDCOVER = ("none", "water", "forest", "crop", "bare", "built-up")
"""Class names; their positions are the values of a land-cover raster, 0 is no class."""
GSD_M = 10.0
DISTRICT_PX = 256
MIN_DISTRICTS = 3
"""Along one side: nine districts hold all five classes."""

Material = NDArray[np.uint8]


@dataclass(frozen=True)
class Paint:
    """What pixels are made of: two materials, the share of the second, and a brightness; arrays of one shape."""

    first: Material
    """Positions in `MATERIALS`."""
    second: Material
    share: Float
    """Of the second material, 0 to 1."""
    brightness: Float
    """Factor on reflectance, about 1."""


@dataclass(frozen=True)
class Ground:
    """A square piece of ground at 10 m."""

    classes: NDArray[np.uint8]
    """[y, x], positions in `LANDCOVER`."""
    paint: Paint
    """Arrays [y, x]."""


@lru_cache(maxsize=1)
def make_ground(size_px: int, seed: int) -> Ground:
    """Make the ground of a seed, the same for every sensor that looks at it (kept for the next); not to be changed."""
    points = grid(size_px, f"ground {seed}")
    classes, angle_rad = _districts(points)
    # the river comes last: it cuts through whatever it meets
    classes[_river(points)] = LANDCOVER.index("water")
    paint = Paint(
        np.zeros(classes.shape, np.uint8),
        np.zeros(classes.shape, np.uint8),
        np.zeros(classes.shape, np.float32),
        np.ones(classes.shape, np.float32),
    )
    # each class paints its own pixels only, which is five times less work
    for name, painter in _PAINTERS.items():
        chosen = classes == LANDCOVER.index(name)
        part = painter(points.take(chosen, name), angle_rad[chosen])
        paint.first[chosen], paint.second[chosen] = part.first, part.second
        paint.share[chosen], paint.brightness[chosen] = part.share, part.brightness
    return Ground(classes, paint)


def _districts(points: Points) -> tuple[NDArray[np.uint8], Float]:
    """Return each pixel's class and the direction of its district, from a jittered Voronoi diagram."""
    count = max(MIN_DISTRICTS, round(points.size_px / DISTRICT_PX))
    side_px = points.size_px / count
    random = generator(points.key, "districts")
    # centres stay away from cell borders, so that the nearest is never two cells off
    jitter = random.uniform(0.25, 0.75, (2, count + 2, count + 2))
    angles = random.uniform(0, np.pi / 2, (count + 2, count + 2))
    order = random.permutation(len(LANDCOVER) - 1) + 1
    # bent coordinates make borders that no straight line would show
    y = (points.y + 0.25 * side_px * (fractal(points, side_px / 2, "bend y") - 0.5)) / side_px + 1
    x = (points.x + 0.25 * side_px * (fractal(points, side_px / 2, "bend x") - 0.5)) / side_px + 1
    row, column = _nearest(y.astype(np.float32), x.astype(np.float32), jitter)
    # a knight's-move pattern: a cell and its four neighbours are five different classes
    classes = order[(row + 2 * column) % (len(LANDCOVER) - 1)].astype(np.uint8)
    return classes, angles[row, column].astype(np.float32)


def _nearest(y: Float, x: Float, jitter: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of the cell whose jittered centre is nearest; a point's own cell or one beside it."""
    last = jitter.shape[1] - 2
    best = np.full(y.shape, np.inf, np.float32)
    row, column = np.zeros(y.shape, np.int64), np.zeros(y.shape, np.int64)
    for step_y, step_x in product((-1, 0, 1), repeat=2):
        i = np.clip(np.floor(y).astype(np.int64) + step_y, 1, last)
        j = np.clip(np.floor(x).astype(np.int64) + step_x, 1, last)
        distance = (y - i - jitter[0][i, j]) ** 2 + (x - j - jitter[1][i, j]) ** 2
        nearer = distance < best
        best[nearer] = distance[nearer]
        row[nearer], column[nearer] = i[nearer], j[nearer]
    return row, column


def _river(points: Points) -> NDArray[np.bool_]:
    """Return where a meandering river of 60 to 120 m runs from north to south."""
    # one column of points: the course is a function of the row alone
    line = Points(points.y[:, :1], np.zeros_like(points.y[:, :1]), points.size_px, f"{points.key}/river")
    centre = points.size_px * (0.25 + 0.5 * fractal(line, points.size_px / 4, "course"))
    half_width_px = 3 + 3 * noise(line, points.size_px / 8, "width")
    return np.asarray(np.abs(points.x - centre) < half_width_px)


def _choose(draw: Float, shares: dict[str, float]) -> Material:
    """Choose materials by shares (which sum to 1) from random numbers in (0, 1)."""
    edges = np.cumsum(list(shares.values()))[:-1]
    numbers = np.array([number(name) for name in shares], np.uint8)
    return numbers[np.searchsorted(edges, draw)]


def _alike(like: Float, name: str) -> Material:
    return np.full(like.shape, number(name), np.uint8)


def _water(points: Points, angle_rad: Float) -> Paint:
    """Clear water with turbid plumes."""
    turbid = np.clip(2 * fractal(points, 96, "turbid") - 0.6, 0, 1)
    return Paint(
        _alike(turbid, "clear water"),
        _alike(turbid, "turbid water"),
        turbid,
        0.9 + 0.2 * noise(points, 3, "waves"),
    )


def _forest(points: Points, angle_rad: Float) -> Paint:
    """Stands of conifers and broadleaves, with crowns that cast shadow on each other."""
    stand = fractal(points, 48, "stands")
    mixture = np.clip(4 * (stand - 0.4), 0, 1)
    canopy = 0.75 + 0.5 * (0.6 * noise(points, 1.7, "crowns") + 0.4 * noise(points, 12, "age"))
    return Paint(
        _alike(stand, "conifers"),
        _alike(stand, "broadleaves"),
        mixture,
        canopy.astype(np.float32, copy=False),
    )


def _crop(points: Points, angle_rad: Float) -> Paint:
    """Fields of several crops between grassy margins; in one of twelve the crop has not come up yet."""
    fields = parcels(points, angle_rad, (32, 14), "fields")
    crops = {"wheat": 0.36, "maize": 0.3, "rapeseed": 0.1, "grass": 0.16, "dark soil": 0.08}
    first = _choose(fields.draw("crop"), crops)
    margin = (fields.along < 1) | (fields.across < 1)
    first[margin] = number("grass")
    # a thin crop lets the soil show, which spreads NDVI as real fields do
    thin = 0.35 * np.maximum(fields.draw("vigour") - 0.4, 0) + 0.1 * noise(points, 9, "soil")
    rows = np.float32(0.03) * (np.floor(fields.across / 2) % 2)
    return Paint(
        first, _alike(thin, "dark soil"), thin, 0.85 + 0.2 * fields.draw("light") + rows.astype(np.float32)
    )


def _bare(points: Points, angle_rad: Float) -> Paint:
    """Ploughed and fallow fields of light and dark soil, some with stubble."""
    fields = parcels(points, angle_rad, (36, 18), "fields")
    first = _choose(fields.draw("soil"), {"light soil": 0.45, "dark soil": 0.4, "stubble": 0.15})
    weeds = 0.15 * np.clip(3 * fractal(points, 20, "weeds") - 1.6, 0, 1)
    furrows = 0.06 * (np.floor(fields.across / 3) % 2) + 0.12 * noise(points, 7, "moisture")
    return Paint(first, _alike(weeds, "grass"), weeds, 0.8 + 0.25 * fields.draw("light") + furrows)


def _built_up(points: Points, angle_rad: Float) -> Paint:
    """Blocks of houses between streets, gardens behind them, a park here and there."""
    blocks = parcels(points, angle_rad, (14, 10), "blocks")
    houses = parcels(points, angle_rad, (3, 2.5), "houses")
    roofs = {"tiled roof": 0.55, "concrete": 0.25, "asphalt": 0.2}
    first = _choose(houses.draw("roof"), roofs)
    street = (blocks.along < 1.5) | (blocks.across < 1.5)
    first[street] = number("asphalt")
    park = blocks.draw("park") < 0.06
    # parks keep their streets
    first[park & ~street] = number("grass")
    garden = np.where(street, 0.05, 0.35 * houses.draw("garden")).astype(np.float32)
    return Paint(first, _alike(garden, "grass"), garden, 0.75 + 0.5 * houses.draw("light"))


_PAINTERS: dict[str, Callable[[Points, Float], Paint]] = {
    "water": _water,
    "forest": _forest,
    "crop": _crop,
    "bare": _bare,
    "built-up": _built_up,
}
