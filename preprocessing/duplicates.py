"""Scenes that show the same ground at the same moment: which of them is used, and what the others still add.

Two products of one acquisition over one tile are two processing baselines, a product that was copied, or the halves
of a split acquisition. Names and orbit numbers are not needed: place and time decide, and where a product states no
time, its pixels. The later version goes first; another gives only ground that the first has not, and nothing where
that is hardly any. Tiles of neighbouring products overlap too, but are other views of the ground: all are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from pipeline.errors import SceneError
from pipeline.sample import Flag
from preprocessing import grids
from preprocessing.grids import Grid
from preprocessing.scenes import Scene

SAME_TILE = 0.9
"""Two extents are one tile where their common part is this share of both together."""
SAME_TIME = timedelta(minutes=10)
"""No satellite sees the same ground again within an orbit, which takes 98 minutes."""
LITTLE = 0.02
"""A scene that adds less than this share of its ground is left out."""
COARSE_PX = 256
"""Longest side of the raster in which ground is compared."""


@dataclass(frozen=True)
class Place:
    """A scene, the grid it will be stored on, and when it was taken."""

    scene: Scene
    grid: Grid
    time: datetime | None

    @classmethod
    def of(cls, scene: Scene, grid: Grid) -> Place:
        """Read the time of a scene; None where it states none."""
        try:
            time = datetime.fromisoformat(scene.acquired)
        except ValueError:
            return cls(scene, grid, None)
        # one that states no zone is in UTC, as all satellites' are
        return cls(scene, grid, time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Decision:
    """What became of a scene that shows ground another of the same acquisition shows."""

    scene: str
    product: str
    of: tuple[str, ...]
    """The scenes that were preferred."""
    new_share: float
    """Share of its ground that they do not have."""
    kept: bool
    """Whether it still gave tiles where it has ground of its own."""

    @property
    def text(self) -> str:
        """Say it to people."""
        first = f"{self.scene} is the same acquisition as {' and '.join(self.of)}"
        rest = "only its own ground is used" if self.kept else "it is left out"
        return f"{first} and adds {self.new_share:.0%} of its ground: {rest}"


def acquisitions(places: Iterable[Place]) -> list[list[Place]]:
    """Group scenes of one acquisition over one tile; each group has two or more, the preferred one first."""
    groups: list[list[Place]] = []
    for near in _neighbours(places):
        rest = near
        while rest:
            same = [p for p in rest if p is rest[0] or _same(rest[0], p)]
            rest = [p for p in rest if not any(p is s for s in same)]
            if len(same) > 1:
                groups.append(_ranked(same))
    return sorted(groups, key=lambda group: group[0].scene.id)


def _ranked(same: Sequence[Place]) -> list[Place]:
    by_name = sorted(same, key=lambda p: (p.scene.id, str(p.scene.location)))
    # stable: of equal versions the first name leads
    return sorted(by_name, key=lambda p: p.scene.version, reverse=True)


def _neighbours(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Yield scenes that may be one acquisition: a thousand scenes are not compared each with each."""
    cells: dict[object, list[Place]] = defaultdict(list)
    for place in places:
        left, bottom, right, top = place.grid.bounds
        size = math.log2(abs(right - left) + abs(top - bottom))
        kind = (place.scene.sensor, place.scene.level, place.grid.crs.to_string(), place.time is None)
        # two extents of one tile have nearly one size and one centre; on a border of two cells a pair would be torn
        # apart, so that each scene stands in all cells that are half a cell away as well
        for more, dx, dy in product((0.0, 0.5), repeat=3):
            side = 2.0 ** round(size + more)
            x, y = round((left + right) / side + dx), round((bottom + top) / side + dy)
            cells[kind, more, side, dx, dy, x, y].append(place)
    found = [near for near in cells.values() if len(near) > 1]
    # the same pair comes in several cells, and each scene may stand in one group only
    yield from _merged(found)


