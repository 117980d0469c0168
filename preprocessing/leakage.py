"""The leakage check: whether any validation tile shares ground with a training tile.

Ground blocks keep them apart by construction; this looks at the tiles as they were cut, of all scenes, dates and map
projections, and would also find what a wrong list of splits lets through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing import tiling
from preprocessing.spool import Spool
from preprocessing.tiling import Floats, Tile

TOUCH_M = 1.0
"""Tiles that overlap by no more than this lie side by side."""
TOLD = 20
"""Pairs named in the report; the others are counted."""


@dataclass(frozen=True)
class Leakage:
    """Pairs of tiles of different splits that share ground."""

    pairs: int
    compared: int
    """Tiles that were looked at."""
    examples: tuple[tuple[str, str], ...]
    """Sample keys of the first pairs."""


@dataclass(frozen=True)
class Footprints:
    """Tiles of one split: corners [tile, 4, (x, y)] on the equal-area plane, and their keys."""

    corners: Floats
    keys: tuple[str, ...]


def check(spools: Sequence[Spool]) -> Leakage:
    """Compare the training tiles of all scenes with those of every other split."""
    train = footprints(spools, lambda split: split == "train")
    held_out = footprints(spools, lambda split: split != "train")
    pairs = list(overlaps(train, held_out))
    told = tuple((train.keys[i], held_out.keys[j]) for i, j in pairs[:TOLD])
    return Leakage(len(pairs), len(train.keys) + len(held_out.keys), told)


def footprints(spools: Iterable[Spool], wanted: Callable[[str], bool]) -> Footprints:
    """Return the footprints of the tiles whose split is wanted (a function of its name)."""
    corners, keys = [np.zeros((0, 4, 2))], []
    for made in spools:
        chosen = [s for s in made.segments if wanted(s.split)]
        if chosen:
            corners.append(on_plane(made, [(s.row_px, s.column_px) for s in chosen]))
            keys += [s.key for s in chosen]
    return Footprints(np.concatenate(corners), tuple(keys))


def on_plane(made: Spool, places: Sequence[tuple[int, int]]) -> Floats:
    """Return corners [tile, 4, (x, y)] of a scene's tiles (row, column) on the equal-area plane, in metres."""
    side = made.profile.tile_px
    lon, lat = tiling.corners([Tile(r, c, side, 1, 1) for r, c in places], made.profile.grid.lonlat)
    # one plane for all projections, or tiles of two zones could not be compared
    return np.stack(tiling.equal_area(tiling.unwrap(lon), lat), axis=-1)


def overlaps(train: Footprints, others: Footprints) -> Iterable[tuple[int, int]]:
    """Yield pairs (training tile, other tile) that overlap, by number; only near ones are compared."""
    if not len(train.corners) or not len(others.corners):
        return
    # a grid of the largest tile's size: what overlaps lies in the same or a neighbouring cell
    cell_m = float(max(np.ptp(f.corners, axis=1).max() for f in (train, others)))
    near: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, box in enumerate(_boxes(others.corners)):
        for place in tiling.blocks(box, cell_m):
            near[place].append(number)
    for number, box in enumerate(_boxes(train.corners)):
        candidates = sorted({k for place in tiling.blocks(box, cell_m) for k in near.get(place, ())})
        yield from ((number, k) for k in candidates if _overlap(train.corners[number], others.corners[k]))


def _boxes(corners: Floats) -> list[tuple[float, float, float, float]]:
    low, high = corners.min(1), corners.max(1)
    return [(float(a), float(b), float(c), float(d)) for (a, b), (c, d) in zip(low, high, strict=True)]


def _overlap(one: Floats, other: Floats) -> bool:
    """Say whether two convex quadrilaterals [4, 2] overlap: no edge of either separates them."""
    # beyond the 180th meridian the same ground has another x
    shifts = (0.0, 2 * tiling.HALF_WORLD_M, -2 * tiling.HALF_WORLD_M)
    return any(not _separated(one, other + np.array([shift, 0.0])) for shift in shifts)


def _separated(one: Floats, other: Floats) -> bool:
    edges = np.concatenate([np.roll(q, -1, 0) - q for q in (one, other)])
    normals: NDArray[np.float64] = np.stack([-edges[:, 1], edges[:, 0]], -1)
    # in metres, so that TOUCH_M means something
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    a, b = one @ normals.T, other @ normals.T
    return bool(((a.max(0) <= b.min(0) + TOUCH_M) | (b.max(0) <= a.min(0) + TOUCH_M)).any())
