"""The work on one scene: product -> archive with cell statistics -> encoded samples.

One call of `work` is one Dask task. It touches only files of its own scene, so tasks need not know of each other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import histogram as histograms
from pipeline.errors import SceneError
from pipeline.indices import index
from pipeline.sample import NODATA
from preprocessing import (
    archive,
    cutting,
    grids,
    kernel,
    labelling,
    locations,
    masks,
    memory,
    offset_check,
    radiometry,
    resampling,
    spool,
)
from preprocessing.archive import SceneHeader, SceneWriter, StoredScene
from preprocessing.grids import Box, Grid
from preprocessing.labelling import LabelConfig
from preprocessing.memory import MemoryScene, SceneArrays, SceneData
from preprocessing.profiles import profile
from preprocessing.quality import Rejection
from preprocessing.radiometry import Layout
from preprocessing.scenes import Scene
from preprocessing.settings import ShardConfig, digest
from preprocessing.spool import Spool, SpoolWriter

STRIP_PX = 1024
"""Rows of a scene held at a time, rounded to whole cells."""
WORK_FOLDER = "work"
LISTS: Any = {"split": {"files", "groups"}, "labels": {"table"}}
"""Keys that name lists and tables of a set."""


@dataclass(frozen=True)
class SceneJob:
    """One scene to bring from its product to samples."""

    scene: Scene
    config: ShardConfig
    taken: tuple[Box, ...] = ()
    """Ground another scene of the same acquisition has given, in this scene's CRS: no tile is cut there."""

    @property
    def store(self) -> Path:
        """The archive."""
        return self.config.output / archive.FOLDER

    @property
    def folder(self) -> Path:
        """Where unfinished work of the run lies."""
        return self.config.output / WORK_FOLDER

    @cached_property
    def source_digest(self) -> str:
        """Identify the product: what its metadata says, and size and time of change of every file that is read.

        It decides what is made again, and stands in no shard: a copy with other times gives the same shards.
        """
        scene = self.scene
        # a raster that nobody asks for may come and go
        labels = scene.labels if self.config.labels else None
        images = [band.path for band in (*scene.bands, *scene.after)]
        files = images + [mask.path for mask in scene.masks] + [labels or ""]
        said = replace(
            scene,
            # names without folders: an archive that was moved is still the same
            location=Path(scene.location.name),
            bands=tuple(replace(b, path=Path(b.path).name) for b in scene.bands),
            masks=tuple(replace(m, path=Path(m.path).name) for m in scene.masks),
            labels=labels and Path(labels).name,
            after=tuple(replace(b, path=Path(b.path).name) for b in scene.after),
            # which split it goes to changes no pixel
            given=replace(scene.given, split=""),
        )
        return digest([asdict(said), [_size_and_time(locations.file_on_disk(f)) for f in files]])

    def pixel_digest(self) -> str:
        """Identify everything that decides the stored pixels."""
        keys = {"sensor", "bands", "gsd_m", "crs", "offset", "resampling", "labels"}
        tree = self.config.model_dump(mode="json", include=keys)
        # only what decides stored numbers: class names and shares do not
        tree["labels"] = tree["labels"] and [tree["labels"]["first_code"], tree["labels"]["codes"]]
        return digest([archive.FORMAT_VERSION, self.source_digest, tree])

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
        keys = {"tile_px", "stride_px", "min_valid", "min_clear", "split", "labels", "codec"}
        # what lists say of this scene, not where they lie
        tree = self.config.model_dump(mode="json", include=keys, exclude=LISTS)
        return digest([self.cell_digest(), tree, self.scene.given.split, self.taken])


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return bytes and time of change in ns; a file that is gone is told by who reads it."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def work(job: SceneJob) -> Spool | Rejection:
    """Bring one scene to samples; what an earlier run finished by the same settings is kept."""
    try:
        done = spool.read(job.folder, job.scene.id)
        if done and done.digest == job.sample_digest():
            return done
        held = None if job.config.keep_zarr else hold_scene(job)
        if held:
            return write_samples(job, held)
        store_scene(job)
        made = write_samples(job, StoredScene(job.store / job.scene.id))
        if not job.config.keep_zarr:
            archive.remove(job.store / job.scene.id)
        return made
    # returned, not raised: one bad scene must not end the others
    except SceneError as error:
        return Rejection(str(job.scene.location), str(error), job.sample_digest())


def _lay_out(job: SceneJob) -> Layout:
    config = job.config
    return radiometry.lay_out(job.scene, None if config.gsd_m == "native" else config.gsd_m, config.crs)


