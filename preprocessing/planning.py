"""What a run would cost, before it starts: tiles, bytes, time, memory, and whether the disk can hold it.

Estimates are upper bounds for tiles (clouds and edges take some away) and take the compression and speed that real
products had; a run that cannot fit is refused with the numbers. Of many products only a sample's files are opened: the
plan of an archive of patches takes seconds, and says what of it is estimated.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline import console
from pipeline.errors import OutputError
from preprocessing import archive, assembly, cutting, finding
from preprocessing.finding import Found
from preprocessing.grids import Grid
from preprocessing.jobs import SceneJob
from preprocessing.settings import ShardConfig
from preprocessing.strips import STRIP_PX

RATIOS = {"lz4": 1.5, "lz4hc": 1.55, "zstd": 1.65}
"""Raw bytes over stored ones, real 10 to 60 m products."""
DECODE = {".jp2": 2.8e6}
"""Pixels a second and core, by ending of the file."""
DECODE_OTHERS = 60e6
WORK = 25e6
"""Pixels of a band a second and core that are brought onto the grid, stored, cut and compressed."""
START_S = 8.0
"""A worker loads its libraries and compiles the statistics."""
SCENE_S = 0.4
"""Files of a scene are opened, made and forced to disk."""
BASE_BYTES = 450e6
"""A worker with its libraries, before it holds any pixel."""
STRIP_BYTES, PIXEL_BYTES = 3, 4
"""A worker holds at its peak for each pixel and band of a strip, and for each pixel of a scene: 1.85 GB measured on a
whole Sentinel-2 tile with 13 bands."""
LISTED = 100
"""Scenes, rejections and groups that a plan lists; the others are counted."""
ROOM = 1.05
"""Space beyond the estimate that has to be free."""


@dataclass(frozen=True)
class Estimate:
    """What a run would make and need."""

    tiles: int
    archive_bytes: float
    shard_bytes: float
    seconds: float
    """Of all workers together."""
    worker_bytes: float
    """Memory of one worker on the largest scene."""
    needed_bytes: float
    """Disk at the peak, less what lies there already."""
    free_bytes: float
    opened: int
    """Scenes whose grid was read; of the others those of their family stand for theirs."""


@dataclass(frozen=True)
class Cost:
    """What one scene would make and need."""

    tiles: int
    pixels: int
    seconds: float


def estimate(request: ShardConfig, found: Found) -> Estimate:
    """Estimate a run from the scenes whose grid is known."""
    costs = dict(_known(request, found))
    sizes, weights = _families(found, costs)
    tiles, pixels, seconds = (
        sum(weights[name] * getattr(cost, part) for name, cost in costs.items())
        for part in ("tiles", "pixels", "seconds")
    )
    shard_bytes = tiles * assembly.sample_bytes(request) / RATIOS[request.codec]
    at_once = max(request.workers, 1)
    raw = pixels * (2 * len(request.bands) + 1) if request.keep_zarr else 0.0
    archive_bytes = raw / RATIOS[request.codec]
    # twice: samples lie in the spool until they are packed
    needed = archive_bytes + 2 * shard_bytes - size_of(request.output)
    return Estimate(
        tiles=round(tiles),
        archive_bytes=archive_bytes,
        shard_bytes=shard_bytes,
        seconds=START_S + seconds / at_once,
        worker_bytes=_worker_bytes(request, max(sizes, default=0)),
        needed_bytes=max(needed, 0),
        free_bytes=shutil.disk_usage(existing(request.output)).free,
        opened=len(costs),
    )


def _known(request: ShardConfig, found: Found) -> Iterator[tuple[str, Cost]]:
    """Yield what every scene costs whose grid is known."""
    # duplicates give little ground of their own: none is the fair estimate
    second = {name for group in found.groups for name in group[1:]}
    for job in found.jobs:
        if place := found.places.get(job.scene.id):
            grid = place.grid
            tiles = 0 if job.scene.id in second else tiles_of(request, grid)
            yield job.scene.id, Cost(tiles, grid.width_px * grid.height_px, _seconds(request, job, grid))


def _families(found: Found, costs: Mapping[str, Cost]) -> tuple[list[int], dict[str, float]]:
    """Return the pixels of known scenes, and how many scenes each of them stands for."""
    known = [job.scene for job in found.jobs if job.scene.id in costs]
    # where all were to be opened, one that could not be will be rejected
    of_all = Counter(finding.family(job.scene) for job in found.jobs) if found.is_sampled else Counter()
    opened = Counter(map(finding.family, known))
    each = {key: (of_all[key] or n) / n for key, n in opened.items()}
    return [cost.pixels for cost in costs.values()], {s.id: each[finding.family(s)] for s in known}


def _worker_bytes(request: ShardConfig, pixels: int) -> float:
    """Return the memory of a worker on a scene of so many pixels."""
    side = math.sqrt(pixels)
    strip = min(side, STRIP_PX + request.tile_px) * side * len(request.bands)
    return BASE_BYTES + STRIP_BYTES * strip + PIXEL_BYTES * pixels


def tiles_of(request: ShardConfig, grid: Grid) -> int:
    """Return how many tiles fit on a grid."""
    # the rule that cuts them: an estimate of its own would drift from it
    rule = cutting.tile_rule(request)
    return len(rule.starts(grid.height_px)) * len(rule.starts(grid.width_px))


def _seconds(request: ShardConfig, job: SceneJob, grid: Grid) -> float:
    """Return the seconds of work on a scene on one core."""
    pixels = grid.width_px * grid.height_px
    ground_m2 = pixels * grid.pixel_m[0] * grid.pixel_m[1]
    seconds = SCENE_S
    for source, band in zip(job.scene.bands, request.instrument.select(request.bands), strict=True):
        # products that hold a band in several sizes are read in the size that is needed
        own = ground_m2 / max(band.gsd_m, grid.pixel_m[0]) ** 2
        rate = DECODE.get(Path(source.path).suffix.lower(), DECODE_OTHERS)
        seconds += own / rate + pixels / WORK
    return seconds


def existing(folder: Path) -> Path:
    """Return the nearest folder above that exists."""
    folder = folder.absolute()
    # the output itself is not there yet, and its disk is its parent's
    return next(p for p in (folder, *folder.parents) if p.exists())


def size_of(output: Path) -> int:
    """Return the bytes of what an earlier run left."""
    return sum(folder_bytes(output / part) for part in (archive.FOLDER, "work", "train", "val", "test"))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; 0 where there is none."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def check_space(plan: Estimate, output: Path) -> None:
    """Raise `OutputError` with the numbers where the disk cannot hold what would be made."""
    if plan.needed_bytes * ROOM > plan.free_bytes:
        raise OutputError(
            f"{existing(output)} has {gigabytes(plan.free_bytes)} free, and this run needs about"
            f" {gigabytes(plan.needed_bytes * ROOM)}: {gigabytes(plan.archive_bytes)} for the archive and twice"
            f" {gigabytes(plan.shard_bytes)} for the samples until they are packed. Free space, take another `output`,"
            " select fewer scenes, or set `keep_zarr: false`."
        )


def gigabytes(size: float) -> str:
    """Write a number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def describe(request: ShardConfig, found: Found, plan: Estimate) -> str:
    """Say what a run would use, leave out, make and need."""
    rows = [
        [
            j.scene.id,
            j.scene.level,
            j.scene.acquired[:10],
            _cloud(j.scene.cloud_share),
            "; ".join(j.scene.notes),
        ]
        for j in found.jobs[:LISTED]
    ]
    lines = [console.table(["scene", "level", "acquired", "cloud", "notes"], rows)] if rows else []
    lines += _more(len(found.jobs), "scenes")
    lines += [f"rejected: {r.product}: {r.reason}" for r in found.rejections[:LISTED]]
    lines += _more(len(found.rejections), "rejected products")
    lines += [f"not selected: {n} {reason}" for reason, n in found.why_unselected().items()]
    lines += [f"one acquisition: {', '.join(group)}; the first leads" for group in found.groups[:LISTED]]
    lines += _more(len(found.groups), "acquisitions with several products")
    lines += ["", console.table(["estimate", ""], costs(request, plan)), _basis(request, found, plan)]
    lines.append(f"{len(found.jobs)} scenes of {request.instrument.title} would go to {request.output}.")
    return "\n".join(lines)


