"""Where a scene lies and what it looks like, in counts: what the quality report draws, small enough for a record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline import histogram as histograms
from pipeline.sample import NODATA, Flag
from preprocessing import kernel
from preprocessing.grids import Grid
from preprocessing.kernel import Pixels
from preprocessing.strips import Window
from preprocessing.tiling import Choice, TileRule

BIN = 50
"""Stored units in a bin of a scene's band histogram: half a percent of reflectance."""
LOWEST, HIGHEST = -1_000, 12_000
"""Stored values at the ends of a band histogram; others count in the outer bins."""
INDEX_BINS = 80
"""Bins of an index histogram over [-1, 1]."""
ROWS = 512
"""A scene's histogram is made of about this many of its rows, evenly spread."""
LETTERS = {"train": "t", "val": "v", "test": "e", "buffer": "b", "duplicate": "d", "nodata": "n", "saturated": "x",
           "cloud": "c", "shadow": "s", "cirrus": "i", "snow": "w", "unlisted": "u"}  # fmt: skip
"""What became of a tile, as one letter."""
OTHER = "o"
Counts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Profile:
    """A scene's place and its counts."""

    crs: str = ""
    transform: tuple[float, ...] = ()
    """The six numbers of the grid's affine transform."""
    shape_px: tuple[int, int] = (0, 0)
    """(height, width)."""
    tile_px: int = 0
    tops: tuple[int, ...] = ()
    """First row of every row of tiles."""
    lefts: tuple[int, ...] = ()
    """First column of every column of tiles."""
    fates: tuple[str, ...] = ()
    """One text a row of tiles, one letter a tile (`LETTERS`)."""
    flags: dict[str, int] = field(default_factory=dict)
    """Mask value -> pixels."""
    bands: Counts = ()
    """[band, bin]: all measured pixels of rows spread over the scene, clouds and all."""
    indices: Counts = ()
    """[index, bin]: means of the cells of the samples."""

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Profile:
        """Read back what `dataclasses.asdict` gave to JSON."""
        counts = {name: tuple(map(tuple, tree[name])) for name in ("bands", "indices")}
        plain = {name: tuple(tree[name]) for name in ("transform", "shape_px", "tops", "lefts", "fates")}
        return cls(**tree | counts | plain)

    @cached_property
    def grid(self) -> Grid:
        """The scene's pixel grid."""
        height, width = self.shape_px
        return Grid(CRS.from_string(self.crs), Affine(*self.transform), width, height)

    def share(self, bits: int) -> float:
        """Return the share of the scene's pixels that have any of the flag bits."""
        total = sum(self.flags.values())
        return sum(n for value, n in self.flags.items() if int(value) & bits) / total if total else 0.0


def profile(grid: Grid, rule: TileRule, chosen: Choice, seen: PixelCounts, indices: Counts) -> Profile:
    """Describe a scene of which all pixels were seen."""
    # a number where there is one: it is what people recognise
    epsg = grid.crs.to_epsg()
    tops, lefts = (tuple(rule.starts(side).tolist()) for side in grid.shape_px)
    return Profile(
        crs=f"EPSG:{epsg}" if epsg else grid.crs.to_wkt(),
        transform=tuple(list(grid.transform)[:6]),
        shape_px=grid.shape_px,
        tile_px=rule.tile_px,
        tops=tops,
        lefts=lefts,
        fates=tuple("".join(LETTERS.get(fate, OTHER) for fate in row) for row in chosen.fates.tolist()),
        flags={str(v): int(n) for v, n in enumerate(seen.flags.tolist()) if n},
        bands=seen.bands,
        indices=indices,
    )


class PixelCounts:
    """Counts over the pixels of a scene, as its rows come into memory."""

    def __init__(self, bands: int, height_px: int) -> None:
        self._flags = histograms.empty(1)
        self._histogram = histograms.empty(bands)
        self._step = max(height_px // ROWS, 1)

    def add(self, window: Window, rows: slice) -> None:
        """Count the newest rows of the scene, which the window holds."""
        inside = slice(rows.start - window.top_px, rows.stop - window.top_px)
        shape = (inside.stop - inside.start, window.width_px)
        kernel.count(self._flags, Pixels(window.mask[None], (0,), inside.start), np.ones(shape, np.uint16))
        # measured pixels of rows evenly spread: all would tell no more
        times = np.zeros(shape, np.uint16)
        # counted from the scene's first row, wherever this strip begins
        times[-rows.start % self._step :: self._step] = 1
        kernel.count(self._histogram, Pixels(window.pixels, range(len(window.pixels)), inside.start), times)

    @property
    def flags(self) -> NDArray[np.int64]:
        """Pixels of every mask value, [mask value]."""
        return self._flags[0, -NODATA : -NODATA + 256]

    @property
    def bands(self) -> Counts:
        """[band, bin]: measured pixels of rows spread over the scene."""
        return tuple(tuple(_coarse(row).tolist()) for row in self._histogram)


def _coarse(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return counts [value] in bins, what lies outside in the outer ones; nodata is left out."""
    values = np.flatnonzero(counts[1:]) + 1
    bins = (np.clip(values + NODATA, LOWEST, HIGHEST - 1) - LOWEST) // BIN
    # whole numbers below 2^53 stay whole as weights
    return np.bincount(bins, counts[values], minlength=(HIGHEST - LOWEST) // BIN).astype(np.int64)


class IndexCounts:
    """Histograms of the cell means of samples, by index."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] | None = None

    def add(self, cells: NDArray[np.float32]) -> None:
        """Count cells [index, ..., (n, mean, std)]; empty ones do not count."""
        if self._counts is None:
            self._counts = np.zeros((len(cells), INDEX_BINS), np.int64)
        for row, statistics in zip(self._counts, cells, strict=True):
            # an empty cell's mean of 0 is no measurement
            means = statistics[..., 1][statistics[..., 0] > 0]
            bins = np.clip((means + 1) / 2 * INDEX_BINS, 0, INDEX_BINS - 1).astype(np.int64)
            row += np.bincount(bins, minlength=INDEX_BINS)

    @property
    def counts(self) -> Counts:
        """[index, bin]; empty where nothing was counted."""
        return () if self._counts is None else tuple(map(tuple, self._counts.tolist()))


def total_fates(profiles: list[Profile]) -> dict[str, int]:
    """Sum up what became of all tiles, by name."""
    names = {letter: name for name, letter in LETTERS.items()} | {OTHER: "other"}
    counts = Counter(letter for p in profiles for row in p.fates for letter in row)
    return {names[letter]: n for letter, n in sorted(counts.items())}


def unclear(names: tuple[str, ...]) -> int:
    """Return the bits of the named flags and of nodata."""
    bits = Flag.NODATA
    for name in names:
        bits |= Flag[name.upper()]
    return int(bits)
