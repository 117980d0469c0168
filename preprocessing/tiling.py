"""Which tiles a scene gives, and which of them train or validate. Pure: no files, no clock.

Tiles lie on the cell grid, so that cell statistics fit them. Ground is split by blocks of a fixed global
equal-area grid, so that scenes of any date, tile or sensor agree on which ground validates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.keys import hash_text
from pipeline.sample import Flag
from preprocessing import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Edge = Literal["drop", "shift", "pad"]
_A_M, _E2 = 6378137.0, 0.00669437999014
"""WGS 84."""
_E = math.sqrt(_E2)
_K0 = math.cos(math.radians(30)) / math.sqrt(1 - _E2 * math.sin(math.radians(30)) ** 2)
"""Standard parallel of 30 degrees, as EPSG:6933."""
HALF_WORLD_M = _A_M * _K0 * math.pi
MOSTLY = 0.5
"""A tile of which another scene has given this share is a duplicate."""


@dataclass(frozen=True)
class Tile:
    """A square of a scene."""

    row_px: int
    """First row."""
    column_px: int
    """First column."""
    size_px: int
    valid_share: float
    """Share of pixels with a measurement in every band."""
    clear_share: float
    """Share of pixels that are valid and not excluded by a flag."""
    split: str = "train"


@dataclass(frozen=True)
class TileRule:
    """How tiles are laid and which are kept."""

    tile_px: int
    step_px: int
    cell_px: int
    min_valid: float
    min_clear: float
    unclear_bits: Flag
    edge: Edge = "drop"
    """What becomes of ground at the far edges that is less than a tile."""

    def starts(self, side_px: int) -> Ints:
        """Return the first pixel of every tile along a side of a scene."""
        # a rest smaller than a cell has no statistics, so that only padding reaches it
        usable = side_px if self.edge == "pad" else side_px // self.cell_px * self.cell_px
        last = usable - self.tile_px
        inside = np.arange(0, last + 1, self.step_px) if last >= 0 else np.arange(0)
        covered, following = (inside[-1] + self.tile_px, inside[-1] + self.step_px) if inside.size else (0, 0)
        if covered >= usable or (self.edge != "pad" and (self.edge == "drop" or last < 0)):
            return inside
        # a stride beyond the tile may leave nothing to pad
        more = last if self.edge == "shift" else following
        return np.append(inside, more) if more < usable else inside


@dataclass(frozen=True)
class Lattice:
    """Where tiles may lie: the first row and the first column of each, in the scene."""

    tops: Ints
    lefts: Ints


@dataclass(frozen=True)
class SplitRule:
    """How ground is divided; `in_validation` decides a block of the equal-area grid."""

    val_share: float
    block_m: float
    buffer_m: float
    seed: int

    def in_validation(self, block_x: int, block_y: int) -> bool:
        """Say whether a ground block validates: a pure function of the seed and the block's place."""
        return hash_text(self.seed, block_x, block_y) < self.val_share * 2.0**64


Footprints = Callable[[Floats, Floats], tuple[Floats, Floats]]
"""Columns and rows of pixel corners [n] -> longitude and latitude [n], degrees."""


@dataclass(frozen=True)
class Ground:
    """What decides by place."""

    split: SplitRule
    footprint: Footprints
    taken: NDArray[np.bool_] | None = None
    """[y / cell, x / cell] of the scene: ground that another scene of the same acquisition has given already."""


@dataclass(frozen=True)
class Choice:
    """The tiles of a scene, and what became of every place one could lie."""

    tiles: list[Tile]
    """Kept, with their split, row by row."""
    fates: NDArray[np.str_]
    """[row, column] of the tile grid: the split, or the reason for dropping."""

    @property
    def dropped(self) -> dict[str, int]:
        """Number of tiles dropped, by reason."""
        splits = {t.split for t in self.tiles}
        counts = Counter(str(fate) for fate in self.fates.ravel())
        return {reason: n for reason, n in sorted(counts.items()) if reason not in splits}

    @classmethod
    def together(cls, parts: Sequence[Choice]) -> Choice:
        """Return the choice of a scene from those of its parts, from the top down."""
        fates = [part.fates for part in parts] or [np.zeros((0, 0), "<U16")]
        return cls([tile for part in parts for tile in part.tiles], np.vstack(fates))