def _merged(found: list[list[Place]]) -> Iterator[list[Place]]:
    """Unite lists that share a scene."""
    root: dict[int, int] = {}

    def top(k: int) -> int:
        while root.setdefault(k, k) != k:
            k = root[k]
        return k

    known = {id(p): p for near in found for p in near}
    for near in found:
        for place in near[1:]:
            root[top(id(place))] = top(id(near[0]))
    united: dict[int, list[Place]] = defaultdict(list)
    for number, place in known.items():
        united[top(number)].append(place)
    yield from united.values()


def _same(one: Place, other: Place) -> bool:
    if _common(one.grid, other.grid) < SAME_TILE:
        return False
    if one.time is None or other.time is None:
        # nothing says when: only equal pixels prove it
        return _pixel_digest(one.scene) == _pixel_digest(other.scene)
    return abs(one.time - other.time) <= SAME_TIME


def _common(one: Grid, other: Grid) -> float:
    """Return the common part of two extents as a share of both together."""
    if one.crs != other.crs:
        return 0.0
    (a0, b0, a1, b1), (c0, d0, c1, d1) = (_upright(g) for g in (one, other))
    common = max(min(a1, c1) - max(a0, c0), 0) * max(min(b1, d1) - max(b0, d0), 0)
    return common / ((a1 - a0) * (b1 - b0) + (c1 - c0) * (d1 - d0) - common)


def _upright(grid: Grid) -> grids.Box:
    left, bottom, right, top = grid.bounds
    return left, min(bottom, top), right, max(bottom, top)


def _coarse(path: str) -> NDArray[np.generic]:
    with grids.opened(path) as source:
        step = max(source.height, source.width) / COARSE_PX
        shape = tuple(max(round(side / max(step, 1)), 1) for side in (source.height, source.width))
        pixels: NDArray[np.generic] = source.read(1, out_shape=shape, resampling=Resampling.nearest)
        return pixels


def _pixel_digest(scene: Scene) -> str:
    try:
        return hashlib.sha256(_coarse(scene.bands[0].path).tobytes()).hexdigest()
    except (RasterioError, SceneError):
        # whoever decodes it says so; it is equal to nothing
        return scene.id


def measured(scene: Scene) -> NDArray[np.bool_]:
    """Return coarsely where a scene has data, [y, x] over its extent.

    Raises `RasterioError` where that layer cannot be read.
    """
    for mask in scene.masks:
        empty = [code for code, flags in mask.classes.items() if flags & Flag.NODATA]
        bits = [1 << bit for bit, flags in mask.bits.items() if flags & Flag.NODATA]
        if empty or bits:
            codes = _coarse(mask.path).astype(np.int64)
            return np.asarray(~(np.isin(codes, empty) | ((codes & sum(bits)) != 0)))
    return np.asarray(_coarse(scene.bands[-1].path) != scene.bands[-1].nodata_dn)


def new_share(place: Place, others: Sequence[Place]) -> float:
    """Return the share of a scene's measured ground that none of the others measured."""
    ours = measured(place.scene)
    missing = ours.copy()
    for other in others:
        missing &= ~_on_grid(measured(other.scene), other.grid, ours.shape, place.grid)
    return float(missing.sum() / max(ours.sum(), 1))


def _on_grid(data: NDArray[np.bool_], its: Grid, shape: tuple[int, ...], ours: Grid) -> NDArray[np.bool_]:
    """Look coarse data up at the centres of other coarse cells; outside is False."""
    left, bottom, right, top = ours.bounds
    its_left, its_bottom, its_right, its_top = its.bounds
    x = left + (right - left) * (np.arange(shape[1]) + 0.5) / shape[1]
    y = top + (bottom - top) * (np.arange(shape[0]) + 0.5) / shape[0]
    columns = np.floor((x - its_left) / (its_right - its_left) * data.shape[1]).astype(int)
    rows = np.floor((y - its_top) / (its_bottom - its_top) * data.shape[0]).astype(int)
    inside = np.ix_((rows >= 0) & (rows < data.shape[0]), (columns >= 0) & (columns < data.shape[1]))
    found = np.zeros(shape, bool)
    found[inside] = data[np.ix_(rows[inside[0].ravel()], columns[inside[1].ravel()])]
    return found
