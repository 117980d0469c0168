"""A stored scene into tiles: which ones are kept, and the samples they become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline import histogram as histograms
from pipeline.errors import SceneError
from pipeline.histogram import Histogram
from pipeline.sample import Label, Sample
from preprocessing import labelling, tiling
from preprocessing.grids import Box, Grid
from preprocessing.memory import SceneData
from preprocessing.scenes import Given
from preprocessing.settings import ShardConfig
from preprocessing.tiling import Choice, SplitRule, Tile, TileRule

NOTHING_GIVEN = Given()
UNLISTED = "unlisted"
"""Why a tile is dropped whose scene no list of its set has."""
STRIP_PX = 1024
"""Rows of a scene held at a time, rounded to whole tiles."""


def choose_tiles(
    config: ShardConfig,
    mask: NDArray[np.uint8],
    grid: Grid,
    known: tuple[Given, Sequence[Box]] = (NOTHING_GIVEN, ()),
) -> Choice:
    """Return the tiles of a mask of flags [y, x] to keep, with their split, and what became of the others.

    known: what the set says of the scene, and ground that another scene of the same acquisition gave, as boxes in
    the grid's CRS. Raises `SceneError` where ground is to decide and the scene has no place on Earth.
    """
    given, taken = known
    rule = TileRule(
        config.tile_px,
        config.step_px,
        config.cell_px,
        config.min_valid,
        config.min_clear,
        config.unclear_bits,
    )
    covered = grid.covered(taken, config.cell_px) if taken else None
    by_ground = config.split.by == "ground"
    if by_ground and config.split.val_share and not grid.is_placed:
        raise SceneError(
            "an image without a place on Earth cannot be divided by ground: set `split.by` to `set`, with the lists of"
            " the set in `split.files`, or to `scene`."
        )
    ground = SplitRule(
        config.split.val_share if by_ground else 0.0,
        config.split.block_m,
        config.tile_px * max(grid.pixel_m) if config.split.buffer_m == "tile" else config.split.buffer_m,
        config.split.seed,
    )
    chosen = tiling.choose(mask, rule, ground, grid.lonlat, covered)
    return chosen if by_ground else _given_to(given.split, chosen)


def _given_to(split: str, chosen: Choice) -> Choice:
    """Return the choice with all its tiles in one split, or dropped where the set's lists do not have the scene."""
    fates = np.where(chosen.fates == "train", split or UNLISTED, chosen.fates)
    return Choice([replace(tile, split=split) for tile in chosen.tiles if split], fates)


def strips(
    stored: SceneData, config: ShardConfig, tiles: list[Tile], given: Given = NOTHING_GIVEN
) -> Iterator[Strip]:
    """Read a stored scene in strips of several rows of tiles."""
    # chunks span rows of tiles: row by row each would be decoded again
    per_strip = max(STRIP_PX // config.step_px, 1) * config.step_px
    for _, group in itertools.groupby(tiles, key=lambda t: t.row_px // per_strip):
        yield Strip(stored, config, list(group), given)


class Strip:
    """Some rows of a scene, in memory, with the tiles that lie in them."""

    def __init__(self, stored: SceneData, config: ShardConfig, tiles: list[Tile], given: Given) -> None:
        top, end, cell = tiles[0].row_px, tiles[-1].row_px + config.tile_px, config.cell_px
        rows = slice(top, end)
        self.tiles = tiles
        self._scene, self._config, self._top_px, self._given = stored.header, config, top, given
        self._pixels = stored.read("reflectance", slice(None), rows)
        self._after = stored.read("after", slice(None), rows) if stored.header.dates == 2 else None
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
            histograms.count(histogram, self._pixels, times >= at_least)
            if self._after is not None:
                histograms.count(histogram, self._after, times >= at_least)

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
            after=None if self._after is None else self._after[:, rows, columns],
        )

    def _window(self, tile: Tile, unit_px: int) -> tuple[slice, slice]:
        """Return the rows and columns of a tile in this strip, in units of `unit_px`."""
        # tiles lie on the cell grid, so that these divisions have no rest
        top, left, size = tile.row_px - self._top_px, tile.column_px, tile.size_px
        return (
            slice(top // unit_px, (top + size) // unit_px),
            slice(left // unit_px, (left + size) // unit_px),
        )

    def _label(self, rows: slice, columns: slice) -> Label | None:
        wanted, given = self._config.labels, self._given.classes
        if wanted is None:
            return None
        if given is not None:
            return labelling.of_scene(given, wanted)
        return None if self._labels is None else labelling.of_pixels(self._labels[rows, columns], wanted)

    def _info(self, tile: Tile) -> dict[str, object]:
        scene = self._scene
        grid = scene.grid
        t = grid.transform
        placed = grid.is_placed
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
            "crs": (f"EPSG:{epsg}" if epsg else grid.crs.to_wkt()) if placed else None,
            "transform": [t.a, 0.0, t.c + t.a * tile.column_px, 0.0, t.e, t.f + t.e * tile.row_px],
            "bounds_lonlat": [float(v) for v in (lon.min(), lat.min(), lon.max(), lat.max())]
            if placed
            else None,
            "valid_share": tile.valid_share,
            "clear_share": tile.clear_share,
        }
