"""The work on one scene: product -> archive -> cell statistics -> tiles -> encoded samples.

One call of `work` is one Dask task. It touches only files of its own scene, so tasks need not know of each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.indices import index
from pipeline.saliency import cell_statistics
from pipeline.sample import SCALE, Sample
from preprocessing import archive, grids, quality, radiometry, resampling, spool, tiling
from preprocessing.archive import SceneHeader, SceneWriter, StoredScene
from preprocessing.grids import Grid
from preprocessing.quality import Histogram, Rejection
from preprocessing.scenes import Scene
from preprocessing.settings import ShardConfig, digest
from preprocessing.spool import Spool, SpoolWriter
from preprocessing.tiling import SplitRule, Tile, TileRule

STRIP_PX = 1024
"""Rows of a scene held at a time, rounded to whole cells or tiles."""
WORK_FOLDER = "work"


@dataclass(frozen=True)
class SceneJob:
    """One scene to bring from its product to samples."""

    scene: Scene
    config: ShardConfig

    @property
    def store(self) -> Path:
        """The archive."""
        return self.config.output / archive.FOLDER

    @property
    def folder(self) -> Path:
        """Where unfinished work of the run lies."""
        return self.config.output / WORK_FOLDER

    def pixel_digest(self) -> str:
        """Identify everything that decides the stored pixels."""
        keys = {"sensor", "bands", "gsd_m", "crs", "offset", "resampling", "labels"}
        scene = self.scene
        sources = [(Path(b.path).name, b.scale, b.offset, b.nodata_dn, b.saturated_dn) for b in scene.bands]
        masks = [(Path(m.path).name, sorted(m.classes.items()), sorted(m.bits.items())) for m in scene.masks]
        tree = self.config.model_dump(mode="json", include=keys)
        tree["labels"] = tree["labels"] and tree["labels"]["first_code"]
        return digest([archive.FORMAT_VERSION, scene.id, scene.level, tree, sources, masks])

    def cell_digest(self) -> str:
        """Identify everything that decides the stored cell statistics."""
        return digest(
            [
                self.pixel_digest(),
                self.config.model_dump(mode="json", include={"cell_px", "indices", "clear_excludes"}),
            ]
        )

    def sample_digest(self) -> str:
        """Identify everything that decides the samples."""
        keys = {"tile_px", "stride", "min_valid", "min_clear", "split", "labels", "codec"}
        return digest([self.cell_digest(), self.config.model_dump(mode="json", include=keys)])


def work(job: SceneJob) -> Spool | Rejection:
    """Bring one scene to samples; what an earlier run finished by the same settings is kept."""
    try:
        done = spool.read(job.folder, job.scene.id)
        if done and done.digest == job.sample_digest():
            return done
        store_scene(job)
        return write_samples(job, StoredScene(job.store / job.scene.id))
    except SceneError as error:
        return Rejection(str(job.scene.location), str(error))


def store_scene(job: SceneJob) -> None:
    """Write the scene into the archive unless it is there, made by the same settings and whole."""
    final = job.store / job.scene.id
    marker = archive.read_marker(final)
    wanted = {"pixels": job.pixel_digest(), "cells": job.cell_digest()}
    found = marker["digests"] if marker and not archive.problems(final) else {}
    if found == wanted:
        return
    folder = job.folder / f"{job.scene.id}.zarr"
    if found.get("pixels") == wanted["pixels"]:
        writer = SceneWriter(folder, _header(job, StoredScene(final).header.grid))
        writer.take_over(final)
    else:
        writer = _store_pixels(job, folder)
    writer.write_cells(_cells(writer, job.config))
    writer.finish(job.store, wanted)


def _header(job: SceneJob, grid: Grid) -> SceneHeader:
    scene = job.scene
    return SceneHeader(
        id=scene.id,
        sensor=scene.sensor,
        level=scene.level,
        reader=scene.reader,
        acquired=scene.acquired,
        bands=tuple(b.name for b in scene.bands),
        indices=job.config.indices,
        grid=grid,
        notes=(*scene.notes, *job.config.fallbacks()),
        licence=scene.licence,
        source=scene.location.name,
    )


def _store_pixels(job: SceneJob, folder: Path) -> SceneWriter:
    """Store the bands one after the other, then the mask that they and the quality layers make."""
    config, scene = job.config, job.scene
    layout = radiometry.lay_out(scene, None if config.gsd_m == "native" else config.gsd_m, config.crs)
    writer = SceneWriter(folder, _header(job, layout.target))
    writer.start()
    mask = np.zeros(layout.target.shape_px, np.uint8)
    for source, grid in zip(scene.masks, layout.masks, strict=True):
        mask |= radiometry.mask_flags(source, grid, layout.target)
    for number, image in enumerate(radiometry.band_images(layout, config.resampling)):
        writer.array("reflectance")[number] = image.pixels
        radiometry.add_band_flags(mask, image)
    writer.array("mask")[...] = mask
    if scene.labels and config.labels:
        writer.write_labels(_labels(layout, scene.labels, config.labels.first_code))
    return writer


def _labels(layout: radiometry.Layout, path: str, first_code: int) -> NDArray[np.uint8]:
    """Return class numbers [y, x] on the scene's grid; codes before the first become `NO_LABEL`."""
    own = grids.read_grid(path)
    grids.check_together([layout.scene.bands[0].path, path], [layout.bands[0], own])
    codes = resampling.nearest(radiometry.read_numbers(path, 0), own, layout.target).astype(np.int64)
    numbers = codes - first_code
    outside = (numbers < 0) | (numbers >= archive.NO_LABEL)
    return np.where(outside, archive.NO_LABEL, numbers).astype(np.uint8)


