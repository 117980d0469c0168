"""Where a scene lies and what it looks like, in counts: what the quality report draws, small enough for a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline.sample import NODATA, Flag
from preprocessing.archive import CHUNK_PX
from preprocessing.grids import Grid
from preprocessing.memory import SceneData
from preprocessing.tiling import Choice

BIN = 50
"""Stored units in a bin of a scene's band histogram: half a percent of reflectance."""
LOWEST, HIGHEST = -1_000, 12_000
"""Stored values at the ends of a band histogram; others count in the outer bins."""
INDEX_BINS = 80
"""Bins of an index histogram over [-1, 1]."""
WINDOWS = 8
"""A scene's histogram is made of this many windows along each side, of a chunk each."""
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
    step_px: int = 0
    fates: tuple[str, ...] = ()
    """One text a row of tiles, one letter a tile (`LETTERS`)."""
    flags: dict[str, int] = field(default_factory=dict)
    """Mask value -> pixels."""
    bands: Counts = ()
    """[band, bin]: all measured pixels of windows spread over the scene, clouds and all."""
    indices: Counts = ()
    """[index, bin]: means of the cells of the samples."""

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Profile:
        """Read back what `dataclasses.asdict` gave to JSON."""
        counts = {name: tuple(map(tuple, tree[name])) for name in ("bands", "indices")}
        plain = {name: tuple(tree[name]) for name in ("transform", "shape_px", "fates")}
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


def profile(
    stored: SceneData, mask: NDArray[np.uint8], chosen: Choice, step_px: tuple[int, int], indices: Counts
) -> Profile:
    """Describe a stored scene; step_px: side of a tile and distance between tiles."""
    grid = stored.header.grid
    # a number where there is one: it is what people recognise
    epsg = grid.crs.to_epsg()
    values, counts = np.unique(mask, return_counts=True)
    return Profile(
        crs=f"EPSG:{epsg}" if epsg else grid.crs.to_wkt(),
        transform=tuple(list(grid.transform)[:6]),
        shape_px=grid.shape_px,
        tile_px=step_px[0],
        step_px=step_px[1],
        fates=tuple("".join(LETTERS.get(fate, OTHER) for fate in row) for row in chosen.fates.tolist()),
        flags={str(v): int(n) for v, n in zip(values, counts, strict=True)},
        bands=tuple(tuple(band_counts(stored, b).tolist()) for b in range(len(stored.header.bands))),
        indices=indices,
    )


def band_counts(stored: SceneData, band: int) -> NDArray[np.int64]:
    """Return the histogram of a band's measured pixels in windows spread over the scene."""
    counts = np.zeros((HIGHEST - LOWEST) // BIN, np.int64)
    for rows, columns in windows(stored.header.grid.shape_px):
        pixels = stored.read("reflectance", band, rows, columns)
        bins = (np.clip(pixels[pixels != NODATA], LOWEST, HIGHEST - 1).astype(np.int64) - LOWEST) // BIN
        counts += np.bincount(bins, minlength=len(counts))
    return counts


def windows(shape_px: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Yield windows of one chunk each, evenly spread: all of a small scene, 64 of a large one."""
    # whole chunks: a part of one costs as much to decode
    sides = [-(-side // CHUNK_PX) for side in shape_px]
    places = [sorted({i * n // WINDOWS for i in range(WINDOWS)}) for n in sides]
    for row, column in product(*places):
        yield (slice(row * CHUNK_PX, (row + 1) * CHUNK_PX), slice(column * CHUNK_PX, (column + 1) * CHUNK_PX))


class IndexCounts:
    """Histograms of the cell means of samples, by index."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] | None = None

    def add(self, cells: NDArray[np.float32]) -> None:
        """Count a sample's cells [index, y, x, (n, mean, std)]; empty ones do not count."""
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