def _more(number: int, what: str) -> list[str]:
    return [f"and {number - LISTED} more {what}"] if number > LISTED else []


def _basis(request: ShardConfig, found: Found, plan: Estimate) -> str:
    """Say what of a plan is exact and what is estimated."""
    others = "bytes, time and memory are those that like products had"
    if not found.is_sampled:
        return f"Scenes are counted, and tiles on the grid of each; {others}."
    apart = "; no products of one acquisition were looked for" if request.duplicates == "drop" else ""
    return (
        f"Scenes are counted; tiles are estimated from the grids of {plan.opened} of {len(found.jobs)} scenes{apart};"
        f" {others}."
    )


def _cloud(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def costs(request: ShardConfig, plan: Estimate) -> list[list[str]]:
    """Return the rows of a table of what a run would make and need."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    workers = max(request.workers, 1)
    return [
        ["tiles, at most", f"{plan.tiles}"],
        ["archive", gigabytes(plan.archive_bytes) if request.keep_zarr else "not kept"],
        ["shards", gigabytes(plan.shard_bytes)],
        ["time", f"{console.clock(plan.seconds)} with {workers} worker{'s' if workers > 1 else ''}"],
        ["memory", f"{gigabytes(plan.worker_bytes)} a worker, {gigabytes(memory)} in this machine"],
        ["disk at the peak", f"{gigabytes(plan.needed_bytes)}, {gigabytes(plan.free_bytes)} free"],
    ]