def hold_scene(job: SceneJob) -> MemoryScene | None:
    """Bring a scene into memory, as the archive would hold it; None where it is too large for that."""
    layout = _lay_out(job)
    if math.prod(layout.target.shape_px) > memory.MOST_PX:
        return None
    held = MemoryScene(_header(job, layout.target))
    _fill(held, job, layout)
    held.write_cells(_cells(held, job.config))
    return held


def store_scene(job: SceneJob) -> None:
    """Write the scene into the archive unless it is there, made by the same settings and whole."""
    final = job.store / job.scene.id
    marker = archive.read_marker(final)
    wanted = {"pixels": job.pixel_digest(), "cells": job.cell_digest()}
    # a damaged scene counts as none: it is made again
    found = marker["digests"] if marker and not archive.problems(final) else {}
    if found == wanted:
        return
    folder = job.folder / f"{job.scene.id}.zarr"
    # another index or flag needs the pixels, not the product
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
        dates=2 if scene.after else 1,
    )


def _store_pixels(job: SceneJob, folder: Path) -> SceneWriter:
    """Store the bands one after the other, then the mask that they and the quality layers make."""
    layout = _lay_out(job)
    writer = SceneWriter(folder, _header(job, layout.target))
    writer.start()
    _fill(writer, job, layout)
    return writer


def _fill(writer: SceneArrays, job: SceneJob, layout: Layout) -> None:
    """Fill the arrays of a scene: bands of every date, mask, class numbers."""
    config, scene = job.config, job.scene
    # one band in memory at a time; the mask collects what each says
    mask = np.zeros(layout.target.shape_px, np.uint8)
    for source, grid in zip(scene.masks, layout.masks, strict=True):
        mask |= masks.mask_flags(source, grid, layout.target)
    for array, date in layout.dates():
        for number, image in enumerate(radiometry.band_images(date, config.resampling)):
            writer.array(array)[number] = image.pixels
            radiometry.add_band_flags(mask, image)
    writer.array("mask")[...] = mask
    if scene.labels and config.labels:
        writer.write_labels(_labels(layout, scene.labels, config.labels))


def _labels(layout: Layout, path: str, wanted: LabelConfig) -> NDArray[np.uint8]:
    """Return class numbers [y, x] on the scene's grid."""
    own = grids.read_label_grid(path, layout.bands)
    # clamped edges would spread a raster of other ground over the scene
    grids.check_together([layout.scene.bands[0].path, path], [layout.bands[0], own])
    codes = radiometry.read_numbers(path, 0, layout.scene.label_layer)
    return labelling.numbers(resampling.nearest(codes, own, layout.target), wanted)


def _cells(writer: SceneArrays, config: ShardConfig) -> NDArray[np.float32]:
    """Compute cell statistics [index, y / cell, x / cell, 3] in strips; a rest smaller than a cell is left out."""
    mask, cell = np.asarray(writer.array("mask")[...]), config.cell_px
    height, width = (side // cell for side in mask.shape)
    cells = np.zeros((len(config.indices), height, width, 3), np.float32)
    counted = (mask & int(config.unclear_bits)) == 0
    # once each: nir serves all three default indices
    names = list(dict.fromkeys(b for name in config.indices for b in config.index_bands(name)))
    for rows in resampling.strips(height * cell, STRIP_PX // cell * cell or cell):
        # read back as stored: the statistics must be those of the numbers in the shards
        stack = np.stack([writer.array("reflectance")[config.bands.index(n), rows] for n in names])
        for number, name in enumerate(config.indices):
            which = [names.index(band) for band in config.index_bands(name)]
            part = kernel.cell_statistics(index(name), stack, which, counted[rows], cell)
            cells[number, rows.start // cell : rows.stop // cell] = part
    return cells


def write_samples(job: SceneJob, stored: SceneData) -> Spool:
    """Cut a stored scene into tiles and encode them."""
    mask = stored.read("mask")
    given = job.scene.given
    chosen = cutting.choose_tiles(job.config, mask, stored.header.grid, (given, job.taken))
    writer = SpoolWriter(job.folder, job.scene.id)
    histogram = histograms.empty(len(job.config.bands))
    for strip in cutting.strips(stored, job.config, chosen.tiles, given):
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
        notes=(*header.notes, *offset_check.doubts(job.scene, histogram, NODATA)),
        dropped=chosen.dropped,
        segments=tuple(writer.segments),
        dates=header.dates,
        profile=profile(
            stored, mask, chosen, (job.config.tile_px, job.config.step_px), writer.index_counts.counts
        ),
    )
    writer.finish(result, histogram)
    return result