def _cells(writer: SceneWriter, config: ShardConfig) -> NDArray[np.float32]:
    """Compute cell statistics [index, y / cell, x / cell, 3] in strips; a rest smaller than a cell is left out."""
    mask, cell = np.asarray(writer.array("mask")[...]), config.cell_px
    height, width = (side // cell for side in mask.shape)
    cells = np.zeros((len(config.indices), height, width, 3), np.float32)
    counted = (mask & int(config.unclear_bits)) == 0
    for rows in resampling.strips(height * cell, STRIP_PX // cell * cell or cell):
        bands = _index_bands(writer, config, rows, width * cell)
        values = np.stack(
            [index(name)(*(bands[b] for b in config.index_bands(name))) for name in config.indices]
        )
        part = cell_statistics(values, counted[rows, : width * cell], cell)
        cells[:, rows.start // cell : rows.stop // cell] = part
    return cells


def _index_bands(
    writer: SceneWriter, config: ShardConfig, rows: slice, width: int
) -> dict[str, NDArray[np.float32]]:
    """Read back, as reflectance, the bands the indices need."""
    names = dict.fromkeys(b for name in config.indices for b in config.index_bands(name))
    return {
        n: np.asarray(writer.array("reflectance")[config.bands.index(n), rows, :width]).astype(np.float32)
        * np.float32(SCALE)
        for n in names
    }


def write_samples(job: SceneJob, stored: StoredScene) -> Spool:
    """Cut a stored scene into tiles and encode them."""
    mask = stored.read("mask")
    tiles, dropped = choose_tiles(job.config, mask, stored.header.grid)
    writer = SpoolWriter(job.folder, job.scene.id)
    histogram = quality.empty_histogram(len(job.config.bands))
    for strip in _strips(job, stored, tiles):
        strip.count(histogram)
        for tile in strip.tiles:
            writer.add(strip.sample(tile), tile.split, job.config.codec)
    header = stored.header
    result = Spool(
        scene=header.id,
        digest=job.sample_digest(),
        gsd_m=float(np.sqrt(np.prod(header.grid.pixel_m))),
        level=header.level,
        reader=header.reader,
        acquired=header.acquired,
        licence=header.licence,
        notes=header.notes,
        dropped=dropped,
        segments=tuple(writer.segments),
    )
    writer.finish(result, histogram)
    return result


def choose_tiles(
    config: ShardConfig, mask: NDArray[np.uint8], grid: Grid
) -> tuple[list[Tile], dict[str, int]]:
    """Return the tiles to keep, with their split, and the number dropped by reason."""
    rule = TileRule(
        config.tile_px,
        config.step_px,
        config.cell_px,
        config.min_valid,
        config.min_clear,
        config.unclear_bits,
    )
    good, dropped = tiling.tiles(mask, rule)
    kept, between = tiling.split(good, SplitRule(**config.split.model_dump()), grid.lonlat)
    if between:
        dropped["buffer"] = between
    return kept, dict(sorted(dropped.items()))


def _strips(job: SceneJob, stored: StoredScene, tiles: list[Tile]) -> Iterator[_Strip]:
    """Read a scene in strips of several rows of tiles: chunks span rows, and are decoded once a strip."""
    per_strip = max(STRIP_PX // job.config.step_px, 1) * job.config.step_px
    for _, group in itertools.groupby(tiles, key=lambda t: t.row_px // per_strip):
        yield _Strip(stored, job.config, list(group))


class _Strip:
    """Some rows of a scene, in memory, with the tiles that lie in them."""

    def __init__(self, stored: StoredScene, config: ShardConfig, tiles: list[Tile]) -> None:
        top, end, cell = tiles[0].row_px, tiles[-1].row_px + config.tile_px, config.cell_px
        rows = slice(top, end)
        self.tiles = tiles
        self._scene, self._config, self._top_px = stored.header, config, top
        self._pixels = stored.read("reflectance", slice(None), rows)
        self._mask = stored.read("mask", rows)
        self._cells = stored.read("cells", slice(None), slice(top // cell, end // cell))
        self._labels = stored.read("label", rows) if stored.has_labels else None

    def count(self, histogram: Histogram) -> None:
        """Add the clear pixels of the training tiles to a histogram, as often as tiles hold them."""
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
        counts = np.bincount(part.ravel(), minlength=256)[: len(wanted.classes)]
        best = int(counts.argmax())
        return best if counts[best] >= wanted.min_share * part.size else None

    def _info(self, tile: Tile) -> dict[str, object]:
        scene = self._scene
        grid = scene.grid
        t = grid.transform
        lon, lat = tiling.corners([tile], grid.lonlat)
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
