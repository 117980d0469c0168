"""The work on one scene: product -> archive, cell statistics and encoded samples, in one pass from the top down.

One call of `work` is one Dask task. It touches only files of its own scene, so tasks need not know of each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import SceneError
from pipeline.sample import NODATA
from preprocessing import archive, offset_check, radiometry, resampling, spool, strips
from preprocessing.archive import SceneHeader, SceneWriter, StoredScene
from preprocessing.cells import CellSums
from preprocessing.cutting import Cutter, Cutting
from preprocessing.grids import Grid
from preprocessing.jobs import SceneJob
from preprocessing.profiles import PixelCounts, profile
from preprocessing.quality import Rejection
from preprocessing.spool import Spool, SpoolWriter
from preprocessing.strips import ProductRows, Rows, StoredRows, Window


def work(job: SceneJob) -> Spool | Rejection:
    """Bring one scene to samples; what an earlier run finished by the same settings is kept."""
    try:
        done = spool.read(job.folder, job.scene.id)
        if done and done.digest == job.sample_digest():
            return done
        with _opened(job) as source:
            return _make(job, source)
    # returned, not raised: one bad scene must not end the others
    except SceneError as error:
        return Rejection(str(job.scene.location), str(error), job.sample_digest())


@dataclass(frozen=True)
class Source:
    """Where a scene's rows come from, and where they are stored."""

    header: SceneHeader
    rows: Rows
    writer: SceneWriter | None
    """None where the archive has all that it should have, or none is kept."""
    stores_pixels: bool = False


@contextmanager
def _opened(job: SceneJob) -> Iterator[Source]:
    """Open what is the least work to make a scene's samples from: the archive, else the product."""
    final = job.store / job.scene.id
    found = _stored_digests(job) if job.config.keep_zarr else {}
    if found.get("pixels") != job.pixel_digest():
        with _opened_product(job) as source:
            yield source
        return
    stored = StoredScene(final)
    header = _header(job, stored.header.grid)
    writer = None
    # another index or flag needs the pixels, not the product
    if found != _digests(job):
        writer = SceneWriter(_unfinished(job), header, job.config.codec)
        writer.take_over(final)
    yield Source(header, StoredRows(stored), writer)


@contextmanager
def _opened_product(job: SceneJob) -> Iterator[Source]:
    config = job.config
    gsd_m = None if config.gsd_m == "native" else config.gsd_m
    layout = radiometry.lay_out(job.scene, gsd_m, config.crs)
    header = _header(job, layout.target)
    with ProductRows(layout, config.resampling, config.labels) as rows:
        writer = None
        if config.keep_zarr:
            writer = SceneWriter(_unfinished(job), header, config.codec)
            writer.start(rows.has_labels)
        yield Source(header, rows, writer, stores_pixels=True)


def _unfinished(job: SceneJob) -> Path:
    return job.folder / f"{job.scene.id}.zarr"


def _digests(job: SceneJob) -> dict[str, str]:
    return {"pixels": job.pixel_digest(), "cells": job.cell_digest()}


def _stored_digests(job: SceneJob) -> dict[str, str]:
    """Return what the archive's scene was made by; nothing where there is none, or a damaged one."""
    final = job.store / job.scene.id
    marker = archive.read_marker(final)
    # a damaged scene counts as none: it is made again
    found: dict[str, str] = marker["digests"] if marker and not archive.problems(final) else {}
    return found


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


def _make(job: SceneJob, source: Source) -> Spool:
    """Take a scene's rows once, from the top down, and make of them all that is wanted."""
    cutting = Cutting(job.config, source.header, job.scene.given, job.taken)
    samples = SpoolWriter(job.folder, job.scene.id)
    cutter = Cutter(cutting, samples)
    cells = CellSums(job.config, cutting.padded_px)
    seen = _pass(source, cutting, cutter, cells)
    if source.writer:
        source.writer.write_cells(cells.statistics)
        source.writer.finish(job.store, _digests(job))
    return _finish(job, source, (cutter, seen), samples)


def _pass(source: Source, cutting: Cutting, cutter: Cutter, cells: CellSums) -> PixelCounts:
    """Bring strip after strip into memory, and give it to all who want it."""
    height, padded = source.header.grid.height_px, cutting.padded_px[0]
    seen = PixelCounts(len(source.header.bands), height)
    window = _window(source, cutting)
    for rows in resampling.strips(height, strips.STRIP_PX):
        strip = window.advance(_needed(cutter, cells, rows.start), rows)
        source.rows.fill(strip)
        _store(source, strip)
        seen.add(window, rows)
        # below the last row lies what tiles over the edge need
        end_px = padded if rows.stop == height else rows.stop
        cells.grow(window, end_px)
        cutter.cut(window, cells.statistics, end_px)
    return seen


def _window(source: Source, cutting: Cutting) -> Window:
    """Lay out room for a strip, what is left of the one before, and what tiles need over the edges."""
    (height, width), (padded_height, padded_width) = source.header.grid.shape_px, cutting.padded_px
    one = min(height, strips.STRIP_PX) + padded_height - height
    # rows are kept for tiles that the next strip completes: less than a tile of them
    left_over = cutting.rule.tile_px if height > strips.STRIP_PX else 0
    kinds = (source.header.dates == 2, source.rows.has_labels)
    return Window((len(source.header.bands), one + left_over, width), padded_width - width, kinds)


def _needed(cutter: Cutter, cells: CellSums, upto_px: int) -> int:
    """Return the first row that must stay in memory."""
    return min(cells.next_px, upto_px if cutter.next_px is None else cutter.next_px, upto_px)


def _store(source: Source, strip: strips.Strip) -> None:
    if source.writer and source.stores_pixels:
        for name, part in strip.arrays():
            source.writer.write(name, strip.rows, part)


def _finish(job: SceneJob, source: Source, made: tuple[Cutter, PixelCounts], samples: SpoolWriter) -> Spool:
    """Write the record of a scene's samples."""
    (cutter, seen), header, chosen = made, source.header, made[0].choice
    result = Spool(
        scene=header.id,
        digest=job.sample_digest(),
        gsd_m=float(np.sqrt(np.prod(header.grid.pixel_m))),
        level=header.level,
        reader=header.reader,
        acquired=header.acquired,
        licence=header.licence,
        notes=(*header.notes, *offset_check.doubts(job.scene, cutter.histogram, NODATA)),
        dropped=chosen.dropped,
        segments=tuple(samples.segments),
        dates=header.dates,
        profile=profile(header.grid, cutter.rule, chosen, seen, cutter.index_counts.counts),
    )
    samples.finish(result, cutter.histogram)
    return result