def choose(
    mask: NDArray[np.uint8], lattice: Lattice, rule: TileRule, ground: Ground, top_px: int = 0
) -> Choice:
    """Choose among the tiles of a mask [y, x] of flags, and divide them between training and validation.

    top_px: row of the scene that the mask begins with, a whole number of cells.
    """
    good, fates = tiles(mask, lattice, rule, top_px)
    left = good if ground.taken is None else _not_taken(good, ground.taken, rule)
    kept, between = split(left, ground.split, ground.footprint)
    named = [(t, t.split) for t in kept] + [(t, "buffer") for t in between]
    places = {(t.row_px, t.column_px) for t in left}
    named += [(t, "duplicate") for t in good if (t.row_px, t.column_px) not in places]
    rows, columns = ({int(start): k for k, start in enumerate(s)} for s in (lattice.tops, lattice.lefts))
    for tile, fate in named:
        fates[rows[tile.row_px], columns[tile.column_px]] = fate
    return Choice(kept, fates)


def _not_taken(good: list[Tile], taken: NDArray[np.bool_], rule: TileRule) -> list[Tile]:
    """Return the tiles of which less than half is taken."""
    side, cell = rule.tile_px // rule.cell_px, rule.cell_px

    def share(tile: Tile) -> float:
        top, left = tile.row_px // cell, tile.column_px // cell
        # over the edge there is no ground to take
        return float(taken[top : top + side, left : left + side].sum()) / side**2

    return [tile for tile in good if share(tile) < MOSTLY]


def tiles(
    mask: NDArray[np.uint8], lattice: Lattice, rule: TileRule, top_px: int = 0
) -> tuple[list[Tile], NDArray[np.str_]]:
    """Lay tiles over a mask [y, x] of flags; returns those good enough, and why each of the others is not.

    top_px: as in `choose`. Reasons, [row, column] of the lattice: `nodata`, or the flag that covers most of a tile
    that is not clear enough; empty for a good one.
    """
    places = Lattice(lattice.tops - top_px, lattice.lefts)
    # flag by flag, to tell why a tile is dropped; most flags are nowhere in most scenes
    there = int(np.bitwise_or.reduce(mask, axis=None, initial=0)) & int(rule.unclear_bits)
    named = [f for f in Flag if f & there and f is not Flag.NODATA]
    bits = [int(f) for f in (Flag.NODATA, rule.unclear_bits, *named)]
    missing, unclear, *flagged = kernel.bit_counts(mask, bits, rule.cell_px)
    valid, clear = (_window_shares(rule.cell_px**2 - counts, places, rule) for counts in (missing, unclear))
    covers = {
        str(f.name).lower(): _window_shares(n, places, rule) for f, n in zip(named, flagged, strict=True)
    }
    reasons = _reasons(valid, clear, covers, rule)
    kept = [
        Tile(
            int(lattice.tops[i]), int(lattice.lefts[j]), rule.tile_px, float(valid[i, j]), float(clear[i, j])
        )
        for i, j in np.argwhere(reasons == "").tolist()
    ]
    return kept, reasons


def _reasons(valid: Floats, clear: Floats, covers: dict[str, Floats], rule: TileRule) -> NDArray[np.str_]:
    """Return why each tile is dropped, [row, column]; empty for one that is kept."""
    reasons = np.zeros(valid.shape, "<U16")
    if covers:
        names, shares = np.array(list(covers)), np.stack(list(covers.values()))
        # a tile can be cloudy and shaded: the larger part is the reason
        most = np.where(shares.max(0) > 0, names[shares.argmax(0)], "nodata")
    else:
        most = np.full(valid.shape, "nodata")
    unclear = clear < rule.min_clear
    reasons[unclear] = most[unclear]
    reasons[valid < rule.min_valid] = "nodata"
    return reasons


def _window_shares(counts: NDArray[np.int32], places: Lattice, rule: TileRule) -> Floats:
    """Return the share of counted pixels of every tile, [row, column], by a summed-area table over cells [y, x]."""
    height, width = counts.shape
    cell, side = rule.cell_px, rule.tile_px // rule.cell_px
    table = np.zeros((height + 1, width + 1), np.int64)
    table[1:, 1:] = counts.cumsum(0, dtype=np.int64).cumsum(1)
    top, left = places.tops // cell, places.lefts // cell
    sums: NDArray[np.int64] = (
        table[np.ix_(top + side, left + side)]
        - table[np.ix_(top, left + side)]
        - table[np.ix_(top + side, left)]
        + table[np.ix_(top, left)]
    )
    shares: Floats = sums / rule.tile_px**2
    return shares


