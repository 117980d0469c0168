"""A stored scene into tiles: which ones are kept, and the samples they become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.sample import Sample
from preprocessing import quality, tiling
from preprocessing.archive import StoredScene
from preprocessing.grids import Box, Grid
from preprocessing.quality import Histogram
from preprocessing.settings import ShardConfig
from preprocessing.tiling import Choice, SplitRule, Tile, TileRule

STRIP_PX = 1024
"""Rows of a scene held at a time, rounded to whole tiles."""


def choose_tiles(
    config: ShardConfig, mask: NDArray[np.uint8], grid: Grid, taken: Sequence[Box] = ()
) -> Choice:
    """Return the tiles of a mask of flags [y, x] to keep, with their split, and what became of the others.

    taken: ground that another scene of the same acquisition gave, as boxes in the grid's CRS.
    """
    rule = TileRule(
        config.tile_px,
        config.step_px,
        config.cell_px,
        config.min_valid,
        config.min_clear,
        config.unclear_bits,
    )
    covered = grid.covered(taken, config.cell_px) if taken else None
    return tiling.choose(mask, rule, SplitRule(**config.split.model_dump()), grid.lonlat, covered)


def strips(stored: StoredScene, config: ShardConfig, tiles: list[Tile]) -> Iterator[Strip]:
    """Read a stored scene in strips of several rows of tiles."""
    # chunks span rows of tiles: row by row each would be decoded again
    per_strip = max(STRIP_PX // config.step_px, 1) * config.step_px
    for _, group in itertools.groupby(tiles, key=lambda t: t.row_px // per_strip):
        yield Strip(stored, config, list(group))


class Strip:
    """Some rows of a scene, in memory, with the tiles that lie in them."""

    def __init__(self, stored: StoredScene, config: ShardConfig, tiles: list[Tile]) -> None:
        top, end, cell = tiles[0].row_px, tiles[-1].row_px + config.tile_px, config.cell_px
        rows = slice(top, end)
        self.tiles = tiles
        self._scene, self._config, self._top_px = stored.header, config, top
        self._pixels = stored.read("reflectance", slice(None), rows)
        self._mask = stored.read("mask", rows)
        self._cells = stored.read("cells", slice(None), slice(top // cell, end // cell))
        # a set may mix scenes with and without labels
        self._labels = stored.read("label", rows) if stored.has_labels else None

    def count(self, histogram: Histogram) -> None:
        """Add the clear pixels of the training tiles to a histogram [band, value], in place.

        A pixel counts as often as tiles hold it.
        """
        times = np.zeros(self._mask.shape, np.int32)
        for tile in self.tiles:
            if tile.split == "train":
                times[self._window(tile, 1)] += 1
        times[(self._mask & int(self._config.unclear_bits)) != 0] = 0
        # over the strip and not over tiles: every call costs all 65 536 values of a band
        for at_least in range(1, int(times.max()) + 1):
            quality.count(histogram, self._pixels, times >= at_least)

    def sample(self, tile: Tile) -> Sample:
        """Cut one tile out."""
        rows, columns = self._window(tile, 1)
        cell_rows, cell_columns = self._window(tile, self._config.cell_px)
        return Sample(
            key=tiling.key(self._scene.id, tile),
            pixels=self._pixels[:, rows, columns],
            mask=self._mask[rows, columns],
            cells=self._cells[:, cell_rows, cell_columns],
            info=self._info(tile),
            label=self._label(rows, columns),
        )

    def _window(self, tile: Tile, unit_px: int) -> tuple[slice, slice]:
        """Return the rows and columns of a tile in this strip, in units of `unit_px`."""
        # tiles lie on the cell grid, so that these divisions have no rest
        top, left, size = tile.row_px - self._top_px, tile.column_px, tile.size_px
        return (
            slice(top // unit_px, (top + size) // unit_px),
            slice(left // unit_px, (left + size) // unit_px),
        )

    def _label(self, rows: slice, columns: slice) -> int | None:
        wanted = self._config.labels
        if wanted is None or self._labels is None:
            return None
        part = self._labels[rows, columns]
        # codes beyond the list, and unlabelled pixels, win nothing
        counts = np.bincount(part.ravel(), minlength=256)[: len(wanted.classes)]
        best = int(counts.argmax())
        return best if counts[best] >= wanted.min_share * part.size else None

    def _info(self, tile: Tile) -> dict[str, object]:
        scene = self._scene
        grid = scene.grid
        t = grid.transform
        lon, lat = tiling.corners([tile], grid.lonlat)
        # a code is short; the WKT only where there is none
        epsg = grid.crs.to_epsg()
        return {
            "scene": scene.id,
            "row": tile.row_px,
            "col": tile.column_px,
            "acquired": scene.acquired,
            "sensor": scene.sensor,
            "level": scene.level,
            "crs": f"EPSG:{epsg}" if epsg else grid.crs.to_wkt(),
            "transform": [t.a, 0.0, t.c + t.a * tile.column_px, 0.0, t.e, t.f + t.e * tile.row_px],
            "bounds_lonlat": [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())],
            "valid_share": tile.valid_share,
            "clear_share": tile.clear_share,
        }
