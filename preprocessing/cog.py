"""A stored scene as a cloud-optimised GeoTIFF, for GDAL and QGIS, whose releases cannot read sharded Zarr."""

from __future__ import annotations

from pathlib import Path

import rasterio
from rasterio.errors import RasterioError
from rasterio.shutil import copy

from pipeline.errors import OutputError
from pipeline.sample import NODATA, SCALE
from preprocessing.archive import StoredScene

STRIP_PX = 1024


def export(stored: StoredScene, path: Path) -> Path:
    """Write a scene's reflectance with its place, band names, scale and nodata; returns the path.

    Raises `OutputError` where it cannot be written.
    """
    plain = path.with_name(f".{path.name}.plain.tif")
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write_plain(stored, plain)
        # the driver makes overviews and the order of tiles; it copies, it does not create
        copy(plain, partial, driver="COG", compress="ZSTD", predictor="YES", overview_resampling="AVERAGE")
        partial.replace(path)
    except (RasterioError, OSError) as error:
        raise OutputError(
            f"cannot write {path} ({error}). Take another place with --cog FILE.tif."
        ) from error
    finally:
        for leftover in (plain, partial):
            leftover.unlink(missing_ok=True)
    return path


def _write_plain(stored: StoredScene, path: Path) -> None:
    header = stored.header
    grid = header.grid
    shape = {"width": grid.width_px, "height": grid.height_px, "count": len(header.bands), "dtype": "int16"}
    place = {"crs": grid.crs, "transform": grid.transform, "nodata": NODATA}
    layout = {"tiled": True, "compress": "ZSTD", "bigtiff": "IF_SAFER"}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place, **layout) as raster:
        for number, name in enumerate(header.bands, 1):
            raster.set_band_description(number, name)
            # one strip in memory at a time: a whole tile is gigabytes
            for top in range(0, grid.height_px, STRIP_PX):
                rows = slice(top, min(top + STRIP_PX, grid.height_px))
                pixels = stored.read("reflectance", number - 1, rows)
                raster.write(pixels, number, window=((rows.start, rows.stop), (0, grid.width_px)))
        raster.scales = (SCALE,) * len(header.bands)
        raster.offsets = (0.0,) * len(header.bands)
        raster.update_tags(
            acquired=header.acquired, level=header.level, licence=header.licence, sensor=header.sensor
        )