def split(found: list[Tile], rule: SplitRule, footprint: Footprints) -> tuple[list[Tile], list[Tile]]:
    """Assign tiles to `train` or `val`; returns them, and those dropped for lying between.

    A tile validates if it lies wholly on validation ground, and trains if it keeps `buffer_m` away from it.
    """
    # no projection is needed where there is nothing to divide
    if rule.val_share == 0 or not found:
        return found, []
    sides = list(zip(found, _sides(found, rule, footprint), strict=True))
    return [replace(t, split=s) for t, s in sides if s], [t for t, s in sides if not s]


def _sides(found: list[Tile], rule: SplitRule, footprint: Footprints) -> Iterator[str]:
    """Yield `train`, `val` or nothing for every tile."""
    lon, lat = corners(found, footprint)
    x, y = equal_area(unwrap(lon), lat)
    along_x, along_y = stretch(np.abs(lat).max(1))
    for k in range(len(found)):
        box = (x[k].min(), y[k].min(), x[k].max(), y[k].max())
        # wholly inside: a tile half on training ground would leak into it
        if all(rule.in_validation(*b) for b in blocks(box, rule.block_m)):
            yield "val"
            continue
        # the plane keeps areas, not lengths: a metre is another length at every latitude
        dx, dy = rule.buffer_m * along_x[k], rule.buffer_m * along_y[k]
        grown = (box[0] - dx, box[1] - dy, box[2] + dx, box[3] + dy)
        yield "" if any(rule.in_validation(*b) for b in blocks(grown, rule.block_m)) else "train"


def corners(found: Sequence[Tile], footprint: Footprints) -> tuple[Floats, Floats]:
    """Return longitude and latitude of every tile's four corners, [tile, 4]."""
    # clockwise from the upper left
    column = np.array([[t.column_px, t.column_px + t.size_px] for t in found], np.float64)[:, [0, 1, 1, 0]]
    row = np.array([[t.row_px, t.row_px + t.size_px] for t in found], np.float64)[:, [0, 0, 1, 1]]
    lon, lat = footprint(column.ravel(), row.ravel())
    return lon.reshape(-1, 4), lat.reshape(-1, 4)


def unwrap(lon: Floats) -> Floats:
    """Make the corners [tile, 4] of tiles across the 180th meridian neighbours: longitudes beyond 180."""
    # no tile is half a world wide: such a span means the 180th meridian
    across = np.ptp(lon, axis=1, keepdims=True) > 180
    return np.where(across & (lon < 0), lon + 360, lon)


def equal_area(lon: Floats, lat: Floats) -> tuple[Floats, Floats]:
    """Project degrees of any shape to metres on the global cylindrical equal-area plane (EPSG:6933's formulas)."""
    sine = np.sin(np.radians(lat))
    q = (1 - _E2) * (sine / (1 - _E2 * sine**2) - np.log((1 - _E * sine) / (1 + _E * sine)) / (2 * _E))
    return _A_M * _K0 * np.radians(lon), _A_M * q / (2 * _K0)


def stretch(lat: Floats) -> tuple[Floats, Floats]:
    """Return how many metres of the equal-area plane a metre on the ground is, along x and along y.

    lat: degrees [n].
    """
    # at the pole itself a parallel has no length
    phi = np.radians(np.clip(lat, -89.9, 89.9))
    along_x = _K0 * np.sqrt(1 - _E2 * np.sin(phi) ** 2) / np.cos(phi)
    return along_x, 1 / along_x


def blocks(box: tuple[float, float, float, float], block_m: float) -> Iterator[tuple[int, int]]:
    """Yield the blocks a box (x0, y0, x1, y1) on the plane touches; beyond the 180th meridian x starts anew."""
    x0, y0, x1, y1 = box
    spans = [(max(x0, -HALF_WORLD_M), min(x1, HALF_WORLD_M))]
    if x1 > HALF_WORLD_M:
        spans.append((-HALF_WORLD_M, x1 - 2 * HALF_WORLD_M))
    if x0 < -HALF_WORLD_M:
        spans.append((x0 + 2 * HALF_WORLD_M, HALF_WORLD_M))
    for low, high in spans:
        for block_x in range(math.floor(low / block_m), math.floor(high / block_m) + 1):
            for block_y in range(math.floor(y0 / block_m), math.floor(y1 / block_m) + 1):
                yield block_x, block_y


def key(scene: str, tile: Tile) -> str:
    """Return the sample key of a tile: `SCENE_ROW_COLUMN`, in pixels."""
    return f"{scene}_{tile.row_px:05d}_{tile.column_px:05d}"
