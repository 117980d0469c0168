"""Preprocessing against its limits: the decoder, the plain form, one process, the raw bytes."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import rasterio

from pipeline import manifest
from pipeline.config import ROOT
from pipeline.indices import INDICES
from pipeline.saliency import cell_statistics
from pipeline.sample import SCALE
from preprocessing import kernel, shard, simulate
from preprocessing.kernel import Pixels
from preprocessing.simulation.raster import IMAGE_CODINGS, MASK_CODINGS, Place, write_jp2
from tests.bench.measure import Ratio, ratio, wall_s

NAMES = ("NDVI", "NDWI", "NDBI")
REAL_DATA = Path(os.environ.get("REAL_DATA", ROOT.parent / "shared/data"))


def cells(folder: Path) -> list[Ratio]:
    """Indices and cell statistics of a strip: the plain form against the compiled pass, one core."""
    rng = np.random.default_rng(0)
    roles = sorted({role for name in NAMES for role in INDICES[name].roles})
    stack = rng.integers(-200, 6000, (len(roles), 1024, 2048)).astype(np.int16)
    counted = rng.random(stack.shape[1:]) > 0.1
    places = {name: [roles.index(role) for role in INDICES[name].roles] for name in NAMES}

    def plain() -> np.ndarray:
        reflectance = stack.astype(np.float32) * np.float32(SCALE)
        values = [INDICES[name](*(reflectance[i] for i in places[name])) for name in NAMES]
        return cell_statistics(np.stack(values), counted, 8)

    def compiled() -> np.ndarray:
        return np.stack(
            [kernel.cell_statistics(INDICES[n], Pixels(stack, places[n]), counted, 8) for n in NAMES]
        )

    apart = float(np.abs(plain() - compiled()).max())
    if apart > 1e-6:
        raise AssertionError(f"the two differ by {apart}")
    return [ratio("cell statistics: plain / compiled", plain, compiled, 10)]


def run(folder: Path, *words: str) -> Callable[[], object]:
    """Return a sharding run into a folder that is empty each time."""

    def sharded() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        # progress is for people
        with redirect_stdout(io.StringIO()):
            return shard.main([*words, f"output={folder}"])

    return sharded


def decode(files: list[Path]) -> Callable[[], object]:
    """Return reading the files whole, one after the other, with GDAL alone."""

    def decoded() -> int:
        with rasterio.Env(GDAL_NUM_THREADS="1"):
            return sum(rasterio.open(path).read(1).size for path in files)

    return decoded


def archive_of(folder: Path, product: str, side_px: int) -> Path:
    """Simulate an archive of one scene, its side in 10 m pixels."""
    archive = folder / product
    if not archive.exists():
        with redirect_stdout(io.StringIO()):
            simulate.main([str(archive), "--size-px", str(side_px), "--products", product])
    return archive


def enlarged(archive: Path, folder: Path, times: int) -> Path:
    """Copy an archive with every image repeated `times` along both sides: simulating a whole tile takes an hour."""
    target = folder / f"{archive.name}-{times}"
    if target.exists():
        return target
    # sums of the small images, and class rasters, which are of no use here
    shutil.copytree(
        archive, target, ignore=shutil.ignore_patterns("manifest.safe", "*_stac.json", "*_landcover.tif")
    )
    for path in (p for p in target.rglob("*") if p.suffix.lower() in (".jp2", ".tif")):
        with rasterio.open(path) as source:
            profile, numbers = source.profile, source.read()
        large = np.tile(numbers, (1, times, times))
        if path.suffix == ".jp2":
            gsd_m = round(profile["transform"].a)
            corner = Place(str(profile["crs"]), profile["transform"].c, profile["transform"].f)
            codings = MASK_CODINGS if path.name.startswith("MSK_") else IMAGE_CODINGS
            write_jp2(path, large[0] if len(large) == 1 else large, gsd_m, codings[gsd_m], corner)
        else:
            profile.update(width=large.shape[2], height=large.shape[1])
            with rasterio.open(path, "w", **profile) as raster:
                raster.write(large)
    return target


def finest(safe: Path, gsd_m: int) -> list[Path]:
    """List the file of each band of a `.SAFE` folder that a run at a pixel size reads, and its scene classification."""
    found: dict[str, tuple[int, Path]] = {}
    for path in safe.glob("GRANULE/*/IMG_DATA/**/*.jp2"):
        match = re.search(r"_(B\w\w|SCL)_(\d+)m", path.name)
        if match and int(match[2]) >= gsd_m:
            found[match[1]] = min(found.get(match[1], (999, path)), (int(match[2]), path))
    return [path for _, path in found.values()]


def against_decoder(what: str, files: list[Path], folder: Path, goal: float, *words: str) -> list[Ratio]:
    """Compare decoding files alone with runs that keep the Zarr archive, as they do by themselves, and that do not."""
    return [
        ratio(f"{what}: decoder alone / {kind}", decode(files), run(folder, *words, *more), goal)
        for kind, more in (("whole run", ()), ("run without Zarr", ("keep_zarr=false",)))
    ]


def jp2(folder: Path) -> list[Ratio]:
    """JPEG 2000 to shards against the decoder alone, one process each: simulated, and real at 60 m."""
    archives = [(archive_of(folder, "sentinel2-l2a", 3072), "simulated", "default.yaml", 10)]
    if REAL_DATA.exists():
        archives.append((REAL_DATA / "sentinel2_safe", "real, 60 m", "sentinel2_l2a_60m.yaml", 60))
    found: list[Ratio] = []
    for archive, kind, name, gsd_m in archives:
        (safe,) = archive.rglob("*.SAFE")
        words = [str(ROOT / "configs/shard" / name), f"scenes={archive}", "workers=0", "codec=lz4"]
        words += ["split.block_m=2000", "split.buffer_m=0"]
        found += against_decoder(f"JPEG 2000, {kind}", finest(safe, gsd_m), folder / kind, 0.85, *words)
    return found


def tif(folder: Path) -> list[Ratio]:
    """Tiled deflate GeoTIFF of one resolution to shards against the decoder alone."""
    archive = enlarged(archive_of(folder, "landsat9-l2sp", 6144), folder, 3)
    files = sorted(archive.rglob("*_SR_B?.TIF")) + sorted(archive.rglob("*_QA_*.TIF"))
    words = [str(ROOT / "configs/shard/demo_landsat.yaml"), f"scenes={archive}", "workers=0", "codec=lz4"]
    return against_decoder("GeoTIFF", files, folder / "tif", 0.4, *words, "tile_px=96", "labels=null")


def processes(folder: Path) -> list[Ratio]:
    """The real OSCD scenes, three times over, with one worker process and with two: fewer scenes would time starting."""
    for city in (REAL_DATA / "oscd/images").iterdir() if not (folder / "cities").exists() else ():
        for copy in range(3):
            # a scene is called by its city
            shutil.copytree(city, folder / "cities/images" / f"{city.name}{copy}")
    words = [str(ROOT / "configs/shard/oscd.yaml"), f"scenes={folder / 'cities'}", "duplicates=keep"]
    one, two = (run(folder / f"workers-{n}", *words, f"workers={n}") for n in (1, 2))
    return [ratio("OSCD, three times: one process / two", one, two, 1.7, wall_s)]


def bytes_stored(folder: Path) -> list[Ratio]:
    """Shards with zstd against the tiles' raw int16, on real 10 to 60 m data."""
    words = [str(ROOT / "configs/shard/oscd.yaml"), f"scenes={REAL_DATA / 'oscd'}", "workers=2", "codec=zstd"]
    run(folder / "zstd", *words)()
    found = manifest.read(folder / "zstd")
    shards = [one for split in found.splits.values() for one in split]
    side, bands = found.contract.tile_px, len(found.contract.bands)
    raw = sum(one.samples for one in shards) * bands * side * side * 2
    return [
        Ratio("OSCD, zstd: shard bytes / raw", (sum(o.size_bytes for o in shards) / raw,), 0.62, least=False)
    ]


def memory(folder: Path) -> list[Ratio]:
    """A whole Sentinel-2 tile, 10 980 px and 13 bands in JPEG 2000, through one process: its peak memory."""
    archive = enlarged(archive_of(folder, "sentinel2-l1c", 1098), folder, 10)
    words = [
        str(ROOT / "configs/shard/default.yaml"),
        f"scenes={archive}",
        f"output={folder / 'tile'}",
        "workers=0",
    ]
    words += ["bands=[B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B10,B11,B12]", "gsd_m=10"]
    code = (
        "import resource, sys; from preprocessing import shard; shard.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, check=True, capture_output=True, text=True
    )
    peak = int(ended.stdout.split()[-1]) / 2**20
    return [Ratio("whole tile: GiB of a worker", (peak,), 2.0, least=False)]


BENCHES = {
    "cells": cells,
    "jp2": jp2,
    "tif": tif,
    "processes": processes,
    "bytes": bytes_stored,
    "memory": memory,
}
NEED_REAL_DATA = ("processes", "bytes")
