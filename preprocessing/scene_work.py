"""The work on one scene: product -> archive -> cell statistics -> tiles -> encoded samples.

One call of `work` is one Dask task. It touches only files of its own scene, so tasks need not know of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.indices import index
from pipeline.saliency import cell_statistics
from pipeline.sample import NODATA, SCALE, Flag, Sample
from preprocessing import archive, grids, quality, radiometry, resampling, spool, tiling
from preprocessing.archive import SceneHeader, SceneWriter, StoredScene
from preprocessing.grids import Grid
from preprocessing.quality import Rejection
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
        return digest([self.pixel_digest(), self.config.model_dump(mode="json", include={"cell_px", "indices", "clear_excludes"})])

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
    digests = {"pixels": job.pixel_digest(), "cells": job.cell_digest()}
    if marker and marker["digests"] == digests and not archive.problems(final):
        return
    config = job.config
    layout = radiometry.lay_out(job.scene, None if config.gsd_m == "native" else config.gsd_m, config.crs)
    writer = SceneWriter(job.folder / f"{job.scene.id}.zarr", _header(job, layout.target))
    mask = _write_pixels(writer, layout, config.resampling)
    if job.scene.labels and config.labels:
        writer.write_labels(_labels(job.scene.labels, layout.target, config.labels.first_code))
    writer.write_cells(_cells(writer, mask, config))
    writer.finish(job.store, digests)


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


def _write_pixels(writer: SceneWriter, layout: radiometry.Layout, how: str) -> NDArray[np.uint8]:
    """Store the bands one after the other, then the mask they and the quality layers make; returns the mask."""
    mask = np.zeros(layout.target.shape_px, np.uint8)
    for source, grid in zip(layout.scene.masks, layout.masks, strict=True):
        mask |= radiometry.mask_flags(source, grid, layout.target)
    for number, image in enumerate(radiometry.band_images(layout, how)):
        writer.reflectance[number] = image.pixels
        radiometry.add_band_flags(mask, image)
    writer.mask[...] = mask
    return mask


def _labels(path: str, target: Grid, first_code: int) -> NDArray[np.uint8]:
    """Return class numbers [y, x] on the scene's grid; codes below the first become `NO_LABEL`."""
    codes = resampling.nearest(radiometry.read_numbers(path, 0), grids.read_grid(path), target).astype(np.int64)
    numbers = codes - first_code
    return np.where((numbers < 0) | (numbers >= archive.NO_LABEL), archive.NO_LABEL, numbers).astype(np.uint8)


def _cells(writer: SceneWriter, mask: NDArray[np.uint8], config: ShardConfig) -> NDArray[np.float32]:
    """Compute cell statistics [index, y / cell, x / cell, 3] in strips; a rest smaller than a cell is left out."""
    cell = config.cell_px
    height, width = (side // cell for side in mask.shape)
    cells = np.zeros((len(config.indices), height, width, 3), np.float32)
    counted = (mask & int(config.unclear_bits)) == 0
    for rows in resampling.strips(height * cell, STRIP_PX // cell * cell or cell):
        bands = _index_bands(writer, config, rows, width * cell)
        values = np.stack([index(name)(*(bands[b] for b in config.index_bands(name))) for name in config.indices])
        part = cell_statistics(values, counted[rows, : width * cell], cell)
        cells[:, rows.start // cell : rows.stop // cell] = part
    return cells


def _index_bands(writer: SceneWriter, config: ShardConfig, rows: slice, width: int) -> dict[str, NDArray[np.float32]]:
    """Read back, as reflectance, the bands the indices need."""
    names = dict.fromkeys(b for name in config.indices for b in config.index_bands(name))
    return {
        n: np.asarray(writer.reflectance[config.bands.index(n), rows, :width]).astype(np.float32) * np.float32(SCALE) for n in names
    }


def write_samples(job: SceneJob, stored: StoredScene) -> Spool:
    """Cut a stored scene into tiles and encode them."""
    mask = stored.read("mask")
    tiles, dropped = choose_tiles(job.config, mask, stored.header.grid)
    writer = SpoolWriter(job.folder, job.scene.id)
    histogram = quality.empty_histogram(len(job.config.bands))
    for sample, tile in _samples(job, stored, tiles):
        if tile.split == "train":
            quality.count(histogram, sample.pixels, (sample.mask & int(job.config.unclear_bits)) == 0)
        writer.add(sample, tile.split, job.config.codec)
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


def choose_tiles(config: ShardConfig, mask: NDArray[np.uint8], grid: Grid) -> tuple[list[Tile], dict[str, int]]:
    """Return the tiles to keep, with their split, and the number dropped by reason."""
    rule = TileRule(config.tile_px, config.step_px, config.cell_px, config.min_valid, config.min_clear, config.unclear_bits)
    good, dropped = tiling.tiles(mask, rule)
    kept, between = tiling.split(good, SplitRule(**config.split.model_dump()), grid.lonlat)
    if between:
        dropped["buffer"] = between
    return kept, dict(sorted(dropped.items()))


def _samples(job: SceneJob, stored: StoredScene, tiles: list[Tile]):
    """Yield (sample, tile), reading each row of tiles once."""
    for top in sorted({t.row_px for t in tiles}):
        row = [t for t in tiles if t.row_px == top]
        strip = _Strip(stored, job.config, top)
        for tile in row:
            yield strip.sample(tile), tile


class _Strip:
    """The rows of one row of tiles, in memory."""

    def __init__(self, stored: StoredScene, config: ShardConfig, top_px: int) -> None:
        rows, cell = slice(top_px, top_px + config.tile_px), config.cell_px
        self._scene, self._config = stored.header, config
        self._pixels = stored.read("reflectance", slice(None), rows)
        self._mask = stored.read("mask", rows)
        self._cells = stored.read("cells", slice(None), slice(top_px // cell, rows.stop // cell))
        self._labels = stored.read("label", rows) if stored.has_labels else None

    def sample(self, tile: Tile) -> Sample:
        """Cut one tile out."""
        size, cell = tile.size_px, self._config.cell_px
        columns = slice(tile.column_px, tile.column_px + size)
        cells = slice(columns.start // cell, columns.stop // cell)
        return Sample(
            key=tiling.key(self._scene.id, tile),
            pixels=self._pixels[:, :, columns],
            mask=self._mask[:, columns],
            cells=self._cells[:, :, cells],
            info=self._info(tile),
            label=self._label(columns),
        )

    def _label(self, columns: slice) -> int | None:
        wanted = self._config.labels
        if wanted is None or self._labels is None:
            return None
        counts = np.bincount(self._labels[:, columns].ravel(), minlength=256)[: len(wanted.classes)]
        best = int(counts.argmax())
        return best if counts[best] >= wanted.min_share * self._labels[:, columns].size else None

    def _info(self, tile: Tile) -> dict[str, object]:
        scene = self._scene
        grid = scene.grid
        corner = grid.transform * (tile.column_px, tile.row_px)
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
            "transform": [grid.transform.a, 0.0, corner[0], 0.0, grid.transform.e, corner[1]],
            "bounds_lonlat": [float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max())],
            "valid_share": tile.valid_share,
            "clear_share": tile.clear_share,
        }
